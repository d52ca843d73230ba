"""The tensors that are trained: which they are, how they are cut into chunks, and the factors that they carry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from reclaim.errors import InputError

# The two rules of the official code. `large_models`: by substring, with the case as written, so that BERT's and
# RoBERTa's `LayerNorm.weight` IS decayed. `medium_models` in its efficient mode decays everything.
DECAY_FILTERS: dict[str, Callable[[str], bool]] = {
    "no_bias_or_norm": lambda name: not any(part in name for part in ("bias", "layer_norm", "layernorm")),
    "all": lambda name: True,
}


# Up to 32,768 elements torch does not enter its thread pool, which on a loaded machine costs more than the work that it
# shares out; such a chunk and its z also fit the second-level cache. A GPU needs larger pieces to be busy.
CPU_CHUNK = 32_768
DEVICE_CHUNK = 1_048_576
SMALLEST_TAIL = 16


def chunk_size(device: torch.device) -> int:
    """Elements per chunk on a device, at most."""
    return CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK


def chunk_bounds(numel: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Split `range(numel)` into pieces of `chunk` elements (a multiple of 16, at least 32).

    A tail shorter than 16 takes 16 elements from the piece before it.
    """
    start = 0
    while start < numel:
        stop = min(start + chunk, numel)
        if 0 < numel - stop < SMALLEST_TAIL:
            stop -= SMALLEST_TAIL
        yield start, stop
        start = stop


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of z, of sums and of updates for weights of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def set_factors(
    slots: Sequence[Slot],
    decay_filter: str | Callable[[str], bool],
    block_scales: Mapping[str, float],
    scale_estimate: str,
) -> None:
    """Set which slots decay, and the factors of the block-wise modified estimators. See the arguments of `MeZO`."""
    decays = DECAY_FILTERS.get(decay_filter) if isinstance(decay_filter, str) else decay_filter
    if not callable(decays):
        names = ", ".join(map(repr, DECAY_FILTERS))
        raise InputError("MeZO(decay_filter=...)", repr(decay_filter), f"{names} or a function of the name")
    unused = set(block_scales) - {block_of(slot.name) for slot in slots}
    if unused:
        raise InputError("MeZO(block_scales=...)", f"blocks {sorted(unused)}", "blocks of trainable parameters")
    for slot in slots:
        slot.decayed = bool(decays(slot.name))
        own = block_of(slot.name)
        c = 1.0 if own is None else float(block_scales.get(own, 1.0))
        slot.perturb_scale = 1 / c
        slot.update_scale = c if scale_estimate == "variance" else 1.0
