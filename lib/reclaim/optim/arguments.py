"""Checks of the optimiser's arguments: each returns the value as a plain Python one, or raises InputError with its name."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from reclaim.errors import InputError


def one_of(argument: str, value: Any, *allowed: str) -> str:
    """A text of those allowed."""
    if value not in allowed:
        raise InputError(f"MeZO({argument}=...)", repr(value), " or ".join(map(repr, allowed)))
    return value


def number(argument: str, value: Any, accepts: Callable[[Any], bool], expected: str) -> float:
    """A finite number that `accepts` takes."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise InputError(f"MeZO({argument}=...)", repr(value), expected)
    if not accepts(value):
        raise InputError(f"MeZO({argument}=...)", repr(value), expected)
    return float(value)


def whole(argument: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"MeZO({argument}=...)", repr(value), f"a whole number >= {least}")
    return int(value)
