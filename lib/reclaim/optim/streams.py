"""Random directions that are never stored: z ~ N(0, I) is drawn again from a seed each time it is needed.

Malladi et al. (2023), Algorithm 1, resets the random stream to the step's seed before each sweep over the parameters.
The official code resets torch's global generator and draws one full-size tensor per parameter. Here a direction owns
private generators, and each tensor is drawn in chunks into one reused buffer. On CPU that gives the same values bit
for bit, because

* the values depend on the number of elements, not on the shape or on the number of threads;
* torch draws in groups of 16, so chunks of a multiple of 16 do not disturb the stream, provided that the last chunk of
  a tensor holds at least 16 elements (a shorter tail is merged into the chunk before it);
* a tensor of fewer than 16 elements goes through another sampler, whose spare value is part of the generator's state.

Half-precision weights get torch's draws of their own type, as in the official code, widened to float32 for the
arithmetic. (These are the float32 draws rounded only where the number of elements is below 16 or a multiple of it.)

CPU and CUDA streams differ, and so do CUDA streams of different chunk sizes: a trajectory log names the device type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reclaim.errors import InputError
from reclaim.seeding import derive

# Below 32,768 elements, merged tail included, torch never enters its thread pool, which on a loaded machine costs more
# than the work it shares out; two such chunks also fit the second-level cache. A GPU needs larger pieces to be busy.
CPU_CHUNK = 32_752
DEVICE_CHUNK = 1_048_576
SMALLEST_TAIL = 16


def chunk_size(device: torch.device) -> int:
    """Elements per chunk on a device."""
    return CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK


def chunk_bounds(numel: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Split `range(numel)` into pieces of `chunk` elements; a tail shorter than 16 joins the piece before it."""
    start = 0
    while start < numel:
        stop = start + chunk
        if numel - stop < SMALLEST_TAIL:
            stop = numel
        yield start, stop
        start = stop


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of z, of sums and of updates for weights of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Scratch:
    """Buffers of one chunk, one per role, dtype and device, allocated once and reused for every chunk of every
    sweep."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, role: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The first `numel` elements of the buffer of `role`; its content is whatever was last written there."""
        buffer = self._buffers.get((role, dtype, device))
        if buffer is None:
            size = chunk_size(device) + SMALLEST_TAIL
            buffer = self._buffers[role, dtype, device] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:numel]


@dataclass(slots=True)
class Slot:
    """One trainable tensor: its name, itself, and the factors that an estimator puts on z for it."""

    name: str
    parameter: torch.Tensor
    decayed: bool = False
    perturb_scale: float = 1.0
    update_scale: float = 1.0

    def flat(self) -> torch.Tensor:
        """The weights as one dimension, sharing memory."""
        return self.parameter.data.view(-1)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """The chunks in which this tensor is drawn and written."""
        return chunk_bounds(self.parameter.numel(), chunk_size(self.parameter.device))


def trainable_slots(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> list[Slot]:
    """The parameters to train, in order, shared ones once. Raises InputError for tensors that cannot be written in
    place."""
    slots: list[Slot] = []
    seen: dict[int, str] = {}
    names: set[str] = set()
    for name, parameter in named_parameters:
        if not parameter.requires_grad or id(parameter) in seen or parameter.numel() == 0:
            continue
        place = f"parameter {name}"
        if not parameter.dtype.is_floating_point or parameter.is_meta:
            raise InputError(place, f"{parameter.dtype} on {parameter.device}", "a floating-point tensor with data")
        if not parameter.is_contiguous():
            raise InputError(
                place, f"strides {parameter.stride()}", "a contiguous tensor", "Call .contiguous() on its data."
            )
        if name in names:
            raise InputError(place, "two tensors of this name", "unique names")
        seen[id(parameter)] = name
        names.add(name)
        slots.append(Slot(name, parameter))
    if not slots:
        raise InputError("MeZO", "no parameter with requires_grad", "at least one trainable parameter")
    _refuse_overlap(slots)
    return slots


def _refuse_overlap(slots: Sequence[Slot]) -> None:
    """Two distinct parameters over the same memory would be perturbed twice."""
    ends: dict[torch.device, tuple[int, str]] = {}
    for slot in sorted(slots, key=lambda slot: slot.parameter.data_ptr()):
        parameter = slot.parameter
        end, other = ends.get(parameter.device, (0, ""))
        if parameter.data_ptr() < end:
            raise InputError(
                f"parameter {slot.name}", f"memory shared with {other}", "separate tensors, or one shared parameter"
            )
        ends[parameter.device] = parameter.data_ptr() + parameter.numel() * parameter.element_size(), slot.name


_LAYER = re.compile(r"(?:^|\.)(layers?\.\d+\.)")


def block_of(name: str) -> str | None:
    """The block of a parameter: "embed", "lm_head", "layer.<i>." or "layers.<i>."; None for any other."""
    for block in ("embed", "lm_head"):
        if block in name:
            return block
    match = _LAYER.search(name)
    return match.group(1) if match else None


class Direction:
    """z for every slot, as one sequence of chunks per slot.

    `chunks(index)` yields `(start, stop, z)` for one slot; z lies in a shared buffer and is valid until the next draw.
    The caller may overwrite it.
    """

    def __init__(self, seed: int, slots: Sequence[Slot], scratch: Scratch):
        self.seed, self.slots, self.scratch = seed, slots, scratch

    def chunks(self, index: int) -> Iterator[tuple[int, int, torch.Tensor]]:
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
        if self._states is not None and index in self._states:
            self._generator.set_state(self._states[index])
            return
        if self._position is None or self._position > index:
            known = max((k for k in self._states or {} if k < index), default=None)
            if known is None:
                self._generator.manual_seed(self.seed)
            else:
                self._generator.set_state(self._states[known])
            self._position = known or 0
        while self._position < index:
            for _ in self.chunks(self._position):
                pass


class PerTensorDirection(Direction):
    """Each tensor has a stream of its own, seeded by a stable hash of the seed and the tensor's NAME.

    The values depend neither on the order of the tensors nor on which others are trained, so that a log outlives a
    library version that reorders parameters, and tensors may live on different devices.
    """

    def __init__(self, seed: int, slots: Sequence[Slot], scratch: Scratch):
        super().__init__(seed, slots, scratch)
        self._generators = {device: torch.Generator(device) for device in {slot.parameter.device for slot in slots}}

    def chunks(self, index: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        slot = self.slots[index]
        generator = self._generators[slot.parameter.device]
        # The generator is shared by the tensors of a device: a caller that visits two of them in turn restarts each.
        generator.manual_seed(derive(self.seed, slot.name))
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


def legacy_numpy_seeds(seed: int) -> Iterator[int]:
    """The direction seeds of the official code: `numpy.random.seed(seed)`, then `numpy.random.randint(1000000000)` per
    step.

    From a private RandomState. For comparisons with official runs only: a log derives its seeds from (seed, step).
    """
    random = np.random.RandomState(seed)
    while True:
        yield int(random.randint(1_000_000_000))
