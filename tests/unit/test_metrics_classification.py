"""Classification metrics against scikit-learn and scipy, and what happens without a denominator."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from reclaim.errors import InputError
from reclaim.metrics.classification import GLUE_METRICS, accuracy, f1, glue_metrics, matthews, pearson, spearman


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_classes_agree_with_scikit_learn(classes):
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, 200)
    predictions = np.where(generator.random(200) < 0.5, labels, generator.integers(0, classes, 200))
    assert accuracy(predictions, labels).value == pytest.approx(
        reference.accuracy_score(labels, predictions), abs=1e-12
    )
    assert matthews(predictions, labels).value == pytest.approx(
        reference.matthews_corrcoef(labels, predictions), abs=1e-12
    )
    expected = reference.f1_score(labels == 1, predictions == 1)
    assert f1(predictions, labels).value == pytest.approx(expected, abs=1e-12)


def test_correlations_agree_with_scipy_with_ties():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 60).astype(float)
    predictions = labels + generator.integers(-2, 3, 60)
    assert pearson(predictions, labels).value == pytest.approx(stats.pearsonr(predictions, labels)[0], abs=1e-12)
    assert spearman(predictions, labels).value == pytest.approx(stats.spearmanr(predictions, labels)[0], abs=1e-12)


@pytest.mark.parametrize(
    "score",
    [
        accuracy([], []),
        f1([0, 0], [0, 0]),
        matthews([1, 1, 1], [1, 1, 1]),
        matthews([0, 0, 0], [0, 1, 0]),
        matthews([], []),
        pearson([0.1, 0.1, 0.1], [1, 2, 3]),
        pearson([1, 2, 3], [0.7, 0.7, 0.7]),
        spearman([5, 5], [1, 2]),
        pearson([1], [2]),
    ],
)
def test_an_empty_denominator_gives_zero_and_a_flag(score):
    assert score == (0.0, True)


def test_a_zero_that_is_earned_has_no_flag():
    assert f1([1, 0], [0, 1]) == (0.0, False)
    assert accuracy([1], [0]) == (0.0, False)
    assert pearson([1, 2, 1, 2], [1, 1, 2, 2]) == (0.0, False)


def test_each_glue_task_has_its_metrics():
    for task, names in GLUE_METRICS.items():
        assert tuple(glue_metrics(task, [1, 0, 2, 1], [1, 0, 1, 1])) == names
    assert glue_metrics("mrpc", [1, 1, 0, 0], [1, 0, 0, 1])["f1"].value == 0.5
    both = glue_metrics("stsb", [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert both["pearson_spearman"].value == pytest.approx((both["pearson"].value + both["spearman"].value) / 2)
    with pytest.raises(InputError, match="wnli"):
        glue_metrics("wnli", [1], [1])


def test_lists_of_different_length_are_refused():
    with pytest.raises(InputError, match="same length"):
        accuracy([1, 0], [1])
