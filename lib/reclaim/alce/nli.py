"""The small entailment model that judges citations in embedded runs, and its training on pairs of a world.

It stands in for the T5-11B NLI model of ALCE (Gao et al. 2023). Architecture: decomposable attention (Parikh et al. 2016),
one direction: each word of the hypothesis attends to the words of a premise sentence, a small network compares it with what
it found, and the sum over words decides. A premise of several sentences entails what its best sentence entails (as SummaC-ZS,
Laban et al. 2022); a sentence of a passage is read behind the passage's title. So a hypothesis whose facts lie in two
sentences is never entailed: a known limit, which the report shows as disagreement with the exact judge.

Nothing is built in about names or attributes; because equal words have equal vectors from the start, attention finds them,
and training has to find which words must match, and which words mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from reclaim.batches import epoch_batches
from reclaim.errors import InputError
from reclaim.metrics.citations import Pair
from reclaim.seeding import derive
from reclaim.tokenization import model_vocab_size, train_tokenizer
from reclaim.train import History, Recipe, train

_WORDS = re.compile(r"\w+|[^\w\s]")
_TITLE = re.compile(r"Title: (.*)")


class EntailmentConfig(PreTrainedConfig):
    """`hidden_size`: width of the word vectors and of the comparison."""

    model_type = "reclaim_entailment"

    def __init__(self, vocab_size: int = 512, hidden_size: int = 48, embedding_std: float = 1.0, **options):
        self.vocab_size, self.hidden_size, self.embedding_std = vocab_size, hidden_size, embedding_std
        super().__init__(**options)


class EntailmentModel(PreTrainedModel):
    """Word vectors, attention of the hypothesis to each premise sentence, comparison, sum, best sentence."""

    config_class = EntailmentConfig
    base_model_prefix = "entailment"
    main_input_name = "hypothesis_ids"

    def __init__(self, config: EntailmentConfig):
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.compare = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))
        self.bias = nn.Parameter(torch.zeros(()))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.embedding_std)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def forward(
        self,
        premise_ids: torch.Tensor,
        hypothesis_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        **_options,
    ) -> SequenceClassifierOutput:
        """Logits of entailment (rows,). `premise_ids` (rows, sentences, words) and `hypothesis_ids` (rows, words).

        Padding is -1. A row without a premise word has the logit of certain non-entailment. With `labels` (rows, 0 or 1)
        the mean binary cross-entropy is the loss.
        """
        premise, hypothesis = (self.embedding(ids.clamp(min=0)) for ids in (premise_ids, hypothesis_ids))
        scale = self.config.hidden_size**-0.5
        scores = torch.einsum("rhd,rswd->rshw", hypothesis, premise) * scale
        scores = scores.masked_fill((premise_ids < 0)[:, :, None], -1e4)
        found = torch.einsum("rshw,rswd->rshd", scores.softmax(dim=-1), premise)
        word = hypothesis[:, None].expand_as(found)
        compared = self.compare(torch.cat([word, word * found, (word - found).abs()], dim=-1)).squeeze(-1)
        compared = compared.masked_fill((hypothesis_ids < 0)[:, None], 0.0)
        logits = self.bias + compared.sum(dim=-1)
        logits = logits.masked_fill((premise_ids < 0).all(dim=-1), -1e4).max(dim=1).values
        loss = None if labels is None else F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(EntailmentConfig.model_type, EntailmentConfig)


def words_of(text: str) -> list[str]:
    """Words and punctuation marks of a text, in lower case."""
    return _WORDS.findall(text.lower())


def premise_sentences(premise: str) -> list[str]:
    """Sentences of a premise, each of a passage behind the title that the passage opens with (`Title: ...` on a line)."""
    sentences, title = [], ""
    for line in premise.split("\n"):
        found = _TITLE.fullmatch(line)
        if found:
            title = found[1]
        else:
            sentences += [f"{title} {part}".strip() for part in re.split(r"(?<=[.!?])\s+", line) if part.strip()]
    return sentences


class EntailmentJudge:
    """A trained `EntailmentModel` as a judge (`reclaim.alce.judge.Judge`)."""

    def __init__(self, model: EntailmentModel, tokenizer, name: str):
        self.model, self.encoder, self.name = model.eval(), PairEncoder(tokenizer), name

    def probabilities(self, pairs: Sequence[Pair]) -> list[float]:
        inputs = {name: ids.to(self.model.device) for name, ids in self.encoder(pairs).items()}
        with torch.inference_mode():
            return self.model(**inputs).logits.float().sigmoid().tolist()


class PairEncoder:
    """Pairs to the model's inputs, with a tokenizer that has one token a word; words that it lacks are `<unk>`."""

    def __init__(self, tokenizer):
        vocabulary = tokenizer.get_vocab()
        rows = model_vocab_size(tokenizer)
        self.unknown = tokenizer.unk_token_id
        self.ids = {token[1:]: number for token, number in vocabulary.items() if token[0] == "Ġ" and number < rows}

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """`premise_ids` (rows, sentences, words) and `hypothesis_ids` (rows, words), padded with -1."""
        premises = [[self._encode(text) for text in premise_sentences(premise)] for premise, _ in pairs]
        hypotheses = [self._encode(hypothesis) for _, hypothesis in pairs]
        sentences = max(1, *map(len, premises))
        longest = max([1, *(len(words) for premise in premises for words in premise)])
        premise_ids = torch.full((len(pairs), sentences, longest), -1)
        hypothesis_ids = torch.full((len(pairs), max(1, *map(len, hypotheses))), -1)
        for row, (premise, hypothesis) in enumerate(zip(premises, hypotheses, strict=True)):
            hypothesis_ids[row, : len(hypothesis)] = torch.tensor(hypothesis, dtype=torch.long)
            for place, words in enumerate(premise):
                premise_ids[row, place, : len(words)] = torch.tensor(words, dtype=torch.long)
        return {"premise_ids": premise_ids, "hypothesis_ids": hypothesis_ids}

    def _encode(self, text: str) -> list[int]:
        return [self.ids.get(word, self.unknown) for word in words_of(text)]


def build_entailment(words: Iterable[str], seed: int, **sizes) -> tuple[EntailmentModel, Any]:
    """Draw a model, and make its tokenizer, for a language of these words, as a function of `seed`."""
    tokenizer = train_tokenizer("roberta", [" ".join(words_of(" ".join(words)))])
    config = EntailmentConfig(vocab_size=model_vocab_size(tokenizer), **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        return EntailmentModel(config).eval(), tokenizer


def train_entailment(
    model: EntailmentModel,
    tokenizer,
    pairs: Sequence[Pair],
    labels: Sequence[bool],
    recipe: Recipe,
    *,
    seed: int,
    state_path: str | Path | None = None,
    run: str = "",
    progress: Callable[[range], Any] = iter,
) -> History:
    """Train a model in place on labelled pairs; raises InputError unless both labels occur."""
    if len(pairs) != len(labels) or len(set(map(bool, labels))) < 2:
        raise InputError("labels", f"{len(labels)} for {len(pairs)} pairs", "one for each pair, and both kinds")
    encoder, targets = PairEncoder(tokenizer), torch.tensor([float(label) for label in labels])
    order = epoch_batches(len(pairs), recipe.per_device_train_batch_size, derive(seed, "judge"))
    device = next(model.parameters()).device

    def batches(step: int) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        _, rows = order(step)
        return [(encoder([pairs[row] for row in rows]), targets[rows])]

    def loss_function(batch: tuple[dict[str, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, int]:
        inputs, wanted = batch
        found = model(**{name: ids.to(device) for name, ids in inputs.items()}, labels=wanted.to(device))
        return found.loss * len(wanted), len(wanted)

    options: dict[str, Any] = {"state_path": state_path, "run": run, "progress": progress}
    return train(model, batches, loss_function, recipe, seed=seed, **options)
