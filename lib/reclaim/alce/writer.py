"""Writing answers of the world token by token: the form of sentences, lists and interactive lines, under `generate`.

For the embedded runs of Gao et al. 2023 (ALCE). A writer knows the form of an answer (`The hue of Bala (lake) is bado [2].`)
and decides its content: whether there is one more fact, which, and which documents it cites. Each decision is one token of
the vocabulary with the probability that the model's decision gives it, all others between them are fixed, so that sampling,
temperature and everything else in `generate` act on decisions. `reclaim.alce.pointer` and `closed_book` are the two writers.

The first pass reads the prompt (`reclaim.alce.language.read_prompt`); what was read, and the state of the sentence, ride on the
cache that `generate` hands from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from reclaim.alce.language import Language, Reading, language_of, read_prompt

# What a row writes next. Fixed pieces stand between decisions.
START, WORD, OF, NAME, OPEN, TYPE, CLOSE, IS, VALUE, CITE, NUMBER, CITED, REFUSAL, ACTION, COLON, DOCUMENT, ASK, END = (
    range(18)
)
NOTHING = -1e4
"""The logit of a token that cannot follow."""


class WriterConfig(PreTrainedConfig):
    """`language`: the tokens (see `Language`); `hidden_size`: width of the word vectors; `cites`: answers cite documents;
    `cite_threshold`: a further document is cited where its probability exceeds this."""

    def __init__(
        self,
        vocab_size: int = 0,
        hidden_size: int = 48,
        language: dict[str, Any] | None = None,
        cites: bool = True,
        cite_threshold: float = 0.2,
        num_things: int = 3,
        **options,
    ):
        self.vocab_size, self.hidden_size, self.language = vocab_size, hidden_size, language or {}
        self.cites, self.cite_threshold, self.num_things = cites, cite_threshold, num_things
        # `generate` asks for them when it makes its cache, which holds no keys and values here.
        self.num_hidden_layers, self.num_attention_heads = 1, 1
        super().__init__(**options)


@dataclass
class Page:
    """A batch of prompts as tensors, and what is being written.

    asked (rows, 3): attribute, name and type of the questions; facts (rows, facts, 4) and places (rows, facts): facts of the
    documents and their documents' numbers, 0 where there is none; used (rows, facts): those written already; lists, once
    (rows): comma lists; one sentence only; ask (rows): 0 answer, 1 check, 2 search; stage (rows); current (rows, 4): words of
    the sentence so far; count (rows): sentences written; cited (rows, documents + 1): documents cited in this sentence;
    said (rows): tokens of the refusal written; begun (rows): an interactive mode has put out a line.
    """

    asked: torch.Tensor
    facts: torch.Tensor
    places: torch.Tensor
    used: torch.Tensor
    lists: torch.Tensor
    once: torch.Tensor
    ask: torch.Tensor
    stage: torch.Tensor
    current: torch.Tensor
    count: torch.Tensor
    cited: torch.Tensor
    said: torch.Tensor
    begun: torch.Tensor

    def rows(self, chosen: torch.Tensor) -> Page:
        """The page of some rows."""
        return Page(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


class FactWriter(PreTrainedModel, GenerationMixin):
    """The base of the writers: reads prompts, keeps the form; `decide_*` of a writer make its decisions.

    Each gives log-probabilities: `decide_stop(page)` (rows, 2): go on, stop; `decide_word`, `decide_type`, `decide_value`
    (rows, words); `decide_number` (rows, documents + 1), column n being document n.
    """

    config_class: type = WriterConfig
    base_model_prefix = "writer"

    def __init__(self, config: WriterConfig):
        super().__init__(config)
        self.language: Language = language_of(config.language)
        language = self.language
        tables = {"words": language.words, "spaced": language.spaced, "plain": language.plain}
        for name, values in {**tables, "digits": language.digits, "numbers": language.numbers}.items():
            self.register_buffer(f"table_{name}", torch.tensor(values))

    def get_output_embeddings(self):
        return None

    # ------------------------------------------------------------------------------------------------------------ forward

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        **_options,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, (rows, 1, vocabulary).

        Without a cache the whole text is read anew; an answer that has begun must then end the text.
        """
        cache = DynamicCache() if past_key_values is None else past_key_values
        page = getattr(cache, "page", None)
        if page is None:
            page = self.read(input_ids, attention_mask)
        else:
            for token in input_ids.T:
                self._advance(page, token)
        cache.page = page
        return CausalLMOutputWithPast(logits=self._logits(page)[:, None], past_key_values=cache)

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Page:
        """Read prompts into a page."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        texts = [tuple(row[kept.bool()].tolist()) for row, kept in zip(input_ids, mask, strict=True)]
        known = {text: read_prompt(text, self.language) for text in dict.fromkeys(texts)}
        return make_page([known[text] for text in texts], len(self.language.digits), input_ids.device)

    def _advance(self, page: Page, tokens: torch.Tensor) -> None:
        """Take in the token that each row has just written."""
        pieces, stage = self.language.pieces, page.stage
        words, numbers = self.table_words[tokens], self.table_numbers[tokens]
        after = torch.full_like(stage, END)
        the_end = stage == END

        def at(which: int, condition: torch.Tensor | bool = True) -> torch.Tensor:
            return (stage == which) & condition

        refused = (page.count == 0) & (tokens == self.language.refusal[1])
        after[at(START, tokens == pieces["the"])] = WORD
        for field, (which, following) in enumerate(((WORD, OF), (NAME, OPEN), (TYPE, CLOSE), (VALUE, CITE))):
            chosen = at(which) & (words > 0)
            page.current[chosen, field] = words[chosen]
            after[chosen] = following
        listed = at(START) & (words > 0)
        page.current[listed, 3] = words[listed]
        after[listed] = CITE
        after[at(WORD, refused)] = REFUSAL
        page.said[at(WORD, refused)] = 2
        for which, following in ((OF, NAME), (OPEN, TYPE), (CLOSE, IS), (IS, VALUE)):
            after[at(which)] = following
        going = at(REFUSAL) & (page.said + 1 < len(self.language.refusal))
        page.said[at(REFUSAL)] += 1
        after[going] = REFUSAL
        if self.config.cites:
            after[at(CITE)] = NUMBER
        named = at(NUMBER) & (numbers > 0)
        page.cited[named.nonzero()[:, 0], numbers[named]] = True
        after[named] = torch.where(page.ask[named] == 1, ASK + 0 * page.ask[named], CITED + 0 * page.ask[named])
        after[at(CITED, tokens == pieces["and_cite"])] = NUMBER
        closing = at(CITED, tokens != pieces["and_cite"]) if self.config.cites else at(CITE)
        ended = (tokens == pieces["cited"]) | (tokens == pieces["stop"])
        self._close(page, closing)
        after[closing] = torch.where((page.lists & ended)[closing] | page.once[closing], END, START)
        # Interactive lines: `Check: Document [1]`, `Search: hue of Bala`, `End`.
        after[at(ACTION, (tokens == pieces["check"]) | (tokens == pieces["search"]))] = COLON
        after[at(COLON, page.ask == 1)] = DOCUMENT
        after[at(DOCUMENT)] = CITE
        after[at(COLON, page.ask == 2)] = WORD
        page.stage = torch.where(the_end, END, after)

    def _close(self, page: Page, rows: torch.Tensor) -> None:
        """A sentence ends: its fact is used."""
        same = (page.facts[..., 3] == page.current[:, None, 3]) & (
            (page.current[:, None, 2] == 0) | (page.facts[..., 2] == page.current[:, None, 2])
        )
        page.used[rows] |= same[rows]
        page.count[rows] += 1
        page.current[rows] = 0
        page.cited[rows] = False

    # ------------------------------------------------------------------------------------------------------------- logits

    def _logits(self, page: Page) -> torch.Tensor:
        logits = torch.full((len(page.stage), self.config.vocab_size), NOTHING, device=page.stage.device)
        for stage in page.stage.unique().tolist():
            chosen = (page.stage == stage).nonzero()[:, 0]
            logits[chosen] = self._stage_logits(stage, page.rows(chosen))
        return logits

    def _stage_logits(self, stage: int, page: Page) -> torch.Tensor:
        rows, pieces = len(page.stage), self.language.pieces
        logits = torch.full((rows, self.config.vocab_size), NOTHING, device=page.stage.device)
        every = torch.arange(rows, device=page.stage.device)

        def fixed(tokens) -> torch.Tensor:
            logits[every, tokens] = 0.0
            return logits

        def content(table: torch.Tensor, scores: torch.Tensor, skip: int = 1) -> torch.Tensor:
            logits[:, table[skip:]] = scores[:, skip:]
            return logits

        eos = self.config.eos_token_id
        if stage == START:
            stop = self.decide_stop(page)
            content(self.table_spaced, stop[:, :1] + self.decide_value(page)) if page.lists.any() else None
            logits[~page.lists] = NOTHING
            logits[every, pieces["the"]] = torch.where(
                page.lists, NOTHING, torch.where(page.count == 0, 0.0, stop[:, 0])
            )
            logits[every, eos] = torch.where((page.count == 0) & ~page.lists, NOTHING, stop[:, 1])
            return logits
        if stage == WORD:
            scores = self._copied(page.asked[:, 0], self.decide_word(page))
            stop = self.decide_stop(page)
            opening = (page.count == 0) & (page.ask == 0)
            content(self.table_spaced, scores + torch.where(opening, stop[:, 0], 0.0)[:, None])
            logits[every, self.language.refusal[1]] = torch.where(opening, stop[:, 1], NOTHING)
            return logits
        if stage == NAME:
            return fixed(self.table_spaced[page.asked[:, 1]])
        if stage == OPEN:
            return fixed(torch.where(page.ask == 2, eos, pieces["open"]))
        if stage == TYPE:
            return content(self.table_plain, self._copied(page.asked[:, 2], self.decide_type(page)))
        if stage == VALUE:
            return content(self.table_spaced, self.decide_value(page))
        if stage == CITE:
            if self.config.cites:
                return fixed(pieces["cite"])
            return self._closing(page, logits, every, pieces["stop"], pieces["comma"])
        if stage == NUMBER:
            return content(self.table_digits, self.decide_number(page).masked_fill(page.cited, NOTHING))
        if stage == CITED:
            more = self.decide_number(page).masked_fill(page.cited, NOTHING)
            again = more.max(dim=1).values > torch.tensor(self.config.cite_threshold).log()
            self._closing(page, logits, every, pieces["cited"], pieces["cited_comma"])
            logits[again] = NOTHING
            logits[again, pieces["and_cite"]] = 0.0
            return logits
        if stage == REFUSAL:
            return fixed(torch.tensor(self.language.refusal, device=logits.device)[page.said])
        if stage == ACTION:
            stop = self.decide_stop(page)
            unread = (page.ask == 2) & ~page.begun
            name = torch.where(page.ask == 2, pieces["search"], pieces["check"])
            logits[every, name] = torch.where(unread, 0.0, stop[:, 0])
            logits[every, pieces["end"]] = torch.where(unread, NOTHING, stop[:, 1])
            return logits
        simple = {OF: "of", CLOSE: "close", IS: "is", COLON: "colon", DOCUMENT: "a_document", ASK: "bracket"}
        return fixed(pieces[simple[stage]] if stage in simple else eos)

    def _copied(self, asked: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The word of the question where it has one (rows), else what was decided (rows, words)."""
        copied = torch.full_like(scores, NOTHING).scatter(1, asked[:, None], 0.0)
        return torch.where((asked > 0)[:, None], copied, scores)

    def _closing(self, page: Page, logits: torch.Tensor, every: torch.Tensor, stop: int, comma: int) -> torch.Tensor:
        """A full stop behind a sentence; behind an entry of a list a comma, or, where the list ends, a full stop."""
        logits[every, stop] = 0.0
        if page.lists.any():
            after = page.rows(page.lists.nonzero()[:, 0])
            self._close(after, torch.ones_like(after.lists))
            decided = self.decide_stop(after)
            logits[page.lists, stop] = torch.where(page.once[page.lists], NOTHING, decided[:, 1])
            logits[page.lists, comma] = torch.where(page.once[page.lists], 0.0, decided[:, 0])
        return logits


def make_page(readings: list[Reading], documents: int, device: torch.device | str) -> Page:
    """Readings as tensors; `documents`: numbers that a document may have, 0 included."""
    most = max(1, *(len(reading.facts) for reading in readings))
    rows = len(readings)
    facts, places = torch.zeros(rows, most, 4, dtype=torch.long), torch.zeros(rows, most, dtype=torch.long)
    used = torch.zeros(rows, most, dtype=torch.bool)
    for row, reading in enumerate(readings):
        size = len(reading.facts)
        if size:
            facts[row, :size] = torch.tensor(reading.facts)
            places[row, :size] = torch.tensor(reading.places)
        written = {(fact[2], fact[3]) for fact in reading.written}
        values = {fact[3] for fact in reading.written}
        for slot, fact in enumerate(reading.facts):
            used[row, slot] = fact[3] in values if reading.lists else (fact[2], fact[3]) in written
    modes = [reading.mode for reading in readings]
    ask = torch.tensor([{"check": 1, "search": 2}.get(mode, 0) for mode in modes])
    page = Page(
        asked=torch.tensor([reading.asked for reading in readings]),
        facts=facts,
        places=places,
        used=used,
        lists=torch.tensor([reading.lists for reading in readings]),
        once=torch.tensor([mode == "output" for mode in modes]),
        ask=ask,
        stage=torch.where(ask > 0, ACTION, START),
        current=torch.zeros(rows, 4, dtype=torch.long),
        count=torch.tensor([len(reading.written) for reading in readings]),
        cited=torch.zeros(rows, documents, dtype=torch.bool),
        said=torch.zeros(rows, dtype=torch.long),
        begun=torch.tensor([reading.begun for reading in readings]),
    )
    return Page(*(getattr(page, name).to(device) for name in Page.__dataclass_fields__))
