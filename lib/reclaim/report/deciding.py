"""The rows that decided a claim, looked up in the run's tables for the page.

The claims table names them: `rows` begins with the table and its experiments, `treatment` and `baseline` are the
sides as subsets of variant keys (`reclaim.claims`). Shown are all rows that match, one line a variant and one column
a seed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reclaim import tables
from reclaim.report.figures import fixed, number

PLACE = re.compile(r"(metrics|items|costs)\.parquet: paper .*?, experiment (.+?), (?:metric|measure) ")


@dataclass(frozen=True)
class DecidingRows:
    """`columns` and `rows` are text, values as the table has them.

    `shared` are the variant keys that all rows have alike. `by_seed` is the claim's own number for each seed, empty
    where it is not one per seed.
    """

    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    shared: str = ""
    by_seed: Mapping[int, float] = field(default_factory=dict)


def deciding_rows(claim: Mapping[str, Any], metrics: pd.DataFrame, costs: pd.DataFrame) -> DecidingRows:
    """Look up a claim's rows (a row of the claims table); none where it has no sides or was not decided in this run."""
    place = PLACE.match(str(claim.get("rows", "")))
    sides = {name: _subsets(claim.get(name)) for name in ("treatment", "baseline")}
    table = costs if place and place[1] == "costs" else metrics
    if not place or not sides["treatment"] or table.empty:
        return DecidingRows()
    where = (table, claim["paper"], place[2].split(" or "), claim["metric"])
    found = {name: [tables.select(*where, subset) for subset in subsets] for name, subsets in sides.items()}
    shown = {name: pd.concat(parts).drop_duplicates() for name, parts in found.items() if parts}
    everything = pd.concat(shown.values())
    if everything.empty:
        return DecidingRows()
    seeds = sorted({int(seed) for seed in everything["seed"]})
    write = _fraction if set(everything["unit"]) == {"fraction"} else _significant
    variants = {text: tables.parse_variant(text) for text in everything["variant"].unique()}
    first, *others = variants.values()
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    rows = []
    for name, side in shown.items():
        for text, part in side.groupby("variant", sort=True):
            means = part.groupby("seed")["value"].mean()
            own = {key: value for key, value in variants[text].items() if key not in shared}
            cells = [write(float(means[seed])) if seed in means.index else "–" for seed in seeds]
            rows.append((name, keys_text(own) or "–", *cells))
    by_seed = _by_seed(claim, found)
    if by_seed and sides["baseline"]:
        name, write = ("ratio", _significant) if claim["kind"] == "ratio" else ("difference", write)
        rows.append((name, "paired by seed", *(write(by_seed[seed]) if seed in by_seed else "–" for seed in seeds)))
    columns = ("side", "what differs", *(f"seed {seed}" for seed in seeds))
    return DecidingRows(columns, rows, keys_text(shared), by_seed)


def _subsets(text: Any) -> list[dict[str, Any]]:
    """Read a side: one JSON object, or several after `best per seed of`, parted by bars."""
    decoder, found, place = json.JSONDecoder(), [], 0
    text = str(text)
    while (place := text.find("{", place)) >= 0:
        try:
            subset, place = decoder.raw_decode(text, place)
        except ValueError:
            return []
        found.append(subset)
    return found


def _by_seed(claim: Mapping[str, Any], found: Mapping[str, Sequence[pd.DataFrame]]) -> dict[int, float]:
    """Give the claim's number for each seed where their mean is the claim's estimate.

    Otherwise (slopes, interactions, cells that weigh differently) nothing: numbers that do not add up to the estimate
    would mislead.
    """
    estimate, kind = float(claim["estimate"]), claim["kind"]
    if not math.isfinite(estimate) or kind in ("slope", "interaction"):
        return {}
    treatment, *best = [part.groupby("seed")["value"].mean() for side in found.values() for part in side]
    if not best:
        candidates = [treatment]
    else:
        # A baseline may be the best of several: the highest, or the lowest where lower is better.
        joined = pd.concat(best, axis=1)
        highest, lowest = joined.max(axis=1), joined.min(axis=1)
        if kind == "ratio":
            candidates = [treatment / highest, treatment / lowest]
        else:
            candidates = [treatment - highest, lowest - treatment]
    for values in candidates:
        if values.notna().all() and math.isclose(values.mean(), estimate, rel_tol=1e-6, abs_tol=1e-9):
            return {int(seed): float(value) for seed, value in values.items()}
    return {}


def _fraction(value: float) -> str:
    return fixed(value, 4)


def _significant(value: float) -> str:
    return number(value, 4)


def plain(text: str) -> str:
    """Write the variants within a sentence, which are JSON objects, as `key value, key value`."""
    decoder, parts, place = json.JSONDecoder(), [], 0
    while (start := text.find('{"', place)) >= 0:
        try:
            keys, end = decoder.raw_decode(text, start)
        except ValueError:
            break
        parts += [text[place:start], f"({keys_text(keys)})"]
        place = end
    return "".join([*parts, text[place:]])


def keys_text(keys: Mapping[str, Any]) -> str:
    """Write keys of a variant as `key value, key value`."""
    return ", ".join(f"{key} {_value_text(value)}" for key, value in keys.items())


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return keys_text(value)
    if isinstance(value, list):
        return " or ".join(map(_value_text, value))
    return value if isinstance(value, str) else json.dumps(value)
