"""MAUVE: how alike two sets of texts are, from the histograms of their features over common clusters.

Source: Pillutla et al. 2021. Texts become features, features of both sides are clustered together, and the two histograms p
and q are compared along the mixtures r = w p + (1 - w) q: MAUVE is the area under the curve of
(exp(-c KL(q|r)), exp(-c KL(p|r))), averaged over the two ways of reading it.

Own implementation from the paper's formulas; `mauve_of_histograms` equals the package `mauve-text` (GPL-3) on the golden
histograms. Differences: k-means of scikit-learn in place of faiss, so that values for texts agree in kind and not to the
digit (between environments the package's own do not either); the encoder is a function, so that a run without network uses
hashed n-grams in place of GPT-2 large. Values of two encoders must not be compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from reclaim.errors import InputError
from reclaim.seeding import derive

MIXTURES = 25
SCALING = 5.0
EXPLAINED_VARIANCE = 0.9

Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts -> features (texts, dimensions)."""


def mauve_of_histograms(p: Sequence[float] | np.ndarray, q: Sequence[float] | np.ndarray) -> float:
    """MAUVE in 0..1 of two histograms (bins,); raises InputError unless both are distributions over as many bins."""
    p, q = np.asarray(p, dtype=float), np.asarray(q, dtype=float)
    if p.shape != q.shape or p.ndim != 1 or min(p.min(), q.min()) < 0 or max(abs(p.sum() - 1), abs(q.sum() - 1)) > 1e-6:
        raise InputError("histograms", f"shapes {p.shape} and {q.shape}", "two distributions over the same bins")
    weights = np.linspace(1e-6, 1 - 1e-6, MIXTURES)[:, None]
    mixtures = weights * p + (1 - weights) * q
    # The ends stand for infinite divergence: (0, 1) and (1, 0) after the exponential.
    x = np.concatenate([[1.0], np.exp(-SCALING * _divergence(q, mixtures)), [0.0]])
    y = np.concatenate([[0.0], np.exp(-SCALING * _divergence(p, mixtures)), [1.0]])
    return float((_area(x, y) + _area(y, x)) / 2)


def _divergence(p: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """KL(p | each mixture) in nats."""
    inside = p > 0
    return np.sum(p[inside] * np.log(p[inside] / mixtures[:, inside]), axis=1)


def _area(x: np.ndarray, y: np.ndarray) -> float:
    order = np.lexsort((-y, x))  # along the curve, also where x stays the same
    return float(np.trapezoid(y[order], x[order]))


def mauve(texts: Sequence[str], references: Sequence[str], encode: Encoder, seed: int = 0) -> float:
    """MAUVE in 0..1 of texts against references; one cluster for ten texts, at least two.

    Features are scaled to length 1 and reduced to the directions that hold 90 % of their variance. Raises InputError for
    fewer than two texts on a side.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    fewest = min(len(texts), len(references))
    if fewest < 2:
        raise InputError("texts for MAUVE", f"{len(texts)} against {len(references)}", "at least two on each side")
    features = np.asarray(encode([*references, *texts]), dtype=float)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    state = derive(seed, "mauve") % 2**32
    if np.ptp(features, axis=0).max() == 0:
        return 1.0
    reduction = PCA(random_state=state).fit(features)
    kept = int(np.argmax(np.cumsum(reduction.explained_variance_ratio_) >= EXPLAINED_VARIANCE)) + 1
    buckets = min(max(2, round(fewest / 10)), len(np.unique(features, axis=0)))
    clusters = KMeans(buckets, n_init=5, max_iter=500, random_state=state).fit_predict(
        reduction.transform(features)[:, :kept]
    )
    q = np.bincount(clusters[: len(references)], minlength=buckets) / len(references)
    p = np.bincount(clusters[len(references) :], minlength=buckets) / len(texts)
    return mauve_of_histograms(p, q)


def hashed_ngrams(texts: Sequence[str], dimensions: int = 256, longest: int = 2) -> np.ndarray:
    """Features without a model: counts of words and of runs of up to `longest` words, hashed into `dimensions` (CRC-32).

    The encoder of a run without network. It sees which words follow which, not fluency as a language model does.
    """
    features = np.zeros((len(texts), dimensions))
    for row, text in enumerate(texts):
        words = text.lower().split()
        for size in range(1, longest + 1):
            for start in range(len(words) - size + 1):
                features[row, zlib.crc32(" ".join(words[start : start + size]).encode()) % dimensions] += 1
    return features
