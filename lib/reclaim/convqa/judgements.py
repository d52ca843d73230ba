"""Judgements of live conversations, by people or by an oracle: the annotation format, and its figures.

Source: EvalConvQA (Li et al. 2022), the README of its human annotations. `{"data": [conversation, ...]}`, a conversation
having `model_name, context, dialog_id, qas`, a turn `turn_id, question, answer, valid, answerable, correct, gold_anno`.
Turns whose `valid` is not y are left out. An unanswerable question is answered right by no answer alone, an answerable
one where `correct` is y. Accuracies are micro-averages over turns.

Differences: the official repository has no such code. Which text stands for no answer is not known, so that both known
ones count. Whether the paper's figures hold the first turn, which comes from QuAC, is not known either: `without_first`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reclaim.errors import InputError
from reclaim.metrics.quac import NO_ANSWER

NO_ANSWERS = (NO_ANSWER, "Sorry I cannot answer the question.", "Sorry, I cannot answer the question.")
KEYS = {"model_name": str, "context": str, "dialog_id": str, "qas": list}
LABELS = ("y", "n")

Conversation = Mapping[str, Any]


def read_annotations(document: Any, place: str) -> list[Conversation]:
    """The conversations of an annotation document; raises `InputError` that names the conversation, turn and key."""
    if not isinstance(document, Mapping) or not isinstance(document.get("data"), list):
        raise InputError(place, "no list `data`", 'an object {"data": [conversation, ...]}')
    for number, conversation in enumerate(document["data"]):
        where = f"{place}, data[{number}]"
        for key, kind in KEYS.items():
            if not isinstance(conversation, Mapping) or not isinstance(conversation.get(key), kind):
                raise InputError(where, f"no {key}", f"{key}: {kind.__name__}")
        for turn in conversation["qas"]:
            _check_turn(turn, f"{where}, turn {turn.get('turn_id') if isinstance(turn, Mapping) else turn!r}")
    return document["data"]


def _check_turn(turn: Any, place: str) -> None:
    if not isinstance(turn, Mapping):
        raise InputError(place, type(turn).__name__, "an object")
    for key in ("question", "answer"):
        if not isinstance(turn.get(key), str):
            raise InputError(place, f"{key} {turn.get(key)!r}", "a text")
    if isinstance(turn.get("turn_id"), bool) or not isinstance(turn.get("turn_id"), int):
        raise InputError(place, f"turn_id {turn.get('turn_id')!r}", "a whole number from 0")
    needed = ["valid"]
    if turn.get("valid") == "y":  # what follows is asked of valid questions only
        needed.append("answerable")
        if turn.get("answerable") == "y":
            needed.append("correct")
    for key in needed:
        if turn.get(key) not in LABELS:
            raise InputError(place, f"{key} {turn.get(key)!r}", "y or n")


def is_no_answer(text: str) -> bool:
    """Whether an answer says that there is none."""
    return text.strip() in NO_ANSWERS


def judged(turn: Mapping[str, Any]) -> bool:
    """Whether a valid turn counts as answered right."""
    return is_no_answer(turn["answer"]) if turn["answerable"] == "n" else turn["correct"] == "y"


def valid_turns(conversation: Conversation, without_first: bool = False) -> list[Mapping[str, Any]]:
    """The turns of a conversation that count."""
    return [
        turn for turn in conversation["qas"] if turn["valid"] == "y" and not (without_first and turn["turn_id"] == 0)
    ]


def aggregate(
    conversations: Iterable[Conversation], without_first: bool = False
) -> dict[str, dict[str, tuple[float | None, int]]]:
    """Figures of each model: name -> (value, number behind it). Shares are fractions, None where nothing is behind them.

    `conversations`, `questions`, `valid` (counts); `accuracy`, `accuracy_answerable`, `accuracy_unanswerable`,
    `unanswerable_share`, `predicted_unanswerable`.
    """
    by_model: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        by_model.setdefault(conversation["model_name"], []).append(conversation)
    return {model: _figures(own, without_first) for model, own in by_model.items()}


def _figures(conversations: Sequence[Conversation], without_first: bool) -> dict[str, tuple[float | None, int]]:
    turns = [turn for conversation in conversations for turn in valid_turns(conversation, without_first)]
    answerable = [judged(turn) for turn in turns if turn["answerable"] == "y"]
    unanswerable = [judged(turn) for turn in turns if turn["answerable"] == "n"]
    questions = sum(len(conversation["qas"]) for conversation in conversations)
    counts = {"conversations": len(conversations), "questions": questions, "valid": len(turns)}
    shares = {
        "accuracy": answerable + unanswerable,
        "accuracy_answerable": answerable,
        "accuracy_unanswerable": unanswerable,
        "unanswerable_share": [turn["answerable"] == "n" for turn in turns],
        "predicted_unanswerable": [is_no_answer(turn["answer"]) for turn in turns],
    }
    figures: dict[str, tuple[float | None, int]] = {name: (float(value), value) for name, value in counts.items()}
    for name, values in shares.items():
        figures[name] = (sum(values) / len(values) if values else None, len(values))
    return figures


def per_passage(conversations: Iterable[Conversation], without_first: bool = False) -> dict[str, dict[str, float]]:
    """Accuracy of each model on each passage (`dialog_id`), over all its conversations there."""
    marks: dict[str, dict[str, list[bool]]] = {}
    for conversation in conversations:
        turns = valid_turns(conversation, without_first)
        if turns:
            own = marks.setdefault(conversation["model_name"], {}).setdefault(conversation["dialog_id"], [])
            own += [judged(turn) for turn in turns]
    return {
        model: {passage: sum(values) / len(values) for passage, values in own.items()} for model, own in marks.items()
    }
