"""Accuracy, F1, Matthews correlation, Pearson and Spearman correlation, and the metrics of the GLUE tasks.

Differences from the official GLUE code of the masking-rate study: nothing is rounded, and where a quotient has an empty
denominator the value is 0.0 and `degenerate` says so (there: infinity or NaN, even for predictions that are all right).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reclaim.errors import InputError

Values = Sequence | np.ndarray  # one a row


class Score(NamedTuple):
    """A metric's value; `degenerate` if its denominator was empty and the value 0.0 stands for that."""

    value: float
    degenerate: bool = False


# GLUE: the metrics of each task; the first is the one to report where one is asked for.
GLUE_METRICS = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson_spearman", "pearson", "spearman"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
}


def accuracy(predictions: Values, labels: Values) -> Score:
    """Share of predictions equal to their label; degenerate without any row."""
    predictions, labels = _pair(predictions, labels)
    return _ratio(np.sum(predictions == labels), len(labels))


def f1(predictions: Values, labels: Values, positive: int = 1) -> Score:
    """F1 of class `positive`; degenerate if it is neither predicted nor present."""
    predictions, labels = _pair(predictions, labels)
    hits = np.sum((predictions == positive) & (labels == positive))
    return _ratio(2 * hits, np.sum(predictions == positive) + np.sum(labels == positive))


def matthews(predictions: Values, labels: Values) -> Score:
    """Matthews correlation of any number of classes (Gorodkin 2004); degenerate if a side holds one class only."""
    predictions, labels = _pair(predictions, labels)
    classes = np.unique(np.concatenate([predictions, labels]))
    predicted = (predictions[:, None] == classes).astype(np.float64)
    actual = (labels[:, None] == classes).astype(np.float64)
    n = len(labels)
    covariance = n * np.sum(predicted * actual) - predicted.sum(0) @ actual.sum(0)
    spread = (n**2 - np.sum(predicted.sum(0) ** 2)) * (n**2 - np.sum(actual.sum(0) ** 2))
    return _ratio(covariance, np.sqrt(spread))


def pearson(predictions: Values, labels: Values) -> Score:
    """Pearson's correlation; degenerate if either side is constant or has fewer than two rows."""
    x, y = (side.astype(np.float64) for side in _pair(predictions, labels))
    # Compared and not computed: the deviations of equal values from their rounded mean need not be 0.
    if len(y) < 2 or np.all(x == x[0]) or np.all(y == y[0]):
        return Score(0.0, degenerate=True)
    x, y = x - x.mean(), y - y.mean()
    return _ratio(x @ y, np.linalg.norm(x) * np.linalg.norm(y))


def spearman(predictions: Values, labels: Values) -> Score:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    predictions, labels = _pair(predictions, labels)
    return pearson(_ranks(predictions), _ranks(labels))


def pearson_spearman(predictions: Values, labels: Values) -> Score:
    """Mean of Pearson's and Spearman's correlation, the metric of STS-B."""
    r, rho = pearson(predictions, labels), spearman(predictions, labels)
    return Score((r.value + rho.value) / 2, r.degenerate or rho.degenerate)


def glue_metrics(task: str, predictions: Values, labels: Values) -> dict[str, Score]:
    """The metrics of a GLUE task by name, in the order of `GLUE_METRICS`.

    Predictions are classes, for "stsb" numbers. Raises InputError for another task.
    """
    if task not in GLUE_METRICS:
        raise InputError("GLUE task", repr(task), f"one of {', '.join(GLUE_METRICS)}")
    functions = (accuracy, f1, matthews, pearson_spearman, pearson, spearman)
    by_name = {function.__name__: function for function in functions}
    return {name: by_name[name](predictions, labels) for name in GLUE_METRICS[task]}


def _pair(predictions: Values, labels: Values) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or predictions.shape != labels.shape:
        found = f"predictions of shape {predictions.shape} and labels of shape {labels.shape}"
        raise InputError("metric", found, "two lists of the same length")
    return predictions, labels


def _ratio(numerator: float | np.floating, denominator: float | np.floating) -> Score:
    return Score(0.0, degenerate=True) if denominator == 0 else Score(float(numerator) / float(denominator))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size - 1) / 2)[group]
