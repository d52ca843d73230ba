"""The preloaded parent: jobs end as plain processes do, and nobody outlives what it depends on.

Most tests run a copy of the package whose parent imports next to nothing; the last runs Snakemake with the real list.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reclaim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux only")

PREAMBLE = "import types; snakemake = types.SimpleNamespace(resources={resources})\nimport reclaim.preload\n"


class Tree:
    """A copy of the package with a light parent, and scripts that look like Snakemake jobs."""

    def __init__(self, folder: Path, packages: str = "json", idle_seconds: float = 600.0):
        self.folder, self.package = folder, folder / "lib" / "reclaim"
        self.package.mkdir(parents=True)
        source = Path(reclaim.__file__).parent
        for name in ("__init__", "preload", "preload_parent"):
            shutil.copy(source / f"{name}.py", self.package)
        (self.package / "torchvision_shim.py").write_text("")
        parent = self.package / "preload_parent.py"
        text = parent.read_text()
        text, found = re.subn(r'PACKAGES = """.*?"""', f'PACKAGES = """{packages}"""', text, flags=re.DOTALL)
        text = text.replace("IDLE_SECONDS = 60.0", f"IDLE_SECONDS = {idle_seconds}")
        assert found == 1 and f"IDLE_SECONDS = {idle_seconds}" in text
        parent.write_text(text)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder / "lib"),
            "XDG_RUNTIME_DIR": str(folder),
            "RECLAIM_PRELOAD": "1",
        }
        self.pids: set[int] = set()

    def command(self, body: str, resources: str = "{}") -> list[str]:
        script = self.folder / f"job{len(list(self.folder.glob('job*.py')))}.py"
        script.write_text(PREAMBLE.format(resources=resources) + body)
        return [sys.executable, str(script)]

    def start(self, body: str, **options) -> subprocess.Popen:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment} | options
        return subprocess.Popen(self.command(body), text=True, **options)

    def run(self, body: str, resources: str = "{}", **options) -> subprocess.CompletedProcess:
        options = {"env": self.environment, "timeout": 300} | options
        return subprocess.run(self.command(body, resources), text=True, capture_output=True, **options)

    def parent(self) -> int:
        """Process id of the parent, through a job that reports it."""
        result = self.run("import os; print(os.getppid())")
        assert result.returncode == 0, result.stderr
        self.pids.add(int(result.stdout))
        return int(result.stdout)

    def sockets(self) -> list[Path]:
        return list((self.folder / "reclaim").glob("*.sock"))


@pytest.fixture(scope="module", params=["1", ""], ids=["unbuffered", "buffered"])
def started(request, tmp_path_factory):
    """A tree with its parent running, for tests that leave it as it is."""
    tree = Tree(tmp_path_factory.mktemp("t"))
    tree.environment |= {"PYTHONUNBUFFERED": request.param}
    parent = tree.parent()
    yield tree
    assert tree.parent() == parent
    os.kill(parent, signal.SIGKILL)


@pytest.fixture
def tree(tmp_path):
    trees = []

    def make(**options) -> Tree:
        trees.append(Tree(tmp_path / f"t{len(trees)}", **options))
        return trees[-1]

    yield make
    for each in trees:
        for pid in each.pids:
            if _alive(pid):
                os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait_until(condition, seconds: float = 300.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def test_a_job_is_forked_and_sees_what_its_own_process_would_see(tree, tmp_path):
    tree = tree()
    parent = tree.parent()
    body = """
import json, os, sys
mask = os.umask(0); os.umask(mask)
print(json.dumps([os.getppid(), os.getcwd(), mask, os.environ["COLOUR"], sys.argv, __name__, sys.stdin.read(),
                  sys.modules["__main__"].snakemake is snakemake, sys.stdout.encoding,
                  len(os.listdir("/proc/self/task"))]))
print("warned", file=sys.stderr)
"""
    here = tmp_path / "elsewhere"
    here.mkdir()
    environment = {**tree.environment, "COLOUR": "grün"}
    command = tree.command(body)
    reports = []
    for preload in ("1", "0"):
        result = subprocess.run(
            [*command, "one", "zwei ü"],
            cwd=here,
            umask=0o027,
            input="typed",
            text=True,
            capture_output=True,
            env={**environment, "RECLAIM_PRELOAD": preload},
        )
        assert result.returncode == 0 and result.stderr == "warned\n"
        reports.append(json.loads(result.stdout))
    assert reports[0][0] not in (parent, os.getpid()), "another environment gets another parent"
    assert reports[1][0] == os.getpid(), "RECLAIM_PRELOAD=0 runs a plain process"
    assert reports[0][1:] == reports[1][1:]
    tree.pids.add(reports[0][0])


@pytest.mark.parametrize(
    "body",
    [
        "raise SystemExit",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('text')",
        "import sys; sys.exit(300)",
        "def f():\n    raise ValueError('wrong')\nf()",
        "this is no Python",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(600)",
        "import atexit; atexit.register(print, 'at exit'); print('body', end=' ')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()",
        "import os; os.close(1); print('lost')",
        "import sys; print('a', end=''); print('b', file=sys.stderr); print('c')",
    ],
)
def test_a_job_ends_as_a_plain_process_does(started, body):
    command = started.command(body)
    results = []
    for preload in ("1", "0"):
        environment = {**started.environment, "RECLAIM_PRELOAD": preload}
        # One pipe for both streams, so that their order counts too.
        results.append(
            subprocess.run(command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    assert results[0].returncode == results[1].returncode
    assert results[0].stdout == results[1].stdout


def test_a_file_left_open_is_written_out(tree):
    tree = tree()
    tree.parent()
    target = tree.folder / "left_open.txt"
    assert tree.run(f"file = open({str(target)!r}, 'w'); file.write('all of it')").returncode == 0
    assert target.read_text() == "all of it"


def test_edited_code_is_read_afresh_by_the_same_parent(tree):
    tree = tree()
    module = tree.package / "method.py"
    module.write_text("VALUE = 1\n")
    body = "import os; from reclaim import method; print(method.VALUE, os.getppid())"
    first = tree.run(body).stdout.split()
    module.write_text("VALUE = 22\n")
    (tree.package / "added.py").write_text("")
    second = tree.run("import reclaim.added\n" + body).stdout.split()
    tree.pids |= {int(first[1]), int(second[1])}
    assert (first[0], second[0]) == ("1", "22") and first[1] == second[1]


def test_jobs_that_start_together_share_one_parent_and_leave_no_zombie(tree):
    tree = tree()
    jobs = [tree.start("import os; print(os.getppid())") for _ in range(8)]
    parents = {int(job.communicate(timeout=300)[0]) for job in jobs}
    tree.pids |= parents
    assert len(parents) == 1
    children = Path(f"/proc/{parents.pop()}/task").glob("*/children")
    assert _wait_until(lambda: all(not each.read_text().strip() for each in children))
    assert stat.S_IMODE((tree.folder / "reclaim").stat().st_mode) == 0o700


@pytest.mark.parametrize("resources", ["{}", "{'gpu': 1}"])
def test_a_plain_process_runs_gpu_jobs(tree, resources):
    tree = tree()
    parent = tree.parent()
    result = tree.run("import os; print(os.getppid())", resources)
    assert int(result.stdout) == (os.getpid() if "gpu" in resources else parent)


def test_jobs_of_a_remote_executor_run_as_plain_processes(tree):
    tree = tree()
    command = tree.command("import os; print(os.getppid())")
    code = f"import os, subprocess; print(os.getpid(), flush=True); subprocess.run({command!r})"
    for mode, plain in (("remote", True), ("default", False)):
        shown = subprocess.run(
            [sys.executable, "-c", code, "--mode", mode], text=True, capture_output=True, env=tree.environment
        ).stdout.split()
        assert (shown[0] == shown[1]) == plain


def test_signals_reach_the_job(tree):
    tree = tree()
    tree.parent()
    body = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("state kept", flush=True), sys.exit(5)))
print("ready", flush=True)
time.sleep(600)
"""
    job = tree.start(body)
    assert job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=300)[0] == "state kept\n" and job.returncode == 5

    job = tree.start("import time; print('ready', flush=True); time.sleep(600)")
    assert job.stdout.readline() == "ready\n"
    job.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in job.communicate(timeout=300)[1] and job.returncode == -signal.SIGINT


LONG_JOB = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
print(os.getpid(), worker.pid, os.getppid(), flush=True)
time.sleep(600)
"""


def test_a_job_dies_with_its_client(tree):
    tree = tree()
    job = tree.start(LONG_JOB, stderr=subprocess.DEVNULL)
    pid, worker, parent = map(int, job.stdout.readline().split())
    tree.pids.add(parent)
    job.kill()
    job.wait(timeout=300)
    assert _wait_until(lambda: not _alive(pid) and not _alive(worker))
    assert tree.parent() == parent, "the parent goes on"


def test_jobs_of_a_killed_parent_fail_clearly_and_the_next_starts_another(tree):
    tree = tree()
    job = tree.start(LONG_JOB)
    pid, worker, parent = map(int, job.stdout.readline().split())
    os.kill(parent, signal.SIGKILL)
    message = job.communicate(timeout=300)[1]
    assert job.returncode == 1
    assert "preloaded parent of this job ended before the job did" in message and "RECLAIM_PRELOAD=0" in message
    assert _wait_until(lambda: not _alive(pid) and not _alive(worker))
    assert tree.parent() != parent


def test_the_parent_ends_when_idle(tree):
    tree = tree(idle_seconds=0.5)
    job = tree.start("import os, sys; print(os.getppid(), flush=True); sys.stdin.read()", stdin=subprocess.PIPE)
    parent = int(job.stdout.readline())
    assert tree.sockets()
    job.communicate()
    assert _wait_until(lambda: not _alive(parent))
    assert not tree.sockets()
    assert tree.parent() != parent


def test_the_parent_ends_with_its_run(tree):
    tree = tree()
    command = tree.command("import os; print(os.getppid())")
    code = f"import subprocess; subprocess.run({command!r})"
    shown = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=tree.environment)
    parent = int(shown.stdout)
    tree.pids.add(parent)
    assert _wait_until(lambda: not _alive(parent)) and not tree.sockets()


def test_a_parent_with_threads_refuses_and_the_job_runs_all_the_same(tree):
    tree = tree(packages="reclaim.threaded")
    (tree.package / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    result = tree.run("import os; print(os.getppid())")
    assert int(result.stdout) == os.getpid()
    assert "cannot be forked safely" in result.stderr and "plain process" in result.stderr
    _end_parent(tree)


def test_a_parent_that_cannot_import_refuses_and_one_that_crashes_is_done_without(tree):
    broken = tree(packages="reclaim.broken")
    (broken.package / "broken.py").write_text("raise RuntimeError('no such library')\n")
    result = broken.run("import os; print(os.getppid())")
    assert int(result.stdout) == os.getpid() and "could not import reclaim.broken" in result.stderr
    assert "no such library" in next((broken.folder / "reclaim").glob("*.log")).read_text()
    _end_parent(broken)

    crashing = tree(packages="reclaim.broken")
    (crashing.package / "broken.py").write_text("import os; os._exit(3)\n")
    result = crashing.run("import os; print(os.getppid())")
    assert int(result.stdout) == os.getpid() and "ended before they took the job" in result.stderr


def _end_parent(tree: Tree) -> None:
    """End a parent that no job has seen from inside."""
    name = str(tree.folder / "lib").encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:
            continue


def test_a_folder_that_others_can_enter_is_not_used(tree):
    tree = tree()
    (tree.folder / "reclaim").mkdir(mode=0o755)
    result = tree.run("import os; print(os.getppid())")
    assert int(result.stdout) == os.getpid() and "0700" in result.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_is_not_served(tree):
    tree = tree()
    tree.parent()
    code = f"""
import os, socket
connection = socket.socket(socket.AF_UNIX)
os.chdir({str(tree.folder / "reclaim")!r})
os.setuid(65534)
"""
    # The folder keeps other users out; with the folder opened, the parent still hangs up.
    for parent in (tree.folder, *tree.folder.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    (tree.folder / "reclaim").chmod(0o755)
    socket = tree.sockets()[0]
    socket.chmod(0o777)
    code += f"connection.connect({socket.name!r}); print(connection.recv(1))"
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300)
    assert result.stdout == "b''\n", result.stderr


SNAKEFILE = """
rule all:
    input: expand("out/{i}.json", i=range(3))
rule one:
    output: "out/{i}.json"
    threads: 2
    script: "one.py"
"""
SCRIPT = """
import reclaim.preload  # noqa: F401
import json, os, pathlib, sys
import torch, transformers
torch.manual_seed(1)
report = {
    "parent": os.getppid(),
    "tasks": len(os.listdir(f"/proc/{os.getppid()}/task")),
    "threads": torch.get_num_threads(),
    "own": sorted(n for n in sys.modules if n.split(".")[0] == "reclaim"),
    "value": float(torch.randn(200, 200).softmax(1).log().sum()),
}
pathlib.Path(snakemake.output[0]).write_text(json.dumps(report))
"""


def test_snakemake_jobs_share_one_parent_of_one_thread(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "one.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "snakemake", "-c2", "--quiet", "all", "--directory", str(tmp_path)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    reports = {}
    for preload, targets in (("1", []), ("0", ["--force", "out/0.json"])):
        result = subprocess.run(
            [*command, *targets, "--snakefile", str(tmp_path / "Snakefile")],
            env={**environment, "RECLAIM_PRELOAD": preload},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr
        reports[preload] = [json.loads((tmp_path / f"out/{i}.json").read_text()) for i in range(3)]
    forked, plain = reports["1"], reports["0"][0]
    assert len({each["parent"] for each in forked}) == 1
    assert all(each["tasks"] == 1 and each["threads"] == plain["threads"] for each in forked)
    assert all(each["own"] == ["reclaim", "reclaim.preload", "reclaim.torchvision_shim"] for each in forked)
    assert {each["value"] for each in forked} == {plain["value"]}, "equal to the last digit"
    assert _wait_until(lambda: not _alive(forked[0]["parent"])), "the parent ends with the run"
