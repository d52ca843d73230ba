"""How automatic scores of answers go with what people say of their utility: correlations, by answer and by system.

Source: Gao et al. 2023 (ALCE), section 6 and the file of judgements that they published (`human_data`). People rated the
utility of answers from 1 to 5. The file holds no documents and no gold answers, so of the automatic scores it allows, for
each answer, correctness (whether each short answer or claim was found) and length; and for each system its mean scores. Human
judgements of citations are not in it: the paper's agreement of judge and people cannot be computed from it.

Correlations are over answers of all systems, and over answers of one question after taking its means away (does a score tell
better from worse answers to the same question?). Their 95 % intervals resample questions. Over systems there are as many points
as systems: four in the published file, too few for an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from reclaim.data import load_split
from reclaim.io import read_json
from reclaim.metrics.long_answers import word_count
from reclaim.seeding import derive

RESAMPLES = 1000
SCORES = ("correctness", "length")
KINDS = ("spearman", "pearson")


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    state_dir: Path,
    device: Any = "cpu",
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> dict[str, pd.DataFrame]:
    """Metric rows and per-answer items of the data set that `spec["data"]` names (kind `answer_judgements`).

    Metrics by variant: `spearman`, `pearson` and the ends of their intervals (`_low`, `_high`), with data_set, score
    (correctness, length), over (answers, answers of one question, systems); `utility` (1 to 5), correctness and length, with
    system.
    """
    (folder,) = data.values()
    table = pd.DataFrame(load_split(folder, "test"))
    table["length"] = [float(word_count(text)) for text in table["output"]]
    overall = read_json(Path(folder) / "dataset.json")["overall"]
    metrics: list[dict[str, Any]] = []
    for name, part in table.groupby("data_set", sort=True):
        metrics += _of_systems(str(name), part, overall.get(str(name), {}))
        for score in SCORES:
            metrics += _of_answers(str(name), part, score, np.random.default_rng(derive(seed, "human", name, score)))
    items = [
        {
            "variant": {"data_set": row.data_set, "system": row.system},
            "metric": metric,
            "item": row.question_id,
            "value": float(getattr(row, metric)),
        }
        for row in table.itertuples()
        for metric in ("utility", *SCORES)
    ]
    return {"metrics": pd.DataFrame(metrics), "items": pd.DataFrame(items)}


def _of_answers(name: str, part: pd.DataFrame, score: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Correlations over answers, plain and within questions, with intervals over resampled questions."""
    centred = part[["utility", score]] - part.groupby("question_id")[["utility", score]].transform("mean")
    questions = [np.flatnonzero(part["question_id"] == number) for number in part["question_id"].unique()]
    drawn = [
        np.concatenate([questions[place] for place in rng.integers(len(questions), size=len(questions))])
        for _ in range(RESAMPLES)
    ]
    for over, values in (("answers", part[["utility", score]]), ("answers of one question", centred)):
        utility, scores = values["utility"].to_numpy(), values[score].to_numpy()
        variant = {"data_set": name, "score": score, "over": over}
        for kind in KINDS:
            estimate = _correlation(kind, utility, scores)
            if np.isfinite(estimate):
                low, high = np.nanquantile([_correlation(kind, utility[r], scores[r]) for r in drawn], [0.025, 0.975])
                for ending, value in (("", estimate), ("_low", low), ("_high", high)):
                    yield _row(variant, f"{kind}{ending}", value, len(part))


def _of_systems(name: str, part: pd.DataFrame, overall: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Means of each system, and the correlation over systems of mean utility with each score that all have."""
    means = part.groupby("system", sort=True)[["utility", *SCORES]].mean()
    counts = part["system"].value_counts()
    for system, row in means.iterrows():
        variant = {"data_set": name, "system": system}
        for metric, unit in (("utility", "points of 1 to 5"), ("correctness", "fraction"), ("length", "words")):
            yield {"variant": variant, "metric": metric, "value": row[metric], "n": int(counts[system]), "unit": unit}
    reported = pd.DataFrame({system: overall.get(system, {}) for system in means.index}).T.astype(float)
    scores = reported.dropna(axis=1).add_prefix("reported ").join(means[list(SCORES)])
    for score in scores.columns:
        value = _correlation("spearman", means["utility"].to_numpy(), scores[score].to_numpy())
        if np.isfinite(value):
            yield _row({"data_set": name, "score": score, "over": "systems"}, "spearman", value, len(means))


def _row(variant: Mapping[str, Any], metric: str, value: float, n: int) -> dict[str, Any]:
    return {"variant": variant, "metric": metric, "value": float(value), "n": n, "unit": "correlation"}


def _correlation(kind: str, left: np.ndarray, right: np.ndarray) -> float:
    """NaN where a side does not vary. Equal values share their mean rank."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return float("nan")
    if kind == "spearman":
        left, right = rankdata(left), rankdata(right)
    return float(np.corrcoef(left, right)[0, 1])
