"""Conversations about a passage in QuAC's format, in and out, and CANARD's self-contained questions.

Source: Choi et al. 2018 (QuAC, JSON of v0.2 and the rows of `allenai/quac`) and Elgohary et al. 2019 (CANARD), as
EvalConvQA (Li et al. 2022) reads them. A no-answer is the text CANNOTANSWER, which ends every passage.

A row of the canonical table is one dialog: `id, title, section_title, background, context`, lists over its turns
(`turn_ids, questions, answers, answer_starts, orig_answers, orig_starts, yesnos, followups, rewrites`; `answers` and
`answer_starts` are lists of lists, a missing rewrite is the empty text), and `facts`, the world's own knowledge of the
passage as JSON (empty for other sources).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reclaim.errors import InputError
from reclaim.metrics.quac import NO_ANSWER, Question

YESNOS, FOLLOWUPS = ("y", "n", "x"), ("y", "n", "m")
"""Names of the labels in the order of the Hub's class numbers."""

LISTS = (
    "turn_ids", "questions", "answers", "answer_starts", "orig_answers", "orig_starts", "yesnos", "followups", "rewrites",
)  # fmt: skip


@dataclass(frozen=True)
class DialogTurn:
    """A question with its references, and the answer that the dialog itself went on with (`orig_answer`)."""

    id: str
    question: str
    answers: tuple[str, ...]
    answer_starts: tuple[int, ...]
    orig_answer: str
    orig_start: int
    yesno: str = "x"
    followup: str = "m"
    rewrite: str = ""


@dataclass(frozen=True)
class Dialog:
    """One conversation about one passage."""

    id: str
    title: str
    section_title: str
    background: str
    context: str
    turns: tuple[DialogTurn, ...]
    facts: str = ""

    def scored_questions(self) -> list[Question]:
        """What the QuAC scorer reads of the dialog."""
        return [Question(turn.id, self.id, turn.answers, turn.yesno, turn.followup) for turn in self.turns]


def read_quac(document: Mapping[str, Any], place: str) -> Iterator[Dialog]:
    """The dialogs of a QuAC JSON document, one for each paragraph; raises `InputError` that names the faulty part."""
    for number, article in enumerate(_field(document, "data", list, place)):
        where = f"{place}, data[{number}]"
        for paragraph in _field(article, "paragraphs", list, where):
            key = _field(paragraph, "id", str, where)
            turns = tuple(_turn(qa, f"{where}, {key}") for qa in _field(paragraph, "qas", list, where))
            yield check(
                Dialog(
                    key, _text(article, "title", where), _text(article, "section_title", where),
                    _text(article, "background", where), _field(paragraph, "context", str, where), turns,
                ),
                f"{where}, {key}",
            )  # fmt: skip


def _turn(qa: Mapping[str, Any], place: str) -> DialogTurn:
    answers = _field(qa, "answers", list, place)
    orig = qa.get("orig_answer") or (answers[0] if answers else {"text": NO_ANSWER, "answer_start": -1})
    if isinstance(orig, list):
        orig = orig[0]
    return DialogTurn(
        _field(qa, "id", str, place), _field(qa, "question", str, place),
        tuple(_field(answer, "text", str, place) for answer in answers),
        tuple(int(answer.get("answer_start", -1)) for answer in answers),
        _field(orig, "text", str, place), int(orig.get("answer_start", -1)),
        qa.get("yesno", "x"), qa.get("followup", "m"),
    )  # fmt: skip


def write_quac(dialogs: Iterable[Dialog]) -> dict[str, Any]:
    """The QuAC JSON document of dialogs; `read_quac` gives them back (without facts and rewrites)."""
    data = []
    for dialog in dialogs:
        qas = [
            {
                "id": turn.id,
                "question": turn.question,
                "answers": [
                    {"text": text, "answer_start": start}
                    for text, start in zip(turn.answers, turn.answer_starts, strict=True)
                ],
                "orig_answer": {"text": turn.orig_answer, "answer_start": turn.orig_start},
                "yesno": turn.yesno,
                "followup": turn.followup,
            }
            for turn in dialog.turns
        ]
        paragraph = {"id": dialog.id, "context": dialog.context, "qas": qas}
        article = {"title": dialog.title, "section_title": dialog.section_title, "background": dialog.background}
        data.append({**article, "paragraphs": [paragraph]})
    return {"data": data}


def from_hub(row: Mapping[str, Any], place: str) -> Dialog:
    """A dialog from a row of `allenai/quac` (config `plain_text`): labels are class numbers there, answers lists."""
    try:
        columns = zip(
            row["turn_ids"], row["questions"], row["answers"]["texts"], row["answers"]["answer_starts"],
            row["orig_answers"]["texts"], row["orig_answers"]["answer_starts"], row["yesnos"], row["followups"],
            strict=True,
        )  # fmt: skip
        turns = tuple(
            DialogTurn(
                str(key), question, tuple(texts), tuple(map(int, starts)), orig, int(orig_start),
                YESNOS[yesno], FOLLOWUPS[followup],
            )
            for key, question, texts, starts, orig, orig_start, yesno, followup in columns
        )  # fmt: skip
        dialog = Dialog(
            row["dialogue_id"], row["wikipedia_page_title"], row["section_title"], row["background"], row["context"], turns
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(place, f"{type(error).__name__}: {error}", "a row of allenai/quac") from None
    return check(dialog, place)


def check(dialog: Dialog, place: str) -> Dialog:
    """Give a dialog back if its turns can be asked and scored; raises `InputError`."""
    if not dialog.turns:
        raise InputError(place, "no question", "at least one turn")
    seen = set()
    for turn in dialog.turns:
        if turn.id in seen:
            raise InputError(place, f"the question id {turn.id!r} twice", "ids once each")
        seen.add(turn.id)
        if not turn.answers:
            raise InputError(f"{place}, {turn.id}", "no answer", f"at least one reference, {NO_ANSWER} for none")
        if turn.yesno not in YESNOS or turn.followup not in FOLLOWUPS:
            raise InputError(
                f"{place}, {turn.id}", f"labels {turn.yesno!r} and {turn.followup!r}",
                f"yesno one of {YESNOS}, followup one of {FOLLOWUPS}",
            )  # fmt: skip
    return dialog


def canard_rewrites(items: Sequence[Mapping[str, Any]], place: str) -> dict[str, str]:
    """CANARD's items -> question id (`DIALOG_q#TURN`) -> self-contained question."""
    return {
        f"{_field(item, 'QuAC_dialog_id', str, place)}_q#{_field(item, 'Question_no', int, place) - 1}": _field(
            item, "Rewrite", str, place
        )
        for item in items
    }


def with_rewrites(dialog: Dialog, rewrites: Mapping[str, str]) -> Dialog:
    """The dialog with the self-contained questions that `rewrites` has for it."""
    turns = tuple(replace(turn, rewrite=rewrites.get(turn.id, turn.rewrite)) for turn in dialog.turns)
    return replace(dialog, turns=turns)


def to_row(dialog: Dialog) -> dict[str, Any]:
    """A dialog as a row of the canonical table."""
    turns = dialog.turns
    return {
        "id": dialog.id, "title": dialog.title, "section_title": dialog.section_title, "background": dialog.background,
        "context": dialog.context,
        "turn_ids": [turn.id for turn in turns], "questions": [turn.question for turn in turns],
        "answers": [list(turn.answers) for turn in turns], "answer_starts": [list(turn.answer_starts) for turn in turns],
        "orig_answers": [turn.orig_answer for turn in turns], "orig_starts": [turn.orig_start for turn in turns],
        "yesnos": [turn.yesno for turn in turns], "followups": [turn.followup for turn in turns],
        "rewrites": [turn.rewrite for turn in turns], "facts": dialog.facts,
    }  # fmt: skip


def from_row(row: Mapping[str, Any]) -> Dialog:
    """A dialog from a row of the canonical table."""
    turns = tuple(
        DialogTurn(
            key, question, tuple(answers), tuple(map(int, starts)), orig, int(orig_start), yesno, followup, rewrite
        )
        for key, question, answers, starts, orig, orig_start, yesno, followup, rewrite in zip(
            *(row[name] for name in LISTS), strict=True
        )
    )
    return Dialog(
        row["id"], row["title"], row["section_title"], row["background"], row["context"], turns, row["facts"]
    )  # fmt: skip


def _text(value: Mapping[str, Any], key: str, place: str) -> str:
    return _field({key: value.get(key) or ""}, key, str, place)


def _field(value: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(value, Mapping) or not isinstance(value.get(key), kind):
        found = value.get(key, f"no key {key!r}") if isinstance(value, Mapping) else value
        raise InputError(place, repr(found)[:200], f"{key}: {kind.__name__}", "See the format of QuAC v0.2.")
    return value[key]
