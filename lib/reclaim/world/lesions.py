"""Lesion-like images: one large irregular spot on skin is the target, small spots of its colour are not.

A pixel's colour says that it is spot, but only the size of the spot says which one, so a network needs context: Otsu's
threshold reaches an IoU of some 0.45 and, with the largest component kept, 0.55. An image has a base colour, smooth texture,
noise, a light that falls off to one side, one lesion with an irregular outline, a soft edge and a random contrast, distractors
of the same colour, and dark hairs over everything.

Every image has a random stream of its own, its distractors another one: images with and without distractors are otherwise
equal, and an image does not depend on how many others there are. The mask is the outline itself; the soft edge and the hairs
do not change it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from reclaim.world.tables import check_count, stream

# All lengths are in pixels of an image of this side and grow with the image.
SIDE = 64
RADIUS = (10.0, 18.0)
DISTRACTOR_RADIUS = (3.0, 6.0)
WAVES = ((2, 0.18), (3, 0.18), (5, 0.18))
SOFT_EDGE = 1.5
SKIN = np.array([0.80, 0.62, 0.52])
LESION = np.array([-0.24, -0.25, -0.22])
MOST_HAIRS = 7


class LesionImages(NamedTuple):
    """images: uint8 [n, side, side, 3]; masks: bool [n, side, side]; radius (mean, pixels), contrast, distractors: [n]."""

    images: np.ndarray
    masks: np.ndarray
    radius: np.ndarray
    contrast: np.ndarray
    distractors: np.ndarray


def draw_lesions(
    count: int, seed: int, split: str = "train", side: int = SIDE, max_distractors: int = 3
) -> LesionImages:
    """Draw `count` images of `side` pixels; with `max_distractors` of 0 there are none, else from 1 to that many."""
    check_count("side", side, least=32)
    check_count("max_distractors", max_distractors, least=0)
    drawn = [_draw(seed, split, index, side, max_distractors) for index in range(count)]
    return LesionImages(*(np.stack(values) for values in zip(*drawn, strict=True)))


def _draw(seed: int, split: str, index: int, side: int, max_distractors: int) -> tuple:
    rng, scale = stream(seed, "lesions", split, index), side / SIDE
    y, x = np.mgrid[:side, :side].astype(np.float64)

    skin = SKIN + rng.normal(0, 0.04, 3)
    texture = gaussian_filter(rng.normal(size=(side, side)), 2 * scale)
    texture *= 0.05 / texture.std()
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.1, 0.3) * ((x - side / 2) * np.cos(angle) + (y - side / 2) * np.sin(angle)) / side

    radius, contrast = rng.uniform(*RADIUS) * scale, rng.uniform(0.35, 1.0)
    centre = rng.uniform(0.3, 0.7, 2) * side
    depth = _outline(rng, centre, radius, y, x)
    opacity = np.clip(depth / (SOFT_EDGE * scale) + 0.5, 0, 1)
    mask = depth > 0

    others = stream(seed, "lesions", split, index, "distractors")
    number = int(others.integers(1, max_distractors + 1)) if max_distractors else 0
    placed = 0
    for _ in range(number):
        spot = _distractor(others, mask, opacity, scale, y, x)
        if spot is not None:
            opacity, placed = np.maximum(opacity, spot), placed + 1

    colour = LESION * contrast * rng.uniform(0.9, 1.1, 3)
    image = skin + (texture + light)[..., None] + opacity[..., None] * colour
    hair = _hairs(rng, int(rng.integers(0, MOST_HAIRS + 1)), side, scale)[..., None]
    image = image * (1 - hair) + hair * np.array([0.16, 0.12, 0.10])
    image += rng.normal(0, 0.04, image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8), mask, radius, contrast, placed


def _outline(rng: np.random.Generator, centre: np.ndarray, radius: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Give how far inside an irregular outline each pixel lies, along the ray from its centre (pixels; outside: below 0)."""
    angle = np.arctan2(y - centre[0], x - centre[1])
    reach = np.ones_like(angle)
    for order, most in WAVES:
        reach += rng.uniform(-most, most) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return radius * np.maximum(reach, 0.4) - np.hypot(y - centre[0], x - centre[1])


def _distractor(
    rng: np.random.Generator, mask: np.ndarray, taken: np.ndarray, scale: float, y: np.ndarray, x: np.ndarray
) -> np.ndarray | None:
    """Give the opacity of a small spot that touches no other one, or None where none of 30 places is free."""
    radius = rng.uniform(*DISTRACTOR_RADIUS) * scale
    for _ in range(30):
        centre = rng.uniform(radius, len(mask) - radius, 2)
        depth = _outline(rng, centre, radius, y, x)
        spot = np.clip(depth / (SOFT_EDGE * scale) + 0.5, 0, 1)
        near = np.hypot(y - centre[0], x - centre[1]) < 1.5 * radius + 2 * scale
        if not (near & (mask | (taken > 0))).any():
            return spot
    return None


def _hairs(rng: np.random.Generator, count: int, side: int, scale: float) -> np.ndarray:
    """Give the opacity of curved hairs, [side, side]."""
    line = np.zeros((side, side))
    t = np.linspace(0, 1, 4 * side)[:, None]
    for _ in range(count):
        start, bend, end = rng.uniform(-0.1, 1.1, (3, 2)) * (side - 1)
        points = np.rint((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end).astype(int)
        points = points[((points >= 0) & (points < side)).all(axis=1)]
        line[points[:, 0], points[:, 1]] = 1
    return np.minimum(0.85, 1.6 * gaussian_filter(line, 0.45 * scale)) if count else line
