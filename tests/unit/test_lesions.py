import random

import numpy as np
import pytest
from scipy import ndimage

from reclaim.errors import InputError
from reclaim.metrics.segmentation import iou, overlap
from reclaim.vision.images import otsu_masks
from reclaim.world.lesions import RADIUS, draw_lesions


@pytest.fixture(scope="module")
def lesions():
    return draw_lesions(60, 42, "test")


def test_is_a_function_of_seed_split_and_index(lesions):
    again, fewer = draw_lesions(60, 42, "test"), draw_lesions(5, 42, "test")
    assert np.array_equal(lesions.images, again.images) and np.array_equal(lesions.images[:5], fewer.images)
    for other in (draw_lesions(5, 43, "test"), draw_lesions(5, 42, "train")):
        assert not np.array_equal(other.images, fewer.images)


def test_leaves_the_global_streams_alone():
    before = random.getstate(), np.random.get_state()[1].copy()
    draw_lesions(2, 0)
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])


def test_shapes_and_sizes(lesions):
    assert lesions.images.shape == (60, 64, 64, 3) and lesions.images.dtype == np.uint8
    assert lesions.masks.shape == (60, 64, 64) and lesions.masks.dtype == bool
    assert 0.11 < lesions.masks.mean() < 0.20
    assert lesions.radius.min() >= RADIUS[0] and lesions.radius.max() <= RADIUS[1]
    assert draw_lesions(1, 0, side=96).images.shape == (1, 96, 96, 3)


def test_the_mask_is_one_lesion_and_darker_than_skin(lesions):
    for image, mask in zip(lesions.images, lesions.masks, strict=True):
        _, parts = ndimage.label(mask)
        assert parts == 1
        skin = image[~ndimage.binary_dilation(mask, iterations=3)]
        assert image[mask].mean() < skin.mean()


def test_distractors_are_background_and_change_nothing_else(lesions):
    plain = draw_lesions(60, 42, "test", max_distractors=0)
    assert np.array_equal(plain.masks, lesions.masks) and not plain.distractors.any()
    assert lesions.distractors.min() >= 1 and set(lesions.distractors) == {1, 2, 3}
    changed = (plain.images != lesions.images).any(axis=-1)
    assert changed.any(axis=(1, 2)).all()
    assert not (changed & lesions.masks).any(), "a distractor lies on a lesion"
    # They have the lesion's colour: where they are, the image is darker than it would be.
    darker = plain.images.astype(int).sum(-1) - lesions.images.astype(int).sum(-1)
    assert darker[changed].mean() > 15


def test_a_threshold_does_not_solve_it(lesions):
    for largest_only in (False, True):
        values = iou(overlap(otsu_masks(lesions.images, largest_only), lesions.masks))
        assert values.mean() < 0.6


def test_refuses_sizes_that_make_no_image():
    with pytest.raises(InputError, match="side"):
        draw_lesions(1, 0, side=8)
    with pytest.raises(InputError, match="max_distractors"):
        draw_lesions(1, 0, max_distractors=-1)
