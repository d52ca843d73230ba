"""The small extractive reader of the embedded runs: word classes, exact matches, dilated convolutions, a question's gates.

In the place of the readers of EvalConvQA (Li et al. 2022). A passage word has the embedding of its class (names, years and
numbers are one class each) and flags: does it stand in the question; in the question or the answer of each of the last
turns; and, with `markers`, does it lie in the span of one of the last answers (as HAM marks them). Convolutions with
growing dilation, scaled and shifted by a vector of the question, give start and end scores. "No answer" is one more
position of both softmaxes, or with `separate_head` a sigmoid of its own with a threshold, as GraphFlow has it.

It is a `PreTrainedModel`: `save_pretrained`, `from_pretrained` and `AutoModel` (once this module is imported) work. Its
vocabulary is part of its configuration, so that a folder is a whole reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from reclaim.convqa.history import Turn
from reclaim.convqa.readers import Request
from reclaim.convqa.words import NONE, PAD, SPECIAL, WordClasses, find_words
from reclaim.metrics.quac import NO_ANSWER
from reclaim.seeding import derive

BATCH = 64
MAX_QUESTION = 24
NULL = 0
"""Position of "no answer" in the softmaxes; passage words follow from 1."""


class SmallReaderConfig(PreTrainedConfig):
    """Sizes and inputs of the reader; `vocabulary` lists its word classes, `threshold` is that of a separate head."""

    model_type = "reclaim_small_reader"

    def __init__(
        self,
        vocabulary: Sequence[str] = SPECIAL,
        history_turns: int = 2,
        markers: bool = True,
        separate_head: bool = False,
        threshold: float = 0.5,
        embedding_size: int = 24,
        hidden_size: int = 48,
        kernel_size: int = 5,
        dilations: Sequence[int] = (1, 4, 12),
        max_answer_length: int = 6,
        **options,
    ):
        self.vocabulary = list(vocabulary)
        self.history_turns = history_turns
        self.markers = markers
        self.separate_head = separate_head
        self.threshold = threshold
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.kernel_size = kernel_size
        self.dilations = list(dilations)
        self.max_answer_length = max_answer_length
        super().__init__(**options)

    @property
    def num_flags(self) -> int:
        """Flags of a passage word: the question, then question and answer of each turn, then markers of each turn."""
        return 1 + self.history_turns * (3 if self.markers else 2)


@dataclass
class ReaderOutput(ModelOutput):
    """start_logits, end_logits: (rows, 1 + words), -inf where no span may be; no_answer_logits: (rows,) or None."""

    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    no_answer_logits: torch.Tensor | None = None


class SmallReader(PreTrainedModel):
    """The reader's network; see the module for what it reads."""

    config_class = SmallReaderConfig

    def __init__(self, config: SmallReaderConfig):
        super().__init__(config)
        width, layers = config.hidden_size, len(config.dilations)
        self.embedding = nn.Embedding(len(config.vocabulary), config.embedding_size, padding_idx=PAD)
        self.input = nn.Linear(config.embedding_size + config.num_flags, width)
        self.question = nn.Linear(2 * config.embedding_size, width)
        self.gates = nn.Linear(width, 2 * width * layers)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, config.kernel_size, padding=d * (config.kernel_size // 2), dilation=d)
            for d in config.dilations
        )
        self.span = nn.Linear(width, 2)
        self.none = nn.Linear(3 * width, 1 if config.separate_head else 2)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
            module.weight[PAD] = 0.0
        elif isinstance(module, nn.Linear | nn.Conv1d):
            module.reset_parameters()

    def forward(
        self, input_ids: torch.Tensor, flags: torch.Tensor, question_ids: torch.Tensor, **_options
    ) -> ReaderOutput:
        """`input_ids` (rows, words), `flags` (rows, words, num_flags), `question_ids` (rows, question words); 0 pads."""
        mask = (input_ids != PAD).unsqueeze(1)
        hidden = self.input(torch.cat([self.embedding(input_ids), flags], dim=-1)).relu().transpose(1, 2) * mask
        asked = self.embedding(question_ids)
        count = (question_ids != PAD).sum(1, keepdim=True).clamp(min=1)
        # The mean of all words, and of the first two, which say what kind of answer is wanted.
        vector = self.question(torch.cat([asked.sum(1) / count, asked[:, :2].mean(1)], dim=-1)).tanh()
        scales, shifts = self.gates(vector).unsqueeze(-1).chunk(2, dim=1)
        width = self.config.hidden_size
        for place, layer in enumerate(self.layers):
            part = slice(place * width, (place + 1) * width)
            hidden = hidden + (layer(hidden) * (1 + scales[:, part]) + shifts[:, part]).relu() * mask
        words = mask.sum(-1)
        pooled = [hidden.masked_fill(~mask, -torch.inf).amax(-1), hidden.sum(-1) / words, vector]
        none = self.none(torch.cat(pooled, dim=-1))
        # CANNOTANSWER ends the passage as a text; the network has its own place for it.
        allowed = (input_ids != PAD) & (input_ids != NONE)
        start, end = self.span(hidden.transpose(1, 2)).masked_fill(~allowed.unsqueeze(-1), -torch.inf).unbind(-1)
        if self.config.separate_head:
            closed = torch.full_like(none, -torch.inf)
            return ReaderOutput(torch.cat([closed, start], 1), torch.cat([closed, end], 1), none.squeeze(1))
        return ReaderOutput(torch.cat([none[:, :1], start], 1), torch.cat([none[:, 1:], end], 1))

    def span_loss(self, batch: Batch, starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Summed loss (nats) of a batch, and its questions; positions count from 1, `NULL` is no answer."""
        output = self(batch.input_ids, batch.flags, batch.question_ids)
        if not self.config.separate_head:
            losses = [F.cross_entropy(output.start_logits, starts, reduction="none")]
            losses.append(F.cross_entropy(output.end_logits, ends, reduction="none"))
            return torch.stack(losses).sum() / 2, len(starts)
        none = starts == NULL
        loss = F.binary_cross_entropy_with_logits(output.no_answer_logits, none.float(), reduction="sum")
        if not none.all():
            for logits, positions in ((output.start_logits, starts), (output.end_logits, ends)):
                loss = loss + F.cross_entropy(logits[~none], positions[~none], reduction="sum") / 2
        return loss, len(starts)

    def decode(self, output: ReaderOutput, threshold: float | None = None) -> list[tuple[int, int]]:
        """The best span of each row, positions from 1, both inclusive; (0, 0) is no answer."""
        assert output.start_logits is not None and output.end_logits is not None
        start, end = output.start_logits.log_softmax(-1)[:, 1:], output.end_logits.log_softmax(-1)[:, 1:]
        length = start.shape[1]
        reach = min(self.config.max_answer_length, length)
        scores = torch.stack(
            [F.pad(start[:, : length - d] + end[:, d:], (0, d), value=-torch.inf) for d in range(reach)]
        )
        best, place = scores.transpose(0, 1).flatten(1).max(1)
        first, extra = place % length + 1, place // length
        if self.config.separate_head:
            limit = self.config.threshold if threshold is None else threshold
            assert output.no_answer_logits is not None  # the separate head's
            none = output.no_answer_logits.sigmoid() >= limit
        else:
            none = output.start_logits.log_softmax(-1)[:, 0] + output.end_logits.log_softmax(-1)[:, 0] >= best
        first, last = first.masked_fill(none, 0), (first + extra).masked_fill(none, 0)
        return list(zip(first.tolist(), last.tolist(), strict=True))


AutoConfig.register(SmallReaderConfig.model_type, SmallReaderConfig)
AutoModel.register(SmallReaderConfig, SmallReader)


def build_reader(seed: int, **sizes) -> SmallReader:
    """Draw a reader as a function of `seed`; `sizes` go to `SmallReaderConfig`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        return SmallReader(SmallReaderConfig(**sizes))


# ------------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Encoded:
    """One question as the network reads it: class ids and flags of the passage's words, class ids of its own."""

    input_ids: np.ndarray
    flags: np.ndarray
    question_ids: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Encoded questions, padded: (rows, words), (rows, words, flags), (rows, question words)."""

    input_ids: torch.Tensor
    flags: torch.Tensor
    question_ids: torch.Tensor


class Encoder:
    """From requests to inputs; knows each passage and each text once."""

    def __init__(self, config: SmallReaderConfig):
        self.config, self.classes = config, WordClasses(config.vocabulary)
        self.numbers: dict[str, int] = {}
        self.passage = lru_cache(maxsize=4096)(self._passage)
        self.words = lru_cache(maxsize=65536)(self._words)

    def _passage(self, context: str) -> tuple[np.ndarray, np.ndarray]:
        words = [word for word, _, _ in find_words(context)]
        return np.array([self.classes(word) for word in words]), self._words(context)

    def _words(self, text: str) -> np.ndarray:
        """Numbers of the lower-cased words of a text, signs as -1."""
        low = [word.lower() if word[0].isalnum() else "" for word, _, _ in find_words(text)]
        return np.array(
            [self.numbers.setdefault(word, len(self.numbers)) if word else -1 for word in low], dtype=np.int64
        )

    def __call__(self, context: str, question: str, history: Sequence[Turn]) -> Encoded:
        """Encode a question on a passage after some turns, of which the last `history_turns` are read."""
        classes, numbers = self.passage(context)
        shown = list(history)[::-1][: self.config.history_turns]
        flags = np.zeros((len(numbers), self.config.num_flags), dtype=np.float32)
        flags[:, 0] = self._match(numbers, question)
        per_turn = 3 if self.config.markers else 2
        for place, (asked, answer) in enumerate(shown):
            column = 1 + place * per_turn
            flags[:, column] = self._match(numbers, asked)
            if answer == NO_ANSWER:
                continue
            flags[:, column + 1] = self._match(numbers, answer)
            if self.config.markers:
                first, last = find_span(numbers, self.words(answer))
                flags[first:last, column + 2] = 1
        ids = np.array([self.classes(word) for word, _, _ in find_words(question)][:MAX_QUESTION] or [PAD])
        return Encoded(classes, flags, ids)

    def _match(self, numbers: np.ndarray, text: str) -> np.ndarray:
        own = self.words(text)
        return np.isin(numbers, own[own >= 0])


def find_span(passage: np.ndarray, words: np.ndarray) -> tuple[int, int]:
    """Where a text's words first stand in a passage: first word and the one after the last; (0, 0) where they do not."""
    if not len(words) or len(words) > len(passage):
        return 0, 0
    found = np.flatnonzero(passage[: len(passage) - len(words) + 1] == words[0])
    for start in found:
        if (passage[start : start + len(words)] == words).all():
            return int(start), int(start + len(words))
    return 0, 0


def pad(encoded: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
    """Stack encoded questions, padded on the right."""
    length = max(len(each.input_ids) for each in encoded)
    asked = max(len(each.question_ids) for each in encoded)
    ids = np.zeros((len(encoded), length), dtype=np.int64)
    flags = np.zeros((len(encoded), length, encoded[0].flags.shape[1]), dtype=np.float32)
    questions = np.zeros((len(encoded), asked), dtype=np.int64)
    for row, each in enumerate(encoded):
        ids[row, : len(each.input_ids)] = each.input_ids
        flags[row, : len(each.input_ids)] = each.flags
        questions[row, : len(each.question_ids)] = each.question_ids
    return Batch(*(torch.from_numpy(array).to(device) for array in (ids, flags, questions)))


class SmallAnswerer:
    """A `BatchReader` over a `SmallReader`."""

    def __init__(self, model: SmallReader, encoder: Encoder | None = None, batch_size: int = BATCH):
        self.model, self.batch_size = model.eval(), batch_size
        self.encoder = encoder or Encoder(model.config)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> SmallAnswerer:
        """Load a saved reader."""
        return cls(AutoModel.from_pretrained(folder).to(device))

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """The text of the best span of each request's passage, or CANNOTANSWER."""
        return [text for part, output in self.outputs(requests) for text in self.texts(part, output)]

    def outputs(self, requests: Sequence[Request]) -> Iterator[tuple[Sequence[Request], ReaderOutput]]:
        """What the network says of the requests, batch by batch."""
        for start in range(0, len(requests), self.batch_size):
            part = requests[start : start + self.batch_size]
            encoded = [self.encoder(each.dialog.context, each.question, each.history) for each in part]
            batch = pad(encoded, self.model.device)
            with torch.no_grad():
                output = self.model(batch.input_ids, batch.flags, batch.question_ids)
            yield part, output

    def texts(self, part: Sequence[Request], output: ReaderOutput, threshold: float | None = None) -> list[str]:
        """The answers of a batch; `threshold` of a separate head in the place of the reader's own."""
        spans = self.model.decode(output, threshold)
        return [span_text(each.dialog.context, first, last) for each, (first, last) in zip(part, spans, strict=True)]


def span_text(context: str, first: int, last: int) -> str:
    """The passage's own text from word `first` to word `last`, counted from 1; CANNOTANSWER for 0."""
    if first == NULL:
        return NO_ANSWER
    words = find_words(context)
    return context[words[first - 1][1] : words[last - 1][2]]
