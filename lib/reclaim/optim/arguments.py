"""Checks of the optimiser's arguments: each raises InputError with the argument's name."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from reclaim.errors import InputError


def one_of(argument: str, value: Any, *allowed: str) -> None:
    """Raise InputError unless the argument is one of the allowed values."""
    if value not in allowed:
        raise InputError(f"MeZO({argument}=...)", repr(value), " or ".join(map(repr, allowed)))


def number(argument: str, value: Any, accepts: Callable[[Any], bool], expected: str) -> None:
    """Raise InputError unless the argument is a finite number that `accepts` takes."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise InputError(f"MeZO({argument}=...)", repr(value), expected)
    if not accepts(value):
        raise InputError(f"MeZO({argument}=...)", repr(value), expected)


def whole(argument: str, value: Any, least: int) -> None:
    """Raise InputError unless the argument is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"MeZO({argument}=...)", repr(value), f"a whole number >= {least}")
