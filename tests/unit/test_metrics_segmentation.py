import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaim.errors import InputError
from reclaim.metrics.segmentation import batch_pooled, dice, iou, overlap, pooled, soft_dice, summary, thresholded


def block(rows: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[:rows] = True
    return mask


def counts(*pairs: tuple[int, int]):
    return overlap(np.stack([block(p) for p, _ in pairs]), np.stack([block(t) for _, t in pairs]))


def test_values_by_hand():
    found = counts((2, 4), (6, 3))
    assert (
        found.both.tolist() == [40, 60] and found.predicted.tolist() == [40, 120] and found.target.tolist() == [80, 60]
    )
    assert iou(found).tolist() == [0.5, 0.5]
    assert dice(found) == pytest.approx([2 / 3, 2 / 3])


def test_both_empty_is_one_and_one_empty_is_zero():
    found = counts((0, 0), (0, 5), (5, 0))
    assert iou(found).tolist() == [1.0, 0.0, 0.0]
    assert dice(found).tolist() == [1.0, 0.0, 0.0]
    assert np.isfinite(list(summary(counts((0, 0)), 4).values())).all()
    assert iou(pooled(counts((0, 0), (0, 0)))).tolist() == [1.0]


def test_a_small_and_a_large_mask_pool_differently():
    found = counts((1, 4), (18, 20))
    assert iou(found).mean() == pytest.approx((0.25 + 0.9) / 2)
    assert iou(pooled(found))[0] == pytest.approx(19 / 24)
    assert batch_pooled(found, 2)[0] == pytest.approx(19 / 24, abs=1e-6)
    assert batch_pooled(found, 1)[0] == pytest.approx(iou(found).mean(), abs=1e-6)
    assert abs(iou(found).mean() - iou(pooled(found))[0]) > 0.1


def test_batch_pooled_weights_the_last_batch_by_its_size():
    found = counts((4, 4), (4, 4), (4, 8))
    assert batch_pooled(found, 2)[0] == pytest.approx((2 * 1.0 + 0.5) / 3, abs=1e-6)


def test_isic_threshold():
    assert thresholded(np.array([0.649, 0.65, 0.9])).tolist() == [0.0, 0.65, 0.9]


def test_soft_dice_is_not_dice():
    p, t = np.full((1, 4), 0.6), np.array([[1.0, 1.0, 0.0, 0.0]])
    assert soft_dice(p, t) == pytest.approx(1.2 / 2.2 * 2 / 2, rel=1e-5)
    assert dice(overlap(p > 0.5, t > 0.5))[0] == pytest.approx(2 * 2 / 6)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8))
def test_dice_follows_iou_per_image_but_not_in_the_mean(pairs):
    found = counts(*pairs)
    one, other = iou(found), dice(found)
    assert np.allclose(other, 2 * one / (1 + one)) and (other >= one).all()
    assert other.mean() <= 2 * one.mean() / (1 + one.mean()) + 1e-12


def test_classes_of_an_image_are_counted_together():
    predicted = np.stack([block(2), block(0)])[None]
    target = np.stack([block(4), block(2)])[None]
    assert iou(overlap(predicted, target)).tolist() == [2 / 6]


def test_refuses_what_is_no_pair_of_masks():
    with pytest.raises(InputError, match="one shape"):
        overlap(np.zeros((2, 4, 4), bool), np.zeros((2, 4, 5), bool))
    with pytest.raises(InputError, match="boolean"):
        overlap(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool))
