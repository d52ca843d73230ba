"""Do the automatic protocols order readers as the live user does? Per seed, over all readers of the experiment.

Source: EvalConvQA (Li et al. 2022), the comparison of rankings. For each protocol: Kendall's tau of its F1 with live
accuracy over readers, the share of pairs ordered alike passage by passage (three conventions for ties), and the slope of
F1 on accuracy, above 1 where a protocol exaggerates the differences between readers. The null control is the live user
against itself: accuracies from one half of the conversations against those of the other half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.judgements import aggregate, per_passage
from reclaim.convqa.results import Runs, passage_means, score_run
from reclaim.metrics.conversation import TIES, kendall_tau, passage_agreement, slope, tie_share
from reclaim.metrics.quac import corpus_scores

AGAIN = "live_again"
"""The live user's other conversations, in the place of a protocol."""


def ranking_rows(dialogs: Sequence[Dialog], runs: Runs) -> tuple[list[dict], list[dict]]:
    """Metric rows and items (agreement by passage) of every protocol; `runs` have live conversations."""
    names = list(runs)
    halves = [{name: _half(runs[name]["live"], part) for name in names} for part in (0, 1)]
    live = {name: runs[name]["live"] for name in names}
    whole, halved = _accuracies(live), _accuracies(halves[1])
    values: dict[str, tuple[list[float | None], Mapping[str, Mapping[str, float]]]] = {}
    for protocol in runs[names[0]]:
        if protocol != "live":
            scored = {name: score_run(dialogs, runs[name][protocol]) for name in names}
            f1 = [corpus_scores(scored[name])["f1"][0] for name in names]
            values[protocol] = f1, {name: passage_means(scored[name]) for name in names}
    human, half = (_passages(conversations) for conversations in (live, halves[1]))
    metrics: list[dict] = []
    items: list[dict] = []
    for protocol, (f1, passages) in values.items():
        own = {"protocol": protocol}
        metrics.append(_row(own, "kendall_tau", kendall_tau(f1, whole), len(names), "1"))
        metrics.append(_row(own, "slope_on_live", slope(f1, whole), len(names), "1"))
        metrics.append(_row(own, "tau_with_half", kendall_tau(f1, halved), len(names), "1"))
        for ties in TIES:
            rows = _agreement_items({**own, "ties": ties}, "passage_agreement", human, passages, ties)
            items += rows
            mean = sum(row["value"] for row in rows) / len(rows) if rows else math.nan
            metrics.append(_row({**own, "ties": ties}, "passage_agreement", mean, len(rows), "fraction"))
        rows = _agreement_items({**own, "ties": "strict"}, "agreement_with_half", half, passages, "strict")
        items += rows
        for side, share in zip(("live", "metric"), tie_share(human, passages), strict=True):
            metrics.append(_row({**own, "side": side}, "tie_share", share, len(human), "fraction"))
    if all(halves[0].values()) and all(halves[1].values()):
        again = {"protocol": AGAIN}
        metrics.append(_row(again, "tau_with_half", kendall_tau(_accuracies(halves[0]), halved), len(names), "1"))
        other = _passages(halves[0])
        items += _agreement_items({**again, "ties": "strict"}, "agreement_with_half", half, other, "strict")
    # What has no value (no passage without a tie, readers of equal accuracy) has no row.
    return [row for row in metrics if math.isfinite(row["value"])], items


def _half(conversations: Sequence[Mapping[str, Any]], part: int) -> list[Mapping[str, Any]]:
    """Every second conversation about each passage."""
    seen: dict[str, int] = {}
    chosen = []
    for conversation in conversations:
        number = seen.get(conversation["dialog_id"], 0)
        seen[conversation["dialog_id"]] = number + 1
        if number % 2 == part:
            chosen.append(conversation)
    return chosen


def _accuracies(live: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[float | None]:
    return [aggregate(own)[name]["accuracy"][0] if own else float("nan") for name, own in live.items()]


def _passages(live: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    return {name: per_passage(own).get(name, {}) for name, own in live.items()}


def _agreement_items(variant, metric, human, passages, ties) -> list[dict]:
    found = passage_agreement(human, passages, ties)
    return [{"variant": variant, "metric": metric, "item": key, "value": value} for key, value in found.items()]


def _row(variant: Mapping[str, Any], metric: str, value: float, n: int, unit: str) -> dict:
    return {"variant": variant, "metric": metric, "value": value, "n": n, "unit": unit}
