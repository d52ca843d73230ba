"""Metrics of dialogue as ParlAI computes them: F1 of words, distinct n-grams, classifier accuracy, averages over tasks.

Source: ParlAI, parlai/core/metrics.py and projects/director/tasks/safety.py. Values are fractions in 0..1. The normalisation is
not SQuAD's (`metrics.qa`): each punctuation mark becomes a BLANK here ("U.S.A." is "u s", as the article is dropped after
that; "don't" is not "dont"), and curly quotes and dashes of Unicode stay.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_PUNCTUATION = re.compile(r"[!\"#$%&()*+,\-./:;<=>?@\[\]\\^`{|}~_']")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
EPSILON = 1e-7
"""What distinct-n of a text too short for any n-gram is, as in the original."""


def normalize_answer(text: str) -> str:
    """Lower-case; punctuation to blanks; a, an, the dropped; blanks collapsed."""
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub(" ", text.lower())).split())


def dialogue_f1(guess: str | None, answers: Sequence[str]) -> dict[str, float] | None:
    """`precision`, `recall` and `f1` of the bags of words, each the largest over the answers on its own.

    None where there is no guess (not counted); zeros without answers or without a common word, also where both are empty.
    """
    if guess is None:
        return None
    guessed = normalize_answer(guess).split()
    scores = [_overlap(guessed, normalize_answer(answer).split()) for answer in answers]
    columns = zip(*scores, strict=True) if scores else [[0.0]] * 3
    return dict(zip(("precision", "recall", "f1"), map(max, columns), strict=True))


def _overlap(guessed: Sequence[str], wanted: Sequence[str]) -> tuple[float, float, float]:
    common = sum((Counter(guessed) & Counter(wanted)).values())
    if not common:
        return 0.0, 0.0, 0.0
    precision, recall = common / len(guessed), common / len(wanted)
    return precision, recall, 2 * precision * recall / (precision + recall)


def exact_match(guess: str | None, answers: Iterable[str]) -> float | None:
    """1 if the normalised guess is a normalised answer, else 0; None without a guess."""
    return None if guess is None else float(normalize_answer(guess) in map(normalize_answer, answers))


def intra_distinct(guess: str, n: int) -> float:
    """Different n-grams over n-grams of one text; `EPSILON` where it has none."""
    grams = _ngrams(guess, n)
    return len(set(grams)) / len(grams) if grams else EPSILON


def inter_distinct(guesses: Iterable[str], n: int) -> float:
    """Different n-grams over n-grams of all texts together; 0 where they have none."""
    grams = Counter(gram for guess in guesses for gram in _ngrams(guess, n))
    return len(grams) / sum(grams.values()) if grams else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = normalize_answer(text).split()
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def corpus_f1(guesses: Sequence[str | None], answers: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Mean F1 over the guesses there are, and their number."""
    scores = [dialogue_f1(guess, wanted) for guess, wanted in zip(guesses, answers, strict=True)]
    values = [score["f1"] for score in scores if score is not None]
    return (sum(values) / len(values) if values else math.nan), len(values)


def classifier_accuracy(responses: Sequence[str | None], is_good, truncate_at: int = -1) -> tuple[int, int]:
    """How many non-empty responses a judge accepts, and how many there are: empty and missing ones are skipped.

    `is_good` judges a list of texts. A model that says nothing looks perfect, so the share of empty responses belongs beside
    it. With `truncate_at` above 0 only so many words of each are judged.
    """
    given = [response for response in responses if response]
    if truncate_at > 0:
        given = [" ".join(response.split(" ")[:truncate_at]) for response in given]
    return sum(map(bool, is_good(given))), len(given)


def perplexity(loss_sum: float, tokens: float) -> float:
    """exp of the mean loss (nats) of a token."""
    return math.exp(loss_sum / tokens)


def average_perplexity(tasks: Mapping[str, tuple[float, float]], how: str = "macro") -> float:
    """Perplexity over tasks (name -> summed loss, tokens): "macro", the mean of theirs, or "micro", of all tokens pooled."""
    if how == "micro":
        return perplexity(*map(sum, zip(*tasks.values(), strict=True)))
    return sum(perplexity(*counts) for counts in tasks.values()) / len(tasks)


def average_loss(tasks: Mapping[str, tuple[float, float]], how: str = "macro") -> float:
    """Mean loss of a token over tasks (name -> summed loss, tokens), in nats: "macro" or "micro" as above."""
    if how == "micro":
        total, tokens = map(sum, zip(*tasks.values(), strict=True))
        return total / tokens
    return sum(total / tokens for total, tokens in tasks.values()) / len(tasks)
