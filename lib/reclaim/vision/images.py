"""Images with masks as arrays for a network, from a canonical folder (`segmentation_data`), and the floor without one.

Images are RGB. Resizing is Pillow's, which filters when it shrinks (OpenCV's bilinear does not); masks are resized by the
nearest pixel.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from reclaim.data import iter_split
from reclaim.errors import InputError

ROWS_PER_GROUP = 64  # images are large: rows are read and written in small groups


def encode_png(array: np.ndarray, **texts: str) -> bytes:
    """Encode a uint8 array [height, width] or [height, width, 3] as PNG; `texts` are kept in the file by their names."""
    buffer, info = io.BytesIO(), PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.fromarray(array).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def open_image(data: bytes, place: str) -> Image.Image:
    """Decode an image file wholly; raises InputError that names `place` where it is none or is cut off."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(place, f"no readable image ({error})", "a whole PNG or JPEG file") from None
    return image


def read_mask(data: bytes, place: str) -> np.ndarray:
    """Decode a mask: bool [height, width], foreground above the middle of 8 bits, or 1 where the values are only 0 and 1.

    Raises InputError as `open_image` does, and for a colour image.
    """
    image = open_image(data, place)
    if image.mode in ("RGB", "RGBA"):
        colours = np.asarray(image.convert("RGB"))
        if (colours != colours[..., :1]).any():
            raise InputError(place, "a colour image", "a mask of two grey values")
    values = np.asarray(image.convert("I" if image.mode.startswith("I") else "L"))
    if values.max() > 255:
        values = values / 257  # 16 bits
    return values > (0 if values.max() <= 1 else 127)


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one size: ids [n], images uint8 [n, height, width, 3], masks bool [n, height, width].

    `full_masks` are the masks at the size of their files, for scoring there; None unless asked for.
    """

    ids: list[str]
    images: np.ndarray
    masks: np.ndarray
    full_masks: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, rows: np.ndarray) -> ImageSet:
        """Give the images at positions `rows` [m], in that order."""
        full = None if self.full_masks is None else [self.full_masks[row] for row in rows]
        return ImageSet([self.ids[row] for row in rows], self.images[rows], self.masks[rows], full)


def load_images(folder: str | Path, split: str, image_size: int | None = None, keep_full: bool = False) -> ImageSet:
    """Read a split of a canonical segmentation data set, resized to squares of `image_size` pixels, or as it is.

    Raises InputError for a row that is no image, and without `image_size` for images of several sizes.
    """
    ids: list[str] = []
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    full: list[np.ndarray] = []
    for frame in iter_split(folder, split, batch_size=ROWS_PER_GROUP):
        for key, image_data, mask_data in zip(frame["id"], frame["image"], frame["mask"], strict=True):
            place = f"{folder}, split {split}, row {key}"
            image = open_image(image_data, f"{place}, image").convert("RGB")
            mask = read_mask(mask_data, f"{place}, mask")
            if keep_full:
                full.append(mask)
            if image_size and image.size != (image_size, image_size):
                size = (image_size, image_size)
                image, mask = resize(image, size), resize_mask(mask, size)
            if images and images[0].shape[:2] != image.size[::-1]:
                raise InputError(
                    place,
                    f"{image.size[1]} x {image.size[0]} pixels after {images[0].shape[0]} x {images[0].shape[1]}",
                    "images of one size",
                    "Give the experiment an image_size, to which they are resized.",
                )
            ids.append(str(key))
            images.append(np.asarray(image))
            masks.append(mask)
    return ImageSet(ids, np.stack(images), np.stack(masks), full if keep_full else None)


def otsu_masks(images: np.ndarray, largest_only: bool) -> np.ndarray:
    """Segment by Otsu's threshold on the smoothed grey image, dark as foreground: the floor that a network must clear.

    images: uint8 [n, height, width, 3] -> bool [n, height, width]. largest_only: keep the largest connected part.
    """
    masks = np.stack([_otsu(image) for image in images])
    if largest_only:
        for mask in masks:
            parts, count = ndimage.label(mask)
            if count > 1:
                mask &= parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return masks


def _otsu(image: np.ndarray) -> np.ndarray:
    """Otsu's threshold (IEEE Trans. SMC, 1979): the one that separates two classes of grey with the most variance between."""
    grey = ndimage.gaussian_filter(image.mean(axis=-1), 1.0)
    counts, edges = np.histogram(grey, bins=256)
    values = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts)[:-1], counts.sum()
    first, mean = np.cumsum(counts * values)[:-1], (counts * values).sum() / total
    between = (mean * below - first) ** 2 / np.maximum(below * (total - below), 1)
    return grey < edges[1 + np.argmax(between)]


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at (width, height) pixels."""
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The bool mask [height, width] at (width, height) pixels, by the nearest one."""
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
