"""Optimisers that need no backward pass."""

from reclaim.optim.mezo import MeZO, StepResult

__all__ = ["MeZO", "StepResult"]
