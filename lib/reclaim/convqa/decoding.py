"""From the logits of a reader's windows to its answer, as the paper's BERT and ExCorD readers decode.

Source: EvalConvQA (Li et al. 2022), official code of the two readers. A passage longer than the input is cut into
overlapping windows; a span may start only at a token for which its window has the most context.

Difference from the official code: the caller says what the text of a span is, so that an answer can be the passage's own
text between two offsets. The original joins the tokens by blanks, which tears hyphens apart and costs F1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reclaim.metrics.quac import NO_ANSWER

SpanText = Callable[[int, int], str]
"""First and last word of a span, both inclusive -> its text."""

NUMBERS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion "
    "true false".split()
)
"""Answers that stand in for one shorter than two characters."""


@dataclass(frozen=True)
class Window:
    """One input of a reader.

    start_logits, end_logits: one a token; token_to_orig: token -> position in the passage's words, for passage tokens;
    max_context: token -> whether no other window shows it with more context; yes, no, unk: logits of the classes.
    """

    start_logits: Sequence[float]
    end_logits: Sequence[float]
    token_to_orig: Mapping[int, int]
    max_context: Mapping[int, bool]
    yes: float = -math.inf
    no: float = -math.inf
    unk: float = -math.inf


@dataclass(frozen=True)
class Candidate:
    """A span of passage words (both ends inclusive) and the sum of its two logits; None, None is the null answer."""

    score: float
    first: int | None
    last: int | None


def spans(windows: Sequence[Window], n_best: int, max_answer_length: int) -> list[Candidate]:
    """Admissible spans among the `n_best` starts and ends of every window, best first."""
    found = []
    for window in windows:
        starts, ends = (_largest(logits, n_best) for logits in (window.start_logits, window.end_logits))
        for start in starts:
            if not window.max_context.get(start, False):
                continue
            for end in ends:
                if end in window.token_to_orig and start <= end < start + max_answer_length:
                    score = window.start_logits[start] + window.end_logits[end]
                    found.append(Candidate(score, window.token_to_orig[start], window.token_to_orig[end]))
    return sorted(found, key=lambda candidate: candidate.score, reverse=True)


def joined(words: Sequence[str]) -> SpanText:
    """The text of a span as words joined by blanks."""
    return lambda first, last: " ".join(words[first : last + 1])


def distinct(candidates: Sequence[Candidate], text: SpanText, n_best: int) -> list[tuple[str, Candidate]]:
    """The first `n_best` candidates with different texts, each with its text."""
    texts: dict[str, Candidate] = {}
    for candidate in candidates:
        if len(texts) == n_best:
            break
        first, last = candidate.first, candidate.last
        texts.setdefault("" if first is None or last is None else text(first, last), candidate)
    return list(texts.items())


def bert_answer(windows: Sequence[Window], text: SpanText, n_best: int = 20, max_answer_length: int = 30) -> str:
    """BERT's answer: the best of the best span, yes, no and no answer, a class counting twice its logit.

    Over windows, the least `unk` and the largest `yes` and `no` count.
    """
    entries = distinct(spans(windows, n_best, max_answer_length), text, n_best)
    classes = [
        (2 * max(window.yes for window in windows), "yes"),
        (2 * max(window.no for window in windows), "no"),
        (2 * min(window.unk for window in windows), NO_ANSWER),
    ]
    answer_score, answer = (entries[0][1].score, entries[0][0]) if entries else (-math.inf, NO_ANSWER)
    for class_score, name in classes:
        if class_score > answer_score:
            answer_score, answer = class_score, name
    if len(answer) < 2:
        return next((said for said, _ in entries if said.lower() in NUMBERS), NO_ANSWER)
    return answer


def null_answer(
    windows: Sequence[Window],
    text: SpanText,
    n_best: int = 20,
    max_answer_length: int = 30,
    null_threshold: float = 0.0,
) -> tuple[str, list[tuple[str, float]]]:
    """ExCorD's answer, and its n best with probabilities: position 0 of an input stands for no answer.

    No answer iff the null score, least over the windows, is above that of the best span by more than the threshold.
    """
    null = min(window.start_logits[0] + window.end_logits[0] for window in windows)
    candidates = [*spans(windows, n_best, max_answer_length), Candidate(null, None, None)]
    candidates.sort(key=lambda candidate: candidate.score, reverse=True)
    entries = distinct(candidates, text, n_best)
    if all(said for said, _ in entries):
        entries.append(("", Candidate(null, None, None)))
    weights = [math.exp(candidate.score - entries[0][1].score) for _, candidate in entries]
    named = [(said or NO_ANSWER, weight / sum(weights)) for (said, _), weight in zip(entries, weights, strict=True)]
    best = next((entry for entry in entries if entry[0]), None)
    if best is None or null - best[1].score > null_threshold:
        return NO_ANSWER, named
    return best[0], named


def _largest(logits: Sequence[float], count: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda place: logits[place], reverse=True)[:count]
