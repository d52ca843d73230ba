"""The experiment on people's judgements: figures of an annotation file, and the paper's claims on them, without a model.

Source: EvalConvQA (Li et al. 2022). Reads a data set of judgements and, where a user has them, the readers' official
predictions under automatic protocols with the QuAC file they are on. Passages are dealt out to the experiment's seeds
(`folds`), one fold a seed, so that the spread over seeds is that over passages and an interval over seeds is one over
disjoint sets of passages. Figures of the whole file have the variant `passages: all` and are the same in each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reclaim.convqa.data import load_dialogs, load_judgements, load_predictions
from reclaim.convqa.judgements import Conversation, aggregate, per_passage
from reclaim.errors import InputError
from reclaim.metrics.conversation import TIES, agreement, kendall_tau, passage_agreement, tie_share
from reclaim.metrics.quac import corpus_scores, score_questions

COUNTS = ("conversations", "questions", "valid")


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: Any = "cpu",
    state_dir: Path | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, list[dict]]:
    """Metric rows (and items: accuracy and agreement by passage) of fold `seed` of `folds`.

    `spec`: `judgements` (name of a data set), `folds`; optional `predictions` and `quac` (names of data sets; `quac_split`).
    Raises `InputError` where the fold has no passage, or a seed is no fold.
    """
    folds = spec["folds"]
    if not 0 <= seed < folds:
        raise InputError("seeds", str(seed), f"folds from 0 to {folds - 1}", "Give each fold of passages as a seed.")
    conversations = load_judgements(data[spec["judgements"]])
    passages = sorted({conversation["dialog_id"] for conversation in conversations})
    chosen = set(passages[seed::folds])
    if not chosen:
        raise InputError("folds", f"{folds} for {len(passages)} passages", "at most one fold a passage")
    metrics: list[dict] = []
    items: list[dict] = []
    for name, own in (("all", conversations), ("fold", [c for c in conversations if c["dialog_id"] in chosen])):
        for first in ("counted", "left_out"):
            metrics += figure_rows(
                own, {"protocol": "human", "passages": name, "first_turn": first}, first == "left_out"
            )
    accuracy = per_passage(c for c in conversations if c["dialog_id"] in chosen)
    for reader, values in accuracy.items():
        variant = {"protocol": "human", "passages": "fold", "reader": reader}
        items += [{"variant": variant, "metric": "accuracy", "item": key, "value": v} for key, v in values.items()]
    if "predictions" in spec:
        rows, more = _against_metrics(spec, data, conversations, chosen)
        metrics, items = metrics + rows, items + more
    return {"metrics": metrics, "items": items}


def figure_rows(conversations: Sequence[Conversation], variant: Mapping[str, Any], without_first: bool) -> list[dict]:
    """Metric rows of every reader in annotated conversations."""
    rows = []
    for reader, figures in aggregate(conversations, without_first).items():
        for metric, (value, n) in figures.items():
            if value is not None:
                unit = "count" if metric in COUNTS else "fraction"
                own = {**variant, "reader": reader}
                rows.append({"variant": own, "metric": metric, "value": value, "n": n, "unit": unit})
    return rows


def _against_metrics(spec, data, conversations, chosen) -> tuple[list[dict], list[dict]]:
    """F1 of official predictions, the order of readers by it, and its agreement with people passage by passage."""
    dialogs = load_dialogs(data[spec["quac"]], spec.get("quac_split", "test"))
    judged = {conversation["dialog_id"] for conversation in conversations}
    questions = [question for dialog in dialogs if dialog.id in judged for question in dialog.scored_questions()]
    every = [question for dialog in dialogs for question in dialog.scored_questions()]
    human, human_all = per_passage(c for c in conversations if c["dialog_id"] in chosen), aggregate(conversations)
    metrics: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for protocol, rows in load_predictions(data[spec["predictions"]]).groupby("protocol", sort=True):
        by_passage, f1 = {}, {}
        for reader, own in rows.groupby("reader", sort=True):
            answers = dict(zip(own["question"], own["answer"], strict=True))
            f1[reader], n = corpus_scores(score_questions(every, answers))["f1"]
            variant = {"protocol": protocol, "passages": "all", "reader": reader}
            metrics.append({"variant": variant, "metric": "f1", "value": f1[reader], "n": n, "unit": "fraction"})
            values: dict[str, list[float]] = {}
            for scored in score_questions([q for q in questions if q.dialog in chosen], answers):
                if scored.kept:
                    values.setdefault(scored.question.dialog, []).append(scored.value)
            by_passage[reader] = {key: sum(own) / len(own) for key, own in values.items()}
        readers = sorted(set(f1) & set(human_all))
        variant = {"protocol": protocol, "passages": "all"}
        people = [human_all[reader]["accuracy"][0] for reader in readers]
        tau = kendall_tau([f1[reader] for reader in readers], people)
        metrics.append({"variant": variant, "metric": "kendall_tau", "value": tau, "n": len(readers), "unit": "1"})
        for ties in TIES:
            for (one, other), (value, n) in agreement(human, by_passage, ties).items():
                if n:
                    own = {"protocol": protocol, "passages": "fold", "ties": ties, "pair": f"{one}/{other}"}
                    metrics.append({"variant": own, "metric": "agreement", "value": value, "n": n, "unit": "fraction"})
            own = {"protocol": protocol, "passages": "fold", "ties": ties}
            items += [
                {"variant": own, "metric": "passage_agreement", "item": key, "value": value}
                for key, value in passage_agreement(human, by_passage, ties).items()
            ]
        for side, share in zip(("human", "metric"), tie_share(human, by_passage), strict=True):
            own = {"protocol": protocol, "passages": "fold", "side": side}
            metrics.append({"variant": own, "metric": "tie_share", "value": share, "n": 1, "unit": "fraction"})
    return [row for row in metrics if math.isfinite(row["value"])], items
