"""Few-shot sets: a function of task and seed, disjoint where they must be, shuffled where asked."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from reclaim.data import materialize
from reclaim.errors import InputError
from reclaim.tasks import few_shot_sets, load_task

RULES = [
    {"sampling": "random", "size": 30, "dev": 10, "sets": 2},
    {"sampling": "per_class", "k": 8, "dev": 4, "sets": 2},
    {"sampling": "kshot", "k": 5},
    {"sampling": "subset", "size": 30, "dev": 10},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    spec = {"source": "world", "generator": "polarity_last", "seed": 0, "splits": {"train": 200, "test": 60}}
    folder = tmp_path_factory.mktemp("tasks") / "last"
    materialize(spec, folder)
    return folder


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["sampling"])
def test_sets_are_a_function_of_the_seed_and_disjoint(folder, rule):
    task = {"data": "last", "few_shot": rule}
    data = load_task(task, folder)
    first, again, other = (list(few_shot_sets(task, data, seed)) for seed in (1, 1, 2))
    assert len(first) == rule.get("sets", 1)
    for a, b in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(a.train, b.train)
        assert not set(a.train["id"]) & set(a.dev["id"])
    drawn = [tuple(one.train["id"]) for one in (*first, *other)]
    assert len(set(drawn)) == len(drawn)
    if rule["sampling"] in ("per_class", "kshot"):
        assert first[0].train["label"].value_counts().tolist() == [rule["k"]] * 2


def test_shuffled_labels_keep_the_rows_and_spare_the_test_rows(folder):
    task = {"data": "last", "few_shot": RULES[0]}
    data = load_task(task, folder)
    plain, shuffled = (next(few_shot_sets(task, data, 1, shuffle_labels=flag)) for flag in (False, True))
    assert plain.train["text"].tolist() == shuffled.train["text"].tolist()
    assert sorted(plain.train["label"]) == sorted(shuffled.train["label"])
    agreement = np.mean(plain.train["label"].to_numpy() == shuffled.train["label"].to_numpy())
    assert 0.2 < agreement < 0.8
    assert data.test["label"].tolist() == load_task(task, folder).test["label"].tolist()


def test_data_without_labels_cannot_be_drawn_by_class_nor_shuffled(folder):
    data = load_task({"data": "last", "few_shot": RULES[0]}, folder)
    bare = dataclasses.replace(data, train=data.train.drop(columns="label"))
    for rule in RULES[1:3]:
        with pytest.raises(InputError, match="data with labels"):
            next(few_shot_sets({"data": "last", "few_shot": rule}, bare, 1))
    with pytest.raises(InputError, match="data with labels"):
        next(few_shot_sets({"data": "last", "few_shot": RULES[0]}, bare, 1, True))
    assert len(next(few_shot_sets({"data": "last", "few_shot": RULES[0]}, bare, 1)).train) == 30


def test_test_rows_are_one_sample_for_all(folder):
    task = {"data": "last", "test_rows": 20}
    first, again = load_task(task, folder), load_task(task, folder)
    assert len(first.test) == 20
    assert first.test["id"].tolist() == again.test["id"].tolist()
