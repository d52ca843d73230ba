"""Cells of a table or manifest as text and numbers for the page."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd


def text_of(value: Any) -> str:
    """Give a cell as text; missing ones are empty."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


def number_of(value: Any) -> float:
    """Give a cell as a number; missing ones are NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def slug(text: Any) -> str:
    """Make a text fit for an id."""
    return re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")
