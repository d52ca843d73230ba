"""Speed, size and memory of STM-UNet beside UNeXt and U-Net, at the papers' sizes.

    python benchmarks/stm_unet.py                          # about two minutes on one core
    python benchmarks/stm_unet.py --models full unext --image-size 128 --threads 2

The models take turns in one process, one forward pass and one training step each a round, so that a machine whose load
changes treats them alike; times are CPU seconds per thread, medians over the rounds, after warm-up. Memory is that of a
training step above the loaded model, each in a process of its own (`reclaim.memory`). Ratios are to UNeXt. Goal: a forward
pass of the full model takes at most 3 times UNeXt's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.vision.baselines import build_model
from reclaim.vision.segmenter import bce_dice_loss, complexity, initialize

# Blocks of 64 kB or more come from the system and return to it, so that the high-water mark shows what is in use.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}


class Subject:
    """A model with its optimiser and inputs."""

    def __init__(self, name: str, image_size: int, batch: int):
        self.model = build_model(name, image_size, {})
        initialize(self.model, 0)
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, image_size, image_size, generator=generator)
        self.images = images.to(memory_format=torch.channels_last)
        self.masks = (images.mean(1, keepdim=True) > 0).float()

    def forward(self) -> None:
        self.model.eval()
        with torch.inference_mode():
            self.model(self.images[:1])

    def step(self) -> None:
        self.model.train()
        bce_dice_loss(self.model(self.images), self.masks).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def seconds(function) -> float:
    start = time.process_time()
    function()
    return (time.process_time() - start) / torch.get_num_threads()


def measure_memory(name: str, image_size: int, batch: int) -> int:
    """Peak bytes of two training steps above the loaded model."""
    from reclaim.memory import peak_memory

    subject = Subject(name, image_size, batch)
    subject.forward()  # what is loaded on first use is not the step's
    with peak_memory() as used:
        subject.step()
        subject.step()
    return used.peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["full", "no_swin", "unext", "unet"])
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20, help="forward passes; a fifth as many training steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", help="print one model's peak bytes, measured in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size, batch = arguments.image_size, arguments.batch
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, size, batch))
        return
    subjects = {name: Subject(name, size, batch) for name in arguments.models}
    forward: dict[str, list[float]] = {name: [] for name in subjects}
    steps: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(arguments.warm_up + arguments.rounds):
        for name, subject in subjects.items():
            taken = seconds(subject.forward)
            if turn >= arguments.warm_up:
                forward[name].append(taken)
    for turn in range(1 + max(2, arguments.rounds // 5)):
        for name, subject in subjects.items():
            taken = seconds(subject.step)
            if turn:
                steps[name].append(taken)
    print(f"{size} x {size} pixels, {arguments.threads} thread(s), training batch {batch}, torch {torch.__version__}")
    print(f"{'model':12}{'parameters':>12}{'G MACs':>8}{'forward ms':>12}{'images/s':>10}", end="")
    print(f"{'trained/s':>11}{'step MiB':>10}{'x UNeXt':>9}")
    reference = statistics.median(forward.get("unext") or next(iter(forward.values())))
    for name, subject in subjects.items():
        counts = complexity(subject.model, size)
        taken, step = statistics.median(forward[name]), statistics.median(steps[name])
        command = [sys.executable, __file__, "--memory-of", name, "--image-size", str(size), "--batch", str(batch)]
        command += ["--threads", str(arguments.threads)]
        peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=ENVIRONMENT).stdout)
        print(
            f"{name:12}{counts['parameters']:12,}{counts['macs'] / 1e9:8.2f}{1000 * taken:12.1f}{1 / taken:10.2f}",
            end="",
        )
        print(f"{batch / step:11.2f}{peak / 2**20:10.0f}{taken / reference:9.2f}")


if __name__ == "__main__":
    main()
