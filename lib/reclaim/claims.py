"""claims.yaml and the tables of a run -> one verdict per claim.

A claim compares sides. A side is a subset of variant keys ({"scheme": "uniform", "corruption": 0.4}); its rows are
averaged within a seed over whatever the subset leaves open (tasks, training sets), each combination of open keys
counting once, and the sides are paired by seed over the same combinations. A baseline may be `best_of` several
subsets, taken per seed. What is estimated is one number per seed, then its mean over seeds with a 95 % interval
(`stats`). Where the interval lies decides:

  kind          one number per seed                      supported                    contradicted
  superior      treatment - baseline                     low > margin                 high < margin (see below)
  not_inferior  treatment - baseline                     low > -margin                high < -margin
  equivalent    treatment - baseline                     inside +-margin              wholly outside
  ratio         treatment / baseline                     inside [at_least, at_most]   wholly outside
  bound         treatment                                inside [at_least, at_most]   wholly outside
  slope         least-squares slope of the difference,   as its `test` says: superior (default), not_inferior or
                or of the treatment without a baseline,  equivalent
                over the key `over`
  interaction   treatment - baseline where `at` holds    as its `test` says
                minus the same where `against` holds

`direction: lower` (lower values are better) turns the sign of differences, slopes and interactions, so that a
positive estimate always speaks for the treatment; ratios and bounds are as measured. The bounds of `ratio` and
`bound` are inclusive, the others strict. `contradicted_below` sets another bound for contradicting `superior`, for
claims that name a least effect and count as contradicted below it.

`resample: seeds` takes the seeds as the sample, `seeds_and_items` the rows of items.parquet too. `exact` is for what
has no sampling error (file sizes, parameter counts, equality of weights): the interval is the range over seeds, and
there is no p value.

Verdicts, the first that applies:
  not_testable  the claim says so, or a side has no row at all in this run (`overlay` then names where it has)
  invalid       a seed or a combination of keys has rows on one side only, or the seeds are not the planned ones; or
                a gate failed. Nothing is dropped or drawn again to make a run valid
  inconclusive  fewer than `min_seeds` seeds (3 unless the claim says 2)
  contradicted  see the table
  supported     see the table, and every guard holds: `min_effect` (least estimate), `max_effect` (largest absolute
                estimate), `signs` (how many seeds support it alone), `guards`
  inconclusive  all else, with the number of seeds that would decide (or a word that the test rows are too few for that)

Gates, guards and warnings are the same kind of check and differ in what a failure does (invalid; inconclusive; a
note). A check is a level (`where`: at_least, at_most or between, in every run, seed or arm) or a comparison
(`treatment` against `baseline`: low_above and high_below for the ends of the t interval over seeds, mean_at_least and
mean_at_most for the mean; one of means alone need not be paired by seed). An `optional` check is skipped, with a
note, where it has no rows.

The best of several baselines, taken per seed, lies above each of them where they differ by noise alone. So a claim that
holds against it holds against all; but what lies below it may be below none of them. Such a claim is contradicted only
where one of the baselines, the same in all seeds, contradicts it too, at a level divided by their number.

The verdict is on the raw 95 % interval. Beside it stand Holm's p value within the paper, over its claims with an
interval in this run, and the decision that it gives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd

from reclaim import stats
from reclaim.claims_checks import failed_checks, span
from reclaim.claims_sides import Arm, Run, Stop, as_list, paired_sides, per_seed, ratios, strata, text
from reclaim.claims_yaml import Claim, load_claims
from reclaim.seeding import derive

__all__ = ["COLUMNS", "decide", "load_claims"]

COLUMNS = {
    "paper": "str",
    "claim": "str",
    "headline": "bool",
    "statement": "str",
    "source": "str",
    "kind": "str",
    "metric": "str",
    "verdict": "str",
    "estimate": "float64",
    "low": "float64",
    "high": "float64",
    "margin": "float64",
    "p_value": "float64",
    "holm_p": "float64",
    "holm_decision": "str",
    "n_seeds": "int64",
    "seeds": "str",
    "seeds_needed": "Int64",
    "paper_value": "str",
    "paper_estimate": "float64",
    "unit": "str",
    "reason": "str",
    "overlay": "str",
    "treatment": "str",
    "baseline": "str",
    "rows": "str",
    "scale_note": "str",
}
ALPHA = 1 - stats.LEVEL
Seeds = Mapping[tuple[str, str], Sequence[int]]


def decide(
    claims: Sequence[Claim],
    metrics: pd.DataFrame,
    items: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
    seeds: Seeds | None = None,
) -> pd.DataFrame:
    """Decide every claim.

    metrics, items, costs: tables as `tables.validate` gives them. seeds: the config's seeds per (paper, experiment);
    a claim on an experiment that is listed must have exactly these, a claim on another one the same seeds on every
    side. Gives one row per claim in their order, with the columns of COLUMNS; low and high are NaN where there is no
    interval. What the tables lack is a verdict, never an error.
    """
    run = Run(metrics=metrics, items=items, costs=costs)
    results = pd.DataFrame([_row(claim, run, seeds or {}) for claim in claims], columns=list(COLUMNS))
    results = results.astype(COLUMNS)
    for _, family in results[results["p_value"].notna()].groupby("paper"):
        adjusted = pd.Series(stats.holm(family["p_value"]), index=family.index)
        results.loc[family.index, "holm_p"] = adjusted
        results.loc[adjusted.index[adjusted >= ALPHA], "holm_decision"] = "inconclusive"
    return results


def _row(claim: Claim, run: Run, planned: Seeds) -> dict[str, Any]:
    blanks = {"float64": math.nan, "int64": 0, "Int64": None}
    row = {name: blanks.get(dtype, "") for name, dtype in COLUMNS.items()}
    shared = COLUMNS.keys() & {field.name for field in fields(Claim)}
    row.update({name: getattr(claim, name) for name in shared})
    row.update(treatment="" if claim.not_testable else text(claim.treatment), baseline=text(claim.baseline))
    if claim.not_testable or claim.kind in ("ratio", "bound"):
        row["margin"] = math.nan
    try:
        if claim.not_testable:
            raise Stop("not_testable", claim.not_testable)
        _measure_and_decide(claim, run, planned, row)
    except Stop as stop:
        where = f"; the overlay {claim.overlay} has it" if claim.overlay and stop.verdict == "not_testable" else ""
        row.update(verdict=stop.verdict, reason=stop.reason + where)
    row["holm_decision"] = row["verdict"]
    return row


def _measure_and_decide(claim: Claim, run: Run, planned: Seeds, row: dict[str, Any]) -> None:
    """Fill in estimate, interval, verdict and reason; raises Stop where there is no interval or a gate failed."""
    lists = [planned[claim.paper, name] for name in as_list(claim.experiment) if (claim.paper, name) in planned]
    seeds = sorted(set().union(*lists)) if lists else None
    arms = _arms(claim, run)
    sides, open_keys = paired_sides(run, _table(claim), claim, claim, arms, claim.direction == "higher", seeds)
    values, each = _estimated(claim, sides, arms)
    seeds = [int(seed) for seed in each.index]
    interval = _interval(claim, values, each)
    row.update(
        estimate=interval.estimate,
        low=interval.low if math.isfinite(interval.low) else math.nan,
        high=interval.high if math.isfinite(interval.high) else math.nan,
        n_seeds=len(seeds),
        seeds=", ".join(map(str, seeds)),
        unit=_unit(claim, run, arms),
        rows=_find(claim, open_keys, sides),
    )
    failures, notes = failed_checks(claim.gates, claim, run, seeds)
    if failures:
        raise Stop("invalid", "; ".join(f"gate {failure}" for failure in failures))
    if interval.n < claim.min_seeds:
        verdict, reason = "inconclusive", f"{_seeds(interval.n)}; at least {claim.min_seeds} are needed"
    else:
        p_against = _p_against(claim, run, interval, seeds)
        verdict, reason = _verdict(claim, run, interval, values, each, p_against)
        if claim.resample != "exact":
            low, high, _, _ = _region(claim)
            row["p_value"] = min(interval.p_inside(low, high), p_against)
            if interval.sd == 0:
                reason += "; all seeds are equal, and an interval of no width is no certainty"
    if verdict == "inconclusive" and claim.resample != "exact" and not _supports(claim, interval.low, interval.high):
        if (
            interval.n >= claim.min_seeds
            and not _decides(claim, interval)
            and _decides(claim, stats.seed_interval(each))
        ):
            reason += "; the spread over seeds would let it decide: it takes more test rows, not more seeds"
        else:
            row["seeds_needed"], supposed = _needed(claim, interval)
            if row["seeds_needed"]:
                reason += f"; about {_seeds(row['seeds_needed'])} would decide at this spread, {supposed}"
    warned, more = failed_checks(claim.warnings, claim, run, seeds)
    row.update(verdict=verdict, reason="; ".join([reason, *notes, *more, *(f"warning: {text}" for text in warned)]))


# ---------------------------------------- what is estimated


def _arms(claim: Claim, run: Run) -> list[Arm]:
    """Write what is estimated as a weighted sum of arms (all kinds but the ratio, which takes the two sides)."""
    sign = -1.0 if claim.direction == "lower" else 1.0
    sides = [("treatment", [claim.treatment], sign)]
    if claim.baseline is not None:
        sides.append(("baseline", claim.baseline.get("best_of", [claim.baseline]), -sign))
    places: list[tuple[str, Mapping[str, Any], float]] = [("", {}, 1.0)]
    if claim.kind == "bound":
        return [Arm("treatment", [claim.treatment], 1.0)]
    if claim.kind == "interaction":
        places = [(f" at {text(claim.at)}", claim.at, 1.0), (f" at {text(claim.against)}", claim.against, -1.0)]
    elif claim.kind == "slope":
        places = [(f" at {key}", {claim.over["key"]: key}, weight) for key, weight in _levels(claim, run).items()]
    return [
        Arm(name + place, [{**subset, **extra} for subset in subsets], weight * factor)
        for place, extra, factor in places
        for name, subsets, weight in sides
    ]


def _levels(claim: Claim, run: Run) -> dict[Any, float]:
    """Give the levels of the slope's key that this run has, with their weights."""
    key, values = claim.over["key"], claim.over["values"]
    numbers = values if isinstance(values, Mapping) else {value: value for value in values}
    where = (_table(claim), claim.paper, claim.experiment, claim.metric)
    present = [level for level in numbers if len(run.rows(*where, {**claim.treatment, key: level}))]
    if len(present) < 2:
        raise Stop("not_testable", f"not in this run: rows of {claim.metric} at two or more of {key} = {list(numbers)}")
    x = np.array([numbers[level] for level in present], dtype=float)
    weights = stats.slope_weights(np.log2(x) if claim.over.get("scale") == "log2" else x)
    return dict(zip(present, weights.tolist(), strict=True))


def _table(claim: Claim) -> str:
    return "items" if claim.resample == "seeds_and_items" else claim.table


def _estimated(claim: Claim, sides: pd.DataFrame, arms: Sequence[Arm]) -> tuple[pd.Series, pd.Series]:
    """Give what is estimated, by seed, cell and item (ratios: by seed), and its one number per seed."""
    if claim.kind == "ratio":
        values = ratios(per_seed(sides["treatment"]), per_seed(sides["baseline"]))
        return values, values
    values = sum(arm.weight * sides[arm.name] for arm in arms)
    return values, per_seed(values)


def _interval(claim: Claim, values: pd.Series, each: pd.Series) -> stats.Interval:
    if claim.resample == "seeds_and_items":
        return stats.seed_and_item_interval(strata(values), derive(0, claim.paper, claim.claim))
    interval = stats.seed_interval(each)
    if claim.resample == "exact":
        return stats.Interval(interval.estimate, float(each.min()), float(each.max()), interval.n, interval.sd)
    return interval


# ---------------------------------------- what decides


def _test(claim: Claim) -> str:
    return claim.test if claim.kind in ("slope", "interaction") else claim.kind


def _region(claim: Claim) -> tuple[float, float, float, float]:
    """Give (low, high), between which an interval supports, and (below, above), beyond which it contradicts."""
    test, margin = _test(claim), claim.margin
    if test == "superior":
        return margin, math.inf, margin if claim.contradicted_below is None else claim.contradicted_below, math.inf
    if test == "not_inferior":
        return -margin, math.inf, -margin, math.inf
    if test == "equivalent":
        return -margin, margin, -margin, margin
    return claim.at_least, claim.at_most, claim.at_least, claim.at_most


def _supports(claim: Claim, low: float, high: float) -> bool:
    least, most, _, _ = _region(claim)
    if claim.kind in ("ratio", "bound"):
        return low >= least and high <= most
    return low > least and high < most


def _decides(claim: Claim, interval: stats.Interval) -> bool:
    _, _, below, above = _region(claim)
    return _supports(claim, interval.low, interval.high) or interval.high < below or interval.low > above


def _p_against(claim: Claim, run: Run, interval: stats.Interval, seeds: Sequence[int]) -> float:
    """Give the p value of lying wholly where a claim is contradicted.

    Of several baselines: the smallest one against any of them in all seeds, times their number.
    """
    _, _, below, above = _region(claim)
    candidates = (claim.baseline or {}).get("best_of")
    if candidates is None:
        return interval.p_outside(below, above)
    p_values = []
    for candidate in candidates:
        alone = replace(claim, baseline=candidate)
        arms = _arms(alone, run)
        sides, _ = paired_sides(run, _table(alone), alone, alone, arms, True, seeds)
        p_values.append(_interval(alone, *_estimated(alone, sides, arms)).p_outside(below, above))
    return min(1.0, len(candidates) * min(p_values))


def _verdict(
    claim: Claim, run: Run, interval: stats.Interval, values: pd.Series, each: pd.Series, p_against: float
) -> tuple[str, str]:
    low, high, below, above = _region(claim)
    subject = f"the interval over {_seeds(interval.n)}"
    beyond = f"below {below:g}" if interval.high < below else f"above {above:g}" if interval.low > above else ""
    if beyond and "best_of" in (claim.baseline or {}) and claim.resample != "exact" and p_against >= ALPHA:
        return "inconclusive", f"{subject} lies wholly {beyond}, but not against any one of the baselines"
    if beyond:
        return "contradicted", f"{subject} lies wholly {beyond}"
    if not _supports(claim, interval.low, interval.high):
        return "inconclusive", f"{subject} reaches over the claim's bound ({span(low, high)})"
    failed, notes = failed_checks(claim.guards, claim, run, [int(seed) for seed in each.index])
    if claim.min_effect is not None and interval.estimate < claim.min_effect:
        failed.append(f"least effect: {interval.estimate:.4g} is below {claim.min_effect:g}")
    if claim.max_effect is not None and abs(interval.estimate) > claim.max_effect:
        failed.append(f"largest effect: {interval.estimate:.4g} is beyond {claim.max_effect:g}")
    failed += _disagreeing(claim, values, each)
    if failed:
        return "inconclusive", "; ".join([f"{subject} would support it", *(f"guard {failure}" for failure in failed)])
    return "supported", "; ".join([f"{subject} lies wholly within the claim's bound ({span(low, high)})", *notes])


def _disagreeing(claim: Claim, values: pd.Series, each: pd.Series) -> list[str]:
    """Check `signs`: the share of seeds that support the claim alone, by their estimate or interval over items."""
    if claim.signs is None:
        return []
    share, by = (1.0, "estimate") if isinstance(claim.signs, str) else (claim.signs["share"], claim.signs["by"])
    others = []
    for seed, estimate in each.items():
        low = high = estimate
        if by == "interval":
            draws = stats.two_level_bootstrap(strata(values.loc[[seed]]), derive(seed, claim.paper, claim.claim))
            low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2])
        if not _supports(claim, low, high):
            others.append(str(seed))
    if len(each) - len(others) >= share * len(each) - 1e-9:
        return []
    return [f"signs: by their {by}, seeds {', '.join(others)} do not support it"]


def _needed(claim: Claim, interval: stats.Interval) -> tuple[int | None, str]:
    """Seeds for 80 % power at the observed spread, and what is supposed of the true value.

    Supposed is `effect`, else `min_effect` (superior), or no difference (not_inferior, equivalent), else what was observed;
    also where the former would have decided already.
    """
    low, high, below, above = _region(claim)
    test = _test(claim)
    if test == "superior":
        effect = claim.effect or claim.min_effect or 0.0
        distance, supposed = effect - claim.margin, f"if the true value is {effect:g}"
    else:
        distance = claim.margin if test in ("not_inferior", "equivalent") else 0.0
        supposed = "if there is no true difference"
    needed = stats.seeds_needed(interval.sd, distance, two_bounds=test == "equivalent")
    if needed is None or needed <= interval.n:
        distances = [abs(interval.estimate - bound) for bound in (low, high, below, above) if math.isfinite(bound)]
        needed = stats.seeds_needed(interval.sd, min(distances))
        supposed = "if the true value is the one seen"
    return (None if needed is None else max(needed, interval.n + 1, claim.min_seeds)), supposed


# ---------------------------------------- what is printed


def _seeds(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def _unit(claim: Claim, run: Run, arms: Sequence[Arm]) -> str:
    if claim.kind == "ratio":
        return "ratio"
    rows = run.rows(claim.table, claim.paper, claim.experiment, claim.metric, arms[0].candidates[0])
    unit = rows["unit"].iloc[0] if len(rows) else ""
    if claim.kind != "slope":
        return unit
    return f"{unit} per {'doubling' if claim.over.get('scale') == 'log2' else 'unit'} of {claim.over['key']}"


def _find(claim: Claim, open_keys: Sequence[str], sides: pd.DataFrame) -> str:
    """Tell a reader which rows decided."""
    kind = _table(claim)
    column = "measure" if kind == "costs" else "metric"
    cells = ", ".join(sides.index.get_level_values("cell").unique())
    variants = " / ".join(part for part in (text(claim.treatment), text(claim.baseline)) if part)
    return (
        f"{kind}.parquet: paper {claim.paper}, experiment {' or '.join(as_list(claim.experiment))}, "
        f"{column} {claim.metric}, variant {variants}; paired by seed"
    ) + (f" and {', '.join(open_keys)}, averaged over {cells}" if open_keys else "")
