"""`from _standalone import snakemake`: the object that Snakemake gives to a script, also when the script is run by hand.

Run by Snakemake, a script gets the object that was put into it. Run by hand from the project's top folder,

    python scripts/pretrain.py results/checkpoints/NAME [--configfile FILE ...] [--config KEY=VALUE ...]

it gets the object of the job that makes the file or folder named, and runs that job here, without a log file and without
Snakemake's bookkeeping: for a debugger, a profiler or a print.
"""

import argparse
import os
import sys
from pathlib import Path

import __main__

SNAKEFILE = Path(__file__).resolve().parents[1] / "Snakefile"


def _build(arguments: list[str]):
    """The `snakemake` object of the job that the command line names."""
    script = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(prog=script, description=f"Run one job of {script} without Snakemake.")
    parser.add_argument("target", help="a file or folder that the job makes")
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="overlays, as for snakemake")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="single values, as for snakemake")
    options = parser.parse_args(arguments)
    target = os.path.relpath(options.target)

    from snakemake.api import SnakemakeApi
    from snakemake.cli import parse_config
    from snakemake.iocontainers import Log, Snakemake
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        try:
            settings = ConfigSettings(config=parse_config(options.config), configfiles=options.configfile)
            cores = ResourceSettings(cores=len(os.sched_getaffinity(0)))
            opened = api.workflow(resource_settings=cores, config_settings=settings, snakefile=SNAKEFILE)
            workflow = opened.dag(DAGSettings(targets={target})).workflow_api._workflow
            # As Snakemake's own `--summary` does: the DAG, without running anything.
            workflow._prepare_dag(forceall=False, ignore_incomplete=True, lock_warn_only=True)
            workflow._build_dag()
        except Exception as error:
            sys.exit(f"{script}: no job for {target}. {type(error).__name__}: {error}")
        jobs = [job for job in workflow.dag.jobs if target in map(str, job.output)]
        if not jobs or Path(jobs[0].rule.script or "").name != script:
            made_by = f"made by rule {jobs[0].rule.name}" if jobs else "no output of a job"
            sys.exit(f"{target}: found {made_by}; expected an output of a rule that runs scripts/{script}.")
        job = jobs[0]
        missing = [str(path) for path in job.input if not os.path.exists(path)]
        if missing:
            sys.exit(f"{script}: inputs are missing. Make them first: snakemake --cores 1 {' '.join(missing)}")
        for path in job.output:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return Snakemake(
            job.input,
            job.output,
            job.params,
            job.wildcards,
            job.threads,
            job.resources,
            Log(),
            workflow.globals["config"],
            job.rule.name,
            None,
            str(Path(__file__).parent),
        )


snakemake = getattr(__main__, "snakemake", None) or _build(sys.argv[1:])
