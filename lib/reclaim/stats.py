"""Intervals and tests over paired seeds, for the claims engine.

The unit of replication is the seed: one number per seed (a difference of two arms, a ratio, a slope, a difference of
differences, or a level), and the 95 % t interval of its mean over seeds. No normal approximation is used for it,
because runs have 3 to 10 seeds.

Where test rows are resampled too, the interval is the *wider* of that t interval and the percentile interval of a
two-level bootstrap (seeds with replacement, then rows with replacement). The percentile bootstrap alone covers 78, 82
and 87 % instead of 95 % with 3, 4 and 5 seeds (1,500 simulated runs each: it resamples a population of three to five
and has no t quantile), and the t interval alone does not see that all seeds were scored on the same rows. The wider one
holds its level in both cases; where the rows' own noise dominates it is on the safe side (under 0.5 % instead of 2.5 %
false positives a side in 600 simulated runs), because that noise enters through the seeds and through the rows.

Ratios use the mean of the per-seed ratios. Fieller's interval is made for a ratio of two means and ignores what the
pairing gives; the t interval of log-ratios is symmetric under exchange of the sides, but has no value where a score
is 0. Near 1 (sd s) the two differ by s^2/2, far below the interval's width.

Numpy and scipy only; every random stream is private and seeded by the caller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import nct, norm, t

LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Interval:
    """A 95 % interval of a mean over seeds.

    estimate: the mean; low, high: the ends, infinite for fewer than two seeds; n: seeds; sd: standard deviation over
    seeds (NaN for one seed); draws: means of the bootstrap resamples, empty where only seeds vary.
    """

    estimate: float
    low: float
    high: float
    n: int
    sd: float
    draws: np.ndarray = field(default_factory=lambda: np.empty(0))

    def p_above(self, bound: float) -> float:
        """Give the two-sided p value of "not above `bound`": under 0.05 where the interval lies above the bound."""
        if self.n < 2:
            return 1.0
        distance = self.estimate - bound
        if self.sd == 0:
            p = 0.0 if distance > 0 else 1.0
        else:
            p = 2 * t.sf(distance / (self.sd / math.sqrt(self.n)), self.n - 1)
        if len(self.draws):
            p = max(p, 2 * (1 + np.count_nonzero(self.draws <= bound)) / (1 + len(self.draws)))
        return min(1.0, float(p))

    def p_below(self, bound: float) -> float:
        """Mirror image of `p_above`."""
        return Interval(-self.estimate, -self.high, -self.low, self.n, self.sd, -self.draws).p_above(-bound)

    def p_inside(self, low: float, high: float) -> float:
        """Give the p value of lying between two bounds: two one-sided tests (TOST), or one where a bound is infinite.

        Doubled like `p_above`, so that 0.05 goes with the 95 % interval; the customary TOST uses the 90 % one.
        """
        return max(0.0 if low == -math.inf else self.p_above(low), 0.0 if high == math.inf else self.p_below(high))

    def p_outside(self, low: float, high: float) -> float:
        """Give the p value of lying wholly below `low` or wholly above `high`."""
        return min(1.0 if low == -math.inf else self.p_below(low), 1.0 if high == math.inf else self.p_above(high))


def seed_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Give the t interval of the mean of one number per seed (seeds,).

    One seed gives an infinite interval; equal values give an interval of width 0 (the caller decides from how many
    seeds that may count).
    """
    values = np.asarray(values, dtype=float)
    n, estimate = len(values), float(values.mean())
    if n < 2:
        return Interval(estimate, -math.inf, math.inf, n, math.nan)
    # Equal values differ by rounding after averaging: that is no spread.
    spread = np.ptp(values) > 1e-12 * max(1.0, float(np.abs(values).max()))
    sd = float(values.std(ddof=1)) if spread else 0.0
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(estimate, estimate - half, estimate + half, n, sd)


def two_level_bootstrap(
    strata: Sequence[np.ndarray | Sequence[np.ndarray]], seed: int, resamples: int = 4000, chunk: int = 250
) -> np.ndarray:
    """Resample seeds, then rows, and give the mean of each resample, shape (resamples,).

    strata: groups of rows that count equally whatever their size (tasks). A stratum is an array (seeds, rows) where
    all seeds have the same rows: rows are then drawn once for all seeds, which also holds when equal names stand for
    different rows. Or it is one array (rows,) per seed: rows are then drawn within each drawn seed. Within a resample
    all strata use the same drawn seeds.
    """
    rng = np.random.default_rng(seed)
    n = len(strata[0])
    means = np.empty(resamples)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        chosen = rng.integers(n, size=(size, n))
        total = np.zeros(size)
        for stratum in strata:
            if isinstance(stratum, np.ndarray) and stratum.ndim == 2:
                weights = (chosen[:, :, None] == np.arange(n)).mean(axis=1)
                rows = rng.integers(stratum.shape[1], size=(size, stratum.shape[1]))
                total += np.take_along_axis(weights @ stratum, rows, axis=1).mean(axis=1)
            else:
                for index, values in enumerate(stratum):
                    resample, _ = np.nonzero(chosen == index)
                    rows = rng.integers(len(values), size=(len(resample), len(values)))
                    np.add.at(total, resample, values[rows].mean(axis=1) / n)
        means[start : start + size] = total / len(strata)
    return means


def seed_and_item_interval(strata: Sequence[np.ndarray | Sequence[np.ndarray]], seed: int) -> Interval:
    """Give the wider of the t interval over seeds and the two-level percentile interval.

    The arguments are those of `two_level_bootstrap`.
    """
    per_seed = np.mean([[np.mean(values) for values in stratum] for stratum in strata], axis=0)
    over_seeds = seed_interval(per_seed)
    draws = two_level_bootstrap(strata, seed)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(
        over_seeds.estimate,
        min(over_seeds.low, float(low)),
        max(over_seeds.high, float(high)),
        over_seeds.n,
        over_seeds.sd,
        draws,
    )


def slope_weights(x: Sequence[float] | np.ndarray) -> np.ndarray:
    """Give the weights w with which sum(w * y) is the least-squares slope of y on x."""
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return centred / np.square(centred).sum()


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Give Holm's step-down adjusted p values (claims,), in the order given; the family is the whole list."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    steps = (len(p_values) - np.arange(len(p_values))) * p_values[order]
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(steps) else steps
    return adjusted


def seeds_needed(
    sd: float, distance: float, two_bounds: bool = False, power: float = 0.8, most: int = 100_000
) -> int | None:
    """Give the smallest number of seeds whose 95 % interval clears a bound with probability `power`.

    sd: spread over seeds; distance: from the true value to the bound, both in metric units; two_bounds: the interval
    must clear a bound at that distance on either side (equivalence). Exact for normal values (noncentral t). None
    where the distance or the spread is unknown or zero, or more than `most` seeds would be needed.
    """
    if not (sd > 0 and distance > 0):
        return None

    def enough(n: int) -> bool:
        critical, centre = float(t.ppf((1 + LEVEL) / 2, n - 1)), distance / sd * math.sqrt(n)
        reached = float(nct.sf(critical, n - 1, centre)) if n < 1000 else float(norm.sf(critical - centre))
        return (2 * reached - 1 if two_bounds else reached) >= power

    high = 2
    while not enough(high):
        high *= 2
        if high > most:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
