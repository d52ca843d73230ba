"""Error of reconstructed images: MSE, PSNR, SSIM (Wang et al. 2004, by scikit-image).

Images are in [0, 1], of shape (n, H, W) or (n, H, W, C). The range is 1 and never that of an image. MSE is taken on the
reconstruction as it is; PSNR and SSIM on the reconstruction clipped to [0, 1], as it would be shown.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from reclaim.errors import InputError


class MeanPSNR(NamedTuple):
    """Mean over the images whose reconstruction is not exact, and the number of exact ones, which it leaves out."""

    value: float
    infinite: int


def mse(images: np.ndarray, rebuilt: np.ndarray) -> float:
    """Mean squared error over all images (n, H, W) or (n, H, W, C) and pixels, without clipping."""
    images, rebuilt = _pair(images, rebuilt)
    return float(np.mean((images - rebuilt) ** 2))


def psnr(images: np.ndarray, rebuilt: np.ndarray) -> np.ndarray:
    """10 log10(1 / MSE) of each image (n,) in dB; infinite where the clipped reconstruction is exact."""
    errors = _clipped_errors(images, rebuilt)
    with np.errstate(divide="ignore"):
        return -10 * np.log10(errors)


def mean_psnr(images: np.ndarray, rebuilt: np.ndarray) -> MeanPSNR:
    """Mean over images of their PSNR (not the PSNR of the mean error, which is never higher); NaN if all are exact."""
    values = psnr(images, rebuilt)
    finite = values[np.isfinite(values)]
    return MeanPSNR(float(finite.mean()) if len(finite) else float("nan"), len(values) - len(finite))


def psnr_of_mean_error(images: np.ndarray, rebuilt: np.ndarray) -> float:
    """PSNR (dB) of the mean squared error of all images (n, H, W[, C]) together, for work that reports this one."""
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(_clipped_errors(images, rebuilt).mean()))


def ssim(images: np.ndarray, rebuilt: np.ndarray, window: str = "uniform") -> np.ndarray:
    """Structural similarity of each image (n,), over the part of it that a whole window covers; K1 0.01, K2 0.03.

    window: "uniform" (7 x 7, sample covariance) or "gaussian" (sigma 1.5, 11 x 11, population covariance, the form of
    the original paper). Raises InputError for images smaller than the window.
    """
    from skimage.metrics import structural_similarity  # one of the slower imports

    images, rebuilt = _pair(images, rebuilt)
    settings: dict[str, dict[str, Any]] = {"uniform": {"win_size": 7, "gaussian_weights": False}}
    settings["gaussian"] = {"sigma": 1.5, "gaussian_weights": True, "use_sample_covariance": False}
    if window not in settings:
        raise InputError("ssim(window=...)", repr(window), "uniform or gaussian")
    size, smallest = {"uniform": 7, "gaussian": 11}[window], min(images.shape[1:3])
    if smallest < size:
        raise InputError("ssim(images)", f"a side of {smallest} pixels", f"at least {size} (window {window})")
    channel_axis = -1 if images.ndim == 4 else None
    return np.array(
        [
            structural_similarity(image, shown, data_range=1.0, channel_axis=channel_axis, **settings[window])
            for image, shown in zip(images, rebuilt.clip(0, 1), strict=True)
        ]
    )


def _clipped_errors(images: np.ndarray, rebuilt: np.ndarray) -> np.ndarray:
    images, rebuilt = _pair(images, rebuilt)
    return ((images - rebuilt.clip(0, 1)) ** 2).reshape(len(images), -1).mean(1)


def _pair(images: np.ndarray, rebuilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, rebuilt = np.asarray(images, dtype=np.float64), np.asarray(rebuilt, dtype=np.float64)
    if images.shape != rebuilt.shape or images.ndim not in (3, 4) or not len(images):
        raise InputError(
            "image metric", f"shapes {images.shape} and {rebuilt.shape}", "two arrays (n, H, W) or (n, H, W, C)"
        )
    if images.min() < 0 or images.max() > 1:
        raise InputError("image metric", f"images in [{images.min():g}, {images.max():g}]", "values in [0, 1]")
    return images, rebuilt
