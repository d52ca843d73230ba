"""Peak memory of a block of code, above what was there when it began.

On CPU: the high-water mark of resident memory (`VmHWM`), which Linux resets when 5 is written to
/proc/self/clear_refs. Free memory that the allocator keeps hides later use, so it is handed back first; a figure that
is to be compared should still come from a fresh process. Where the mark cannot be reset (other systems, some
containers) the process's own peak stands in: then only a block that reaches further than anything before it is seen.
On CUDA: `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """Bytes. `start_bytes` were in use at the beginning; `peak_bytes` is the most used above that, once the block
    ended."""

    start_bytes: int
    peak_bytes: int = 0


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[PeakMemory]:
    """Measure the block: `with peak_memory() as used: ...`, then read `used.peak_bytes`."""
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        used = PeakMemory(torch.cuda.memory_allocated(device))
    else:
        _trim()
        used = PeakMemory(_restart())
    try:
        yield used
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            peak = torch.cuda.max_memory_allocated(device)
        else:
            peak = _high_water()
        used.peak_bytes = max(0, peak - used.start_bytes)


def return_freed_blocks() -> None:
    """Let glibc hand every freed block of 64 kB or more back to the system, for the rest of this process.

    Otherwise it keeps some, depending on the order of sizes, and peaks scatter by tens of MiB. No effect elsewhere.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # M_MMAP_THRESHOLD


def _restart() -> int:
    """Reset the high-water mark to what is resident now, and give that."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return _high_water()
    return _status("VmRSS")


def _high_water() -> int:
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def _trim() -> None:
    """Ask glibc to give its free memory back to the system."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass
