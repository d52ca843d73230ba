"""From predictions to metric rows: the figures are those that one would count by hand."""

import numpy as np
import pandas as pd
import pytest

from reclaim.evaluation import evaluate_experiment, item_rows, prediction_metrics, pretraining_metrics
from reclaim.outcome import read_outcomes, write_outcome
from reclaim.tables import variant_json

VARIANT = variant_json({"task": "t", "method": "backprop"})


def predictions(*sets):
    """Rows of (label, prediction) pairs, one list a training set."""
    rows = []
    for number, pairs in enumerate(sets):
        for item, (label, prediction) in enumerate(pairs):
            scores = [0.0, 1.0] if prediction else [1.0, 0.0]
            rows.append((VARIANT, 1, number, f"test-{item}", label, prediction, scores, "", []))
    columns = ["variant", "seed", "set", "item", "label", "prediction", "scores", "text", "answers"]
    return pd.DataFrame(rows, columns=columns)


TABLE = predictions([(0, 0), (1, 1), (1, 0), (0, 0)], [(0, 0), (1, 0), (1, 0), (0, 1)])


def test_accuracy_is_the_mean_over_training_sets():
    rows = {row["metric"]: row for row in prediction_metrics(TABLE, "accuracy")}
    assert rows["accuracy"]["value"] == pytest.approx((0.75 + 0.25) / 2)
    assert rows["accuracy"]["n"] == 8 and rows["accuracy"]["unit"] == "fraction"


def test_auc_is_that_of_each_training_sets_own_scores():
    """Models of two training sets need not share a scale: pooled, the second's scores would all lie above the first's."""
    table = predictions([(0, 0), (1, 1), (1, 1), (0, 0)], [(0, 0), (0, 1), (1, 0), (1, 1)])
    table["scores"] = [[0.0, s] for s in (0.1, 0.2, 0.3, 0.0, 5.0, 7.0, 6.0, 8.0)]
    rows = {row["metric"]: row for row in prediction_metrics(table, "accuracy")}
    # First set: all four pairs right. Second: positives 6 and 8, negatives 5 and 7: three of four.
    assert rows["auc"]["value"] == pytest.approx((1 + 0.75) / 2)


def test_beside_f1_stands_accuracy():
    rows = {row["metric"]: row["value"] for row in prediction_metrics(TABLE, "f1")}
    # First set: one of two positives found, none wrongly; second: none found.
    assert rows == {"f1": pytest.approx((2 / 3 + 0) / 2), "accuracy": pytest.approx(0.5)}


def test_items_are_averaged_over_training_sets():
    items = item_rows(TABLE, "accuracy").set_index("item")["value"]
    assert items.to_dict() == {"test-0": 1.0, "test-1": 0.5, "test-2": 0.0, "test-3": 0.5}
    assert items.mean() == pytest.approx(0.5)


def test_answers_are_scored_by_token_f1():
    table = pd.DataFrame(
        {"set": [0, 0], "item": ["a", "b"], "label": [-1, -1], "scores": [[], []], "prediction": [-1, -1]}
        | {"text": ["the red box", "blue"], "answers": [["red box"], ["green", "dark blue"]]}
    )
    (row,) = prediction_metrics(table, "qa_f1")
    assert row["value"] == pytest.approx((1 + 2 / 3) / 2)


CHECKPOINT = {"model": "m", "recipe": "r", "seed": 1, "masking": {"scheme": "uniform", "corruption": 0.4}}
TRAINING = {
    "loss": [4.0] * 30 + [3.0] * 20,
    "unigram_entropy": 4.0,
    "predictions": 10,
    "input_tokens": 9,
    "forward_passes": 5,
}


def test_the_learned_share_counts_from_the_plateau_to_the_reference():
    rows = {row["metric"]: row["value"] for row in pretraining_metrics(CHECKPOINT, TRAINING, {"0.4": 2.0})}
    assert rows["pretrain_loss"] == 3.0 and rows["learned_share"] == pytest.approx(0.5)
    assert "held_out_loss" not in rows
    tested = pretraining_metrics(CHECKPOINT, {**TRAINING, "held_out_loss": 3.25}, {"0.4": 2.0})
    assert {row["metric"]: row["value"] for row in tested} == {**rows, "held_out_loss": 3.25}
    other = {**CHECKPOINT, "masking": {"scheme": "uniform", "corruption": 0.4, "replacement": "80-10-10"}}
    assert "learned_share" not in {row["metric"] for row in pretraining_metrics(other, TRAINING, {"0.4": 2.0})}
    untrained = {**CHECKPOINT, "masking": {"scheme": "none"}}
    assert not list(pretraining_metrics(untrained, TRAINING, {"0.4": 2.0}))


def test_an_experiment_leaves_checked_tables(tmp_path):
    history = pd.DataFrame(
        {"variant": VARIANT, "seed": 1, "set": [0, 0], "learning_rate": 0.1, "step": [5, 10], "dev_score": [0.5, 0.7]}
    ).assign(selected=[False, True])
    spec = {"tasks": {"t": {}}, "checkpoints": {"c": CHECKPOINT}, "reference_loss": {}, "controls": []}
    outcome = evaluate_experiment(spec, TABLE, history, {"c": TRAINING}, {})
    write_outcome(outcome, tmp_path / "folder", paper="p", experiment="e")
    metrics = read_outcomes([tmp_path / "folder"], "metrics").set_index("metric")["value"]
    assert metrics["accuracy"] == 0.5 and metrics["dev_score"] == pytest.approx(0.7) and metrics["selected_step"] == 10
    curves = read_outcomes([tmp_path / "folder"], "curves")
    assert set(curves["measure"]) == {"dev_score", "pretrain_loss"}
    losses = curves[curves["measure"] == "pretrain_loss"]
    assert losses["step"].tolist() == [10, 20, 30, 40, 50] and np.allclose(losses["value"], [4, 4, 4, 3, 3])
