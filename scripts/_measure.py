"""What the scripts of experiments of a kind of their own share: run one seed, write what it leaves."""

import shutil
from collections.abc import Callable

from reclaim.config import data_names
from reclaim.job import Job
from reclaim.outcome import write_outcome


def measure(context: Job, run: Callable) -> None:
    """Run an experiment's library function for the job's seed and write its outcome."""
    snakemake = context.snakemake
    wildcards, spec = snakemake.wildcards, snakemake.params.spec
    key = {"paper": wildcards.paper, "experiment": wildcards.experiment, "seed": int(wildcards.seed)}
    outcome = run(
        spec,
        key["seed"],
        data=dict(zip(data_names(spec), snakemake.input.get("data", []), strict=True)),
        device=context.device(),
        state_dir=snakemake.params.state,
        progress=context.progress,
    )
    write_outcome(outcome, snakemake.output.tables, stage=wildcards.kind, job="measured", **key)
    shutil.rmtree(snakemake.params.state, ignore_errors=True)
