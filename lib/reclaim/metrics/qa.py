"""Answer metrics: SQuAD normalisation, exact match, bag-of-tokens F1, and accuracy with several correct answers.

Sources: Rajpurkar et al. 2016 (SQuAD v1.1: `exact_match`, `token_f1`); Malladi et al. 2023, section 3 and its official code
(`answer_f1`, `accuracy`). MeZO scores DROP with this same F1, not with DROP's numeric-aware one. Values are fractions
in 0..1; the papers print them times 100.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from reclaim.errors import InputError

NO_ANSWERS = ("CANNOTANSWER", "no answer")
"""First gold answers after which only exact match counts (official MeZO rule)."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation (`five-year` becomes `fiveyear`), delete a/an/the, collapse blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the two normalised bags of tokens; 0 without overlap, also where both are empty."""
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    overlap = sum((Counter(predicted) & Counter(wanted)).values())
    if not overlap:
        return 0.0
    precision, recall = overlap / len(predicted), overlap / len(wanted)
    return 2 * precision * recall / (precision + recall)


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals any normalised gold answer (empty equals empty), else 0.0."""
    return float(normalize_answer(prediction) in map(normalize_answer, golds))


def answer_f1(prediction: str, golds: Sequence[str]) -> float:
    """MeZO's F1 of one question: the best token F1 over the gold answers.

    If the FIRST gold answer is one of `NO_ANSWERS`, the score is exact match with it and the other golds are ignored.
    """
    if golds[0] in NO_ANSWERS:
        return exact_match(prediction, golds[:1])
    return max(token_f1(prediction, gold) for gold in golds)


def mean_answer_f1(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """Mean of `answer_f1` over questions (MeZO's SQuAD and DROP figure)."""
    _same_length(predictions, golds)
    return sum(map(answer_f1, predictions, golds)) / len(predictions)


def accuracy(predictions: Sequence[Any], correct: Sequence[Any]) -> float:
    """Share of predictions that are right; a list or tuple in `correct` holds several right answers."""
    _same_length(predictions, correct)
    hits = (
        prediction in answer if isinstance(answer, (list, tuple)) else prediction == answer
        for prediction, answer in zip(predictions, correct, strict=True)
    )
    return sum(map(bool, hits)) / len(predictions)


def _same_length(predictions: Sequence[Any], golds: Sequence[Any]) -> None:
    if len(predictions) != len(golds) or not len(predictions):
        found = f"{len(predictions)} predictions for {len(golds)} answers"
        raise InputError("answer metric", found, "as many of each, at least one")
