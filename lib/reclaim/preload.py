"""Hand a job to a preloaded parent process, because importing torch costs more than many jobs compute.

`import reclaim.preload` is the first line of every script. In a process that Snakemake started for a `script:` job it
sends the job's arguments, environment, working directory and standard streams over a Unix socket to a parent that has
the third-party packages imported (`reclaim.preload_parent`), waits, and ends as the job ended. The parent forks, and
the fork runs the same script file from its first line. Everywhere else (tests, a script run by hand, the fork itself)
the import does nothing.

What holds:

- The parent imports third-party packages and `reclaim.torchvision_shim`, nothing else of this package: edited code is
  read afresh by every job. It has one thread, no thread pool and no CUDA when it forks, and refuses to fork otherwise.
- A parent serves only jobs that would have started out as it did: `_identity` names what is compared.
- The first job starts the parent, under a lock. The parent ends when every run that it served has ended, or after a
  minute without a job.
- A job whose process under Snakemake dies is killed with all its processes. Jobs whose parent dies fail with a message,
  and the next job starts a new parent. Signals and exit statuses pass through.
- Jobs with `resources: gpu`, jobs of a remote executor (`snakemake --mode remote`) and jobs on other systems than Linux
  run as plain processes. So does every job under `RECLAIM_PRELOAD=0`, and a job for which no parent could be had.

Snakemake's `benchmark:` measures the waiting process, so costs are measured inside the job (`reclaim.job`).
"""

import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, NoReturn

# A parent that has not taken the job by then is given up, and the job runs as a plain process.
START_SECONDS = 300.0

# Snakemake sets these per rule. A parent's imports leave every pool at one thread; a fork applies its job's number.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# What differs between the jobs of one run, or says nothing: not part of a parent's identity.
_VARYING = {*THREAD_VARIABLES, "TMPDIR", "TMP", "TEMP", "TEMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "COLUMNS", "LINES"}
_VARYING.add("RECLAIM_RUN")
_SHELLS = {b"sh", b"bash", b"dash", b"ash", b"zsh", b"ksh"}
_FOLDER = os.path.dirname(os.path.realpath(__file__))

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
LENGTH = struct.Struct("!I")
# From the parent: S and a process id (started), E and a wait status (ended), R and the length of a reason (refused).
REPLY = struct.Struct("!ci")


def _is_job() -> bool:
    """True in a `script:` process of Snakemake."""
    snakemake = getattr(sys.modules["__main__"], "snakemake", None)
    return sys.platform == "linux" and hasattr(snakemake, "resources")


def _may_be_forked(command: list[bytes]) -> bool:
    """False for a job of a remote executor, and for one on a GPU: CUDA does not survive a fork, and it is long enough."""
    remote = (b"--mode", b"remote") in zip(command, command[1:], strict=False)
    gpu = sys.modules["__main__"].snakemake.resources.get("gpu", 0)
    return os.environ.get("RECLAIM_PRELOAD", "1") != "0" and not remote and not gpu


def _hand_over() -> None:
    """Let the parent run this job and end as it ended; come back if no parent may or could take the job."""
    try:
        run, command = _run_process()
        os.environ["RECLAIM_RUN"] = f"{run[0]} {run[1]}"  # `reclaim.job` stops the job when that process has ended
        if not _may_be_forked(command):
            return
        path = os.path.join(_runtime_folder(), f"{_identity()}.sock")
        # Twice, because a parent may have been about to end when this job connected.
        reason = _follow(_connect(path), run) or _follow(_connect(path), run)
        reason = reason or "two preloaded parents ended before they took the job"
    except (OSError, RuntimeError) as error:
        reason = str(error)
    print(f"reclaim.preload: {reason}. This job runs without it, as a plain process.", file=sys.stderr)


def process_start(pid: int) -> str | None:
    """A process's start time, which tells it from a later one of the same number; None when it has ended."""
    with suppress(OSError):
        fields = _stat(pid)
        return None if fields[0] in "ZX" else fields[19]
    return None


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (the state) on."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def _run_process() -> tuple[list, list[bytes]]:
    """([process id, start time], command line) of what started this job: Snakemake, seen through the shells between."""
    pid, command = os.getppid(), [b""]
    for _ in range(5):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().split(b"\0")
        if os.path.basename(command[0]) not in _SHELLS:
            break
        pid = int(_stat(pid)[1])
    return [pid, process_start(pid)], command


def _runtime_folder() -> str:
    """A folder that no other user can enter: $XDG_RUNTIME_DIR/reclaim, or reclaim-UID in the temporary folder."""
    import tempfile

    base = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = os.path.join(base, "reclaim") if os.path.isdir(base) else ""
    folder = folder or os.path.join(tempfile.gettempdir(), f"reclaim-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if status.st_uid != os.getuid() or status.st_mode & 0o170077 != 0o040000:
        raise RuntimeError(f"{folder} is not a folder of mode 0700 that belongs to this user, so it is not used")
    if len(os.fsencode(folder)) > 75:  # a Unix socket's address holds 107 bytes
        raise RuntimeError(f"{folder} is too long a path for a Unix socket (set XDG_RUNTIME_DIR or TMPDIR)")
    return folder


def _identity() -> str:
    """A hash of what a process starts with and cannot change later, or what an import may have read.

    Interpreter and its flags; installed distributions (name, version, date of installation); the code of the parent;
    environment, but for what varies within a run; limits, priority, processors, groups; control groups and namespaces.
    The last two keep a job of a batch system from the parent of another, whose end would be its end.
    """
    import hashlib
    import resource

    parts: list[object] = [sys.executable, sys.prefix, sys.version, sys.flags, sys.warnoptions, sys._xoptions]
    for folder in sys.path:
        with suppress(OSError), os.scandir(folder or ".") as entries:
            parts += sorted(
                (folder, entry.name, entry.stat().st_mtime_ns)
                for entry in entries
                if entry.name.endswith((".dist-info", ".egg-info"))
            )
    sources = [os.path.join(_FOLDER, f"{name}.py") for name in ("preload", "preload_parent", "torchvision_shim")]
    for path in (*sources, "/proc/self/cgroup"):
        with open(path, "rb") as file:
            parts += [path, file.read()]
    parts += sorted(item for item in os.environ.items() if item[0] not in _VARYING)
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    parts += [(name, resource.getrlimit(getattr(resource, name))) for name in limits]
    parts += [sorted(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0), os.getgroups()]
    parts += [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts", "user")]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _connect(path: str) -> socket.socket:
    """Connect to the parent at `path`, starting one if there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError, ConnectionRefusedError):
        connection.connect(path)
        return connection
    from filelock import FileLock

    with FileLock(os.path.join(os.path.dirname(path), "start.lock")):
        with suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(path)
            return connection
        _start_parent(path)
        connection.connect(path)
    return connection


def _start_parent(path: str) -> None:
    """Listen at `path` and start a parent that inherits the socket, so that jobs can queue while it imports."""
    import subprocess

    with suppress(FileNotFoundError):
        os.unlink(path)
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    # pyarrow's bundled jemalloc starts a background thread when it is loaded.
    environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    code = "import sys; sys.path.insert(0, sys.argv[1]); import reclaim.preload_parent as p; p.serve(int(sys.argv[2]))"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, open(f"{path}.log", "wb") as log:
        listener.bind(path)
        listener.listen(1024)
        subprocess.Popen(
            [sys.executable, "-P", "-c", code, os.path.dirname(_FOLDER), str(listener.fileno())],
            env=environment,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _request(run: list) -> bytes:
    """Everything that the fork needs to become this process, but for the standard streams themselves."""
    umask = os.umask(0o077)
    os.umask(umask)
    streams = {}
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            streams[name] = {"encoding": stream.encoding, "errors": stream.errors}
            if name != "stdin":
                streams[name] |= {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return json.dumps(
        {
            "argv": sys.argv,
            "path": sys.path,
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "umask": umask,
            "streams": streams,
            "ignored": [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN],
            "run": run,
        }
    ).encode()


def _follow(connection: socket.socket, run: list) -> str | None:
    """Send the job, pass signals on, and end this process as the job ends.

    Returns the reason if the parent refused the job or was too slow, and None if it ended before it took the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    request = _request(run)
    started = None
    handlers: dict[int, Any] = {}
    passed: list[int] = []
    try:
        connection.settimeout(START_SECONDS)
        # Signals wait until this process can pass them on: the job may be at work before.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            socket.send_fds(connection, [LENGTH.pack(len(request))], [0, 1, 2])
            connection.sendall(request)
            _pass_signals_on(connection, handlers, passed)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        while reply := _receive(connection, REPLY.size):
            kind, value = REPLY.unpack(reply)
            if kind == b"S":
                started = value
                connection.settimeout(None)
            elif kind == b"E":
                _end_as(value)
            elif kind == b"R":
                return _receive(connection, value).decode()
    except TimeoutError:
        return f"the preloaded parent did not take the job within {START_SECONDS:.0f} s"
    except ConnectionError:
        pass
    finally:
        connection.close()
        if started is None:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for number in passed:
                signal.raise_signal(number)
    if started is None:
        return None
    with suppress(OSError):
        os.killpg(started, signal.SIGKILL)
    print(
        "reclaim.preload: the preloaded parent of this job ended before the job did, so the job was stopped. "
        "Run Snakemake again: that starts a new parent. (RECLAIM_PRELOAD=0 does without one.)",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or none when the other side has closed."""
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            return b""
        data += chunk
    return data


def _pass_signals_on(connection: socket.socket, handlers: dict[int, Any], passed: list[int]) -> None:
    """Send each signal on as one byte and note it in `passed`; keep the handlers that were there in `handlers`."""

    def forward(number, frame):
        with suppress(OSError):
            connection.send(bytes([number]))
        passed.append(number)

    def suspend(number, frame):
        # The job is in a process group of its own, which the terminal does not stop.
        with suppress(OSError):
            connection.send(bytes([signal.SIGSTOP]))
        os.kill(os.getpid(), signal.SIGSTOP)

    for number in (*FORWARDED, signal.SIGCONT, signal.SIGTSTP):
        if signal.getsignal(number) != signal.SIG_IGN:
            handlers[number] = signal.signal(number, suspend if number == signal.SIGTSTP else forward)


def _end_as(status: int) -> NoReturn:
    """End this process with the wait status of another."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if _is_job():
    _hand_over()
