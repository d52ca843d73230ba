"""Metrics of the in-context study, made from the table of predictions alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reclaim.icl import metrics


def table(labels, answers, words=("no", "yes"), part="a", degenerate=""):
    rows = len(labels)
    label_words = [list(words)] * rows if isinstance(words[0], str) else [list(found) for found in words]
    return pd.DataFrame({
        "part": part, "label": labels, "label_words": label_words, "prediction": answers,
        "target": [found[label] for found, label in zip(label_words, labels, strict=True)], "degenerate": degenerate,
    })  # fmt: skip


def values(frame, **options):
    return {row["metric"]: row["value"] for row in metrics.cell_metrics(frame, **options)}


def test_answers_are_compared_as_words():
    targets = ["positive", "0", "no impact", "B", "positive"]
    answers = [" positive ", 0, "impact", "b", "not positive"]
    assert metrics.correct(targets, answers).tolist() == [True, True, False, False, False]


def test_a_made_up_label_is_not_answered_by_its_class_or_by_a_natural_word():
    found = table([0, 1, 1], ["0", "positive", "A"], words=[("B", "A"), ("A", "B"), ("B", "A")])
    assert metrics.correct(found["target"], found["prediction"]).tolist() == [False, False, True]


def test_accuracy_beside_chance_majority_and_macro_f1():
    found = values(table([0] * 9 + [1], ["no"] * 10))
    assert found["accuracy"] == 0.9 and found["majority_rate"] == 0.9
    assert found["above_chance"] == pytest.approx(0.4) and found["normalised_accuracy"] == pytest.approx(0.8)
    # F1 of "no" is 18/19, that of "yes" 0.
    assert found["macro_f1"] == pytest.approx(9 / 19)


def test_normalised_accuracy_may_be_negative_and_knows_the_number_of_classes():
    found = values(table([0, 1, 2], ["b", "c", "a"], words=("a", "b", "c")))
    assert found["accuracy"] == 0 and found["normalised_accuracy"] == pytest.approx(-0.5)


def test_macro_f1_is_over_classes_and_not_over_made_up_labels():
    words = [("A", "B"), ("B", "A")] * 4
    labels = [0, 1] * 4
    answers = [found[label] for found, label in zip(words, labels, strict=True)]
    assert values(table(labels, answers, words=words))["macro_f1"] == 1.0
    constant = [found[0] for found in words]
    assert values(table(labels, constant, words=words))["macro_f1"] == pytest.approx((2 * 4 / 12) / 2)


def test_parts_count_alike_whatever_their_size():
    frame = pd.concat([table([0], ["no"], part="a"), table([0, 0, 0], ["yes"] * 3, part="b")], ignore_index=True)
    found = metrics.cell_metrics(frame)
    assert {row["metric"]: row["value"] for row in found}["accuracy"] == 0.5
    assert {row["n"] for row in found} == {4}


def test_any_scorer_s_metrics_come_from_the_table_alone():
    frame = table([0, 1], ["no", "no"]).assign(
        logprob_word=[[-1.0, -2.0], [-1.0, -0.5]], logprob_last=[[-2.0, -1.0], [-2.0, -1.0]], label_pieces=[[1, 1]] * 2
    )
    assert values(frame)["accuracy"] == 0.5
    assert values(frame, scorer="word")["accuracy"] == 1.0
    assert values(frame, scorer="official_last")["accuracy"] == 0.5


def test_shuffled_evaluation_labels_give_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=4000)
    right = table(labels, [("no", "yes")[label] for label in labels])
    assert values(right)["accuracy"] == 1.0
    shuffled = table(rng.permutation(labels), right["prediction"].tolist())
    assert abs(values(shuffled)["above_chance"]) < 0.03


def test_degenerate_rows_are_counted():
    assert values(table([0, 1], ["no", "yes"], degenerate=["", "missing class"]))["degenerate"] == 0.5


def test_valid_output_asks_for_the_words_that_were_offered():
    assert metrics.valid_output(["A", " B\nmore", "positive", ""], [["A", "B"]] * 4) == 0.5


def test_pairing_pays_where_settings_agree_row_by_row():
    rng = np.random.default_rng(0)
    first = rng.integers(2, size=2000).astype(float)
    second = np.where(rng.random(2000) < 0.05, 1 - first, first)
    alone = np.where(rng.random(2000) < 0.4, 1 - first, first)
    assert metrics.paired_variance_ratio(first, second, alone) == pytest.approx(0.05 / 0.4, abs=0.05)
    assert np.isnan(metrics.paired_variance_ratio(first, second, first))


def test_episodes_are_averaged_with_the_population_deviation():
    found = metrics.average_episodes([{"accuracy": 0.5}, {"accuracy": 1.0}])
    assert found == {"accuracy": (0.75, 0.25)}
