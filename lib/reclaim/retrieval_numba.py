"""The inner loop of BM25 queries, compiled: for so many queries that compiling it (a second or two) pays.

Adds up columns in the order given and keeps the best passages in a heap. Sums are those of the uncompiled way to the last
bit, because each passage gets the same float32 numbers in the same order.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True)
def _worse(score: float, row: int, other_score: float, other_row: int) -> bool:
    return score < other_score or (score == other_score and row > other_row)


@njit(nogil=True)
def _sink(scores: np.ndarray, rows: np.ndarray, size: int) -> None:
    """Move the first entry of a heap, whose root is the worst, down to its place."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            return
        if child + 1 < size and _worse(scores[child + 1], rows[child + 1], scores[child], rows[child]):
            child += 1
        if not _worse(scores[child], rows[child], scores[place], rows[place]):
            return
        scores[place], scores[child] = scores[child], scores[place]
        rows[place], rows[child] = rows[child], rows[place]
        place = child


@njit(nogil=True)
def top_k(
    rows: np.ndarray,
    scores: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    totals: np.ndarray,
    touched: np.ndarray,
    allowed: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` rows of the columns starts[i]:ends[i] and their sums, in no order.

    `totals` (zeros) and `touched` are as long as there are passages, and are given back as they were; `allowed` is as long, or
    empty where all passages are.
    """
    postings = 0
    for column in range(len(starts)):
        postings += ends[column] - starts[column]
    # Many postings: walk through all sums once; few: remember which were touched.
    dense = 4 * postings > len(totals)
    count = 0
    for column in range(len(starts)):
        if dense:
            for place in range(starts[column], ends[column]):
                totals[rows[place]] += scores[place]
        else:
            for place in range(starts[column], ends[column]):
                row = rows[place]
                if totals[row] == 0:
                    touched[count] = row
                    count += 1
                totals[row] += scores[place]
    best_scores, best_rows, size = np.empty(k, dtype=np.float32), np.empty(k, dtype=np.int64), 0
    for place in range(len(totals) if dense else count):
        row = place if dense else touched[place]
        total = totals[row]
        if total == 0:
            continue
        totals[row] = 0
        if len(allowed) and not allowed[row]:
            continue
        if size < k:
            # Rise to its place.
            child = size
            best_scores[child], best_rows[child] = total, row
            size += 1
            while child:
                parent = (child - 1) // 2
                if not _worse(best_scores[child], best_rows[child], best_scores[parent], best_rows[parent]):
                    break
                best_scores[child], best_scores[parent] = best_scores[parent], best_scores[child]
                best_rows[child], best_rows[parent] = best_rows[parent], best_rows[child]
                child = parent
        elif _worse(best_scores[0], best_rows[0], total, row):
            best_scores[0], best_rows[0] = total, row
            _sink(best_scores, best_rows, size)
    return best_rows[:size], best_scores[:size]
