import numpy as np
import pytest

from reclaim.errors import InputError
from reclaim.sampling import balanced, evaluation_sample, icl_seeds, kshot, mezo_split, mezo_subset

LABELS = list("abcab" * 20)


@pytest.mark.parametrize("sample", [kshot, balanced])
def test_split_is_balanced_disjoint_and_a_function_of_the_seed(sample):
    train, dev = sample(LABELS, 5, 13, n_dev=3)
    for rows, per_class in ((train, 5), (dev, 3)):
        assert sorted(LABELS[row] for row in rows) == sorted("abc" * per_class)
    assert not set(train) & set(dev)
    again = sample(LABELS, 5, 13, n_dev=3)
    assert np.array_equal(train, again[0]) and np.array_equal(dev, again[1])
    assert not np.array_equal(train, sample(LABELS, 5, 14, n_dev=3)[0])


def test_global_stream_is_neither_read_nor_moved():
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    first = kshot(LABELS, 4, 1)
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(8)
    assert np.array_equal(first[0], kshot(LABELS, 4, 1)[0])


@pytest.mark.parametrize("sample", [kshot, balanced])
def test_smaller_k_is_nested_in_larger(sample):
    assert set(sample(LABELS, 3, 5, n_dev=0)[0]) < set(sample(LABELS, 6, 5, n_dev=0)[0])


def test_too_few_rows_name_the_class_and_the_counts():
    with pytest.raises(InputError, match=r"class 'c'.*20 rows.*at least 24 \(12 for training, 12 for dev\)"):
        kshot(LABELS, 12, 0)
    train, dev = kshot(LABELS, 12, 0, allow_short_dev=True)
    assert (len(train), sum(LABELS[row] == "c" for row in dev)) == (36, 8)
    with pytest.raises(InputError, match="class 'c'"):
        kshot(LABELS, 21, 0, allow_short_dev=True)
    with pytest.raises(InputError, match="0 training"):
        kshot(LABELS, 0, 0)


def test_labels_stand_in_order_of_first_appearance_after_the_shuffle():
    train, _ = kshot(LABELS, 2, 3)
    order = np.random.RandomState(3).permutation(len(LABELS))
    assert [LABELS[row] for row in train[::2]] == list(dict.fromkeys(LABELS[row] for row in order))


def test_mezo_split_takes_dev_from_the_end():
    rows = mezo_subset(100, 30, 4)
    train, dev = mezo_split(100, 20, 10, 4)
    assert np.array_equal(np.concatenate([train, dev]), rows)
    train, dev = mezo_split(554, 1000, 500, 0)  # WSC
    assert (len(train), len(dev)) == (54, 500)
    with pytest.raises(InputError, match="500 rows"):
        mezo_split(500, 1000, 500, 0)


def test_subset_without_the_query_keeps_its_size():
    rows = mezo_subset(40, 8, 0)
    without = mezo_subset(40, 8, 0, exclude=int(rows[2]))
    assert len(without) == 8 and rows[2] not in without
    assert np.array_equal(without[:7], np.delete(rows, 2))
    assert np.array_equal(mezo_subset(40, 8, 0, exclude=0), mezo_subset(40, 8, 0))  # 0 was not drawn


def test_evaluation_sample_and_demonstration_seeds():
    assert len(evaluation_sample(1010)) == 1000
    assert sorted(evaluation_sample(7)) == list(range(7))
    seeds = icl_seeds(50)
    assert len(set(seeds.tolist())) > 40 and seeds.max() < 10000
