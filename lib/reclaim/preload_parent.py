"""The preloaded parent: import the third-party packages once, then fork one process per job.

The client side and what holds for both are in `reclaim.preload`. A connection carries one request (its length, then
JSON, with the three standard streams as file descriptors) and after it one byte per signal that the client got; back go
REPLY records. The end of a connection is the end of its job.
"""

import atexit
import builtins
import ctypes
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import types
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from filelock import FileLock

from reclaim.preload import FORWARDED, LENGTH, REPLY, process_start

IDLE_SECONDS = 60.0

# Imported where installed. The submodules are what jobs use of packages that import lazily.
PACKAGES = """
    yaml jinja2 jsonschema tqdm threadpoolctl numpy pandas pyarrow pyarrow.parquet pyarrow.dataset
    scipy.stats scipy.optimize scipy.sparse sklearn.linear_model sklearn.metrics sklearn.datasets sklearn.decomposition
    sklearn.feature_extraction.text sklearn.neighbors sklearn.preprocessing matplotlib.pyplot
    torch torch.optim torch.utils.data torch.func torch._dynamo reclaim.torchvision_shim safetensors.torch tokenizers
    transformers transformers.modeling_utils transformers.generation transformers.models.auto.modeling_auto
    transformers.models.auto.tokenization_auto transformers.models.bert.modeling_bert
    transformers.models.roberta.modeling_roberta transformers.models.opt.modeling_opt
    transformers.models.gpt2.modeling_gpt2 transformers.models.llama.modeling_llama
    transformers.models.t5.modeling_t5 transformers.models.bart.modeling_bart
    datasets peft timm snakemake.io snakemake.iocontainers snakemake.logging
""".split()


def serve(descriptor: int, idle_seconds: float = IDLE_SECONDS) -> NoReturn:
    """Import, then fork one job per connection to the listening socket `descriptor`, until nobody needs the parent."""
    for number in FORWARDED:  # whatever the first job's process ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _replace_streams()
    listener = socket.socket(fileno=descriptor)
    path = listener.getsockname()
    inode = os.stat(path).st_ino
    pid = os.getpid()
    job = _Parent(listener, _import_packages()).serve(idle_seconds)
    if job is not None:
        _run(*job, parent=pid)
    # Under the lock, so that a socket which a later parent has put in this place stays.
    with FileLock(os.path.join(os.path.dirname(path), "start.lock")), suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
            if not os.path.getsize(f"{path}.log"):
                os.unlink(f"{path}.log")
    os._exit(0)


class _Unseekable(io.FileIO):
    """A standard stream under which a fork will exchange the file, perhaps for a pipe."""

    def seekable(self) -> bool:
        return False


def _replace_streams() -> None:
    """Make the standard streams such that a fork can go on with them: imported packages may hold on to them."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(_Unseekable(0, "rb", closefd=False)))
    sys.__stdin__ = sys.stdin  # type: ignore[misc]  # "final" for programs, and this one starts over as another
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = _Unseekable(number, "wb", closefd=False)
        raw.name = f"<{name}>"
        unbuffered = getattr(sys, name).write_through  # python -u
        stream = io.TextIOWrapper(raw if unbuffered else io.BufferedWriter(raw), line_buffering=number == 2)
        stream.mode = "w"  # type: ignore[misc]  # the interpreter sets it on its own streams, too
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _import_packages() -> str:
    """Import what jobs use; give the reason why this process must not fork, or an empty text."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A package that is not installed is a matter of the job that wants it.
            print(f"reclaim.preload: {name} is left out ({error})", file=sys.stderr, flush=True)
        except Exception:
            traceback.print_exc()
            return f"the preloaded parent could not import {name}"
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1 or threading.active_count() > 1:
        return f"the imports started {threads - 1} threads, and a process with threads cannot be forked safely"
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        return "the imports initialized CUDA, which does not survive a fork"
    # The objects made so far outlive every job: the collector of a fork need not touch (and so copy) them.
    gc.collect()
    gc.freeze()
    return ""


@dataclass(eq=False)
class _Client:
    """One connection: the request as it arrives, then the forked job."""

    connection: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    pid: int | None = None

    def receive(self) -> bool:
        """Take in what has arrived; False when the other side has gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.connection, 1 << 16, 3)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.buffer += data
        self.descriptors += descriptors
        return bool(data)

    def request(self) -> dict | None:
        """The request once it has arrived in full; what follows it stays in the buffer."""
        end = LENGTH.size + (LENGTH.unpack_from(self.buffer)[0] if len(self.buffer) >= LENGTH.size else 0)
        if len(self.buffer) < max(end, LENGTH.size + 1):
            return None
        request = json.loads(self.buffer[LENGTH.size : end])
        del self.buffer[:end]
        return request

    def reply(self, kind: bytes, value: int, text: bytes = b"") -> None:
        with suppress(OSError):  # a client that has gone is seen by the next read
            self.connection.sendall(REPLY.pack(kind, value) + text)

    def pass_signals(self, pid: int) -> None:
        for number in self.buffer:
            with suppress(OSError):
                if number in (signal.SIGINT, signal.SIGSTOP, signal.SIGCONT):  # what a terminal sends to a whole group
                    os.killpg(pid, number)
                else:
                    os.kill(pid, number)
        self.buffer.clear()

    def close_descriptors(self) -> None:
        for each in self.descriptors:
            os.close(each)
        self.descriptors.clear()


class _Parent:
    """The loop of the parent. `refusal` is the answer to every job if this process must not fork."""

    def __init__(self, listener: socket.socket, refusal: str):
        self.listener, self.refusal = listener, refusal
        self.clients: set[_Client] = set()
        self.jobs: dict[int, _Client] = {}
        self.runs: set[tuple[int, str]] = set()
        self.wake, self.waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector = selectors.DefaultSelector()

    def serve(self, idle_seconds: float) -> tuple[dict, list[int]] | None:
        """Serve until idle and give None; in a forked job, give its request and its standard streams at once."""
        signal.set_wakeup_fd(self.waker)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.wake, selectors.EVENT_READ)
        last_use = time.monotonic()
        while True:
            for key, _ in self.selector.select(timeout=1.0):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj == self.wake:
                    os.read(self.wake, 4096)
                elif (job := self._advance(key.data)) is not None:
                    return job
            self._reap()
            if self.clients or self.jobs:
                last_use = time.monotonic()
            elif time.monotonic() - last_use > idle_seconds or self._runs_are_over():
                return None

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self.listener.accept()
            user = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if user != os.getuid():
                connection.close()
                return
            connection.setblocking(False)
            client = _Client(connection)
            self.clients.add(client)
            self.selector.register(connection, selectors.EVENT_READ, client)

    def _advance(self, client: _Client) -> tuple[dict, list[int]] | None:
        """Take in what a client sent. In a forked job, give its request and its standard streams."""
        if not client.receive():
            if client.pid is not None:
                with suppress(OSError):
                    os.killpg(client.pid, signal.SIGKILL)
            self._close(client)
        elif client.pid is not None:
            client.pass_signals(client.pid)
        elif (request := client.request()) is not None:
            self.runs.add(tuple(request["run"]))
            if self.refusal:
                reason = self.refusal.encode()
                client.reply(b"R", len(reason), reason)
                self._close(client)
                return None
            client.pid = os.fork()
            if client.pid == 0:
                self._leave(client)
                return request, client.descriptors
            self.jobs[client.pid] = client
            with suppress(OSError):  # the fork does the same: whoever comes first
                os.setpgid(client.pid, client.pid)
            client.close_descriptors()
            client.reply(b"S", client.pid)
            client.pass_signals(client.pid)
        return None

    def _leave(self, own: _Client) -> None:
        """In a forked job: let go of everything that is the parent's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for client in self.clients:
            client.connection.close()
            if client is not own:
                client.close_descriptors()
        self.selector.close()
        self.listener.close()
        os.close(self.wake)
        os.close(self.waker)

    def _reap(self) -> None:
        while self.jobs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            client = self.jobs.pop(pid)
            if client in self.clients:
                client.reply(b"E", status)
                self._close(client)

    def _close(self, client: _Client) -> None:
        self.selector.unregister(client.connection)
        self.clients.remove(client)
        client.connection.close()
        client.close_descriptors()

    def _runs_are_over(self) -> bool:
        return bool(self.runs) and not any(process_start(pid) == start for pid, start in self.runs)


def _run(request: dict, descriptors: list[int], parent: int) -> NoReturn:
    """In a forked job: become what the request describes, run the script, and end as the interpreter would."""
    try:
        _become(request, descriptors, parent)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    script = sys.argv[0]
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins)
    sys.modules["__main__"] = main
    sys.excepthook = _print_exception
    status, interrupted = 0, False
    try:
        with open(script, "rb") as file:
            code = compile(file.read(), script, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except SystemExit as end:
        status = end.code & 0xFF if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
    # In the interpreter's own order. Then leave without taking the preloaded modules apart, which costs more than a
    # small job: only what the script itself made is dropped, so that files it left open are written out.
    threading._shutdown()  # type: ignore[attr-defined]  # private: what the interpreter calls at its end
    atexit._run_exitfuncs()
    main.__dict__.clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            status = 120
            with suppress(OSError, ValueError):
                print(f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}", file=sys.stderr)
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def _become(request: dict, descriptors: list[int], parent: int) -> None:
    """Take over what the client's process had: streams, folder, environment, arguments, signals that it ignored."""
    with suppress(OSError):
        os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    if os.getppid() != parent:
        os._exit(1)
    for target, each in enumerate(descriptors):
        os.dup2(each, target)
        os.close(each)
    for name, how in request["streams"].items():
        getattr(sys, name).reconfigure(**how)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None
    sys.argv[:] = request["argv"]
    sys.path[:] = request["path"]
    # `reclaim` itself and whatever else of it came along is read anew; this file and the shim are in `_identity`.
    for name in [name for name in sys.modules if name.partition(".")[0] == "reclaim"]:
        if name not in ("reclaim.preload", "reclaim.torchvision_shim"):
            del sys.modules[name]
    importlib.invalidate_caches()
    _set_threads()
    # The global random states are new, as in a new process; `random` sees to that itself.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()


def _set_threads() -> None:
    """Give the thread pools the sizes that the job's environment asks for: their libraries have read the parent's."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    if pyarrow := sys.modules.get("pyarrow"):
        pyarrow.set_cpu_count(threads)
    if threads > 1 and (threadpoolctl := sys.modules.get("threadpoolctl")):
        threadpoolctl.threadpool_limits(threads)


def _print_exception(kind: type[BaseException], error: BaseException, frames: types.TracebackType | None) -> None:
    """The usual report, without this module's frames above the script's."""
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    sys.__excepthook__(kind, error.with_traceback(frames), frames)
