"""One system's section: what its module declares, and the rows of the run's tables that its figures are drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reclaim import tables
from reclaim.report.figures import Exhibit


@dataclass(frozen=True)
class System:
    """What a `figures_<system>` module declares for its section of the page.

    `key` is the tables' `paper`; `limits` are what no run of it can tell; `exhibits` gives the figures, in order.
    """

    key: str
    title: str
    citation: str
    url: str
    about: str
    limits: Sequence[str]
    exhibits: Callable[[SystemTables], list[Exhibit]]


@dataclass(frozen=True)
class Record:
    """One value of a metric, cost or curve with the parsed keys of its variant."""

    keys: dict[str, Any]
    seed: int
    value: float
    step: float = math.nan


@dataclass(frozen=True)
class SystemTables:
    """The rows of one paper from the claims, metrics, costs and curves tables, as pandas frames, and its pictures.

    `pictures`: PNG bytes by `experiment/job/file name`.
    """

    claims: pd.DataFrame
    metrics: pd.DataFrame
    costs: pd.DataFrame
    curves: pd.DataFrame
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def metric(self, experiment: str, metric: str) -> list[Record]:
        """Give the metric's rows in one experiment."""
        return _records(self.metrics, experiment, "metric", metric)

    def cost(self, experiment: str, measure: str) -> list[Record]:
        """Give the cost rows of one measure in one experiment."""
        return _records(self.costs, experiment, "measure", measure)

    def curve(self, measure: str, experiment: str) -> list[Record]:
        """Give a measure's curve points in one experiment, with their steps."""
        return _records(self.curves, experiment, "measure", measure)


def _records(frame: pd.DataFrame, experiment: str, column: str, name: str) -> list[Record]:
    if frame.empty:
        return []
    chosen = frame[(frame[column] == name) & (frame["experiment"] == experiment)]
    steps = chosen["step"] if "step" in chosen else [math.nan] * len(chosen)
    variants = {text: tables.parse_variant(text) for text in chosen["variant"].unique()}
    return [
        Record(variants[variant], int(seed), float(value), float(step))
        for variant, seed, value, step in zip(chosen["variant"], chosen["seed"], chosen["value"], steps, strict=True)
    ]


def where(records: Iterable[Record], **keys: Any) -> list[Record]:
    """Keep the records whose variant has all these values; None asks for a key that is absent or null."""
    return [record for record in records if all(record.keys.get(key) == value for key, value in keys.items())]


def group(records: Iterable[Record], name: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Group records by what `name` gives, in order of first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(name(record), []).append(record)
    return groups


def by_seed(records: Iterable[Record], scale: float = 1.0) -> dict[int, float]:
    """Give the values by seed, in the order of the seeds; several of one seed (tasks, say) are averaged."""
    found: dict[int, list[float]] = {}
    for record in records:
        found.setdefault(record.seed, []).append(scale * record.value)
    return {seed: sum(found[seed]) / len(found[seed]) for seed in sorted(found)}


def seeds_text(records: Iterable[Record]) -> str:
    """Count the different seeds, as `4 seeds`."""
    count = len({record.seed for record in records})
    return "1 seed" if count == 1 else f"{count} seeds"
