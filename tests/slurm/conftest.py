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

PAIR = ("mezo.s11", "backprop.s11")

# The polls of a cluster of one node may be frequent; it has no accounts and no accounting.
HERE = (
    "--slurm-no-account --slurm-status-command squeue --slurm-init-seconds-before-status-checks 2 "
    "--seconds-between-status-checks 2 --latency-wait 10"
).split()
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
    ended: dict[str, str] = field(default_factory=dict)

    def attempts(self, name: str) -> list[dict[str, str]]:
        """SLURM's jobs in which a job began, in order."""
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
    return [sys.executable, "-m", "snakemake", TABLES, *arguments, *files]


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

    def events(self) -> list[dict]:
        path = self.notes / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, sign: Callable[[], object], seconds: float = 480) -> None:
        def alive_and_well() -> object:
            if self.process is not None and self.process.poll() not in (None, 0):
                raise RuntimeError(self.read_log()[-4000:])
            return sign()

        self.cluster.wait(alive_and_well, seconds)

    def held(self, name: str) -> str:
        """Wait until the job is held; give SLURM's number of it."""
        found: list[str] = []

        def sign() -> bool:
            found[:] = [each["job"] for each in self.events() if each["what"] == "held" and name in each["output"]]
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
    story, cluster = director.story, director.cluster
    cancelled, timed, burdened, deaf = "uniform-0.15", "uniform-0.4", "uniform-0.8", "uniform-0.3"
    for name in (cancelled, timed, deaf, *PAIR):
        director.hold(name)
    (director.notes / "burden" / burdened).write_text(str(1 << 30))
    director.start()

    # A job that is cancelled, and one whose time is up. Each is held until it has ended, so that it cannot be done before.
    story.ended["cancelled"] = director.held(cancelled)
    cluster.ask("scancel", story.ended["cancelled"])
    story.ended["timed"] = director.held(timed)
    cluster.ask("scontrol", "update", f"JobId={story.ended['timed']}", "EndTime=now+1")
    for name, state in (("cancelled", "CANCELLED"), ("timed", "TIMEOUT")):
        director.wait(lambda name=name, state=state: cluster.jobs()[story.ended[name]]["JobState"] == state)
    director.release(cancelled)
    director.release(timed)

    # slurmd ends while a job runs, and the job ends before slurmd is back.
    story.ended["deaf"] = director.held(deaf)
    cluster.stop_slurmd()
    director.release(deaf)
    director.wait(lambda: any(each["what"] == "end" and deaf in each["output"] for each in director.events()))
    cluster.start_slurmd()

    # Two jobs on GPUs at once; then Snakemake itself is killed, and its jobs stay in the queue.
    for name in PAIR:
        story.ended[name] = director.held(name)
    # Not before it has noticed that the retried jobs ended, however slow the machine: what it does not know to be done is made
    # again.
    director.wait(lambda: director.finished("pretrain", (cancelled, timed, burdened, deaf)))
    director.process.kill()
    director.process.wait()
    director.process = None
    unlock = _snakemake("--unlock", "--workflow-profile", "profiles/default")
    subprocess.run(unlock, cwd=story.folder, env=director.environment, check=True, capture_output=True)
    director.start()
    director.wait(lambda: all(cluster.jobs()[story.ended[name]]["JobState"] == "CANCELLED" for name in PAIR))
    for name in PAIR:
        director.release(name)
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
        done = subprocess.run(_snakemake("--cores", "2"), cwd=reference, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        cluster = Cluster(place / "slurm")
        story = Story(folder, reference)
        director = Director(story, cluster)
        try:
            cluster.start()
            _play(director)
        finally:
            if director.process is not None and director.process.poll() is None:
                director.process.kill()
                director.process.wait()
            story.jobs = cluster.jobs()
            cluster.stop()
            story.events, story.output = director.events(), director.read_log()
            director.log.close()
        yield story
