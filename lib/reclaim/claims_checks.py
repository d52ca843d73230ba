"""Gates, guards and warnings of a claim (what they are: `claims`)."""

import math
from collections.abc import Sequence

import pandas as pd

from reclaim import stats
from reclaim.claims_sides import Arm, Run, Stop, as_list, paired_sides, per_seed, ratios, text
from reclaim.claims_yaml import Check, Claim, Subset


def failed_checks(checks: Sequence[Check], claim: Claim, run: Run, seeds: list[int]) -> tuple[list[str], list[str]]:
    """Run checks over the claim's seeds; gives the failures, and notes on optional checks that had no rows."""
    failures, notes = [], []
    for check in checks:
        compare = check.treatment is not None
        for subset in as_list(check.treatment if compare else check.where):
            try:
                failure = (_comparison if compare else _level)(check, claim, run, subset, seeds)
            except Stop as stop:
                if stop.verdict == "not_testable" and check.optional:
                    notes.append(f"{check.name} was not checked ({stop.reason})")
                    continue
                failure = stop.reason
            if failure:
                failures.append(f"{check.name}: {failure}")
    return failures, notes


def _level(check: Check, claim: Claim, run: Run, subset: Subset, seeds: list[int]) -> str:
    rows = run.rows(check.table, claim.paper, check.experiment, check.metric, subset)
    rows = rows[rows["seed"].isin(seeds)]
    if rows.empty:
        raise Stop("not_testable", f"not in this run: rows of {check.metric} for {text(subset)}")
    absent = sorted(set(seeds) - set(rows["seed"]))
    if absent:
        return f"no row of {check.metric} for seeds {', '.join(map(str, absent))} of {text(subset)}"
    each = rows.groupby("seed")["value"].mean()
    if check.every == "run":
        levels = [(f"seed {row.seed} of {row.variant}", row.value) for row in rows.itertuples()]
    elif check.every == "seed":
        levels = [(f"seed {seed} of {text(subset)}", value) for seed, value in each.items()]
    else:
        levels = [(f"the mean of {text(subset)}", each.mean())]
    low, high = check.between or (check.at_least, check.at_most)
    failed = [f"{check.metric} is {value:.4g} for {name}" for name, value in levels if not low <= value <= high]
    return f"{', '.join(failed)} (required: {span(low, high)})" if failed else ""


def _comparison(check: Check, claim: Claim, run: Run, subset: Subset, seeds: list[int]) -> str:
    arms = [Arm("treatment", [subset], 1.0), Arm("baseline", [check.baseline], -1.0)]
    paired = check.low_above is not None or check.high_below is not None
    if paired:
        sides, _ = paired_sides(run, check.table, claim, check, arms, True, seeds, within=True)
    else:
        sides = pd.DataFrame({arm.name: _arm_means(check, claim, run, arm) for arm in arms})
    treatment, baseline = per_seed(sides["treatment"]), per_seed(sides["baseline"])
    each = ratios(treatment, baseline) if check.of == "ratio" else treatment - baseline
    interval = stats.seed_interval(each)
    shown = f"the {check.of} of {text(subset)} and {text(check.baseline)} in {check.metric} is {interval.estimate:.4g}"
    if not check.mean_at_least <= interval.estimate <= check.mean_at_most:
        return f"{shown} (required: {span(check.mean_at_least, check.mean_at_most)})"
    # Where there are too few seeds for an interval, the claim itself says so.
    if paired and interval.n >= claim.min_seeds:
        low = -math.inf if check.low_above is None else check.low_above
        high = math.inf if check.high_below is None else check.high_below
        if not (interval.low > low and interval.high < high):
            return f"{shown}, interval {interval.low:.4g} to {interval.high:.4g} (required: wholly {span(low, high)})"
    return ""


def _arm_means(check: Check, claim: Claim, run: Run, arm: Arm) -> pd.Series:
    """Give the mean of an arm over its seeds as if it were one seed: for a control that has seeds of its own."""
    rows = run.rows(check.table, claim.paper, check.experiment, check.metric, arm.candidates[0])
    if rows.empty:
        raise Stop(
            "not_testable", f"not in this run: rows of {check.metric} for the {arm.name}, {text(arm.candidates[0])}"
        )
    index = pd.MultiIndex.from_tuples([(0, "", "")], names=["seed", "cell", "item"])
    return pd.Series([rows.groupby("seed")["value"].mean().mean()], index=index)


def span(low: float, high: float) -> str:
    """Write an interval of allowed values, either end of which may be infinite."""
    if high == math.inf:
        return f"from {low:g} up"
    return f"up to {high:g}" if low == -math.inf else f"{low:g} to {high:g}"
