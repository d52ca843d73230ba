"""Measures of a ranking: recall and nDCG among the first k passages (Manning, Raghavan and Schütze 2008, chapter 8).

Recall counts relevant passages; the recall of answers that the study of citations uses is `reclaim.alce.oracle.recall`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np


def recall_at_k(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """The share of the relevant passages among the first `k`; NaN where none is relevant."""
    return len(set(ranking[:k]) & set(relevant)) / len(set(relevant)) if relevant else float("nan")


def ndcg_at_k(ranking: Sequence[str], gains: Mapping[str, float], k: int) -> float:
    """Discounted cumulative gain of the first `k` over that of the best order (gain / log2(rank + 1)); NaN without gains."""
    ideal = _discounted(sorted(gains.values(), reverse=True)[:k])
    return _discounted([gains.get(passage, 0.0) for passage in ranking[:k]]) / ideal if ideal > 0 else float("nan")


def _discounted(gains: Sequence[float]) -> float:
    return float(np.sum(np.asarray(gains, dtype=float) / np.log2(np.arange(2, len(gains) + 2))))
