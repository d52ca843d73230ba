"""The frame of every script: log, errors, costs, seals, signals; leases of devices; scripts run by hand."""

import fcntl
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path

import pytest

from reclaim.errors import InputError
from reclaim.io import read_json
from reclaim.job import job, progress
from reclaim.provenance import LIB
from reclaim.tables import frame

snakemake_io = pytest.importorskip("snakemake.iocontainers")


def fake(folder: Path, threads: int = 1, resources=None, params=None, wildcards=None, **output: str):
    """The object that Snakemake gives to a script."""
    io = snakemake_io
    return io.Snakemake(
        io.InputFiles(fromdict={}),
        io.OutputFiles(fromdict={name: str(folder / path) for name, path in output.items()}),
        io.Params(fromdict=params or {}),
        io.Wildcards(fromdict=wildcards or {}),
        threads,
        io.ResourceList(fromdict=resources or {}),
        io.Log(fromdict={"log": str(folder / "logs" / "rule.log")}),
        {},
        "rule",
        None,
    )


def run(folder: Path, body: str, arguments: str = "") -> subprocess.CompletedProcess:
    """Run `body` in a job of a process of its own."""
    return subprocess.run(_command(folder, body, arguments), capture_output=True, text=True, timeout=300)


def _command(folder: Path, body: str, arguments: str = "") -> list[str]:
    code = f"""
import subprocess, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_job import fake
from reclaim.errors import InputError
from reclaim.io import atomic_path, write_json
from reclaim.job import job
folder = Path({str(folder)!r})
with job(fake(folder, {arguments})) as context:
{textwrap.indent(body, "    ")}
print("after")
"""
    return [sys.executable, "-c", code]


def test_output_goes_to_the_log_and_comes_back_afterwards(tmp_path):
    body = "print('printed'); subprocess.run(['echo', 'child'], check=True); print('warned', file=sys.stderr)"
    for _ in range(2):
        result = run(tmp_path, body)
        assert (result.stdout, result.stderr, result.returncode) == ("after\n", "", 0)
    text = (tmp_path / "logs/rule.log").read_text()
    assert all(text.count(f"{word}\n") == 2 for word in ("printed", "child", "warned")) and text.count("--- ") == 2


def test_bad_input_ends_in_one_message(tmp_path):
    body = "raise InputError('config: data', 'nothing', 'something', 'Write it.')"
    result = run(tmp_path, body, "cost='costs/s/j.json'")
    message = "config: data: found nothing; expected something. Write it.\n"
    assert (result.returncode, result.stderr, result.stdout) == (1, message, "")
    log = (tmp_path / "logs/rule.log").read_text()
    assert log.count(message) == 1 and "Traceback" not in log
    assert not (tmp_path / "costs").exists()


def test_another_error_leaves_its_traceback_in_the_log(tmp_path):
    result = run(tmp_path, "raise KeyError('lost')")
    log = tmp_path / "logs/rule.log"
    assert result.returncode == 1
    assert result.stderr == f"rule: KeyError: 'lost'\nThe traceback is in {log}\n"
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_full_disk_is_told_in_one_message(tmp_path):
    """Libraries tell it by an errno, or by a text of their own."""
    for body in (
        "raise OSError(28, 'No space left on device', 'out/weights')",
        "raise ValueError('No space left here')",
    ):
        result = run(tmp_path, body, "model='out/weights'")
        assert result.returncode == 1 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
        assert "no space left on the disk" in result.stderr and "run again" in result.stderr


def test_a_disk_too_full_for_the_log_or_the_costs_is_told_in_one_message(tmp_path):
    """Lines that the log has no room for are lost, and neither end the job otherwise nor come out on the terminal."""
    fills = "import logging, os; os.dup2(os.open('/dev/full', os.O_WRONLY), sys.stdout.fileno())\n"
    lost = "logging.getLogger('reclaim').info('lost')\nraise ValueError('No space left here')"
    no_costs = "import reclaim.job\ndef no_room(*_): raise OSError(28, 'No space left on device')\n"
    no_costs += "reclaim.job.write_json = no_room"
    (tmp_path / "full/logs").mkdir(parents=True)
    (tmp_path / "full/logs/rule.log").symlink_to("/dev/full")
    for folder, body in (
        ("full", "raise KeyError"),
        ("a", fills + "print('lost')"),
        ("b", fills + lost),
        ("c", no_costs),
    ):
        result = run(tmp_path / folder, body, "cost='costs/s/j.json'")
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        assert "no space left on the disk" in result.stderr and result.stdout == ""


def test_a_job_stops_when_its_snakemake_has_died(tmp_path):
    from reclaim.preload import process_start

    snakemake_process = subprocess.Popen(["sleep", "600"])
    named = f"{snakemake_process.pid} {process_start(snakemake_process.pid)}"
    body = "(folder / 'ready').touch(); time.sleep(600)"
    command = _command(tmp_path, body, "cost='costs/s/j.json'")
    orphan = subprocess.Popen(command, stderr=-1, text=True, env={**os.environ, "RECLAIM_RUN": named})
    while not (tmp_path / "ready").exists():
        assert orphan.poll() is None
        time.sleep(0.02)
    snakemake_process.kill()
    snakemake_process.wait()
    assert "stopped by SIGTERM" in orphan.communicate(timeout=300)[1] and orphan.returncode == 128 + signal.SIGTERM


def test_costs_are_rows_of_the_costs_table(tmp_path):
    params = {"spec": {"seed": 11}, "code": "abc", "variant": {"b": 1, "a": [2]}}
    snakemake = fake(
        tmp_path, params=params, wildcards={"paper": "mezo", "experiment": "x"}, cost="costs/stage/a.b.json"
    )
    with job(snakemake) as context:
        held = bytearray(120 << 20)
        end = time.process_time() + 0.15
        while time.process_time() < end:
            pass
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass",
            ]
        )
        context.count(tokens=5)
        context.count(tokens=7, steps=2)
        assert len(held)
    table = frame(read_json(snakemake.output.cost), "costs")
    assert set(table["unit"]) == {"s", "bytes", "count"}
    key = table[["paper", "experiment", "variant", "seed", "stage", "job"]].drop_duplicates()
    assert key.values.tolist() == [["mezo", "x", '{"a":[2],"b":1}', 11, "stage", "a.b"]]
    value = table.set_index("measure")["value"]
    assert 0.35 <= value["cpu_s"] < 3 and value["wall_s"] >= 0.3, "children count"
    assert value["peak_mem_bytes"] > 120 << 20
    assert (value["tokens"], value["steps"]) == (12, 2)


def test_a_shared_job_belongs_to_no_experiment(tmp_path):
    snakemake = fake(tmp_path, cost="costs/data/words.json")
    with job(snakemake):
        pass
    table = frame(read_json(snakemake.output.cost), "costs")
    assert table[["paper", "experiment", "variant", "seed"]].drop_duplicates().values.tolist() == [["", "", "{}", -1]]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_the_peak_is_that_of_the_job(tmp_path):
    """In a process of its own: what other tests left there might be freed inside the job, and hide what it takes."""
    before = "bytearray(b'x') * (300 << 20)"
    resident = "(folder / 'resident').write_text(Path('/proc/self/statm').read_text().split()[1])\n"
    taken = "bytearray(b'x') * (50 << 20)"  # written to, so that it is resident
    command = _command(tmp_path, resident + taken, "cost='costs/s/j.json'")
    result = subprocess.run([sys.executable, "-c", before + command[2]], capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    costs = read_json(tmp_path / "costs/s/j.json")
    peak = next(row["value"] for row in costs if row["measure"] == "peak_mem_bytes")
    size = int((tmp_path / "resident").read_text()) * os.sysconf("SC_PAGE_SIZE")
    assert size + (45 << 20) < peak < size + (120 << 20)


def test_outputs_are_sealed_when_the_rule_asks_for_it(tmp_path):
    snakemake = fake(tmp_path, model="model", cost="costs/s/j.json", seal="j.seal.json")
    with job(snakemake):
        (tmp_path / "model").mkdir()
        (tmp_path / "model/weights").write_text("w")
    sums = read_json(tmp_path / "j.seal.json")
    assert set(sums) == {"_model", "_cost.json"} and set(sums["_model"]) == {"weights"}


def test_the_identity_follows_what_the_job_computes(tmp_path):
    from reclaim.job import Job

    data = tmp_path / "data"
    data.mkdir()
    (data / "rows").write_text("a")

    def identity(**options) -> str:
        snakemake = fake(tmp_path, **options)
        snakemake.input = [str(data)]
        return Job(snakemake, sys.stderr).identity()

    first = identity(params={"spec": {"a": 1}})
    assert first == identity(params={"spec": {"a": 1}}, resources={"mem_mb": 2000})
    (data / ".snakemake_timestamp").touch()
    assert first == identity(params={"spec": {"a": 1}})
    assert first != identity(params={"spec": {"a": 2}})
    assert first != identity(params={"spec": {"a": 1}}, threads=2)
    (data / "rows").write_text("ab")
    assert first != identity(params={"spec": {"a": 1}})


def test_global_random_streams_and_threads_are_settled(tmp_path):
    import numpy
    import torch

    draws = []
    for _ in range(2):
        with job(fake(tmp_path)) as context:
            assert context.device() == torch.device("cpu")
            draws.append((random.random(), numpy.random.random(), torch.rand(1).item()))
            assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == "1"
    assert draws[0] == draws[1]


def test_progress_is_a_line_now_and_then_in_the_log(tmp_path):
    body = """
import reclaim.job
clock = iter(range(0, 10_000, 10))
reclaim.job.time.monotonic = lambda: next(clock)
assert list(context.progress(range(9), desc="training")) == list(range(9))
assert list(context.progress(iter("ab"))) == ["a", "b"]
"""
    assert run(tmp_path, body).returncode == 0
    lines = [line for line in (tmp_path / "logs/rule.log").read_text().splitlines() if "training" in line]
    shown = [line.partition("training: ")[2] for line in lines]
    assert shown == ["2 of 9, 105 s left", "5 of 9, 48 s left", "8 of 9, 11 s left"]


def test_progress_is_a_bar_on_a_terminal():
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(terminal, "w") as stream:
        for _ in progress(range(3), desc="training", stream=stream):
            time.sleep(0.6)
        stream.flush()
        assert select.select([controller], [], [], 5.0)[0]
        assert b"training" in os.read(controller, 1 << 16)
    os.close(controller)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_keeps_its_state_and_drops_what_is_half_written(tmp_path, number):
    body = """
write_json(1, folder / "state.json")
with atomic_path(folder / "out" / "result.txt") as path:
    path.write_text("half")
    (folder / "ready").touch()
    time.sleep(600)
"""
    command = _command(tmp_path, body, "cost='costs/s/j.json'")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    shown = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number
    assert shown.count("\n") == 1 and f"stopped by {number.name}" in shown and "Traceback" not in shown
    assert read_json(tmp_path / "state.json") == 1
    assert list((tmp_path / "out").iterdir()) == [] and not (tmp_path / "costs").exists()


# --- Devices ----------------------------------------------------------------------------------------------------------

LEASE = """
import os, sys, time
from reclaim.device import lease
for each in lease(int(sys.argv[1])):
    path = os.path.join(sys.argv[2], each)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # fails if another job is on the device
    held = path
    print(each, flush=True)
time.sleep(float(sys.argv[3]))
for each in lease(int(sys.argv[1])):
    os.unlink(os.path.join(sys.argv[2], each))
"""


@pytest.fixture
def devices(monkeypatch):
    """Three pretend devices that no other process knows."""
    names = [f"test-{os.getpid()}-{time.monotonic_ns()}-{index}" for index in range(3)]
    monkeypatch.setenv("RECLAIM_DEVICES", ",".join(names))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield names
    for path in Path(f"/tmp/reclaim-devices-{os.getuid()}").glob(f"test-{os.getpid()}-*.lock"):
        path.unlink()


def test_fifty_jobs_on_three_devices_never_share_one(tmp_path, devices):
    """Each job marks its device; every fifth is killed while it holds one, and its mark is taken away for it."""
    waiting, running, done, killed = list(range(50)), {}, [], 0
    while waiting or running:
        while waiting and len(running) < 10:
            index = waiting.pop()
            seconds = "600" if index % 5 == 0 else "0.02"
            command = [sys.executable, "-c", LEASE, "2" if index % 7 == 0 else "1", str(tmp_path), seconds]
            running[index] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index, process in list(running.items()):
            if index % 5 == 0:
                held = [process.stdout.readline().strip() for _ in range(2 if index % 7 == 0 else 1)]
                assert all(each in devices for each in held), process.stderr.read()
                for each in held:
                    (tmp_path / each).unlink()
                process.kill()
                killed += 1
                process.wait()
            elif process.poll() is None:
                continue
            else:
                assert process.returncode == 0, process.stderr.read()
                done.append(index)
            process.stdout.close()
            process.stderr.close()
            del running[index]
        time.sleep(0.005)
    assert killed == 10 and len(done) == 40 and list(tmp_path.iterdir()) == []


def test_small_jobs_spread_over_the_devices_before_they_share(tmp_path, devices, monkeypatch):
    monkeypatch.setenv("RECLAIM_JOBS_PER_DEVICE", "2")
    code = "import sys; from reclaim.device import lease; print(*lease(1), flush=True); sys.stdin.read()"
    processes, held = [], []
    for _ in range(7):
        process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
        processes.append(process)
        if len(processes) <= 6:
            held.append(process.stdout.readline().strip())
    assert sorted(held[:3]) == devices and sorted(held) == sorted(2 * devices)
    waiting = processes.pop()
    assert not select.select([waiting.stdout], [], [], 0.5)[0], "a seventh job on six places"
    processes[4].kill()
    assert waiting.stdout.readline().strip() == held[4]
    for process in (*processes, waiting):
        process.communicate()


def test_more_gpus_than_there_are_is_bad_input(devices):
    from reclaim.device import device, lease

    with pytest.raises(InputError, match="gpu=4: found 3"):
        lease(4)
    os.environ["RECLAIM_DEVICES"] = ""
    with pytest.raises(InputError, match="Set gpu to 0"):
        device(1)


def test_the_scheduler_s_devices_stand_under_slurm(tmp_path, devices):
    code = """
import os, sys, types
torch = types.SimpleNamespace(device=lambda *of: ":".join(map(str, of)))
torch.cuda = types.SimpleNamespace(is_available=lambda: True)
sys.modules["torch"] = torch
from reclaim.device import device
print(device(1), os.environ["CUDA_VISIBLE_DEVICES"])
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "5"}
    for job_id, expected in ((None, devices[0]), ("77", "5")):
        added = {"SLURM_JOB_ID": job_id} if job_id else {}
        shown = subprocess.run([sys.executable, "-c", code], env=environment | added, capture_output=True, text=True)
        assert shown.stdout.split() == ["cuda:0", expected], shown.stderr


# --- By hand ----------------------------------------------------------------------------------------------------------

SNAKEFILE = """
configfile: "config.yaml"

rule copy:
    input: "in/{name}.txt"
    output: text="out/{name}.txt", cost="costs/copy/{name}.json"
    params: word=config["word"]
    log: "logs/{name}.log"
    threads: 1
    script: "scripts/copy_text.py"

rule word:
    output: "in/made.txt"
    shell: "echo > {output}"

rule other:
    output: "other.txt"
    shell: "touch {output}"
"""
SCRIPT = """
import reclaim.preload  # noqa: F401
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    print("visible", snakemake.rule, snakemake.wildcards.name)
    with open(snakemake.output.text, "w") as file:
        file.write(open(snakemake.input[0]).read() + snakemake.params.word)
"""


def test_a_script_runs_by_hand_as_under_snakemake(tmp_path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("text ")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "config.yaml").write_text("word: one\n")
    (scripts / "copy_text.py").write_text(SCRIPT)
    (scripts / "_standalone.py").write_text((LIB.parent / "scripts/_standalone.py").read_text())

    def python(*command: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "RECLAIM_PRELOAD": "0"}
        return subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)

    def made() -> tuple[str, list[str]]:
        costs = json.loads((tmp_path / "costs/copy/a.json").read_text())
        return (tmp_path / "out/a.txt").read_text(), [row["measure"] for row in costs]

    under = python("-m", "snakemake", "-c1", "out/a.txt", "--quiet", "all")
    assert under.returncode == 0, under.stderr
    results = [made()]
    assert "visible copy a" in (tmp_path / "logs/a.log").read_text() and "visible" not in under.stdout

    by_hand = python("scripts/copy_text.py", "out/a.txt", "--config", "word=one")
    assert by_hand.returncode == 0, by_hand.stderr
    assert by_hand.stdout == "visible copy a\n"
    results.append(made())
    assert results[0] == results[1] == ("text one", ["wall_s", "cpu_s", "peak_mem_bytes", "tokens", "steps"])

    for target, expected in (
        ("out/made.txt", "snakemake --cores 1 in/made.txt"),
        ("out/b.txt", "Missing input files for rule copy"),
        ("other.txt", "found made by rule other; expected an output of a rule that runs scripts/copy_text.py"),
        ("none.txt", "no job for none.txt"),
    ):
        refused = python("scripts/copy_text.py", target)
        assert refused.returncode == 1 and expected in refused.stderr and "Traceback (" not in refused.stderr
