"""What is drawn in the in-context study: demonstrations, random labels, maps to made-up labels."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from reclaim.errors import InputError
from reclaim.icl import draws

POOL = np.array([0] * 20 + [1] * 20 + [2] * 20)


def test_fewer_demonstrations_are_the_first_of_many():
    many = draws.paired_demos(POOL, 32, 3, seed=5)
    assert len(set(many)) == 32
    for k in (0, 1, 8, 16):
        assert draws.paired_demos(POOL, k, 3, seed=5) == many[:k]
    assert draws.paired_demos(POOL, 32, 3, seed=6) != many


def test_every_prefix_is_as_balanced_as_it_can_be():
    chosen = POOL[draws.paired_demos(POOL, 32, 3, seed=1)]
    for k in range(1, 33):
        counts = np.bincount(chosen[:k], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_a_class_that_runs_out_is_left_out():
    pool = np.array([0, 1, 1, 1, 1, 1])
    assert Counter(pool[draws.paired_demos(pool, 5, 2, seed=0)].tolist()) == {1: 4, 0: 1}


def test_which_class_comes_first_is_random():
    first = [POOL[draws.paired_demos(POOL, 3, 3, seed)[0]] for seed in range(300)]
    assert all(70 < count < 130 for count in np.bincount(first, minlength=3))


@pytest.mark.parametrize("k", [61, -1])
def test_more_demonstrations_than_the_pool_has_are_refused(k):
    with pytest.raises(InputError, match="demonstrations"):
        draws.paired_demos(POOL, k, 3, seed=0)
    with pytest.raises(InputError, match="demonstrations"):
        draws.sample_demos(POOL.tolist(), k, 3, random.Random(0))


def test_the_official_draw_may_leave_classes_without_demonstration():
    # 4 of 6 classes: a share of one each, of which the fixed list of missed classes is filled up.
    chosen = draws.sample_demos([0, 1, 2, 3, 4, 5] * 4, 4, 6, random.Random(3))
    assert len(chosen) == 4


# ------------------------------------------------------------------------------------------------------------ random labels


def test_random_labels_do_not_depend_on_the_class():
    """A permutation of the gold labels, or labels balanced after the draw, would fail this."""
    classes = [0, 1] * 8
    shown = [draws.shown_classes("random", classes, 2, seed) for seed in range(500)]
    agreement = np.mean(np.array(shown) == np.array(classes))
    assert abs(agreement - 0.5) < 3 * 0.5 / np.sqrt(500 * 16)
    counts = Counter(sum(labels) for labels in shown)
    # Binomial, not fixed: all numbers of ones near the middle occur, and half of each is the exception.
    assert set(range(5, 12)) <= set(counts) and counts[8] < 250


def test_random_labels_are_nested_and_need_not_show_every_word():
    long = draws.shown_classes("random", [0, 1, 2] * 4, 3, seed=4)
    assert draws.shown_classes("random", [0, 1, 2], 3, seed=4) == long[:3]
    assert any(len(set(draws.shown_classes("random", [0, 1, 2], 3, seed))) < 3 for seed in range(20))


def test_controls_change_labels_as_they_say():
    classes = [0, 1, 2, 0, 1, 2, 0, 0]
    assert draws.shown_classes("gold", classes, 3, 0) == classes
    assert draws.shown_classes("flipped", classes, 3, 0) == [1, 2, 0, 1, 2, 0, 1, 1]
    for seed in range(50):
        wrong = draws.shown_classes("wrong", classes, 3, seed)
        assert all(a != b for a, b in zip(wrong, classes, strict=True)) and set(wrong) <= {0, 1, 2}
        for setting in ("permuted", "abstract_shuffled"):
            assert sorted(draws.shown_classes(setting, classes, 3, seed)) == sorted(classes)
    both = {tuple(draws.shown_classes("wrong", [0], 3, seed)) for seed in range(50)}
    assert both == {(1,), (2,)}
    with pytest.raises(InputError, match="golden"):
        draws.shown_classes("golden", classes, 3, 0)


# --------------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("space", draws.LABEL_SPACES)
def test_maps_are_uniform_and_have_no_label_twice(space):
    """A fixed map (class 0 -> "0"), or one in the order of the classes, would fail this."""
    maps = [tuple(draws.paired_label_map(space, 2, seed)) for seed in range(2000)]
    assert all(first != second for first, second in maps)
    labels = {"number": 2, "letter": 26, "symbol": 9}[space]
    for position in (0, 1):
        counts = Counter(found[position] for found in maps)
        assert len(counts) == labels
        assert max(counts.values()) < 2000 / labels + 5 * np.sqrt(2000 / labels)


def test_maps_keep_to_the_labels_that_a_data_set_has():
    maps = [draws.paired_label_map("letter", 2, seed, labels=["A", "B", "C"]) for seed in range(30)]
    assert {label for found in maps for label in found} == {"A", "B", "C"}


def test_only_the_official_list_can_give_two_classes_one_label():
    official = [draws.official_label_map("symbol", 6, random.Random(seed)) for seed in range(300)]
    doubled = np.mean([len(set(found)) < 6 for found in official])
    assert abs(doubled - 1 / 3) < 0.1
    assert all(len(set(draws.paired_label_map("symbol", 6, seed))) == 6 for seed in range(300))


@pytest.mark.parametrize("space, classes", [("greek", 2), ("letter", 27), ("symbol", 10)])
def test_impossible_maps_are_refused(space, classes):
    with pytest.raises(InputError, match="label space"):
        draws.paired_label_map(space, classes, 0)
    with pytest.raises(InputError, match="label space"):
        draws.official_label_map(space, classes, random.Random(0))
    with pytest.raises(InputError, match="labels"):
        draws.paired_label_map("letter", 2, 0, labels=["A"])
