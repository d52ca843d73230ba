"""The QuAC scorer: F1 against several references, HEQ over questions and dialogs, unanswerable accuracy.

Source: Choi et al. 2018 (QuAC) and its official scorer, as EvalConvQA (Li et al. 2022, section 2) uses it; text is
normalised as in `reclaim.metrics.qa`. A reference list counts as unanswerable when at least half of it says so. A model
is compared with each subset that leaves one reference out, a person with all references but the own.

Differences from the official scorer: a set without unanswerable questions gives null for that one figure (the original
gives zeros for all); answerable F1 and the share predicted unanswerable are reported too. Figures here are fractions;
`percent` gives the official keys and scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reclaim.errors import InputError
from reclaim.metrics.qa import normalize_answer, token_f1

NO_ANSWER = "CANNOTANSWER"
MIN_HUMAN_F1 = 0.4
"""Questions on which people agree less than this are left out (a constant in the official code too)."""


@dataclass(frozen=True)
class Question:
    """What the scorer reads of a question. `dialog` groups questions for HEQ-D; labels are y, n, x and y, n, m."""

    id: str
    dialog: str
    references: tuple[str, ...]
    yesno: str = "x"
    followup: str = "m"


@dataclass(frozen=True)
class Scored:
    """One question with its prediction: human and model F1 in 0..1. `model_f1` is None where the prediction is missing."""

    question: Question
    human_f1: float
    model_f1: float | None
    unanswerable: bool
    predicted: str | None

    @property
    def kept(self) -> bool:
        """Whether the question counts in the figures: people agree on it, or there is no prediction."""
        return self.model_f1 is None or self.human_f1 >= MIN_HUMAN_F1

    @property
    def value(self) -> float:
        """Model F1, 0 where the prediction is missing."""
        return self.model_f1 or 0.0


def keep_references(references: Sequence[str]) -> list[str]:
    """`[CANNOTANSWER]` if at least half of the references say so (or there is none), else the spans only."""
    spans = [text for text in references if text != NO_ANSWER]
    return spans if len(spans) > len(references) - len(spans) else [NO_ANSWER]


def score(prediction: str, reference: str) -> float:
    """Token F1 with a span; equality as strings with the no-answer reference."""
    return float(prediction == NO_ANSWER) if reference == NO_ANSWER else token_f1(prediction, reference)


def human_f1(references: Sequence[str]) -> float:
    """Mean over (kept) references of the best token F1 with another one; 1 for a single reference."""
    if len(references) == 1:
        return 1.0
    best = [
        max(token_f1(one, other) for place, other in enumerate(references) if place != index)
        for index, one in enumerate(references)
    ]
    return sum(best) / len(best)


def model_f1(prediction: str, references: Sequence[str]) -> float:
    """Mean over (kept) references of the best score with that one left out; the score itself for a single reference."""
    scores = [score(prediction, reference) for reference in references]
    if len(scores) == 1:
        return scores[0]
    return sum(max(scores[:index] + scores[index + 1 :]) for index in range(len(scores))) / len(scores)


def overlap_class(prediction: str, references: Sequence[str], context: str) -> str:
    """How a prediction lies to the first of its best references: exact, partial, none, or not found in the passage."""
    scores = [score(prediction, reference) for reference in references]
    reference = references[scores.index(max(scores))]
    if reference == NO_ANSWER:
        return "Exact match" if prediction == NO_ANSWER else "No overlap"
    starts = context.find(prediction), context.find(reference)
    if min(starts) < 0:
        return "Span indexing error"
    if normalize_answer(prediction) == normalize_answer(reference):
        return "Exact match"
    ends = starts[0] + len(prediction), starts[1] + len(reference)
    return "Partial overlap" if max(starts) <= min(ends) else "No overlap"


def score_questions(questions: Sequence[Question], predictions: Mapping[str, str]) -> list[Scored]:
    """Score every question; `predictions` maps ids to answers, and an id without one counts as missing."""
    scored = []
    for question in questions:
        references = keep_references(question.references)
        predicted = predictions.get(question.id)
        f1 = None if predicted is None else model_f1(predicted, references)
        scored.append(Scored(question, human_f1(references), f1, references == [NO_ANSWER], predicted))
    return scored


def corpus_scores(scored: Sequence[Scored]) -> dict[str, tuple[float | None, int]]:
    """Figures of a set: name -> (value in 0..1, number of questions or dialogs behind it); None without any.

    `f1`, `unfiltered_f1`, `heq_q`, `heq_d`, `unanswerable_accuracy`, `answerable_f1`, `predicted_unanswerable`. A missing
    prediction counts as 0 even where people disagree, and spoils its dialog; a question left out does not spoil it.
    Raises `InputError` for an empty set.
    """
    if not scored:
        raise InputError("questions", "none", "at least one question to score")
    kept = [each for each in scored if each.kept]
    equals = {each.question.id: each.model_f1 is not None and each.model_f1 >= each.human_f1 for each in kept}
    dialogs = {each.question.dialog: True for each in scored}
    for each in kept:
        dialogs[each.question.dialog] &= equals[each.question.id]
    groups = {
        "f1": [each.value for each in kept],
        "unfiltered_f1": [each.value for each in scored],
        "heq_q": [float(equals[each.question.id]) for each in kept],
        "heq_d": [float(good) for good in dialogs.values()],
        "unanswerable_accuracy": [each.value for each in kept if each.unanswerable],
        "answerable_f1": [each.value for each in kept if not each.unanswerable],
        "predicted_unanswerable": [float(each.predicted == NO_ANSWER) for each in kept],
    }
    return {name: (sum(values) / len(values) if values else None, len(values)) for name, values in groups.items()}


def label_accuracy(
    scored: Sequence[Scored], labels: Mapping[str, tuple[str, str]]
) -> tuple[float | None, float | None]:
    """Accuracy of the yes/no and follow-up labels (`labels`: id -> the two predicted ones), over the kept questions.

    EvalConvQA's readers answer both with the constant y, so that these two figures say nothing about them.
    """
    kept = [each for each in scored if each.kept]
    if not kept:
        return None, None
    said = [labels.get(each.question.id, (None, None)) if each.model_f1 is not None else (None, None) for each in kept]
    yesno = sum(one == each.question.yesno for each, (one, _) in zip(kept, said, strict=True))
    followup = sum(other == each.question.followup for each, (_, other) in zip(kept, said, strict=True))
    return yesno / len(kept), followup / len(kept)


def percent(scored: Sequence[Scored], labels: Mapping[str, tuple[str, str]]) -> dict[str, float | None]:
    """The official scorer's seven figures under its names, in percent."""
    values = {name: value for name, (value, _) in corpus_scores(scored).items()}
    yesno, followup = label_accuracy(scored, labels)
    official = {
        "unfiltered_f1": values["unfiltered_f1"], "f1": values["f1"], "HEQ": values["heq_q"], "DHEQ": values["heq_d"],
        "yes/no": yesno, "followup": followup, "unanswerable_acc": values["unanswerable_accuracy"],
    }  # fmt: skip
    return {name: None if value is None else 100.0 * value for name, value in official.items()}
