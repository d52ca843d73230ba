"""What is drawn for a test row: demonstrations, their labels, the map from classes to made-up labels.

Two modes. `official` (functions that take a `random.Random`): the draws of the original code, one after the other from
one stream of Python's generator, so that a given state gives its very prompts. `paired` (functions that take a seed):
each quantity has a stream of its own that depends on the run's seed, the data set and the row, so that the settings see
the same demonstrations, fewer demonstrations are the first of the many, and nothing depends on the order of the rows.

Differences of the paired mode from the official one: classes take turns, so that every prefix is as balanced as it can
be; a symbol is never the label of two classes (there: the backslash stands twice in the list); a class that runs out is
left out of later turns (there: sampling ends where it happens to be).
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

import numpy as np

from reclaim.errors import InputError
from reclaim.seeding import derive

LABEL_SPACES = ("number", "letter", "symbol")
# The list of the original, in which the backslash stands twice.
OFFICIAL_SYMBOLS = ("@", "#", "$", "%", "*", "^", "\\", "{", "\\", "}")

# --------------------------------------------------------------------------------------------------------------- official


def sample_demos(pool_labels: Sequence[int], k: int, n_classes: int, rng: random.Random) -> list[int]:
    """Rows of the pool that the original shows, in prompt order: near balance by TRUE class, then shuffled.

    The first `k` rows of a shuffled pool; then, for each class with fewer than round(k / classes) of them, further rows
    of that class, each in place of the latest one of the largest class. Where the pool runs out the result stays
    unbalanced.

    Raises `InputError` where `k` exceeds the pool.
    """
    _check_pool(len(pool_labels), k)
    order = list(range(len(pool_labels)))
    rng.shuffle(order)
    share = round(k / n_classes)
    members: list[list[int]] = [[] for _ in range(n_classes)]
    chosen = order[:k]
    for row in chosen:
        members[pool_labels[row]].append(row)
    # Fixed now: a class that falls short later is not filled up.
    missed = [label for label in range(n_classes) if len(members[label]) < share]
    waiting = iter(order[k:])
    while missed:
        following = next(waiting, None)
        if following is None:
            break
        row = following
        full = sorted(
            (label for label in range(n_classes) if len(members[label]) >= share), key=lambda c: len(members[c])
        )
        label = pool_labels[row]
        if label not in missed:
            continue
        chosen.append(row)
        members[label].append(row)
        if len(members[label]) >= share:
            missed.remove(label)
        chosen.remove(members[full[-1]].pop())
    rng.shuffle(chosen)
    return chosen


def official_label_map(space: str, n_classes: int, rng: random.Random) -> list[str]:
    """Made-up label of each class as the original draws it; two classes may share the backslash.

    Raises `InputError` for an unknown space or more classes than it has labels.
    """
    _check_space(space, n_classes)
    if space == "number":
        labels = [str(number) for number in range(n_classes)]
    elif space == "letter":
        labels = rng.sample(string.ascii_uppercase, n_classes)
    else:
        labels = list(OFFICIAL_SYMBOLS)
    rng.shuffle(labels)
    return labels[:n_classes]


def official_random_labels(label_words: Sequence[str], k: int, rng: random.Random) -> list[str]:
    """RANDOM: each demonstration's label word, drawn from all of them whatever its class."""
    return [rng.choice(label_words) for _ in range(k)]


def evaluation_order(n_rows: int, seed: int) -> list[int]:
    """Order in which the original evaluates the rows of its dev file.

    The shuffled list of row numbers is shuffled again with the same seed, and what comes out is looked up in it: one
    permutation, applied three times.
    """
    shuffled = list(range(n_rows))
    random.Random(seed).shuffle(shuffled)
    again = list(shuffled)
    random.Random(seed).shuffle(again)
    return [shuffled[position] for position in again]


def episode_indices(text: str) -> list[int]:
    """Episodes that an argument of the original names: `2`, `1-4` (both ends), or none."""
    ends = [int(part) for part in text.split("-")] if text else []
    return list(range(ends[0], ends[-1] + 1)) if ends else []


# ----------------------------------------------------------------------------------------------------------------- paired


def paired_demos(pool_labels: np.ndarray, k: int, n_classes: int, seed: int) -> list[int]:
    """Rows of the pool to show, in prompt order: the first of a longer list are the shorter list of the same seed.

    One row of each class in random order, then another round. `pool_labels` are the classes of the pool, int (rows,).

    Raises `InputError` where `k` exceeds the pool.
    """
    _check_pool(len(pool_labels), k)
    turns = np.random.default_rng(derive(seed, "turns"))
    waiting = []
    for label in range(n_classes):
        rows = np.flatnonzero(pool_labels == label)
        waiting.append(list(np.random.default_rng(derive(seed, "class", label)).permutation(rows)[:k]))
    chosen: list[int] = []
    while len(chosen) < k:
        chosen += [int(waiting[label].pop(0)) for label in turns.permutation(n_classes) if waiting[label]]
    return chosen[:k]


def raw_demos(n_rows: int, k: int, seed: int) -> list[int]:
    """Rows of a pool of `n_rows` to show whatever their classes; nested as `paired_demos` are, and refused where they are."""
    _check_pool(n_rows, k)
    return np.random.default_rng(derive(seed, "raw")).permutation(n_rows)[:k].tolist()


def space_labels(space: str, n_classes: int, labels: Sequence[str] | None = None) -> list[str]:
    """What classes can be called in a label space; `labels` as in `paired_label_map`."""
    _check_space(space, n_classes)
    if space == "number":
        return [str(number) for number in range(n_classes)]
    candidates = list(labels or (string.ascii_uppercase if space == "letter" else dict.fromkeys(OFFICIAL_SYMBOLS)))
    if len(set(candidates)) < max(n_classes, len(candidates)):
        raise InputError(f"labels of the space {space}", repr(candidates), f"at least {n_classes}, no two alike")
    return candidates


def paired_label_map(space: str, n_classes: int, seed: int, labels: Sequence[str] | None = None) -> list[str]:
    """Made-up label of each class, no two alike.

    `labels` are the candidates where not all of the space is meant (numbers always count from 0 to classes - 1).

    Raises `InputError` for an unknown space or more classes than it has labels.
    """
    candidates = space_labels(space, n_classes, labels)
    order = np.random.default_rng(derive(seed, "map", space)).permutation(len(candidates))
    return [candidates[position] for position in order[:n_classes]]


SETTINGS = ("gold", "random", "abstract", "permuted", "wrong", "flipped", "abstract_shuffled")


def shown_classes(setting: str, classes: Sequence[int], n_classes: int, seed: int) -> list[int]:
    """The class whose label each demonstration is shown with, paired mode; `classes` are the true ones, in prompt order.

    gold, abstract: its own. random: uniform over all classes, independent of its own. Controls: permuted (random, but with
    the demonstrations' own counts), wrong (uniform over the other classes), flipped (the next class, for all),
    abstract_shuffled (as permuted). Those that permute depend on the number of demonstrations and are not nested in it.

    Raises `InputError` for an unknown setting.
    """
    if setting in ("gold", "abstract"):
        return list(classes)
    if setting == "flipped":
        return [(label + 1) % n_classes for label in classes]
    rng = np.random.default_rng(derive(seed, "labels", setting))
    if setting == "random":
        return [int(n_classes * draw) for draw in rng.random(len(classes))]
    if setting == "wrong":
        steps = [1 + int((n_classes - 1) * draw) for draw in rng.random(len(classes))]
        return [(label + step) % n_classes for label, step in zip(classes, steps, strict=True)]
    if setting in ("permuted", "abstract_shuffled"):
        rng = np.random.default_rng(derive(seed, "labels", setting, len(classes)))
        return [classes[position] for position in rng.permutation(len(classes))]
    raise InputError("setting", repr(setting), f"one of {', '.join(SETTINGS)}")


def _check_pool(rows: int, k: int) -> None:
    if not 0 <= k <= rows:
        raise InputError("number of demonstrations", str(k), f"0 to {rows}, the rows of the pool")


def _check_space(space: str, n_classes: int) -> None:
    if space not in LABEL_SPACES:
        raise InputError("label space", repr(space), f"one of {', '.join(LABEL_SPACES)}")
    limit = {"letter": 26, "symbol": len(set(OFFICIAL_SYMBOLS))}.get(space, n_classes)
    if n_classes > limit:
        raise InputError(f"label space {space}", f"{n_classes} classes", f"at most {limit}")
