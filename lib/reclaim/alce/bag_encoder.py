"""The dense retriever of embedded runs: mean word vectors, trained by contrasting passages, as an encoder of transformers.

It stands in for GTR and DPR in the runs of Gao et al. 2023 (ALCE). Questions and passages share one table of vectors; the
mean is what `reclaim.encoders.TextEncoder` pools. Trained by InfoNCE (van den Oord et al. 2018) on questions and passages of
things of its own, with another passage about the same name as a hard negative: so it learns that the synonyms of an
attribute belong together, which words alone do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from reclaim.scoring import pad_right
from reclaim.seeding import derive
from reclaim.train import Recipe, train
from reclaim.world.lexicon import FACT_ATTRIBUTES, FACT_NAMES, FACT_TYPES, FACT_VALUES
from reclaim.world.passages import PASSAGE_FACTS, Passage

# A word that begins a text gets the token that it has elsewhere.
PREFIX = " "


class BagEncoderConfig(PreTrainedConfig):
    """`hidden_size`: width of the vectors."""

    model_type = "reclaim_bag_encoder"

    def __init__(self, vocab_size: int = 1, hidden_size: int = 16, **options):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**options)


class BagEncoder(PreTrainedModel):
    """A table of vectors; the last hidden state of a token is its vector."""

    config_class = BagEncoderConfig
    base_model_prefix = "bag"

    def __init__(self, config: BagEncoderConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_options
    ) -> BaseModelOutput:
        """`last_hidden_state` (rows, tokens, width)."""
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))


AutoConfig.register(BagEncoderConfig.model_type, BagEncoderConfig)
AutoModel.register(BagEncoderConfig, BagEncoder)


def build_bag_encoder(tokenizer, seed: int, hidden_size: int) -> BagEncoder:
    """Draw an encoder as a function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        return BagEncoder(BagEncoderConfig(vocab_size=len(tokenizer), hidden_size=hidden_size)).eval()


def draw_triples(
    rng: np.random.Generator, count: int, num_names: int, num_types: int, task: str
) -> tuple[list[str], list[str], list[str]]:
    """Questions, for each a passage that answers it, and one about the same name (eli5: another thing) that does not."""
    questions, passages, negatives = [], [], []
    for _ in range(count):
        name, kind = FACT_NAMES[rng.integers(num_names)], FACT_TYPES[rng.integers(num_types)]
        order = rng.permutation(len(FACT_ATTRIBUTES))
        passages.append(_passage(rng, name, kind, order[:PASSAGE_FACTS]))
        if task == "eli5":
            other = FACT_TYPES[rng.integers(num_types)]
            questions.append(f"What is there to know about {name} ({kind})?")
            negatives.append(
                _passage(rng, FACT_NAMES[rng.integers(num_names)], other, order[PASSAGE_FACTS:][:PASSAGE_FACTS])
            )
            continue
        word = _synonym(rng, order[rng.integers(PASSAGE_FACTS)])
        form = "What is the {} of {}?" if task == "asqa" else "What is each {} of {}?"
        questions.append(form.format(word, name))
        other = FACT_TYPES[rng.integers(num_types)]
        negatives.append(_passage(rng, name, other, order[PASSAGE_FACTS:][:PASSAGE_FACTS]))
    return questions, passages, negatives


def _synonym(rng: np.random.Generator, attribute: int) -> str:
    names = FACT_ATTRIBUTES[attribute]
    return names[rng.integers(len(names))]


def _passage(rng: np.random.Generator, name: str, kind: str, attributes: np.ndarray) -> str:
    facts = [(int(number), _synonym(rng, number), FACT_VALUES[rng.integers(len(FACT_VALUES))]) for number in attributes]
    passage = Passage(name, kind, tuple(facts))
    return f"{passage.title}\n{passage.text}"


def train_bag_encoder(
    model: BagEncoder,
    tokenizer,
    task: str,
    spec: Mapping[str, Any],
    seed: int,
    state_path: str | Path,
    *,
    num_names: int,
    num_types: int,
    **options: Any,
):
    """Train in place by `spec`: `recipe`, `pairs` a step, `temperature` of the softmax."""
    recipe = Recipe.from_config(dict(spec["recipe"]), "encoder.recipe")

    def batches(step: int):
        rng = np.random.default_rng(derive(seed, "triples", step))
        texts = [
            PREFIX + text for group in draw_triples(rng, spec["pairs"], num_names, num_types, task) for text in group
        ]
        return [pad_right(tokenizer(texts)["input_ids"], tokenizer.pad_token_id, model.device)]

    def loss(batch) -> tuple[torch.Tensor, int]:
        input_ids, mask = batch
        hidden = model(input_ids=input_ids).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        vectors = F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
        questions, passages = vectors[: spec["pairs"]], vectors[spec["pairs"] :]
        scores = questions @ passages.T / spec["temperature"]
        return F.cross_entropy(scores, torch.arange(spec["pairs"], device=scores.device), reduction="sum"), spec[
            "pairs"
        ]

    return train(model, batches, loss, recipe, seed=seed, state_path=state_path, **options)
