"""Random directions that are never stored: z ~ N(0, I) is drawn again from a seed each time it is needed.

Malladi et al. (2023), Algorithm 1, resets the random stream to the step's seed before each sweep over the parameters.
The official code resets torch's global generator and draws one full-size tensor per parameter. Here a direction owns
private generators, and each tensor is drawn in chunks into one reused buffer. On CPU that gives the same values bit
for bit, because

* the values depend on the number of elements, not on the shape or on the number of threads;
* torch draws in groups of 16, so chunks of a multiple of 16 do not disturb the stream, provided that the last chunk of
  a tensor holds at least 16 elements (a shorter tail takes 16 from the chunk before it);
* a tensor of fewer than 16 elements goes through another sampler, whose spare value is part of the generator's state.

Half-precision weights get torch's draws of their own type, as in the official code, widened to float32 for the
arithmetic. (These are the float32 draws rounded only where the number of elements is below 16 or a multiple of it.)

CPU and CUDA streams differ, and so do CUDA streams of different chunk sizes: a trajectory log names the device type.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from reclaim.errors import InputError
from reclaim.optim.slots import Slot, chunk_size, compute_dtype
from reclaim.seeding import derive


class Scratch(threading.local):
    """Buffers of one chunk, one per role, dtype, device and thread, allocated once and reused for every chunk."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, role: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The first `numel` elements of the buffer of `role`; its content is whatever was last written there."""
        buffer = self._buffers.get((role, dtype, device))
        if buffer is None:
            buffer = torch.empty(chunk_size(device), dtype=dtype, device=device)
            self._buffers[role, dtype, device] = buffer
        return buffer[:numel]


class Direction:
    """z for every slot, as one sequence of chunks per slot.

    `chunks(index)` yields `(start, stop, z)` for one slot; z lies in a shared buffer and is valid until the next draw.
    The caller may overwrite it.
    """

    def __init__(self, seed: int, slots: Sequence[Slot], scratch: Scratch):
        self.seed, self.slots, self.scratch = seed, slots, scratch

    def chunks(self, index: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (start, stop, z) of the slot `index`, z (stop - start,) in the precision of its arithmetic."""
        raise NotImplementedError

    def _draw(self, slot: Slot, numel: int, generator: torch.Generator) -> torch.Tensor:
        dtype, device = slot.parameter.dtype, slot.parameter.device
        z = self.scratch.take("z", numel, compute_dtype(dtype), device)
        if z.dtype == dtype:
            return z.normal_(generator=generator)
        return z.copy_(self.scratch.take("half z", numel, dtype, device).normal_(generator=generator))


class SequentialDirection(Direction):
    """One stream runs through all tensors in their order, as in the official code.

    Out of order (`random_access`), the state at each tensor's start is kept once known: about 5 kB per tensor on CPU.
    Reaching a tensor whose predecessors were not visited draws and discards their values.
    """

    def __init__(self, seed: int, slots: Sequence[Slot], scratch: Scratch, random_access: bool = False):
        super().__init__(seed, slots, scratch)
        self._generator = torch.Generator(device=slots[0].parameter.device)
        self._states: dict[int, torch.Tensor] | None = {} if random_access else None
        self._position: int | None = None  # the slot whose first value comes next; None: unknown

    def chunks(self, index: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """As of `Direction`; brings the stream to the slot first."""
        self._seek(index)
        slot, generator = self.slots[index], self._generator
        if self._states is not None and index not in self._states:
            self._states[index] = generator.get_state()
        self._position = None
        numel = slot.parameter.numel()
        for start, stop in slot.bounds():
            z = self._draw(slot, stop - start, generator)
            if stop == numel:
                self._position = index + 1
            yield start, stop, z

    def _seek(self, index: int) -> None:
        states = self._states or {}
        if index in states:
            self._generator.set_state(states[index])
            return
        if self._position is None or self._position > index:
            known = max((k for k in states if k < index), default=None)
            if known is None:
                self._generator.manual_seed(self.seed)
            else:
                self._generator.set_state(states[known])
            self._position = known or 0
        while self._position < index:
            for _ in self.chunks(self._position):
                pass


class PerTensorDirection(Direction):
    """Each tensor has a stream of its own, seeded by a stable hash of the seed and the tensor's NAME.

    The values depend neither on the order of the tensors nor on which others are trained, so that a log outlives a
    library version that reorders parameters; tensors may lie on different devices and be visited by several threads.
    """

    def chunks(self, index: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """As of `Direction`, from the slot's own stream."""
        slot = self.slots[index]
        generator = torch.Generator(slot.parameter.device).manual_seed(derive(self.seed, slot.name))
        for start, stop in slot.bounds():
            yield start, stop, self._draw(slot, stop - start, generator)


def direction_factory(
    rng: str, slots: Sequence[Slot], scratch: Scratch, random_access: bool
) -> Callable[[int], Direction]:
    """How a seed becomes a direction under `rng` ("sequential" or "per_tensor")."""
    if rng == "per_tensor":
        return lambda seed: PerTensorDirection(seed, slots, scratch)
    if rng != "sequential":
        raise InputError("MeZO(rng=...)", repr(rng), "'sequential' or 'per_tensor'")
    devices = sorted({str(slot.parameter.device) for slot in slots})
    if len(devices) > 1:
        raise InputError(
            "MeZO(rng='sequential')", f"parameters on {', '.join(devices)}", "one device", "Use rng='per_tensor'."
        )
    return lambda seed: SequentialDirection(seed, slots, scratch, random_access)


def directions_at(step: int, num_directions: int, direction_schedule: str, num_train_steps: int | None) -> int:
    """Number of directions of a step (counted from 1)."""
    if direction_schedule == "constant":
        return num_directions
    if num_train_steps is None:
        found = f"None with the schedule {direction_schedule!r}"
        raise InputError("MeZO(num_train_steps=...)", found, "the number of steps of the run")
    return max(1, int((step - 1) / num_train_steps * num_directions))


def legacy_numpy_seeds(seed: int) -> Iterator[int]:
    """The direction seeds of the official code: `numpy.random.seed(seed)`, then `numpy.random.randint(1000000000)` per
    step.

    From a private RandomState. For comparisons with official runs only: a log derives its seeds from (seed, step).
    """
    random = np.random.RandomState(seed)
    while True:
        yield int(random.randint(1_000_000_000))
