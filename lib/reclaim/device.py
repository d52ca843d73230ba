"""Which device a job may use: one GPU for itself, or the CPU.

A job that asks for GPUs (`resources: gpu`) on a machine of its own leases as many of those that are there: one lock
file per device, held until the process ends, however it ends, so that no two jobs of a user share a device. With
`jobs_per_device` in the configuration a device has as many places, for jobs too small to fill one; jobs spread over the
devices before they share. Under SLURM the scheduler has handed the devices out, and its CUDA_VISIBLE_DEVICES stands.

Pretend devices whose names begin with "cpu" (RECLAIM_DEVICES=cpu0,cpu1) are leased like others and stand for the CPU, so
that jobs on one or several GPUs can be tried without any.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import time
from pathlib import Path

from filelock import FileLock, Timeout

from reclaim.errors import InputError

log = logging.getLogger(__name__)

_HELD: dict[str, FileLock] = {}


def device(gpu: int):
    """The `torch.device` of a job that asked for `gpu` GPUs: the CPU for 0, else the first of those leased.

    Call it before anything initializes CUDA: from then on the process sees the leased devices only. Raises InputError
    if the job asks for more GPUs than there are.
    """
    import torch

    if not gpu or pretend(make_visible(gpu)):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise _too_few(gpu, "no GPU that torch can use")
    return torch.device("cuda", 0)


def make_visible(gpu: int) -> list[str]:
    """Let this process and those that it starts see the `gpu` devices that it leases, or that SLURM gave; give their ids.

    Raises InputError if there are fewer.
    """
    if "SLURM_JOB_ID" not in os.environ:
        leased = lease(gpu)
        os.environ["CUDA_VISIBLE_DEVICES"] = "" if pretend(leased) else ",".join(leased)
        return leased
    given = _devices()
    if len(given) < gpu:
        raise _too_few(gpu, f"{len(given)} from SLURM ({','.join(given) or 'none'})")
    return given


def pretend(ids: list[str]) -> bool:
    """Whether these are devices that stand for the CPU."""
    return all(each.startswith("cpu") for each in ids)


def lease(count: int) -> list[str]:
    """Wait until `count` devices have a free place each and take those for the life of this process; give their ids.

    The devices are those of RECLAIM_DEVICES ("0,1,2", as in CUDA_VISIBLE_DEVICES) if it is set, else those of
    CUDA_VISIBLE_DEVICES, else all that torch sees; RECLAIM_JOBS_PER_DEVICE is the number of places on each. What the
    process holds already counts.
    """
    ids = _devices()
    if len(ids) < count:
        raise _too_few(count, f"{len(ids)} ({','.join(ids) or 'none'})")
    # Not under TMPDIR, which may differ from job to job.
    folder = Path("/tmp") / f"reclaim-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    places = range(int(os.environ.get("RECLAIM_JOBS_PER_DEVICE", 1)))
    said = False
    while True:
        for place, each in itertools.product(places, ids):
            if len(_HELD) < count and each not in _HELD:
                name = each.replace("/", "_")
                lock = FileLock(folder / (f"{name}.{place}.lock" if place else f"{name}.lock"))
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    continue
                _HELD[each] = lock
        if len(_HELD) >= count:
            return list(_HELD)[:count]
        # Some but not all: let go, or two such jobs would wait for each other.
        while _HELD:
            _HELD.popitem()[1].release()
        if not said:
            log.info("waiting for %d of the devices %s", count, ",".join(ids))
            said = True
        time.sleep(random.Random(time.monotonic_ns()).uniform(0.02, 0.2))


def _devices() -> list[str]:
    for variable in ("RECLAIM_DEVICES", "CUDA_VISIBLE_DEVICES"):
        if variable in os.environ:
            return [each.strip() for each in os.environ[variable].split(",") if each.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _too_few(gpu: int, found: str) -> InputError:
    return InputError(
        f"resources: gpu={gpu}", found, str(gpu), "Set gpu to 0 in the config's `resources`, or run where there is one."
    )
