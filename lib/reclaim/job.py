"""What every script runs in: threads, log, progress, errors, costs and seals of one Snakemake job.

    with job(snakemake) as context:
        ...

Inside the block standard output and error go to the rule's log file, where it has one. Bad input (`InputError`) ends
the job with its one message and status 1; any other error leaves its traceback in the log and a pointer on the
terminal. SIGTERM and SIGINT end the block like an exception, so that temporary files go and saved training state stays;
so does the death of the Snakemake that started the job, since the next one would make the same outputs beside it. A full
disk is told like bad input.
At the end the job's costs are written to the rule's output `cost`, and checksums of its outputs to its output `seal`,
where it has them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sized
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy

from reclaim import parallel
from reclaim.errors import InputError
from reclaim.io import file_stamps, write_json
from reclaim.preload import THREAD_VARIABLES, process_start

log = logging.getLogger("reclaim")

LINE_SECONDS = 30.0


class Job:
    """What a script may ask of the job it runs in."""

    def __init__(self, snakemake: Any, terminal: TextIO):
        self.snakemake = snakemake
        self.terminal = terminal
        self.counts: dict[str, float] = {"tokens": 0, "steps": 0}

    def device(self):
        """The `torch.device` this job may use; waits for a GPU if the rule asks for one (see `reclaim.device`)."""
        from reclaim.device import device

        chosen = parallel.join() if parallel.launched() else device(self.snakemake.resources.get("gpu", 0))
        _settle(self.snakemake.threads)  # torch may have been imported only now
        return chosen

    def spread(self) -> bool:
        """Run this script once on each of the GPUs, if the rule asks for several; True when that has been done.

        False where this process has the work to do: it is one of those, or the only one, or its models are themselves
        spread over the GPUs (`device_map`).
        """
        gpu = self.snakemake.resources.get("gpu", 0)
        split = any("device_map" in arm for arm in self.snakemake.params.spec.get("arms", ()))
        if gpu < 2 or split or parallel.launched():
            return False
        from reclaim.device import make_visible

        make_visible(gpu)
        self.counts = parallel.launch(sys.argv, gpu, self.snakemake.rule)
        return True

    def progress(self, iterable: Iterable, total: int | None = None, desc: str = "") -> Iterator:
        """Go through `iterable` and show how far it is: a bar on a terminal, else a line in the log now and then."""
        if parallel.launched() and not parallel.is_main():
            return iter(iterable)
        return progress(iterable, total, desc or self.snakemake.rule, self.terminal)

    def count(self, tokens: int = 0, steps: int = 0) -> None:
        """Add to the work that the costs report."""
        self.counts["tokens"] += int(tokens)
        self.counts["steps"] += int(steps)

    def identity(self) -> str:
        """A hash of what this job computes: rule, params (with the code's fingerprint), threads, GPUs, input files.

        Saved state is resumed from only under the same identity. Input files count by name, size and time of
        modification.
        """
        snakemake = self.snakemake
        inputs = [stamp for path in snakemake.input for stamp in file_stamps(path)]
        parts = [snakemake.rule, dict(snakemake.params.items()), snakemake.threads, snakemake.resources.get("gpu", 0)]
        text = json.dumps([*parts, inputs], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def job(snakemake: Any) -> Iterator[Job]:
    """Run a script's work as the job that `snakemake` (the object Snakemake gives to scripts) describes."""
    _settle(snakemake.threads)
    log_path = snakemake.log[0] if snakemake.log else None
    with _told_if_full(snakemake), _redirected(log_path) as terminal, _stopping(), _watching():
        start = _Usage()
        context = Job(snakemake, terminal)
        try:
            if log_path is not None:
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                print(f"--- {now} on {socket.gethostname()}, process {os.getpid()}", flush=True)
            yield context
        except InputError as error:
            _say(str(error), terminal, log_path)
            raise SystemExit(1) from None
        except _Stopped as error:
            message = f"{snakemake.rule}: stopped by {error}; saved training state stays for the next run"
            _say(message, terminal, log_path)
            raise
        except SystemExit:
            raise
        except BaseException as error:
            if (full := _full_disk(error, snakemake)) is not None:
                _say(str(full), terminal, log_path)
                raise SystemExit(1) from None
            if log_path is None:
                raise
            traceback.print_exc()
            last = traceback.format_exception_only(error)[-1].strip()
            if parallel.launched():
                parallel.tell(f"{last} (its traceback is in {log_path})")
            print(f"{snakemake.rule}: {last}\nThe traceback is in {log_path}", file=terminal, flush=True)
            raise SystemExit(1) from None
        used = {**start.until_now(), **context.counts}
        if parallel.launched():  # the process that launched this one has the rest to do
            parallel.report(used)
            return
        if snakemake.output.get("cost"):
            write_json(_cost_rows(snakemake, used), snakemake.output.cost)
        if snakemake.output.get("seal"):
            from reclaim.seals import seal

            others = {name: path for name, path in snakemake.output.items() if name != "seal"}
            seal(others, snakemake.output.seal)


def _say(message: str, terminal: TextIO, log_path: str | None) -> None:
    """One message, on the terminal and in the log; one of a job's several processes leaves it to who launched it."""
    if parallel.launched():
        parallel.tell(message)
    print(message, file=terminal, flush=True)
    if log_path is not None:
        with contextlib.suppress(OSError):  # the log may be on a full disk
            print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _told_if_full(snakemake: Any) -> Iterator[None]:
    """A disk too full to open the log on it is told like bad input, too."""
    try:
        yield
    except OSError as error:
        if (full := _full_disk(error, snakemake)) is None:
            raise
        print(str(full), file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _full_disk(error: BaseException, snakemake: Any) -> InputError | None:
    """What to say if `error` came from a disk without room; libraries tell that in errors of many kinds."""
    place = Path(next(iter(snakemake.output), ".")).absolute().parent
    while not place.exists():
        place = place.parent
    told = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if not told and shutil.disk_usage(place).free > 1 << 16:
        return None
    where = getattr(error, "filename", None) or place
    remedy = "Free some and run again: finished jobs stay, and training goes on from its saved state."
    return InputError(str(where), "no space left on the disk", "room for what the job writes", remedy)


def _settle(threads: int) -> None:
    """Hold every thread pool to the rule's threads, and begin the global random streams alike in every run.

    Nothing of this package draws from those streams; what others draw shall not differ from run to run.
    """
    if parallel.launched():
        threads = max(1, threads // int(os.environ["WORLD_SIZE"]))
    for name in (*THREAD_VARIABLES, "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    random.seed(0)
    numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
        torch.manual_seed(0)


@contextlib.contextmanager
def _redirected(path: str | None) -> Iterator[TextIO]:
    """Append standard output and error, of child processes too, to the file at `path`; give the former stderr.

    Lines for which the file's disk has no room are lost: they shall not come out on the terminal later.
    """
    if path is None:
        with _logging(sys.stderr):
            yield sys.stderr
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a", encoding="utf-8", buffering=1)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as terminal:
        for number in saved:
            os.dup2(file.fileno(), number)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file), _logging(file):
                yield terminal
        finally:
            for stream in (sys.stdout, sys.stderr):  # what was written to them by those who held them before
                with contextlib.suppress(OSError):
                    stream.flush()
            for number, former in saved.items():
                os.dup2(former, number)
                os.close(former)
            with contextlib.suppress(OSError):
                file.close()


@contextlib.contextmanager
def _logging(stream: TextIO) -> Iterator[None]:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Stopped(SystemExit):
    """A signal as an exception; the status is the one that a shell gives to a process ended by it."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    def stop(number, frame):
        raise _Stopped(number)

    heeded = [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) != signal.SIG_IGN]
    former = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    """Send this process SIGTERM when the Snakemake that started the job (see `reclaim.preload`) has ended."""
    pid, _, start = os.environ.get("RECLAIM_RUN", "").partition(" ")
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if process_start(int(pid)) != start:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if pid:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _Usage:
    """What the process has used since this object was made."""

    def __init__(self):
        # A forked process starts with the memory of its parent: its high-water mark begins anew at what is resident.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.wall, self.cpu = time.perf_counter(), self._cpu()

    @staticmethod
    def _cpu() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    def until_now(self) -> dict[str, float]:
        """`wall_s`, `cpu_s` (children that have ended included) and `peak_mem_bytes` (resident, this process)."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
        return {
            "wall_s": time.perf_counter() - self.wall,
            "cpu_s": self._cpu() - self.cpu,
            "peak_mem_bytes": peak,
        }


def _cost_rows(snakemake: Any, used: dict[str, float]) -> list[dict[str, Any]]:
    """The costs as rows of the costs table (see `reclaim.tables`), one per measure.

    The cost file is results/costs/STAGE/JOB.json. Paper, experiment, variant and seed come from the rule's params, from
    the param `spec`, or from the wildcards, in this order; jobs that several experiments share have none (seed -1).
    """
    spec = snakemake.params.get("spec")
    sources = [snakemake.params, spec if isinstance(spec, dict) else {}, snakemake.wildcards]

    def look_up(name: str, default: Any) -> Any:
        return next((value for source in sources if (value := source.get(name)) is not None), default)

    variant = look_up("variant", {})
    if not isinstance(variant, str):
        variant = json.dumps(variant, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path = Path(snakemake.output.cost)
    key = {
        "paper": look_up("paper", ""),
        "experiment": look_up("experiment", ""),
        "variant": variant,
        "seed": int(look_up("seed", -1)),
        "stage": path.parent.name,
        "job": path.stem,
    }
    units = {"wall_s": "s", "cpu_s": "s", "peak_mem_bytes": "bytes", "tokens": "count", "steps": "count"}
    return [{**key, "measure": measure, "value": float(used[measure]), "unit": unit} for measure, unit in units.items()]


def progress(iterable: Iterable, total: int | None = None, desc: str = "", stream: TextIO | None = None) -> Iterator:
    """Go through `iterable` and show how far it is: a bar if `stream` (standard error) is a terminal, else log lines.

    `total` is `len(iterable)` where it is not given. Lines come every half minute.
    """
    stream = stream or sys.stderr
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if stream.isatty():
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread of its own
        yield from tqdm(iterable, desc, total, leave=False, file=stream, dynamic_ncols=True, delay=1.0)
        return
    start = last = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if done and now - last >= LINE_SECONDS:
            last = now
            left = f" of {total}, {(now - start) / done * (total - done):.0f} s left" if total else ""
            log.info("%s: %d%s", desc, done, left)
        yield item
