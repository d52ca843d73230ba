"""Splits of a set of images by seed: training, validation and test parts of a whole set, or so many images a subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclaim.errors import InputError
from reclaim.vision.image_sets import ImageSet, load_image_info, load_images


@dataclass(frozen=True)
class Split:
    """Rows of one set of images: all of them, and the positions of each part."""

    images: ImageSet
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def rows(self, part: str) -> np.ndarray:
        """Pixels (n, H * W * C) of a part."""
        return self.images.X[getattr(self, part)]

    def labels(self, part: str) -> np.ndarray:
        """Labels (n,) of a part."""
        return self.images.labels[getattr(self, part)]


def holdout_split(folder: Path, images: ImageSet, sizes: Mapping[str, int], seed: int) -> Split:
    """Draw the parts: of the pool `all`, or training and validation images of `train` and test images of `test`.

    The order is that of `RandomState(seed).permutation`: training rows first, test rows last.
    """
    rows = load_image_info(folder)["rows"]
    order = np.random.RandomState(seed)
    if "all" in rows:
        taken = order.permutation(rows["all"])
        fitted, tested = sizes["train"] + sizes["validation"], taken[-sizes["test"] :]
        room = rows["all"] - sizes["test"]
    elif "test" in rows:
        taken = order.permutation(rows["train"])
        tested = rows["train"] + order.permutation(rows["test"])[: sizes["test"]]
        fitted, room = sizes["train"] + sizes["validation"], rows["train"]
    else:
        raise InputError(str(folder), f"the splits {sorted(rows)}", "`all`, or train and test")
    if fitted > room or len(tested) < sizes["test"]:
        raise InputError(f"sizes of {folder.name}", f"{dict(sizes)}", f"parts of its rows {rows}")
    return Split(images, taken[: sizes["train"]], taken[sizes["train"] : fitted], tested)


def per_subject_split(images: ImageSet, training_images: int, seed: int) -> Split:
    """Draw the training images of every subject, in the order of the subjects; the others are the test part.

    For each subject in turn `RandomState(seed).permutation` of its images, of which the first are for training; the
    last of these is the validation part (and so part of `train`, too).
    """
    rng = np.random.RandomState(seed)
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for subject in range(len(images.label_names)):
        rows = np.flatnonzero(images.labels == subject)
        if not 1 <= training_images < len(rows):
            raise InputError(
                f"training_images of subject {images.label_names[subject]}",
                f"{training_images} of {len(rows)} images",
                "at least 1, and one left for the test",
            )
        drawn = rows[rng.permutation(len(rows))]
        train.extend(drawn[:training_images])
        validation.append(drawn[training_images - 1])
        test.extend(drawn[training_images:])
    return Split(images, np.array(train), np.array(validation), np.array(test))


def all_images(folder: Path) -> ImageSet:
    """All rows of a folder: the pool, or train followed by test."""
    parts = [
        load_images(folder, split) for split in ("all", "train", "test") if split in load_image_info(folder)["rows"]
    ]
    return ImageSet(
        np.concatenate([part.X for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [name for part in parts for name in part.ids],
        parts[0].image_shape,
        parts[0].label_names,
    )
