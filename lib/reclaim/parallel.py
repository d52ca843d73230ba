"""One job on several devices: its script once on each, under torchrun, and the little that these processes exchange.

The processes share the micro-batches of an update (backprop) or the rows of a batch (MeZO): a recipe's batch, and up to
rounding its result, is the same on any number of devices. Backprop goes through torch's DDP, which sums the gradients of
layers while those of others are computed (`distributed`). MeZO sums one float per direction.

The process of rank 0 writes what the others read, outputs and saved state; the others compute the same and write nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from reclaim.errors import InputError
from reclaim.io import read_json, write_json

Item = TypeVar("Item")

USED = "RECLAIM_USED"
"""Names the file into which rank 0 writes the work and memory that the job's costs report."""


def launched() -> bool:
    """Whether this process is one of several of a job."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(command: Sequence[str], count: int, place: str) -> dict[str, float]:
    """Run a Python script in `count` processes and wait; give what rank 0 used. Devices must have been made visible.

    Raises `InputError`, with `place` and the rank, when a process fails or is killed; the others are stopped first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from reclaim.preload import process_start

    # The processes end with this one, as this one ends with Snakemake (reclaim.job).
    os.environ["RECLAIM_RUN"] = f"{os.getpid()} {process_start(os.getpid())}"
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ[USED] = str(Path(folder) / "used.json")
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            # A process that was killed takes others with it, which may have told of their end before.
            killed = [(rank, each) for rank, each in error.failures.items() if each.exitcode < 0]
            rank, failure = killed[0] if killed else error.get_first_failure()
            how = f"ended by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else failure.message
            raise InputError(
                f"{place}, process {rank} of {count}",
                how,
                "all of them at work",
                "The others were stopped. What was saved stays, and the next run goes on from it.",
            ) from None
        except SignalException as stopped:
            raise SystemExit(128 + stopped.sigval) from None
        return read_json(os.environ[USED])


def report(used: dict[str, float]) -> None:
    """Give the work and memory of rank 0 to the process that launched it, and part from the others."""
    import torch.distributed as dist

    if is_main():
        write_json({name: used[name] for name in ("tokens", "steps", "peak_mem_bytes")}, os.environ[USED])
    if dist.is_initialized():
        dist.destroy_process_group()


def tell(message: str) -> None:
    """Leave the reason of this process's end to the process that launched it."""
    write_json({"message": message, "timestamp": int(time.time())}, os.environ["TORCHELASTIC_ERROR_FILE"])


def join():
    """Meet the job's other processes; give the `torch.device` of this one."""
    import torch
    import torch.distributed as dist

    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    return device


def rank() -> int:
    """This process's number; 0 where it is the only one."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes of the job."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes."""
    return rank() == 0


def share(parts: Sequence[Item], place: str) -> Sequence[Item]:
    """This process's part of something that all know; all of it where there is one process.

    Raises `InputError` where some process would get nothing, or one would get more than another.
    """
    processes = world_size()
    if len(parts) % processes:
        raise InputError(place, str(len(parts)), f"a multiple of the {processes} GPUs that share it")
    return parts[rank() :: processes]


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def own_copy(path: Path) -> Path:
    """A file for each process to go on writing, as rank 0 left it (absent, if there is none): the path itself for rank 0."""
    own = path
    if not is_main():
        own = path.with_name(f"{path.name}.{rank()}")
        own.unlink(missing_ok=True)
        if path.exists():
            shutil.copyfile(path, own)
    barrier()
    return own


def sums(values: Iterable[float], device) -> list[float]:
    """The sum of each value over the processes, in float64; the same bits in each."""
    if world_size() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def distributed(model, loss_function: Callable):
    """A loss function of `model` as a DDP module: where a backward ends, all processes have the mean of their gradients.

    The mean, and not the sum; under `no_sync()` of the module each adds up its own instead. Each has to go through as many
    backwards as the others. Parameters that the loss reads in no process keep their gradient of None, and buffers (statistics
    of batch normalisation) stay each process's own.
    """
    import torch

    class Loss(torch.nn.Module):
        """DDP watches a module's forward: here the loss, whatever parts of the model it calls."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, micro_batch):
            return loss_function(micro_batch)

    return torch.nn.parallel.DistributedDataParallel(
        Loss(), broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
    )
