"""The trajectory log: a few bytes per step that rebuild the trained weights, bit for bit, from the base weights.

Malladi et al. (2023) observe that a MeZO run is determined by its seeds and projected gradients, so that a checkpoint
of 20,000 steps fits in 0.1 MB. Here the seeds are derived from (master seed, step), so a step costs 4 bytes per
direction (8 for float64 weights). A log is also the checkpoint of a run: each step is on file before its update is
applied, and a run killed at any moment resumes from the base weights with the same bits.

    optimizer = MeZO(model, learning_rate=1e-6, seed=11)
    with record(optimizer, "run.mezo"):                     # a new log, or the steps of an interrupted run
        while optimizer.num_steps < 20_000:
            optimizer.step(lambda: loss(model, batches[optimizer.num_steps]))

    replay("run.mezo", base_model)                          # elsewhere, later
    replay("run.mezo", base_model, num_steps=12_000)        # instead: as it was then

File: 8 bytes of magic; the seal (uint64 number of steps, 0 while open, and 32 bytes SHA-256 of the trained weights);
uint32 size and zlib-compressed JSON header; then the projected gradients. The header holds the digests of the base
weights, the ordered list of tensors, everything that the arithmetic depends on, and the versions and device type that
it ran under.

Differences from the paper's proposal: the log is checked against what it is replayed on (base weights, tensors and
their order, device type), and replay repeats the perturbing sweeps too. Replaying the updates alone misses their
rounding: 7e-7 in float32 after 20 steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reclaim.errors import InputError
from reclaim.optim.mezo import MeZO, NamedParameters
from reclaim.optim.slots import chunk_size
from reclaim.optim.streams import directions_at

MAGIC = b"RCLMEZO1"
_SEAL = struct.Struct("<Q32s")
_SIZE = struct.Struct("<I")
_SEAL_AT = len(MAGIC)
_HEADER_AT = _SEAL_AT + _SEAL.size + _SIZE.size

# Arguments of MeZO that a replay needs; the decayed tensors and the learning rate are stored in their own form.
ARGUMENTS = (
    "eps",
    "weight_decay",
    "num_directions",
    "direction_schedule",
    "num_train_steps",
    "direction_reduction",
    "optimizer",
    "momentum",
    "momentum_horizon",
    "betas",
    "adam_eps",
    "block_scales",
    "scale_estimate",
    "rng",
    "seed",
    "in_place",
    "rounding",
)


@dataclass(frozen=True)
class Log:
    """A log as read: its header, the values of all whole steps, and the seal if the run was finished."""

    path: Path
    header: dict[str, Any]
    steps: list[tuple[float, ...]]
    sealed: tuple[int, str] | None
    body_at: int


def weights_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, sorted by name. Tensors on CPU are read without a copy."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------- recording


class _Recorder:
    """Appends to an open log. Each step is one unbuffered write, before the weights change."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._file = open(path, "r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)
        self._dtype = dtype

    def append(self, projected_grads: Sequence[float]) -> None:
        self._file.write(np.asarray(projected_grads, self._dtype).tobytes())

    def seal(self, steps: int, digest: str) -> None:
        self._file.seek(_SEAL_AT)
        self._file.write(_SEAL.pack(steps, bytes.fromhex(digest)))

    def close(self) -> None:
        self._file.close()


@contextmanager
def record(optimizer: MeZO, path: str | Path) -> Iterator[int]:
    """Log every step of `optimizer` to `path` while the block runs; give the number of steps that were resumed.

    The optimiser must be new and its module must hold the base weights. Where the file exists, it must belong to the
    same base weights and arguments: its steps are replayed (a last step of which only a part was written is dropped),
    and the run goes on behind them. When the block ends without an error, the log is sealed with the digest of the
    trained weights.

    Raises InputError if the log does not fit, or if the optimiser uses explicit direction seeds.
    """
    path = Path(path)
    if optimizer.num_steps or optimizer.recorder is not None:
        raise InputError(str(path), f"an optimiser after {optimizer.num_steps} steps", "a new one on the base weights")
    if optimizer.direction_seeds is not None:
        raise InputError(str(path), "explicit direction_seeds", "seeds derived from the master seed")
    header = _header(optimizer)
    if path.exists():
        log = read_log(path)
        _refuse_mismatch(path, log.header, header)
        _replay_steps(optimizer, log)
        with open(path, "r+b") as file:
            file.truncate(log.body_at + sum(map(len, log.steps)) * optimizer.scalar_dtype.itemsize)
            file.seek(_SEAL_AT)
            file.write(bytes(_SEAL.size))
    else:
        _create(path, header)
    recorder = _Recorder(path, optimizer.scalar_dtype)
    optimizer.recorder = recorder.append
    try:
        yield optimizer.num_steps
        recorder.seal(optimizer.num_steps, _trained_digest(optimizer))
    finally:
        optimizer.recorder = None
        recorder.close()


def _create(path: Path, header: dict[str, Any]) -> None:
    packed = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place when whole, so that a run killed here leaves no half-written header to resume from.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(MAGIC + bytes(_SEAL.size) + _SIZE.pack(len(packed)) + packed)
    os.replace(temporary, path)


def _header(optimizer: MeZO) -> dict[str, Any]:
    slots = optimizer.slots
    trained = {id(slot.parameter) for slot in slots}
    frozen = None  # of pairs of names and parameters no more than these is known
    if optimizer.module is not None:
        rest = [(name, p) for name, p in optimizer.module.named_parameters() if id(p) not in trained]
        frozen = weights_digest([*rest, *optimizer.module.named_buffers()])
    learning_rate = optimizer.learning_rate
    return {
        "tensors": [[slot.name, list(slot.parameter.shape), str(slot.parameter.dtype)] for slot in slots],
        "base": _trained_digest(optimizer),
        "frozen": frozen,
        "device": sorted({slot.parameter.device.type for slot in slots}),
        "arguments": json.loads(json.dumps({name: getattr(optimizer, name) for name in ARGUMENTS})),
        "decayed": sorted(slot.name for slot in slots if slot.decayed),
        "learning_rate": None if callable(learning_rate) else float(learning_rate),
        "scalar": optimizer.scalar_dtype.str,
        "distribution": "normal",
        "chunk": chunk_size(slots[0].parameter.device),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _trained_digest(optimizer: MeZO) -> str:
    return weights_digest((slot.name, slot.parameter) for slot in optimizer.slots)


# ---------------------------------------------------------------------- reading and replaying


def read_log(path: str | Path) -> Log:
    """Read a log. Raises InputError if the file is missing or is not a trajectory log."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or "an unreadable file", "a trajectory log") from error
    try:
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError
        count, digest = _SEAL.unpack_from(data, _SEAL_AT)
        (size,) = _SIZE.unpack_from(data, _HEADER_AT - _SIZE.size)
        header = json.loads(zlib.decompress(data[_HEADER_AT : _HEADER_AT + size]))
        dtype = np.dtype(header["scalar"])
        schedule = [header["arguments"][name] for name in ("num_directions", "direction_schedule", "num_train_steps")]
    except (ValueError, KeyError, struct.error, zlib.error) as error:
        raise InputError(str(path), "a file of another kind, or a damaged header", "a trajectory log") from error
    body_at = _HEADER_AT + size
    body = data[body_at:]
    values = np.frombuffer(body[: len(body) - len(body) % dtype.itemsize], dtype).tolist()
    steps: list[tuple[float, ...]] = []
    at = 0
    while (width := directions_at(len(steps) + 1, *schedule)) <= len(values) - at:
        steps.append(tuple(values[at : at + width]))
        at += width
    if count > len(steps):
        raise InputError(str(path), f"{len(steps)} whole steps", f"the {count} steps that it was sealed with")
    return Log(path, header, steps, (count, digest.hex()) if count else None, body_at)


def replay(
    path: str | Path,
    module: nn.Module | NamedParameters,
    learning_rate: Callable[[int], float] | None = None,
    num_steps: int | None = None,
) -> MeZO:
    """Turn the base weights in `module` into the trained weights, and give the optimiser as it was after the last step.

    learning_rate: needed where the run used a function.
    num_steps: how many steps to repeat, where the weights of an earlier one are wanted (that of the best development
        score). None: all.
    Frozen weights and buffers are compared where both the run and this call were given a module and not pairs.

    Raises InputError that names what differs from the recorded run: the base weights, the frozen weights, the tensors
    or their order, the device type, or (of a sealed log) the rebuilt weights. Another torch version or instruction set
    than the recorded ones is warned about; where it matters, the seal finds out.
    """
    log = read_log(path)
    if num_steps is not None and not 0 <= num_steps <= len(log.steps):
        raise InputError(str(path), f"{len(log.steps)} steps", f"the {num_steps} that num_steps= asks for")
    recorded = log.header["learning_rate"]
    if recorded is None and learning_rate is None:
        raise InputError(str(path), "a run whose learning rate was a function", "that function as learning_rate=")
    if recorded is not None and learning_rate is not None:
        raise InputError(str(path), f"a run of constant learning rate {recorded}", "no learning_rate=")
    optimizer = MeZO(
        module,
        recorded if learning_rate is None else learning_rate,
        decay_filter=set(log.header["decayed"]).__contains__,
        **log.header["arguments"],
    )
    _refuse_mismatch(log.path, log.header, _header(optimizer))
    _replay_steps(optimizer, log if num_steps is None else replace(log, steps=log.steps[:num_steps]))
    return optimizer


def _replay_steps(optimizer: MeZO, log: Log) -> None:
    for grads in log.steps:
        optimizer.replay(grads)
    if log.sealed and log.sealed[0] == len(log.steps) and log.sealed[1] != _trained_digest(optimizer):
        raise InputError(
            str(log.path),
            "rebuilt weights that differ from the trained ones",
            "the same bits",
            f"Replay with torch {log.header['torch']} on a CPU with {log.header['cpu']}, and the same learning rate.",
        )


def _refuse_mismatch(path: Path, recorded: dict[str, Any], present: dict[str, Any]) -> None:
    """Raise InputError on the first thing that keeps the log from fitting, from the most to the least telling."""

    def compare(key: str, found: Any, expected: Any, remedy: str = "") -> None:
        if found != expected:
            raise InputError(str(path), f"{key} {found}", f"{expected}, as recorded", remedy)

    ours, theirs = (sorted(header["tensors"]) for header in (present, recorded))
    extra, lacking = ([t for t in a if t not in b] for a, b in ((ours, theirs), (theirs, ours)))
    remedy = "Build the same model and adapter, and train the same parameters."
    if extra or lacking:
        compare("tensors:", extra[:1] or "fewer", lacking[:1] or "fewer", remedy)
    compare("device type", present["device"], recorded["device"])
    for name in ARGUMENTS:
        compare(f"{name} =", present["arguments"][name], recorded["arguments"][name])
    for key in ("learning_rate", "decayed"):
        compare(f"{key} =", present[key], recorded[key])
    if recorded["arguments"]["rng"] == "sequential":
        for (ours, *_), (theirs, *_) in zip(present["tensors"], recorded["tensors"], strict=True):
            compare("parameter order:", ours, theirs, "Pass (name, parameter) pairs in the recorded order.")
    for key in ("base", "frozen"):
        remedy = "Load the weights that the run started from."
        if present[key] and recorded[key]:
            compare(f"{key} weights of SHA-256", present[key], recorded[key], remedy)
    for key in ("torch", "cpu", "chunk"):
        if present[key] != recorded[key]:
            warnings.warn(f"{path}: recorded with {key} {recorded[key]}, replayed with {present[key]}", stacklevel=4)
