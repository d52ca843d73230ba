"""What the scripts of experiments of a kind of their own share: run one job, write what it leaves."""

import shutil
from collections.abc import Callable
from pathlib import Path

from reclaim.config import input_names
from reclaim.io import atomic_path
from reclaim.job import Job
from reclaim.outcome import write_outcome


def measure(context: Job, run: Callable) -> None:
    """Run an experiment's library function for the job's seed, and iteration where it has them, and write its outcome."""
    snakemake = context.snakemake
    wildcards, spec = snakemake.wildcards, snakemake.params.spec
    key = {"paper": wildcards.paper, "experiment": wildcards.experiment, "seed": int(wildcards.seed)}
    names = [name for each in input_names(spec).values() for name in each]
    arguments = {
        "data": dict(zip(names, map(Path, snakemake.input.get("inputs", [])), strict=True)),
        "device": context.device(),
        "state_dir": snakemake.params.state,
        "progress": context.progress,
    }
    if "iteration" not in wildcards.keys():  # noqa: SIM118  (Snakemake's wildcards are a list)
        outcome, job = run(spec, key["seed"], **arguments), wildcards.part.lstrip("-") or "measured"
    else:
        previous = snakemake.input.get("previous")
        arguments |= {"iteration": int(wildcards.iteration), "previous": Path(previous) if previous else None}
        with atomic_path(snakemake.output.state, directory=True) as into:
            outcome, job = run(spec, key["seed"], into=into, **arguments), f"iteration {wildcards.iteration}"
    write_outcome(outcome, snakemake.output.tables, stage=wildcards.kind, job=job, **key)
    shutil.rmtree(snakemake.params.state, ignore_errors=True)
