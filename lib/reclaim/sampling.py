"""Choose training, development, test and demonstration rows.

Three rules, all functions of a seed and of nothing else:

- `kshot`: LM-BFF (Gao et al. 2021), which the RoBERTa experiments of MeZO and AutoSeq use: legacy NumPy shuffle,
  first k rows of each label for training, the next ones for development.
- `mezo_subset`, `mezo_split`, `icl_seeds`: the OPT experiments of MeZO (Malladi et al. 2023, official code).
- `balanced`: this project's default, the same idea on NumPy's current generator.

Difference from the official k-shot script: a class with too few rows raises instead of giving a smaller set without a
word. All functions return row positions (int64), not rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from reclaim.errors import InputError


def kshot(
    labels: Sequence[Hashable], k: int, seed: int, n_dev: int | None = None, allow_short_dev: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """LM-BFF's few-shot split: (train, dev) row positions, grouped by label in order of first appearance after the
    shuffle.

    `labels` are those of all training rows in file order. Each label gives its first `k` shuffled rows to train and
    its next `n_dev` (default `k`; LM-BFF's mode `10x` takes 10 k) to dev. `allow_short_dev` keeps the official
    behaviour of taking what is left for dev.

    Raises `InputError` naming the class and the counts when a class has too few rows.
    """
    order = np.arange(len(labels))
    np.random.RandomState(seed).shuffle(order)
    return _first_of_each_label(labels, order, k, k if n_dev is None else n_dev, allow_short_dev)


def balanced(labels: Sequence[Hashable], k: int, seed: int, n_dev: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The default few-shot split: like `kshot`, drawn by `numpy.random.default_rng(seed)`; (train, dev) row positions.

    Nested in k: the rows of a smaller k are among those of a larger one (of the train set; dev follows it).
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    return _first_of_each_label(labels, order, k, n_dev, allow_short_dev=False)


def _first_of_each_label(labels, order, k, n_dev, allow_short_dev) -> tuple[np.ndarray, np.ndarray]:
    if k < 1 or n_dev < 0:
        raise InputError("few-shot sampling", f"{k} training and {n_dev} dev rows per class", "at least 1 and 0")
    by_label: dict[Hashable, list[int]] = {}
    for row in order:
        by_label.setdefault(labels[row], []).append(int(row))
    for label, rows in by_label.items():
        needed = k if allow_short_dev else k + n_dev
        if len(rows) < needed:
            raise InputError(
                f"few-shot sampling, class {label!r}",
                f"{len(rows)} rows",
                f"at least {needed} ({k} for training, {needed - k} for dev)",
                "Lower k, or supply more rows of this class.",
            )
    train = [row for rows in by_label.values() for row in rows[:k]]
    dev = [row for rows in by_label.values() for row in rows[k : k + n_dev]]
    return np.array(train, dtype=np.int64), np.array(dev, dtype=np.int64)


def evaluation_sample(n_rows: int, size: int = 1000, seed: int = 42) -> np.ndarray:
    """LM-BFF's test sample: the first `size` rows of the seeded shuffle (all rows, shuffled, if there are fewer)."""
    order = np.arange(n_rows)
    np.random.RandomState(seed).shuffle(order)
    return order[:size]


def mezo_subset(n_rows: int, size: int, seed: int, exclude: int | None = None) -> np.ndarray:
    """MeZO's random subset: `RandomState(seed).permutation(n_rows)[:size]`; all rows where there are fewer.

    `exclude` (a row position) is left out and replaced by the next row of the permutation.
    """
    order = np.random.RandomState(seed).permutation(n_rows)
    return order[order != exclude][:size] if exclude is not None else order[:size]


def mezo_split(n_rows: int, n_train: int, n_dev: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """MeZO's training and development rows: one subset of `n_train + n_dev`, the LAST `n_dev` of which are dev.

    With fewer rows than asked for, dev is filled first, as in the official code (WSC: 554 rows give 54 + 500).

    Raises `InputError` when no training row is left.
    """
    chosen = mezo_subset(n_rows, n_train + n_dev, seed)
    if len(chosen) <= n_dev:
        raise InputError("sampling", f"{n_rows} rows", f"more than the {n_dev} that go to dev", "Lower n_dev.")
    return chosen[: len(chosen) - n_dev], chosen[len(chosen) - n_dev :]


def icl_seeds(n_rows: int, seed: int = 0) -> np.ndarray:
    """Seeds of the demonstration set of each evaluated row (MeZO draws a separate set for every row, always with seed 0)."""
    return np.random.RandomState(seed).randint(0, 10000, n_rows)
