"""Agreement of rankings: does a metric order readers as people (or an oracle) do, overall and passage by passage?

Source: EvalConvQA (Li et al. 2022). A reader's accuracy on a passage is over all its conversations about the passage, a
metric's value over the passage's questions; a pair of readers agrees on a passage if both differences have one sign. The
paper does not say how ties count, so that three conventions are given:

    strict            a tie agrees only with a tie
    half              a tie of one side alone counts one half
    drop_human_ties   passages where people see no difference are left out; a tie of the metric does not agree
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

TIES = ("strict", "half", "drop_human_ties")
PerPassage = Mapping[str, Mapping[str, float]]
"""Reader -> passage -> value."""


def pair_agreement(
    human: PerPassage, metric: PerPassage, one: str, other: str, ties: str = "strict"
) -> dict[str, float]:
    """Agreement of a pair on each passage where both readers have both values: passage -> 0, 1/2 or 1."""
    sides = [values[reader] for values in (human, metric) for reader in (one, other)]
    result = {}
    for passage in sorted(set.intersection(*map(set, sides))):
        wanted, found = (
            int(np.sign(round(values[one][passage] - values[other][passage], 12))) for values in (human, metric)
        )
        if ties == "drop_human_ties" and wanted == 0:
            continue
        tied = (wanted == 0) != (found == 0)
        result[passage] = 0.5 if ties == "half" and tied else float(wanted == found)
    return result


def agreement(human: PerPassage, metric: PerPassage, ties: str = "strict") -> dict[tuple[str, str], tuple[float, int]]:
    """For each pair of readers, in the order of their names: mean agreement (NaN without a passage) and passages."""
    table = {}
    for one, other in combinations(sorted(set(human) & set(metric)), 2):
        values = list(pair_agreement(human, metric, one, other, ties).values())
        table[one, other] = (float(np.mean(values)) if values else float("nan"), len(values))
    return table


def passage_agreement(human: PerPassage, metric: PerPassage, ties: str = "strict") -> dict[str, float]:
    """Agreement on each passage, over all pairs of readers that have it."""
    found: dict[str, list[float]] = {}
    for one, other in combinations(sorted(set(human) & set(metric)), 2):
        for passage, value in pair_agreement(human, metric, one, other, ties).items():
            found.setdefault(passage, []).append(value)
    return {passage: float(np.mean(values)) for passage, values in sorted(found.items())}


def tie_share(human: PerPassage, metric: PerPassage) -> tuple[float, float]:
    """Share of pairs and passages with a tie of the human side, and of the metric."""
    shares = []
    for values, other_side in ((human, metric), (metric, human)):
        ties = [
            abs(values[one][passage] - values[other][passage]) < 1e-12
            for one, other in combinations(sorted(set(values) & set(other_side)), 2)
            for passage in set(values[one]) & set(values[other]) & set(other_side[one]) & set(other_side[other])
        ]
        shares.append(float(np.mean(ties)) if ties else float("nan"))
    return shares[0], shares[1]


def kendall_tau(left: Sequence[float | None], right: Sequence[float | None]) -> float:
    """Kendall's tau-a: concordant minus discordant pairs over all pairs; NaN for fewer than two values."""
    x, y = np.asarray(left, dtype=float), np.asarray(right, dtype=float)
    first, second = np.triu_indices(len(x), 1)
    if not len(first):
        return float("nan")
    return float(np.mean(np.sign(x[first] - x[second]) * np.sign(y[first] - y[second])))


def slope(metric: Sequence[float | None], accuracy: Sequence[float | None]) -> float:
    """Least-squares slope of a metric on accuracy over readers; above 1 the metric exaggerates their differences."""
    x, y = np.asarray(accuracy, dtype=float), np.asarray(metric, dtype=float)
    spread = ((x - x.mean()) ** 2).sum()
    return float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else float("nan")
