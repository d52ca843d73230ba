"""Learning rates over a training run.

Source: fairseq's PolynomialDecayLRSchedule, which Wettig et al. (EACL 2023) use with power 1. It sets the rate after
each update; the rate before the first one is peak / warmup, so that the first two updates share it (transformers'
linear schedule starts from 0 and its first update does nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from reclaim.errors import InputError

SCHEDULES = ("linear", "polynomial", "cosine", "constant")


def polynomial_decay(
    num_updates: int,
    learning_rate: float,
    num_train_steps: int,
    warmup_steps: int,
    power: float = 1.0,
    end_learning_rate: float = 0.0,
) -> float:
    """The rate that fairseq sets after `num_updates` updates: up to the peak, down to the end, then constant."""
    if warmup_steps > 0 and num_updates <= warmup_steps:
        return num_updates / warmup_steps * learning_rate
    if num_updates >= num_train_steps:
        return end_learning_rate
    left = 1 - (num_updates - warmup_steps) / (num_train_steps - warmup_steps)
    return (learning_rate - end_learning_rate) * left**power + end_learning_rate


def cosine_annealing(
    num_updates: int,
    learning_rate: float,
    num_train_steps: int,
    warmup_steps: int = 0,
    end_learning_rate: float = 0.0,
    interval: int = 1,
) -> float:
    """Half a cosine from the peak to the end, in steps of `interval` updates (UNeXt: an epoch), after a linear warm-up."""
    if warmup_steps > 0 and num_updates <= warmup_steps:
        return num_updates / warmup_steps * learning_rate
    done = (num_updates - warmup_steps) // interval * interval / (num_train_steps - warmup_steps)
    return end_learning_rate + (learning_rate - end_learning_rate) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def schedule(
    name: str,
    learning_rate: float,
    num_train_steps: int,
    warmup_steps: int = 0,
    power: float = 1.0,
    end_learning_rate: float = 0.0,
    interval: int = 1,
) -> Callable[[int], float]:
    """The rate of update number 0, 1, ...: a function of the number of updates already done.

    name: "linear" (power 1, to 0), "polynomial", "cosine", or "constant" (after the warm-up). Raises InputError for another
    name, for fewer than one step, and for a warm-up longer than the run.
    """
    if name not in SCHEDULES:
        raise InputError("schedule", repr(name), f"one of {', '.join(SCHEDULES)}")
    if num_train_steps < 1 or not 0 <= warmup_steps <= num_train_steps:
        raise InputError(
            "schedule", f"{num_train_steps} steps with {warmup_steps} of warm-up", "at least one step, no more warm-up"
        )
    if name == "linear":
        power, end_learning_rate = 1.0, 0.0

    def rate(step: int) -> float:
        # The first update of a warm-up uses peak / warmup, as the second does.
        updates = max(step, 1) if warmup_steps else step
        if name == "constant":
            return learning_rate * min(1.0, updates / warmup_steps) if warmup_steps else learning_rate
        if name == "cosine":
            return cosine_annealing(updates, learning_rate, num_train_steps, warmup_steps, end_learning_rate, interval)
        return polynomial_decay(updates, learning_rate, num_train_steps, warmup_steps, power, end_learning_rate)

    return rate
