"""Quality of low-dimensional codes: neighbours, trustworthiness, continuity, silhouette.

Trustworthiness and continuity: Venna and Kaski 2001; silhouette: Rousseeuw 1987; all by scikit-learn. Distances are
Euclidean. Accuracy by nearest neighbours comes in two forms that must not share a column: from training to test codes,
and leave-one-out inside one set, which is all that a method without an out-of-sample map has.

Difference from `KNeighborsClassifier`: neighbours at equal distances count in the order of their rows, so that a tie
goes to the lowest training index whatever the search.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from reclaim.errors import InputError

CELLS = 2**22  # of a block of distances in memory


def knn_accuracy(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray, k: int = 1
) -> float:
    """Share of test rows (m, d) whose k nearest training rows (n, d) vote for their label; equal votes: the lowest.

    Raises InputError unless 1 <= k <= n.
    """
    return _accuracy(_neighbours(train_codes, test_codes, k), train_labels, test_labels)


def leave_one_out_accuracy(codes: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of codes (n, d) whose k nearest other ones vote for their label (n,). InputError unless k < n."""
    return _accuracy(_neighbours(codes, codes, k, itself=False), labels, labels)


def centroid_accuracy(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray
) -> float:
    """Share of test codes (m, d) that lie nearest to the mean training code (of n, d) of their own class."""
    classes = np.unique(train_labels)
    centroids = np.stack([np.asarray(train_codes)[train_labels == name].mean(0) for name in classes])
    return _accuracy(_neighbours(centroids, test_codes, 1), classes, test_labels)


def trustworthiness(originals: np.ndarray, codes: np.ndarray, k: int = 5) -> float:
    """How far neighbours (k) among the codes (n, d) are neighbours among the originals (n, p), too; in [0, 1].

    Needs k < n / 2, and memory for n * n ranks. Ties among the originals are ranked in an unspecified order.
    """
    from sklearn import manifold  # one of the slower imports

    if not 1 <= k < len(originals) / 2:
        raise InputError("trustworthiness(k=...)", f"{k} of {len(originals)} rows", "from 1 to less than half the rows")
    return float(manifold.trustworthiness(originals, codes, n_neighbors=k))


def continuity(originals: np.ndarray, codes: np.ndarray, k: int = 5) -> float:
    """How far neighbours among the originals (n, p) stay those among the codes (n, d): `trustworthiness`, sides exchanged."""
    return trustworthiness(codes, originals, k)


def silhouette(codes: np.ndarray, labels: np.ndarray) -> float:
    """Mean of (b - a) / max(a, b) over rows, with the true labels; a row alone in its class counts 0."""
    from sklearn.metrics import silhouette_score

    classes = len(np.unique(labels))
    if not 2 <= classes < len(labels):
        raise InputError("silhouette(labels)", f"{classes} classes of {len(labels)} rows", "from 2 to n - 1 classes")
    return float(silhouette_score(codes, labels))


def _accuracy(neighbours: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> float:
    classes, votes = np.unique(labels, return_inverse=True)
    votes = votes[neighbours]
    counts = np.stack([(votes == index).sum(1) for index in range(len(classes))], axis=1)
    return float(np.mean(classes[counts.argmax(1)] == np.asarray(wanted)))


def _neighbours(rows: np.ndarray, queries: np.ndarray, k: int, itself: bool = True) -> np.ndarray:
    """Positions (m, k) of the nearest `rows` of each query, by distance and then position."""
    rows, queries = np.asarray(rows, dtype=np.float64), np.asarray(queries, dtype=np.float64)
    available = len(rows) if itself else len(rows) - 1
    if not 1 <= k <= available:
        raise InputError("nearest neighbours (k)", f"{k} of {available} rows", "from 1 to the number of rows")
    found = np.empty((len(queries), k), dtype=np.int64)
    block = max(1, CELLS // len(rows))
    for start in range(0, len(queries), block):
        distances = cdist(queries[start : start + block], rows)
        if not itself:
            np.fill_diagonal(distances[:, start:], np.inf)
        if k == 1:
            found[start : start + block, 0] = distances.argmin(1)
            continue
        for place, (line, limit) in enumerate(zip(distances, np.partition(distances, k - 1)[:, k - 1], strict=True)):
            near = np.flatnonzero(line <= limit)
            found[start + place] = near[np.argsort(line[near], kind="stable")[:k]]
    return found
