"""Overlap of predicted and true masks: IoU and Dice per image, pooled over all images, and pooled over batches.

Three conventions that are often taken for each other:

per image     each image counts the same: IoU = I / U and Dice = 2 I / (P + T) of its own pixels
pooled        one quotient for the whole set (sums over all images first): large objects dominate
batch-pooled  UNeXt's `iou_score`: one quotient a batch, smoothed by 1e-5, then the mean weighted by batch size. It depends on
              the batch size and on the order of the images; its Dice is 2 IoU / (1 + IoU), not counted

Where prediction and target are both empty, IoU and Dice are 1; where one of them is, 0. Per image Dice = 2 IoU / (1 + IoU);
for means over images that does not hold. ISIC 2018 (Codella et al., arXiv 1902.03368) scores an image 0 below an IoU of 0.65.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reclaim.errors import InputError

SMOOTH = 1e-5
ISIC_THRESHOLD = 0.65


class Overlap(NamedTuple):
    """Pixel counts of each image, int64 [images]: in both masks, in the predicted one, in the true one."""

    both: np.ndarray
    predicted: np.ndarray
    target: np.ndarray


def overlap(predicted: np.ndarray, target: np.ndarray) -> Overlap:
    """Count the pixels of boolean masks [images, ...]; what follows the first axis (classes too) is one image.

    Raises InputError for shapes that differ and for masks that are not boolean: the caller thresholds (strictly above 0.5).
    """
    predicted, target = np.asarray(predicted), np.asarray(target)
    if predicted.shape != target.shape or predicted.ndim < 2:
        found = f"predictions of shape {predicted.shape} and targets of shape {target.shape}"
        raise InputError("overlap of masks", found, "two arrays of one shape, [images, ...]")
    if predicted.dtype != bool or target.dtype != bool:
        raise InputError("overlap of masks", f"masks of {predicted.dtype} and {target.dtype}", "boolean masks")
    axes = tuple(range(1, predicted.ndim))
    return Overlap((predicted & target).sum(axes), predicted.sum(axes), target.sum(axes))


def iou(counts: Overlap) -> np.ndarray:
    """Intersection over union of each image: float64 [images]."""
    return _quotient(counts.both, counts.predicted + counts.target - counts.both)


def dice(counts: Overlap) -> np.ndarray:
    """Dice coefficient (F1 of the pixels) of each image: float64 [images]."""
    return _quotient(2 * counts.both, counts.predicted + counts.target)


def pooled(counts: Overlap) -> Overlap:
    """Give the counts of all images together, as those of one image."""
    return Overlap(*(side.sum(keepdims=True) for side in counts))


def batch_pooled(counts: Overlap, batch_size: int) -> tuple[float, float]:
    """UNeXt's (IoU, Dice) of a set that is scored `batch_size` images at a time, in the given order."""
    values, sizes = [], []
    for start in range(0, len(counts.both), batch_size):
        both, predicted, target = (int(side[start : start + batch_size].sum()) for side in counts)
        values.append((both + SMOOTH) / (predicted + target - both + SMOOTH))
        sizes.append(len(counts.both[start : start + batch_size]))
    iou = np.array(values)
    return float(np.average(iou, weights=sizes)), float(np.average(2 * iou / (1 + iou), weights=sizes))


def thresholded(values: np.ndarray, least: float = ISIC_THRESHOLD) -> np.ndarray:
    """ISIC 2018's score of each image [images]: its IoU, or 0 if that is below `least`."""
    return np.where(values < least, 0.0, values)


def soft_dice(probabilities: np.ndarray, target: np.ndarray) -> float:
    """UNeXt's `dice_coef` of a batch: probabilities (any shape, the target's), all as one. Not a Dice coefficient to report."""
    p, t = np.ravel(probabilities), np.ravel(target)
    return float((2 * np.sum(p * t) + SMOOTH) / (p.sum() + t.sum() + SMOOTH))


def summary(counts: Overlap, batch_size: int) -> dict[str, float]:
    """Every figure of a set of images: `iou` and `dice` (mean over images) first, then their spread and the others."""
    figures: dict[str, float] = {}
    for name, values in (("iou", iou(counts)), ("dice", dice(counts))):
        figures[name] = float(values.mean())
        figures[f"{name}_std"] = float(values.std())
        figures[f"{name}_median"] = float(np.median(values))
    figures["iou_pooled"], figures["dice_pooled"] = float(iou(pooled(counts))[0]), float(dice(pooled(counts))[0])
    figures["iou_batch"], figures["dice_batch"] = batch_pooled(counts, batch_size)
    figures["iou_thresholded"] = float(thresholded(iou(counts)).mean())
    return figures


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator == 0, 1.0, numerator / np.maximum(denominator, 1))
