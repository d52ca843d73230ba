"""Choose by development scores; and the original's splits, metrics and reports, to compare with it.

Yu et al. 2022; official `tools/sort_mapping.py`, `tools/gather_result.py`, `generate_k_shot_data_for_*.py`,
`glue_compute_metrics`, `superglue_compute_metrics`. Pure functions; nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from reclaim.errors import InputError
from reclaim.metrics import classification
from reclaim.metrics.classification import Values
from reclaim.sampling import kshot

Identity = TypeVar("Identity", bound=Hashable)

STS_B_BORDER = 2.5
"""STS-B's scores below it are the class `low` of the split and of the search."""

# What a model is chosen by where that is not accuracy: the first of F1, MCC and Pearson's correlation that a task has.
OBJECTIVES = {"mrpc": "f1", "qqp": "f1", "cb": "f1", "multirc": "f1", "cola": "mcc", "sts-b": "pearson"}


def official_split(
    labels: Sequence[Hashable],
    k: int,
    seed: int,
    *,
    seeds_before: Sequence[int] = (),
    n_dev: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """LM-BFF's few-shot split as the official script makes it: (train, dev) row positions.

    It shuffles the rows of CoLA and of every SuperGLUE task in place, so that their split depends on the seeds that ran
    before in one process: `seeds_before` (official order 100, 13, 21, 42, 87). Other tasks start from the file's order. A
    class with too few rows gives fewer for dev.
    """
    order = np.arange(len(labels))
    for earlier in seeds_before:
        np.random.RandomState(earlier).shuffle(order)
    train, dev = kshot([labels[int(row)] for row in order], k, seed, n_dev, allow_short_dev=True)
    return order[train], order[dev]


def rank_by_dev(runs: Iterable[tuple[Identity, float]]) -> list[Identity]:
    """Ids of combinations by their development score, best first; of repeated ids the first counts, ties keep the order."""
    first: dict[Identity, float] = {}
    for identity, score in runs:
        first.setdefault(identity, score)
    return sorted(first, key=lambda identity: -first[identity])


def grid_report(trials: Iterable[Mapping[str, Any]], dev: str, test: str, split: str = "seed") -> dict[str, float]:
    """Mean, population standard deviation and median over the splits of the test score (per cent) of each split's best trial.

    `dev` and `test` name the scores in a trial, `split` what the trial ran on. The first trial with the best score wins.
    """
    best: dict[Hashable, Mapping[str, Any]] = {}
    for trial in trials:
        if trial[split] not in best or trial[dev] > best[trial[split]][dev]:
            best[trial[split]] = trial
    values = 100 * np.array([trial[test] for trial in best.values()])
    return {"mean": float(values.mean()), "std": float(values.std()), "median": float(np.median(values))}


def task_metrics(
    task: str, predictions: Values, labels: Values, groups: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """The metrics of a task under their official names; accuracy alone for a task that has no others.

    `groups` are MultiRC's questions, one for each answer. Raises `InputError` where MultiRC has none.
    """
    task = task.lower()
    accuracy = classification.accuracy(predictions, labels).value
    if task == "cola":
        # Gorodkin's coefficient for two classes is Matthews's.
        return {"mcc": classification.matthews(predictions, labels).value}
    if task in ("mrpc", "qqp"):
        return _with_f1(accuracy, classification.f1(predictions, labels).value)
    if task == "sts-b":
        pearson = classification.pearson(predictions, labels).value
        spearman = classification.spearman(predictions, labels).value
        return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
    if task in ("mnli", "mnli-mm"):
        return {f"{task}/acc": accuracy}
    if task == "cb":
        return _with_f1(accuracy, macro_f1(predictions, labels))
    if task == "multirc":
        return _multirc(predictions, labels, groups)
    return {"acc": accuracy}


def objective(task: str) -> str:
    """Name of the metric that a model of the task is chosen by, `accuracy` for a task without metrics of its own.

    One for checkpoints, grids and combinations; the official re-ranking of combinations takes a metric that its user names
    (in the released files EM for MultiRC, else these).
    """
    return OBJECTIVES.get(task.lower(), "accuracy")


def selection_score(task: str, predictions: Values, labels: Values, groups: Sequence[Hashable] | None = None) -> float:
    """The value of `objective`; arguments and errors as of `task_metrics`."""
    name = objective(task)
    if name == "accuracy":
        return classification.accuracy(predictions, labels).value
    return task_metrics(task, predictions, labels, groups)[name]


def macro_f1(predictions: Values, labels: Values) -> float:
    """Mean of the F1 of every class that is present or predicted."""
    classes = sorted({*predictions, *labels})
    return float(np.mean([classification.f1(predictions, labels, positive=y).value for y in classes]))


def _with_f1(accuracy: float, f1: float) -> dict[str, float]:
    return {"acc": accuracy, "f1": f1, "acc_and_f1": (accuracy + f1) / 2}


def _multirc(predictions: Values, labels: Values, groups: Sequence[Hashable] | None) -> dict[str, float]:
    """Mean F1 of the answers of a question, and the share of questions with every answer right."""
    if groups is None or len(groups) != len(labels):
        raise InputError("MultiRC", "no group for each answer", "the text and question of each answer")
    questions: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        questions.setdefault(group, []).append(row)
    predicted, true = np.asarray(predictions), np.asarray(labels)
    f1 = [classification.f1(predicted[rows], true[rows]).value for rows in questions.values()]
    exact = [bool(np.all(predicted[rows] == true[rows])) for rows in questions.values()]
    return {"f1": float(np.mean(f1)), "em": float(np.mean(exact))}
