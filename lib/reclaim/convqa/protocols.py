"""The automatic protocols: Auto-Gold, Auto-Pred, Auto-Replace, Auto-Rewrite, and leaving invalid questions out.

Source: EvalConvQA (Li et al. 2022) and its official code, section 2 of which the names are:

    gold      the human questions with the human answers as history
    pred      the human questions with the reader's answers as history, valid or not
    replace   as pred, but an invalid question is replaced by its self-contained version (CANARD), where there is one
    rewrite   as pred, but in an invalid question every mention is put as what it meant under the human answers
    filter    as pred, but an invalid question is neither asked nor remembered
    rewrite_all   as rewrite, for every question (an ablation)

What was asked, not what was written, goes into the history of later turns, for the reader and for both texts of the
coreference model.

Differences from the official code: all dialogs advance together, turn by turn, so that a reader and a coreference model
get batches; equal texts need no coreference; Auto-Gold has a name of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reclaim.convqa.coreference import Document, Resolver, decide, resolved_question
from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.history import COREF_WINDOW, CorefText, Turn, coref_text
from reclaim.convqa.readers import BatchReader, Request
from reclaim.errors import InputError
from reclaim.metrics.quac import NO_ANSWER

PROTOCOLS = ("gold", "pred", "replace", "rewrite", "filter", "rewrite_all")


@dataclass(frozen=True)
class Validity:
    """How questions are judged and rewritten.

    resolver: the coreference model; match: `f1` or `em`; skip_entity, background, window: as the official options (the
    window is fixed to 2 there); strict_names: see `coreference`; rewriter: an object whose `rewrite(texts)` gives
    self-contained questions instead of the substitution of mentions, or None.
    """

    resolver: Resolver
    match: str = "f1"
    skip_entity: bool = True
    background: bool = True
    window: int | None = COREF_WINDOW
    strict_names: bool = False
    rewriter: Any = None


@dataclass(frozen=True)
class AskedTurn:
    """What became of one turn. `asked` and `answer` are None where it was filtered; texts where they were not made."""

    dialog: str
    question: str
    turn: int
    asked: str | None
    answer: str | None
    action: str = "asked"
    invalid: bool | None = None
    gold_text: CorefText | None = None
    predicted_text: CorefText | None = None


@dataclass
class _State:
    dialog: Dialog
    history: list[tuple[int, str, str]] = field(default_factory=list)

    def turns(self, gold: bool) -> tuple[Turn, ...]:
        answers = self.dialog.turns
        return tuple((asked, answers[turn].orig_answer if gold else answer) for turn, asked, answer in self.history)


def run_protocol(
    dialogs: Sequence[Dialog],
    reader: BatchReader,
    protocol: str,
    validity: Validity | None = None,
    *,
    batch_dialogs: int | None = None,
) -> list[AskedTurn]:
    """Put every dialog to a reader under one of `PROTOCOLS`; turns come dialog by dialog.

    `validity` is needed by the protocols that judge questions. `batch_dialogs` dialogs advance together (None: all).
    """
    if protocol not in PROTOCOLS:
        raise InputError("protocol", repr(protocol), f"one of {', '.join(PROTOCOLS)}")
    if validity is None and protocol not in ("gold", "pred"):
        raise InputError("validity", "none", f"a coreference model, for the protocol {protocol}")
    size = batch_dialogs or max(1, len(dialogs))
    turns: list[AskedTurn] = []
    for start in range(0, len(dialogs), size):
        turns += _lock_step(dialogs[start : start + size], reader, protocol, validity)
    return turns


def _lock_step(dialogs, reader, protocol, validity) -> list[AskedTurn]:
    states = [_State(dialog) for dialog in dialogs]
    done: list[list[AskedTurn]] = [[] for _ in states]
    for number in range(max(len(dialog.turns) for dialog in dialogs)):
        places = [place for place, state in enumerate(states) if number < len(state.dialog.turns)]
        planned = _plan([states[place] for place in places], number, protocol, validity)
        asking = [(p, turn, turn.asked) for p, turn in zip(places, planned, strict=True) if turn.asked is not None]
        answers = reader.answer(
            [
                Request(states[place].dialog, asked, states[place].turns(protocol == "gold"))
                for place, _, asked in asking
            ]
        )
        for place, turn in zip(places, planned, strict=True):
            if turn.asked is None:
                done[place].append(turn)
        for (place, turn, asked), answer in zip(asking, answers, strict=True):
            states[place].history.append((number, asked, answer))
            done[place].append(replace(turn, answer=answer))
    return [turn for each in done for turn in each]


def _plan(states: Sequence[_State], number: int, protocol: str, validity: Validity | None) -> list[AskedTurn]:
    """What is asked at a turn in each dialog."""
    plain = []
    for state in states:
        own = state.dialog.turns[number]
        plain.append(AskedTurn(state.dialog.id, own.id, number, own.question, None))
    if validity is None or protocol in ("gold", "pred"):
        return plain
    texts = [_texts(state, state.dialog.turns[number].question, validity) for state in states]
    # Equal texts have equal documents, and those are valid.
    differing = [place for place, (gold, predicted) in enumerate(texts) if gold != predicted]
    wanted = [text for place in differing for text in texts[place]]
    if protocol == "rewrite_all":
        wanted += [gold for gold, _ in texts]
    wanted = list(dict.fromkeys(wanted))
    documents = dict(zip(wanted, validity.resolver.resolve(wanted), strict=True)) if wanted else {}
    options = {"skip_entity": validity.skip_entity, "strict_names": validity.strict_names}
    invalid = [False] * len(states)
    for place in differing:
        gold, predicted = (documents[text] for text in texts[place])
        invalid[place] = decide(gold, predicted, **options).invalid(validity.match)
    anew = [place for place, bad in enumerate(invalid) if protocol == "rewrite_all" or protocol == "rewrite" and bad]
    rewritten = dict(zip(anew, _rewritten([texts[place][0] for place in anew], documents, validity), strict=True))
    planned = []
    for place, (turn, (gold_text, predicted_text)) in enumerate(zip(plain, texts, strict=True)):
        turn = replace(turn, invalid=invalid[place], gold_text=gold_text, predicted_text=predicted_text)
        if place in rewritten:
            turn = replace(turn, action="rewritten", asked=rewritten[place])
        elif invalid[place]:
            turn = _act(turn, states[place].dialog, protocol)
        planned.append(turn)
    return planned


def _rewritten(texts: Sequence[CorefText], documents: Mapping[CorefText, Document], validity: Validity) -> list[str]:
    if validity.rewriter is None:
        return [resolved_question(documents[text]) for text in texts]
    return validity.rewriter.rewrite(texts) if texts else []


def _act(turn: AskedTurn, dialog: Dialog, protocol: str) -> AskedTurn:
    """What becomes of an invalid turn where nothing is rewritten."""
    if protocol == "filter":
        return replace(turn, action="filtered", asked=None)
    text = dialog.turns[turn.turn].rewrite
    return replace(turn, action="replaced", asked=text) if text else replace(turn, action="not_found")


def _texts(state: _State, question: str, validity: Validity) -> tuple[CorefText, CorefText]:
    background = state.dialog.background if validity.background else None
    gold, predicted = (coref_text(state.turns(each), question, background, validity.window) for each in (True, False))
    return gold, predicted


# -------------------------------------------------------------------------------------------------- the official files


def prediction_lines(dialogs: Sequence[Dialog], turns: Sequence[AskedTurn]) -> list[str]:
    """The official output, one JSON line a passage; yes/no and follow-up are constants in it, and mean nothing."""
    lines = []
    for dialog in dialogs:
        asked = [turn for turn in turns if turn.dialog == dialog.id and turn.answer is not None]
        constant = ["y"] * len(asked)
        record = {
            "best_span_str": [turn.answer for turn in asked], "qid": [turn.question for turn in asked],
            "yesno": constant, "followup": constant,
        }  # fmt: skip
        lines.append(json.dumps(record))
    return lines


def read_predictions(lines: Sequence[str], place: str) -> dict[str, str]:
    """Question id -> answer, from the official output; raises `InputError` that names the line."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            found.update(zip(record["qid"], record["best_span_str"], strict=True))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{place}, line {number}", f"{type(error).__name__}: {error}", "an object with qid and best_span_str"
            ) from None
    return found


def modified_questions(dialogs: Sequence[Dialog], turns: Sequence[AskedTurn]) -> dict[str, dict[str, list]]:
    """The official record of what was done to questions, by the passage's number."""
    record: dict[str, dict[str, list]] = {}
    for number, dialog in enumerate(dialogs):
        own = [turn for turn in turns if turn.dialog == dialog.id]
        record[str(number)] = {
            "Rewritten": [[turn.question, turn.asked] for turn in own if turn.action == "rewritten"],
            "Replaced": [[turn.question, turn.asked] for turn in own if turn.action == "replaced"],
            "Not Found": [turn.question for turn in own if turn.action == "not_found"],
            "Filtered": [turn.question for turn in own if turn.action == "filtered"],
        }
    return record


def file_names(reader: str, protocol: str, skip_entity: bool, start: int, end: int) -> tuple[str, str]:
    """Official names of the files of modified questions and of predictions; Auto-Pred is called `filter` there too."""
    mode = protocol if protocol in ("replace", "rewrite") else "filter"
    ending = f"{reader}_{mode}_{'skipent' if skip_entity else 'keptent'}_{start}_{end}.json"
    return f"modified_questions_{ending}", f"predictions_{ending}"


def answers_of(turns: Sequence[AskedTurn]) -> dict[str, str]:
    """Question id -> answer; a filtered question has none, which the scorer counts as missing."""
    return {turn.question: turn.answer for turn in turns if turn.answer is not None}


def predicted_unanswerable(turns: Sequence[AskedTurn]) -> float:
    """Share of the questions asked to which the answer was no answer."""
    said = [turn.answer == NO_ANSWER for turn in turns if turn.answer is not None]
    return sum(said) / len(said)
