"""The closed-book model: a small generator that has the facts of a world in its weights, and no documents in its prompt.

For the embedded runs of Gao et al. 2023 (ALCE), CLOSEDBOOK: a network of one hidden layer from the question's words and the
number of the sentence to a type and a value, behind the same form of answers as the pointer (`reclaim.alce.writer`). It writes
one sentence a type, without citations.
"""

from __future__ import annotations

import reclaim.torchvision_shim  # noqa: F401
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from reclaim.alce.language import Language
from reclaim.alce.pointer import build_writer
from reclaim.alce.writer import NOTHING, FactWriter, Page, WriterConfig
from reclaim.world.lexicon import FACT_ATTRIBUTES

ATTRIBUTES = len(FACT_ATTRIBUTES)
SYNONYMS = len(FACT_ATTRIBUTES[0])


class ClosedBookConfig(WriterConfig):
    """See `WriterConfig`; `num_things`: how many things share a name."""

    model_type = "reclaim_closed_book"

    def __init__(self, **options):
        super().__init__(**options)


class ClosedBookForCausalLM(FactWriter):
    """The writer that remembers."""

    config_class = ClosedBookConfig

    def __init__(self, config: ClosedBookConfig):
        super().__init__(config)
        width, words = config.hidden_size, self.language.num_words
        self.embedding = nn.Embedding(words, width)
        self.place = nn.Embedding(config.num_things, width)
        self.hidden = nn.Linear(3 * width, 4 * width)
        self.type_head = nn.Linear(4 * width, words)
        self.value_head = nn.Linear(4 * width, words)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def facts(self, word: torch.Tensor, name: torch.Tensor, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of type and value, (rows, words) each, of the fact that stands in a place (rows) of the answer."""
        read = torch.cat([self.embedding(word), self.embedding(name), self.place(place)], dim=1)
        hidden = self.hidden(read).relu()
        return self.type_head(hidden), self.value_head(hidden)

    def _fact(self, page: Page) -> tuple[torch.Tensor, torch.Tensor]:
        listing = page.asked[:, 0] == 0
        # Without an attribute in the question, one sentence for each attribute.
        word = torch.where(listing, 1 + SYNONYMS * page.count.clamp(max=ATTRIBUTES - 1), page.asked[:, 0])
        place = page.count.clamp(max=self.config.num_things - 1)
        place = torch.where(page.asked[:, 2] > 0, (page.asked[:, 2] - self._first_type()).clamp(min=0), place)
        kinds, values = self.facts(word, page.asked[:, 1], place.clamp(max=self.config.num_things - 1))
        return kinds.log_softmax(dim=1), values.log_softmax(dim=1)

    def _first_type(self) -> int:
        classes = torch.tensor(self.language.classes, device=self.table_words.device)
        return int(self.table_words[classes == 3].min())

    def decide_stop(self, page: Page) -> torch.Tensor:
        wanted = torch.where(page.asked[:, 0] == 0, ATTRIBUTES, self.config.num_things)
        stop = torch.where(page.count >= wanted, 0.0, NOTHING)
        return torch.stack([torch.where(page.count >= wanted, NOTHING, 0.0), stop], dim=1)

    def decide_word(self, page: Page) -> torch.Tensor:
        scores = torch.full((len(page.stage), self.language.num_words), NOTHING, device=page.stage.device)
        return scores.scatter(1, 1 + SYNONYMS * page.count.clamp(max=ATTRIBUTES - 1)[:, None], 0.0)

    def decide_type(self, page: Page) -> torch.Tensor:
        return self._fact(page)[0]

    def decide_value(self, page: Page) -> torch.Tensor:
        return self._fact(page)[1]


AutoConfig.register(ClosedBookConfig.model_type, ClosedBookConfig)
AutoModelForCausalLM.register(ClosedBookConfig, ClosedBookForCausalLM)


def build_closed_book(tokenizer, seed: int, language: Language | None = None, **sizes) -> ClosedBookForCausalLM:
    """Draw a closed-book model as a function of `seed`."""
    return build_writer(ClosedBookForCausalLM, tokenizer, seed, language, cites=False, **sizes)
