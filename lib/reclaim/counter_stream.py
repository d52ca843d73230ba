"""Random numbers as a function of who asks: the rows of a batch get theirs whatever the batch, the order and the device."""

from __future__ import annotations

import torch
from torch import Tensor

from reclaim.seeding import derive

LARGEST = 2**63 - 1


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value


_GAMMA, _MIX_1, _MIX_2 = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place on int64 (products wrap; right shifts are made logical by the masks)."""
    z ^= (z >> 30) & (2**34 - 1)
    z *= _MIX_1
    z ^= (z >> 27) & (2**37 - 1)
    z *= _MIX_2
    z ^= (z >> 31) & (2**33 - 1)
    return z


class CounterStream:
    """Random numbers of the rows of a batch, computed and not drawn: there is no state.

    Each row is a SplitMix64 sequence (Steele, Lea and Flood, OOPSLA 2014) that starts at a hash of (name, seed, epoch,
    index); its element number is purpose * 2**32 + position. Equal on every device. indices: int64 [rows].
    """

    def __init__(self, name: str, seed: int, epoch: int, indices: Tensor):
        self.keys = _mix(indices.long() * _GAMMA + derive(seed, name, epoch))

    def bits(self, purpose: int, width: int) -> Tensor:
        """63 random bits for each row and position 0..width-1: int64 [rows, width], not negative."""
        counter = torch.arange(width, device=self.keys.device) * _GAMMA + _signed((purpose << 32) * _GAMMA)
        return _mix(self.keys[:, None] + counter) & LARGEST

    def uniform(self, purpose: int, width: int) -> Tensor:
        """Uniform numbers in [0, 1): float64 [rows, width]."""
        return (self.bits(purpose, width) >> 10).double() * 2.0**-53
