"""What all generators share: their description, sub-seeds, canonical tables, and splits that share no sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reclaim.errors import InputError
from reclaim.seeding import derive

Tables = dict[str, pd.DataFrame]

# Rounds of drawing again what was seen before, until a split counts as impossible to fill.
MAX_ROUNDS = 200


@dataclass(frozen=True)
class Generator:
    """A data set of the world.

    `generate(split_sizes, seed, **parameters)` gives one canonical table per split; `kind` is a key of
    `reclaim.data.KINDS`; `labels` names the classes in the order of their numbers (empty where there are none); `words`
    lists every word of the language, whether the texts hold it or not, for a tokenizer that has one token a word.
    """

    generate: Callable[..., Tables]
    kind: str
    words: tuple[str, ...]
    labels: tuple[str, ...] = ()


def stream(seed: int, *names: object) -> np.random.Generator:
    """Give the private random generator of one purpose."""
    return np.random.default_rng(derive(seed, "world", *names))


def check_sizes(split_sizes: dict[str, int]) -> None:
    """Raise InputError unless every split has a name and a whole, positive number of rows."""
    if not split_sizes:
        raise InputError("split_sizes", "no split", "at least one split with its number of rows")
    for split, size in split_sizes.items():
        if not isinstance(split, str) or not split:
            raise InputError("split_sizes", f"the split name {split!r}", "a non-empty string")
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise InputError(f"split_sizes.{split}", repr(size), "a positive whole number of rows")


def check_probability(name: str, value: float) -> None:
    """Raise InputError unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(name, repr(value), "a probability between 0 and 1")


def check_count(name: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Raise InputError unless `value` is a whole number within the limits."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least or (most and value > most):
        raise InputError(name, repr(value), f"a whole number from {least}" + (f" to {most}" if most else ""))


def table(split: str, **columns: Sequence[Any] | np.ndarray) -> pd.DataFrame:
    """Build the canonical table of a split from its columns; ids are the split's name and the row's number."""
    frame = pd.DataFrame(columns)
    frame.insert(0, "id", [f"{split}-{row}" for row in range(len(frame))])
    return frame


def balanced(rng: np.random.Generator, size: int, num_classes: int) -> np.ndarray:
    """Give `size` labels in random order, whose counts differ by at most one; which classes have more is random."""
    order = rng.permutation(num_classes)
    return rng.permutation(order[np.arange(size) % num_classes])


def disjoint_splits(
    split_sizes: dict[str, int],
    seed: int,
    name: str,
    draw_labels: Callable[[np.random.Generator, int], np.ndarray],
    draw_rows: Callable[[np.random.Generator, np.ndarray], Sequence[tuple]],
) -> dict[str, tuple[list[tuple], np.ndarray]]:
    """Draw every split so that no two rows, of one split or of two, begin with the same value.

    `draw_labels(rng, size)` fixes the classes of a split; `draw_rows(rng, labels)` draws one row for each label. A row
    whose first value was seen before is drawn again with the same label, so rejection does not change the classes.
    Splits are drawn in the order of their names, so that the order of `split_sizes` does not matter. Returns the rows
    and labels of each split. Raises InputError where the language has too few different texts.
    """
    check_sizes(split_sizes)
    seen: set = set()
    drawn = {}
    for split, size in sorted(split_sizes.items()):
        rng = stream(seed, name, split)
        labels = draw_labels(rng, size)
        rows: list[tuple | None] = [None] * size
        missing = np.arange(size)
        for _ in range(MAX_ROUNDS):
            still_missing = []
            for position, row in zip(missing, draw_rows(rng, labels[missing]), strict=True):
                if row[0] in seen:
                    still_missing.append(position)
                else:
                    seen.add(row[0])
                    rows[position] = row
            missing = np.array(still_missing, dtype=np.int64)
            if not len(missing):
                break
        else:
            raise InputError(
                f"split_sizes.{split}",
                f"{size} rows",
                f"at most about {size - len(missing)} rows",
                f"{name} has no more different texts beside those of the other splits.",
            )
        drawn[split] = [row for row in rows if row is not None], labels
    return {split: drawn[split] for split in split_sizes}
