"""The pointer model: a small generator that answers by pointing at facts of the documents in its prompt.

For the embedded runs of Gao et al. 2023 (ALCE): three learned pointers, to the fact that is written next, to its type, and to
the document that is cited, as in the protocol's prototype, here behind the interface of a causal language model: it reads the
documents from `input_ids`, and its decisions are copy logits over the vocabulary (`reclaim.alce.writer`), so that it is saved,
loaded and run under `generate` like any other model. The form of an answer is built in; learned is which words ask for which
facts (synonyms of attributes among them), when to stop, and what to cite.

A fact's score is the sum over the words that are known (of the question, and of the sentence so far) of the bilinear product of
the word and the fact's word in its place. The first decision, go on or stop, is the share of the facts not yet written against
a learned score for stopping.
"""

from __future__ import annotations

import reclaim.torchvision_shim  # noqa: F401
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from reclaim.alce.language import Language, config_of, make_language
from reclaim.alce.writer import NOTHING, FactWriter, Page, WriterConfig
from reclaim.seeding import derive


class PointerConfig(WriterConfig):
    """See `WriterConfig`."""

    model_type = "reclaim_pointer"

    def __init__(self, **options):
        super().__init__(**options)


class PointerForCausalLM(FactWriter):
    """The writer that points at facts."""

    config_class = PointerConfig

    def __init__(self, config: PointerConfig):
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(self.language.num_words, width)
        self.matches = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(4)])
        self.stop = nn.Parameter(torch.zeros(()))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Equal words match from the start, and different ones hardly.
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.hidden_size**-0.25)
        elif isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def fact_scores(self, known: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """Scores (rows, facts) of facts (rows, facts, 4) under the known words (rows, 4; 0 where there is none)."""
        total = torch.zeros(facts.shape[:2], device=facts.device)
        for field, match in enumerate(self.matches):
            word = match(self.embedding(known[:, field]))
            found = torch.einsum("rd,rfd->rf", word, self.embedding(facts[..., field]))
            total = total + found * (known[:, field] > 0)[:, None]
        return total.masked_fill(facts[..., 3] == 0, NOTHING)

    def next_facts(self, asked: torch.Tensor, facts: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (rows, facts + 1) of writing each fact next, and in the last column of stopping."""
        known = torch.cat([asked, torch.zeros_like(asked[:, :1])], dim=1)
        scores = self.fact_scores(known, facts).masked_fill(used, NOTHING)
        return torch.cat([scores, self.stop.expand(len(asked), 1)], dim=1).log_softmax(dim=1)

    def word_scores(self, known: torch.Tensor, facts: torch.Tensor, used: torch.Tensor, field: int) -> torch.Tensor:
        """Log-probabilities (rows, words) of the word of a field, by the facts that have it."""
        shares = self.fact_scores(known, facts).masked_fill(used, NOTHING).softmax(dim=1)
        spread = torch.zeros(len(facts), self.language.num_words, device=facts.device)
        return spread.scatter_add(1, facts[..., field], shares).clamp(min=1e-9).log()

    def document_scores(
        self, known: torch.Tensor, facts: torch.Tensor, places: torch.Tensor, most: int
    ) -> torch.Tensor:
        """Log-probabilities (rows, documents + 1) of citing a document, by the facts in it."""
        shares = self.fact_scores(known, facts).softmax(dim=1)
        return torch.zeros(len(facts), most, device=facts.device).scatter_add(1, places, shares).clamp(min=1e-9).log()

    # What the writer asks for. Words of the question count as known from the start.

    def decide_stop(self, page: Page) -> torch.Tensor:
        stop = self.next_facts(page.asked, page.facts, page.used)[:, -1]
        return torch.stack([torch.log1p(-stop.exp().clamp(max=1 - 1e-6)), stop], dim=1)

    def decide_word(self, page: Page) -> torch.Tensor:
        return self.word_scores(known_words(page), page.facts, page.used, 0)

    def decide_type(self, page: Page) -> torch.Tensor:
        return self.word_scores(known_words(page), page.facts, page.used, 2)

    def decide_value(self, page: Page) -> torch.Tensor:
        return self.word_scores(known_words(page), page.facts, page.used, 3)

    def decide_number(self, page: Page) -> torch.Tensor:
        return self.document_scores(known_words(page), page.facts, page.places, len(self.language.digits))


def known_words(page: Page) -> torch.Tensor:
    """Words of the sentence so far, and of the question where the sentence has none yet: (rows, 4)."""
    asked = torch.cat([page.asked, torch.zeros_like(page.asked[:, :1])], dim=1)
    return torch.where(page.current > 0, page.current, asked)


AutoConfig.register(PointerConfig.model_type, PointerConfig)
AutoModelForCausalLM.register(PointerConfig, PointerForCausalLM)


def build_pointer(tokenizer, seed: int, language: Language | None = None, **sizes) -> PointerForCausalLM:
    """Draw a pointer model for a tokenizer of the world as a function of `seed`; `sizes` go to `PointerConfig`."""
    return build_writer(PointerForCausalLM, tokenizer, seed, language, **sizes)


def build_writer(kind: type[FactWriter], tokenizer, seed: int, language: Language | None = None, **sizes) -> FactWriter:
    """Draw a writer of a kind."""
    values = config_of(language or make_language(tokenizer))
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos")}
    config = kind.config_class(vocab_size=len(tokenizer), language=values, **special, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        return kind(config).eval()
