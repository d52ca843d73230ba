"""One run of the chain on a real SLURM, with everything that goes wrong on a cluster; the tests look at what it left."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slurm.cluster import Cluster, missing

ROOT = Path(__file__).parents[2]
PARTS = "Snakefile pyproject.toml config.yaml claims.yaml config rules scripts lib schemas envs profiles report".split()
TABLES = "results/chain/metrics.parquet"

PAIR = MEZO, BACKPROP = "mezo.s11", "backprop.s11"

# A cluster of one node without accounts and accounting, whose jobs of one rule give way to others.
HERE = (
    "--slurm-no-account --slurm-status-command squeue --latency-wait 10 "
    "--set-resources finetune_backprop:slurm_partition=spare"
).split()
# The executor asks SLURM ten seconds later each time that no job has ended since it last asked. Here it asks again and again.
SNAKEMAKE = """
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 2, lambda self, seconds: None)
main()
"""
ENDED = ("COMPLETED", "CANCELLED", "TIMEOUT", "FAILED", "OUT_OF_MEMORY", "NODE_FAIL")
# Little memory, so that little is too much; GPUs for the jobs that come in pairs.
RESOURCES = """
resources:
  pretrain: {mem_mb: 1500, runtime: 20}
  finetune: {gpu: 1, mem_mb: 1500, runtime: 20}
"""


@dataclass
class Story:
    """What happened: where the run was made, every SLURM job of it, what each job noted, and the reference tables."""

    folder: Path
    reference: Path
    events: list[dict] = field(default_factory=list)
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    output: str = ""

    def attempts(self, name: str) -> list[dict[str, str]]:
        """SLURM's jobs in which a job began, in order; one twice if SLURM put it back into the queue."""
        begun = [each for each in self.events if each["what"] == "begin" and name in each["output"]]
        return [self.jobs[each["job"]] for each in begun]

    def logs(self, name: str) -> str:
        """The logs of a job, all attempts in one."""
        paths = (self.folder / "results/chain/logs").rglob(f"*{name}*.log")
        return "".join(path.read_text() for path in paths)


def _checkout(folder: Path, resources: str = "") -> Path:
    folder.mkdir()
    for name in PARTS:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    (folder / "config" / "chain.yaml").write_text((ROOT / "tests" / "chain.yaml").read_text() + resources)
    return folder


def _snakemake(*arguments: str) -> list[str]:
    files = ("--configfile", "config/smoke.yaml", "config/chain.yaml")
    return [sys.executable, "-c", SNAKEMAKE, TABLES, *arguments, *files]


class Director:
    """Runs Snakemake on the cluster and lets things go wrong at known points of known jobs."""

    def __init__(self, story: Story, cluster: Cluster):
        self.story, self.cluster = story, cluster
        self.notes = story.folder / "notes"
        for name in ("hold", "burden"):
            (self.notes / name).mkdir(parents=True)
        self.environment = cluster.environment | {
            "RECLAIM_NOTES": str(self.notes),
            "RECLAIM_SAVE_SECONDS": "0",
            "PYTHONPATH": str(ROOT / "tests" / "slurm" / "stand-in"),
        }
        self.log = open(story.folder / "snakemake.log", "ab")
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        arguments = ["--workflow-profile", "profiles/slurm", *HERE]
        self.process = subprocess.Popen(
            _snakemake(*arguments), cwd=self.story.folder, env=self.environment, stdout=self.log, stderr=self.log
        )

    def hold(self, name: str) -> None:
        (self.notes / "hold" / name).touch()

    def release(self, name: str) -> None:
        (self.notes / "hold" / name).unlink()

    def burden(self, name: str, size: int) -> None:
        atomic = self.notes / "burden"  # a name that a job sees only when the number is in it
        (atomic / ".new").write_text(str(size))
        (atomic / ".new").rename(atomic / name)

    def events(self) -> list[dict]:
        path = self.notes / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, sign: Callable[[], object]) -> None:
        def alive_and_well() -> object:
            if self.process is not None and self.process.poll() not in (None, 0):
                raise RuntimeError(self.read_log()[-4000:])
            return sign()

        self.cluster.wait(alive_and_well)

    def noted(self, what: str, name: str) -> str:
        """Wait until the job has noted this; give SLURM's number of it."""
        found: list[str] = []

        def sign() -> bool:
            found[:] = [each["job"] for each in self.events() if each["what"] == what and name in each["output"]]
            return bool(found)

        self.wait(sign)
        return found[-1]

    def finished(self, rule: str, names: Iterable[str]) -> bool:
        """Whether these jobs of a rule have ended, and Snakemake has noticed it of all that have."""
        ended = {each["output"] for each in self.events() if each["what"] == "end" and each["rule"] == rule}
        noticed = re.findall(rf"Finished jobid: \d+ \(Rule: {rule}\)", self.read_log())
        return all(any(name in output for output in ended) for name in names) and len(noticed) >= len(ended)

    def read_log(self) -> str:
        return (self.story.folder / "snakemake.log").read_text(errors="replace")


def _play(director: Director) -> None:
    """The run and what happens to it."""
    cluster = director.cluster
    cancelled, timed, burdened, deaf = "uniform-0.15", "uniform-0.4", "uniform-0.8", "uniform-0.3"
    for name in (cancelled, timed, burdened, deaf, *PAIR):
        director.hold(name)
    director.start()
    first = {name: director.noted("held", name) for name in (cancelled, timed, burdened, deaf)}

    # slurmd ends while jobs run, and one of them ends before slurmd is back. No job is sent to a node without slurmd.
    for partition in ("main", "spare"):
        cluster.order("scontrol", "update", f"PartitionName={partition}", "State=DOWN")
    cluster.stop_slurmd()
    director.release(deaf)
    director.noted("end", deaf)
    cluster.start_slurmd()
    for partition in ("main", "spare"):
        cluster.order("scontrol", "update", f"PartitionName={partition}", "State=UP")

    # A job that is cancelled, one whose time is up and one with too little memory. Each is held until SLURM has ended it.
    cluster.order("scancel", first[cancelled])
    cluster.order("scontrol", "update", f"JobId={first[timed]}", "EndTime=now+1")
    director.burden(burdened, 1 << 30)
    director.wait(lambda: all(cluster.state(first[name]) in ENDED for name in (cancelled, timed, burdened)))
    for name in (cancelled, timed, burdened):
        director.release(name)

    # Two jobs on GPUs at once, one of which has to give way to somebody else's.
    jobs = {name: director.noted("held", name) for name in PAIR}
    cluster.order("sbatch", "--partition=urgent", "--gpus=1", "--mem=100", "--output=/dev/null", "--wrap=true")
    director.wait(lambda: cluster.jobs().get(jobs[BACKPROP], {}).get("Restarts") == "1")
    director.release(BACKPROP)

    # Snakemake itself is killed, and its job stays in the queue. Not before it has noticed that the others ended, however slow
    # the machine: what it does not know to be done is made again.
    director.wait(lambda: director.finished("pretrain", (cancelled, timed, burdened, deaf)))
    director.wait(lambda: director.finished("finetune_backprop", [BACKPROP]))
    director.process.kill()
    director.process.wait()
    director.process = None
    unlock = _snakemake("--unlock", "--workflow-profile", "profiles/default")
    subprocess.run(unlock, cwd=director.story.folder, env=director.environment, check=True, capture_output=True)
    director.start()
    director.wait(lambda: cluster.state(jobs[MEZO]) == "CANCELLED")
    director.release(MEZO)
    director.wait(lambda: director.process.poll() == 0)


@pytest.fixture(scope="session")
def story() -> Iterator[Story]:
    """The finished run, or a skip with the reason why there is no SLURM here."""
    if lacking := missing():
        pytest.skip(f"SLURM is not installed here ({', '.join(lacking)} missing): make slurm, as root")
    # Short and open to all: munged runs as another user, and its socket's address may not be long.
    with tempfile.TemporaryDirectory(prefix="reclaim-slurm-") as name:
        place = Path(name)
        reference, folder = _checkout(place / "reference"), _checkout(place / "workflow", RESOURCES)
        with open(place / "reference.log", "wb") as log:
            local = subprocess.Popen(_snakemake("--cores", "2"), cwd=reference, stdout=log, stderr=log)
        cluster = Cluster(place / "slurm")
        story = Story(folder, reference)
        director = Director(story, cluster)
        try:
            cluster.start()
            _play(director)
            assert local.wait() == 0, (place / "reference.log").read_text()
        finally:
            for process in (local, director.process):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
            story.jobs = cluster.jobs()
            cluster.stop()
            story.events, story.output = director.events(), director.read_log()
            director.log.close()
        yield story
