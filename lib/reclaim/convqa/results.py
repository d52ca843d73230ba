"""From what a reader did to metric rows and items: scores of every protocol, of the live conversations, of flagged turns.

Source: EvalConvQA (Li et al. 2022), sections on the protocols and on the human evaluation. The flagged turns of a reader
are those that Auto-Rewrite judged invalid; F1 on them is given for every protocol, so that they compare on equal turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.human import figure_rows
from reclaim.convqa.judgements import per_passage
from reclaim.convqa.protocols import AskedTurn, answers_of, predicted_unanswerable
from reclaim.metrics.quac import NO_ANSWER, Scored, corpus_scores, keep_references, score_questions

Runs = Mapping[str, Mapping[str, Any]]
"""Reader -> protocol -> its turns, and `live` -> annotated conversations."""

SHOWN_DIALOGS = 3


def score_run(dialogs: Sequence[Dialog], turns: Sequence[AskedTurn]) -> list[Scored]:
    """Every question of the dialogs, scored with the answers of a protocol."""
    questions = [question for dialog in dialogs for question in dialog.scored_questions()]
    return score_questions(questions, answers_of(turns))


def reader_rows(
    dialogs: Sequence[Dialog], variants: Mapping[str, Mapping[str, Any]], runs: Runs
) -> tuple[list[dict], list[dict]]:
    """Metric rows and items (F1 by passage, F1 of flagged turns by question) of all readers."""
    metrics: list[dict] = []
    items: list[dict] = []
    for reader, done in runs.items():
        variant = dict(variants[reader])
        scored = {name: score_run(dialogs, turns) for name, turns in done.items() if name != "live"}
        flagged = {turn.question for turn in done.get("rewrite", ()) if turn.invalid}
        for name, each in scored.items():
            own = {**variant, "protocol": name}
            metrics += [{"variant": own, **row} for row in _protocol_rows(each, done[name], flagged)]
            items += [{"variant": own, "metric": "f1", **row} for row in _by_passage(each)]
            items += [
                {"variant": own, "metric": "flagged_f1", "item": one.question.id, "value": one.value}
                for one in each
                if one.question.id in flagged
            ]
        if "gold" in scored:
            items += _static_items(scored["gold"], {**variant, "protocol": "gold"})
        if "gold" in scored and "pred" in scored:
            changed = _changed(done["gold"], done["pred"])
            row = {"metric": "changed_by_own_history", "value": changed, "n": len(done["gold"]), "unit": "fraction"}
            metrics.append({"variant": variant, **row})
        if "live" in done:
            own = {**variant, "protocol": "live"}
            for row in figure_rows(done["live"], {}, without_first=False):
                metrics.append({**row, "variant": own})
            items += _live_items(done["live"], own)
    metrics += list(_static_share(dialogs, variants, runs))
    return metrics, items


def _protocol_rows(scored: Sequence[Scored], turns: Sequence[AskedTurn], flagged: set[str]) -> Iterator[dict]:
    for metric, (value, n) in corpus_scores(scored).items():
        if value is not None and metric != "predicted_unanswerable":
            yield {"metric": metric, "value": value, "n": n, "unit": "fraction"}
    said = [turn for turn in turns if turn.answer is not None]
    if said:
        value = predicted_unanswerable(turns)
        yield {"metric": "predicted_unanswerable", "value": value, "n": len(said), "unit": "fraction"}
    judged = [turn for turn in turns if turn.invalid is not None]
    if judged:
        value = sum(turn.invalid is True for turn in judged) / len(judged)
        yield {"metric": "invalid_share", "value": value, "n": len(judged), "unit": "fraction"}
        asked = [turn.gold_text is not None and turn.asked != turn.gold_text.question for turn in judged]
        changed = sum(asked) / len(asked)
        yield {"metric": "changed_questions", "value": changed, "n": len(judged), "unit": "fraction"}
    marked = [each.value for each in scored if each.question.id in flagged]
    if marked:
        yield {"metric": "flagged_f1", "value": sum(marked) / len(marked), "n": len(marked), "unit": "fraction"}


def _changed(gold: Sequence[AskedTurn], pred: Sequence[AskedTurn]) -> float:
    """Share of answers that differ between Auto-Gold and Auto-Pred: 0 for a reader without history, exactly."""
    answers = answers_of(gold)
    return sum(answers[turn.question] != turn.answer for turn in pred) / len(pred)


def _by_passage(scored: Sequence[Scored]) -> Iterator[dict]:
    for passage, value in passage_means(scored).items():
        yield {"item": passage, "value": value}


def passage_means(scored: Sequence[Scored]) -> dict[str, float]:
    """Mean model F1 of each passage, over the questions that count."""
    values: dict[str, list[float]] = {}
    for each in scored:
        if each.kept:
            values.setdefault(each.question.dialog, []).append(each.value)
    return {passage: sum(own) / len(own) for passage, own in values.items()}


def _live_items(conversations: Sequence[Mapping[str, Any]], variant: Mapping[str, Any]) -> Iterator[dict]:
    """By passage: accuracy, and shares of unanswerable questions and of no-answers."""
    for values in per_passage(conversations).values():
        for passage, value in values.items():
            yield {"variant": variant, "metric": "accuracy", "item": passage, "value": value}
    marks: dict[str, list[tuple[bool, bool]]] = {}
    for conversation in conversations:
        turns = [(turn["answerable"] == "n", turn["answer"] == NO_ANSWER) for turn in conversation["qas"]]
        marks.setdefault(conversation["dialog_id"], []).extend(turns)
    yield from _share_items(marks, variant)


def _static_items(scored: Sequence[Scored], variant: Mapping[str, Any]) -> Iterator[dict]:
    """The same two shares of a protocol that asks the questions as they are."""
    marks: dict[str, list[tuple[bool, bool]]] = {}
    for each in scored:
        marks.setdefault(each.question.dialog, []).append((each.unanswerable, each.predicted == NO_ANSWER))
    yield from _share_items(marks, variant)


def _share_items(marks: Mapping[str, Sequence[tuple[bool, bool]]], variant: Mapping[str, Any]) -> Iterator[dict]:
    for passage, own in marks.items():
        for metric, values in zip(
            ("unanswerable_share", "predicted_unanswerable"), zip(*own, strict=True), strict=True
        ):
            yield {"variant": variant, "metric": metric, "item": passage, "value": sum(values) / len(values)}


def _static_share(dialogs, variants, runs: Runs) -> Iterator[dict]:
    """The share of unanswerable questions that were asked, which the protocols have in common."""
    questions = [question for dialog in dialogs for question in dialog.scored_questions()]
    none = [keep_references(question.references) == [NO_ANSWER] for question in questions]
    value = sum(none) / len(none)
    for reader, done in runs.items():
        if "gold" in done:
            variant = {**variants[reader], "protocol": "gold"}
            row = {"metric": "unanswerable_share", "value": value, "n": len(none), "unit": "fraction"}
            yield {"variant": variant, **row}


def shown_conversations(dialogs: Sequence[Dialog], runs: Runs) -> pd.DataFrame:
    """Some dialogs with the most flagged turns under all protocols, and live, for the report.

    Columns: reader, protocol, dialog, turn, asked, answer, action, truth, right (model F1 of at least one half; the
    oracle's own judgement live).
    """
    rows: list[dict[str, Any]] = []
    truths = {turn.id: turn.orig_answer for dialog in dialogs for turn in dialog.turns}
    for reader, done in runs.items():
        counts = dict.fromkeys((dialog.id for dialog in dialogs), 0)
        for turn in done.get("rewrite", ()):
            counts[turn.dialog] += bool(turn.invalid)
        chosen = sorted(counts, key=lambda key: (-counts[key], key))[:SHOWN_DIALOGS]
        for protocol, turns in done.items():
            if protocol == "live":
                rows += _shown_live(reader, turns, chosen)
                continue
            values = {each.question.id: each.value for each in score_run(dialogs, turns)}
            for turn in turns:
                if turn.dialog in chosen:
                    rows.append(
                        {
                            "reader": reader, "protocol": protocol, "dialog": turn.dialog, "turn": turn.turn,
                            "asked": turn.asked or "", "answer": turn.answer or "", "action": turn.action,
                            "truth": truths[turn.question], "right": values[turn.question] >= 0.5,
                        }
                    )  # fmt: skip
    columns = ["reader", "protocol", "dialog", "turn", "asked", "answer", "action", "truth", "right"]
    return pd.DataFrame(rows, columns=columns)


def shown_rows(shown: pd.DataFrame, reader: str) -> list[dict]:
    """The first shown dialog of a reader as metric rows, whose variants hold the texts: value 1 where it was right."""
    own = shown[shown["reader"] == reader]
    own = own[own["dialog"] == own["dialog"].iloc[0]] if len(own) else own
    texts = [name for name in own.columns if name != "right"]
    return [
        {"variant": {name: row[name] for name in texts}, "metric": "shown_turn", "value": float(row["right"]), "n": 1,
         "unit": "fraction"}
        for row in own.to_dict("records")
    ]  # fmt: skip


def _shown_live(reader: str, conversations: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> Iterator[dict]:
    seen = set()
    for conversation in conversations:
        if conversation["dialog_id"] not in chosen or conversation["dialog_id"] in seen:
            continue
        seen.add(conversation["dialog_id"])
        for turn in conversation["qas"]:
            truth = turn["gold_anno"][0] if turn["gold_anno"] else (NO_ANSWER if turn["answerable"] == "n" else "")
            yield {
                "reader": reader, "protocol": "live", "dialog": conversation["dialog_id"], "turn": turn["turn_id"],
                "asked": turn["question"], "answer": turn["answer"], "action": "asked", "truth": truth or turn["answer"],
                "right": turn["correct"] == "y",
            }  # fmt: skip
