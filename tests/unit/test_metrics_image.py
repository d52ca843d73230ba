import numpy as np
import pytest

from reclaim.errors import InputError
from reclaim.metrics.image import mean_psnr, mse, psnr, psnr_of_mean_error, ssim


def images(n=4, side=16, seed=0):
    return np.random.default_rng(seed).random((n, side, side))


def test_mse_is_on_the_reconstruction_as_it_is():
    black = np.zeros((2, 8, 8))
    assert mse(black, black - 0.5) == 0.25
    assert mse(black, black + 2.0) == 4.0


def test_psnr_is_on_the_clipped_reconstruction_with_the_range_one():
    white = np.ones((1, 8, 8))
    assert psnr(white, white + 3.0)[0] == np.inf
    dim = np.full((1, 8, 8), 0.2)  # the range of the image itself is 0
    assert psnr(dim, dim + 0.1)[0] == pytest.approx(20.0)


def test_mean_psnr_is_a_mean_over_images_and_counts_exact_ones():
    originals = np.zeros((3, 8, 8))
    rebuilt = originals.copy()
    rebuilt[0] += 0.1
    rebuilt[1] += 0.01
    found = mean_psnr(originals, rebuilt)
    assert found.value == pytest.approx((20 + 40) / 2) and found.infinite == 1
    mean = psnr_of_mean_error(originals[:2], rebuilt[:2])
    assert mean == pytest.approx(-10 * np.log10((0.01 + 0.0001) / 2))
    assert mean < mean_psnr(originals[:2], rebuilt[:2]).value
    assert np.isnan(mean_psnr(originals, originals).value)


def ssim_by_hand(a, b, size=7):
    """Uniform window, sample covariance, mean over the places that a whole window covers."""
    values = []
    for top in range(a.shape[0] - size + 1):
        for left in range(a.shape[1] - size + 1):
            x, y = a[top : top + size, left : left + size].ravel(), b[top : top + size, left : left + size].ravel()
            covariance = np.cov(x, y)
            first = (2 * x.mean() * y.mean() + 0.01**2) / (x.mean() ** 2 + y.mean() ** 2 + 0.01**2)
            second = (2 * covariance[0, 1] + 0.03**2) / (covariance[0, 0] + covariance[1, 1] + 0.03**2)
            values.append(first * second)
    return np.mean(values)


def test_ssim_follows_its_formula():
    originals, rebuilt = images(2, 10), images(2, 10, seed=1)
    expected = [ssim_by_hand(a, b) for a, b in zip(originals, rebuilt, strict=True)]
    np.testing.assert_allclose(ssim(originals, rebuilt), expected, atol=1e-9)


def test_ssim_is_on_the_clipped_reconstruction():
    originals = images()
    wild = originals + np.where(originals > 0.5, 5.0, 0.0)
    np.testing.assert_allclose(ssim(originals, wild), ssim(originals, wild.clip(0, 1)))


def test_both_windows_and_colours():
    originals = images(2, 12)
    noisy = originals * 0.5
    assert not np.allclose(ssim(originals, noisy), ssim(originals, noisy, "gaussian"))
    colours = np.stack([originals] * 3, axis=-1)
    np.testing.assert_allclose(ssim(colours, np.stack([noisy] * 3, axis=-1)), ssim(originals, noisy))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssim(images(1, 6), images(1, 6)), "a side of 6 pixels"),
        (lambda: ssim(images(1, 8), images(1, 8), "gaussian"), "at least 11"),
        (lambda: ssim(images(), images(), "round"), "uniform or gaussian"),
        (lambda: mse(images(2), images(3)), "two arrays"),
        (lambda: mse(images()[0], images()[0]), "two arrays"),
        (lambda: psnr(255 * images(), 255 * images()), r"values in \[0, 1\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
