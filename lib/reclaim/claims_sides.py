"""Rows of a run -> the paired sides of a claim."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reclaim import tables
from reclaim.claims_yaml import Check, Claim, Subset


class Stop(Exception):
    """Ends a claim or a check without an interval: "not_testable" (no rows) or "invalid" (rows that do not pair)."""

    def __init__(self, verdict: str, reason: str):
        super().__init__(reason)
        self.verdict, self.reason = verdict, reason


@dataclass(frozen=True)
class Arm:
    """A side: its subset (or several, of which the best is taken per seed) and its weight in what is estimated."""

    name: str
    candidates: Sequence[Subset]
    weight: float


class Run:
    """The tables of a run, cut by paper and experiment once."""

    def __init__(self, **frames: pd.DataFrame | None):
        self.parts = {
            kind: {} if table is None else dict(iter(table.groupby(["paper", "experiment"], sort=False)))
            for kind, table in frames.items()
        }

    def rows(self, kind: str, paper: str, experiments: str | Sequence[str], metric: str, where: Subset) -> pd.DataFrame:
        """Give the rows of one metric in one experiment (or several together) whose variant matches `where`."""
        parts = [self.parts[kind].get((paper, name)) for name in as_list(experiments)]
        found = [tables.select(part, metric=metric, where=where) for part in parts if part is not None]
        return pd.concat(found) if found else tables.empty(kind)


def as_list(value: Any) -> list:
    """Give a list as it is and anything else as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def text(side: Mapping[str, Any] | None) -> str:
    """Write a side as it is shown to a reader."""
    if side is None:
        return ""
    if "best_of" in side:
        return "best per seed of " + " | ".join(text(subset) for subset in side["best_of"])
    return json.dumps(side, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def pair(
    found: Mapping[tuple[str, int], pd.DataFrame], pinned: Iterable[str], seeds: Iterable[int] | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Line up the rows of every candidate of every arm by seed, cell and item.

    found: rows per (arm's name, candidate's number). A cell is a combination of the open keys, those that every
    variant has and that are not `pinned`; several rows of a cell are averaged. seeds: the seeds that every candidate
    must have. Gives a frame with one column per candidate and the open keys. Raises Stop("invalid") where a candidate
    lacks a seed, a cell or an item that another one has: nothing is dropped to make the sides fit.
    """
    parsed = {variant: json.loads(variant) for rows in found.values() for variant in rows["variant"].unique()}
    open_keys = sorted(set.intersection(*map(set, parsed.values())) - set(pinned))
    cells = {
        variant: tables.variant_json({key: values[key] for key in open_keys}) for variant, values in parsed.items()
    }
    wanted = set().union(*[rows["seed"] for rows in found.values()]) if seeds is None else set(seeds)
    columns = {}
    for (name, number), rows in found.items():
        absent, extra = sorted(wanted - set(rows["seed"])), sorted(set(rows["seed"]) - wanted)
        if absent or extra:
            where = "no row for seeds" if absent else "rows for seeds that are not in the fixed list:"
            raise Stop("invalid", f"the {name} has {where} {', '.join(map(str, absent or extra))}")
        item = rows["item"] if "item" in rows else ""
        rows = rows.assign(cell=rows["variant"].map(cells), item=item)
        columns[name, number] = rows.groupby(["seed", "cell", "item"])["value"].mean()
    matrix = pd.DataFrame(columns).sort_index()
    gaps = np.argwhere(matrix.isna().to_numpy())
    if len(gaps):
        (seed, cell, item), (name, _) = matrix.index[gaps[0][0]], matrix.columns[gaps[0][1]]
        raise Stop(
            "invalid",
            f"seed {seed}: another side has {cell}{f', item {item}' if item else ''}, the {name} has not "
            f"({len(gaps)} such gaps; where the sides differ in a key by design, name it in differ_in)",
        )
    return matrix, open_keys


def best(matrix: pd.DataFrame, arms: Sequence[Arm], higher: bool) -> pd.DataFrame:
    """Keep one candidate per arm and seed, the one with the best mean over its cells; one column per arm."""
    chosen_sides = {}
    for arm in arms:
        block = matrix[arm.name]
        if len(arm.candidates) == 1:
            chosen_sides[arm.name] = block[0]
            continue
        scores = per_seed(block)
        chosen = scores.idxmax(axis=1) if higher else scores.idxmin(axis=1)
        chosen_sides[arm.name] = pd.concat([block.loc[[seed], number] for seed, number in chosen.items()])
    return pd.DataFrame(chosen_sides)


def per_seed(values: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """Average items within a cell, then cells within a seed: a large task counts no more than a small one."""
    return values.groupby(level=["seed", "cell"]).mean().groupby(level="seed").mean()


def strata(values: pd.Series) -> list:
    """Give `stats.two_level_bootstrap` its strata: one per cell, an array where all seeds have the same items."""
    result = []
    for _, part in values.groupby(level="cell", sort=True):
        square = part.droplevel("cell").unstack("item")
        ragged = square.isna().any(axis=None)
        result.append([row[~np.isnan(row)] for row in square.to_numpy()] if ragged else square.to_numpy())
    return result


def paired_sides(
    run: Run,
    kind: str,
    claim: Claim,
    what: Claim | Check,
    arms: Sequence[Arm],
    higher: bool,
    seeds: Sequence[int] | None,
    within: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """Fetch and pair the rows of every arm for `what`, the claim or one of its checks; one column per arm.

    With `within`, only rows of `seeds` are looked at. Raises Stop as `pair` does, and where an arm has no rows.
    """
    found = {}
    for arm in arms:
        for number, subset in enumerate(arm.candidates):
            rows = run.rows(kind, claim.paper, what.experiment, what.metric, subset)
            found[arm.name, number] = rows[rows["seed"].isin(seeds)] if within else rows
            if found[arm.name, number].empty:
                raise Stop("not_testable", f"not in this run: rows of {what.metric} for the {arm.name}, {text(subset)}")
    pinned = {key for arm in arms for subset in arm.candidates for key in subset}
    matrix, open_keys = pair(found, pinned | set(claim.differ_in), seeds)
    return best(matrix, arms, higher), open_keys


def ratios(treatment: pd.Series, baseline: pd.Series) -> pd.Series:
    """Treatment over baseline, seed by seed; raises Stop("invalid") where the baseline is not above 0."""
    if (baseline <= 0).any():
        raise Stop("invalid", f"no ratio: the baseline is not above 0 in seeds {list(baseline.index[baseline <= 0])}")
    return treatment / baseline
