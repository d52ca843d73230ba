"""From the start and end logits of an extractive reader to its answer, null answers allowed.

Source: the question-answering pipeline that transformers had until version 4 (Wolf et al. 2020), with which ALCE (Gao et al.
2023) computes QA-EM and QA-F1; transformers 5 has none any more. A text longer than the reader's input comes in chunks. In
each, both logits become probabilities over the context and the first token (CLS), and the span with the largest product
counts, if it lies in the context. The null answer has the smallest product of the two CLS probabilities over the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reclaim.errors import InputError

MASKED = -10000.0


@dataclass(frozen=True)
class Chunk:
    """One input of the reader, token by token; the first token is CLS.

    start_logits, end_logits; context_mask: 1 for tokens of the context; offsets: first character of a token in the context
    and the one after its last, None for other tokens; word_ids: which word of the context it belongs to, None likewise.
    """

    start_logits: Sequence[float]
    end_logits: Sequence[float]
    context_mask: Sequence[int]
    offsets: Sequence[Sequence[int] | None]
    word_ids: Sequence[int | None]


@dataclass(frozen=True)
class Span:
    """An answer: its text, its place in the context (characters), and its probability."""

    text: str
    start: int
    end: int
    score: float


def best_span(chunks: Sequence[Chunk], context: str, max_answer_length: int = 15) -> Span:
    """The most probable answer over all chunks, at most `max_answer_length` tokens long and widened to whole words.

    The null answer is the empty text at 0; it counts where nothing is more probable. Raises InputError without a chunk.
    """
    if not chunks:
        raise InputError("chunks", "none", "at least one input of the reader")
    found = []
    null_score = np.inf
    for chunk in chunks:
        allowed = np.asarray(chunk.context_mask, dtype=bool).copy()
        allowed[0] = True
        start, end = (_softmax(logits, allowed) for logits in (chunk.start_logits, chunk.end_logits))
        null_score = min(null_score, float(start[0] * end[0]))
        start[0] = end[0] = 0.0
        scores = np.tril(np.triu(np.outer(start, end)), max_answer_length - 1)
        first, last = (int(place) for place in np.unravel_index(np.argmax(scores), scores.shape))
        if chunk.context_mask[first] and chunk.context_mask[last]:
            begin, finish = _whole_words(chunk, first, last)
            found.append(Span(context[begin:finish], begin, finish, float(scores[first, last])))
    return max([*found, Span("", 0, 0, null_score)], key=lambda span: span.score)


def _softmax(logits: Sequence[float], allowed: np.ndarray) -> np.ndarray:
    values = np.where(allowed, np.asarray(logits, dtype=float), MASKED)
    values = np.exp(values - values.max())
    return values / values.sum()


def _whole_words(chunk: Chunk, first: int, last: int) -> tuple[int, int]:
    """Characters from the beginning of the first token's word to the end of the last token's, as far as they are here."""
    inside = {place: offset for place, offset in enumerate(chunk.offsets) if offset is not None}
    starts = [offset for p, offset in inside.items() if chunk.word_ids[p] == chunk.word_ids[first]] or [inside[first]]
    ends = [offset for p, offset in inside.items() if chunk.word_ids[p] == chunk.word_ids[last]] or [inside[last]]
    return starts[0][0], ends[-1][1]
