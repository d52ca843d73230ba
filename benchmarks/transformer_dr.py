"""Throughput of `transform`: Transformer-DR beside its autoencoder rivals, PCA and UMAP, on the same images.

    python benchmarks/transformer_dr.py               # 10,000 images of 28 x 28: under a minute on two cores
    python benchmarks/transformer_dr.py --preset face32 --components 50

Images are random smooth ones, since the time does not depend on what they show; models are fitted on a few of them, so
that their codes mean nothing. UMAP's functions are compiled by a first call that is not counted, and it gets fewer
images, because each costs it much more. Every time is the least of `--repeats`.

Goal: 10,000 images with the `mnist` preset in at most 5 seconds on 2 cores.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from reclaim.vision.reducers import METHODS, transformer_parameters
from reclaim.vision.transformer_dr import PRESETS


def images(count: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((count, *shape), dtype=np.float32)
    smooth = gaussian_filter(noise, (0, 2, 2))
    low, high = smooth.min((1, 2), keepdims=True), smooth.max((1, 2), keepdims=True)
    return ((smooth - low) / (high - low)).reshape(count, -1)


def least(function, repeats: int) -> tuple[float, float]:
    """Least wall and CPU seconds, after one call that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(t[0] for t in times), min(t[1] for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--umap-images", type=int, default=1_000)
    parser.add_argument("--fit-images", type=int, default=1_000)
    parser.add_argument("--preset", choices=list(PRESETS), default="mnist")
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=["transformer_dr", "plain_ae", "conv_ae", "pca", "umap"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    settings = {**PRESETS[arguments.preset], "epochs": 1, "batch_size": 64, "device": arguments.device}
    shape = settings["image_shape"]
    size = transformer_parameters(arguments.components, (*shape, 1), PRESETS[arguments.preset])
    # UMAP recognises the rows that it was fitted on and gives their codes back, so those are others.
    X = images(max(arguments.images, arguments.umap_images) + arguments.fit_images, shape)
    X, fitted = X[arguments.fit_images :], X[: arguments.fit_images]
    rates = {}
    with threadpool_limits(arguments.threads):
        for name in arguments.methods:
            model = METHODS[name].build(arguments.components, 0, {**settings, "target_parameters": size})
            model.fit(fitted)
            count = arguments.umap_images if name == "umap" else arguments.images
            wall, cpu = least(lambda model=model, count=count: model.transform(X[:count]), arguments.repeats)
            rates[name] = count / cpu, count, wall, cpu, getattr(model, "n_parameters_", None)

    print(f"{shape[0]} x {shape[1]} pixels to {arguments.components} numbers, {arguments.threads} thread(s)", end="")
    print(f", autoencoders on {arguments.device}")
    print(f"{'method':26}{'parameters':>12}{'images':>9}{'wall s':>9}{'CPU s':>9}{'per CPU s':>12}{'to the first':>14}")
    first = rates[arguments.methods[0]][0]
    for name, (rate, count, wall, cpu, parameters) in rates.items():
        shown = f"{METHODS[name].label:26}{f'{parameters:,}' if parameters else '':>12}{count:>9,}"
        print(f"{shown}{wall:>9.3f}{cpu:>9.3f}{rate:>12,.0f}{rate / first:>13.2f}x")


if __name__ == "__main__":
    main()
