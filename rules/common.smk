# The configuration, checked and expanded once; look-ups that the stages share. Paths in `script:` are relative to rules/.
import os
import sys
from datetime import UTC, datetime
from functools import cache
from os import environ
from pathlib import Path

BASE = Path(workflow.basedir)
# This checkout's library, also where another is installed, and for jobs in environments in which none is.
sys.path.insert(0, str(BASE / "lib"))
environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(BASE / "lib"), environ.get("PYTHONPATH")]))

from snakemake.caching import LOCATION_ENVVAR
from snakemake.exceptions import WorkflowError

from reclaim.claims_yaml import load_claims
from reclaim.config import check_config, input_names
from reclaim.errors import InputError
from reclaim.fetch import model_source_files
from reclaim.io import write_json
from reclaim.plan import dotted, make_plan, measurement_jobs, measurement_parts, targets
from reclaim.provenance import fingerprint, pins_digest
from reclaim.seals import verify_cache
from reclaim.slurm import cancel_left_over
from reclaim.sources import modules_of, source_files

try:
    check_config(config, BASE / "schemas" / "config.schema.json")
    if workflow.is_main_process:  # A fault there should not wait for the run's last job.
        load_claims("claims.yaml", "schemas/claims.schema.json")
    # What `all` makes, and all that has a target.
    RUN = make_plan(config)
    CHOSEN = [*config["run"], *config.get("on_request", [])]
    PLAN = make_plan(config, CHOSEN)
    PARTS = {chosen: measurement_parts(spec) for chosen, spec in PLAN.measurements.items()}
    TARGETS = {name: make_plan(config, chosen) for name, chosen in targets(config).items()}
except InputError as error:
    raise WorkflowError(str(error)) from None

# Where jobs lease their GPU (reclaim.device): how many small ones may share one.
environ["RECLAIM_JOBS_PER_DEVICE"] = str(config.get("jobs_per_device", 1))
RESULTS = config["results"]
STATE = f"{RESULTS}/.state"
# When this run began: written at its start, and read by the report, which no change of it makes again.
STARTED = f"{STATE}/started.json"
PINS = pins_digest(BASE / "pyproject.toml")


wildcard_constraints:
    dataset="[^/]+",
    tokenizer="[^/]+",
    model="[^/]+",
    index="[^/]+",
    checkpoint="[^/]+",
    paper="[a-z_]+",
    experiment="[a-z_]+",
    job="[^/]+",
    kind="[a-z_]+",
    seed="[0-9]+",
    part="(-[^/]+)?",
    iteration="[0-9]+",


# What jobs ask for where the config's `resources` does not say otherwise. `mem_mb` and `runtime` (minutes) grow with each
# attempt.
DEMANDS = {
    "default": {"threads": 1, "mem_mb": 1500, "runtime": 10, "gpu": 0},
    "pretrain": {"mem_mb": 2000, "runtime": 30},
    "finetune": {"mem_mb": 2000, "runtime": 30},
    "measure": {"mem_mb": 3000, "runtime": 60},
}


def demand(stage, key):
    """What jobs ask for: the config's word, else the stage's default, else everybody's."""
    asked = config.get("resources", {})
    for table in (asked.get(stage, {}), DEMANDS.get(stage, {}), asked.get("default", {}), DEMANDS["default"]):
        if key in table:
            return table[key]


def growing(stage, key):
    """A resource that doubles with each attempt."""
    return lambda wildcards, attempt: demand(stage, key) * 2 ** (attempt - 1)


@cache
def code(script, *modules):
    """Fingerprint of a script, of all it imports inside the package, and of the pinned versions.

    An edit or a new version there reruns the jobs. `modules` are those that a script imports by a computed name.
    """
    return f"{fingerprint(f'scripts/{script}', *modules)}-{PINS}"


def model_folder(model, checkpoint_id=None):
    """Where a job finds its model: a checkpoint made here, or a model fetched from the Hub or a local folder."""
    return f"{RESULTS}/checkpoints/{checkpoint_id}" if checkpoint_id else f"{RESULTS}/models/{model}"


# Snakemake's cache between workflows trusts its entries; entries that changed since they were stored are removed here, before
# any job could be served one.
if environ.get(LOCATION_ENVVAR) and workflow.is_main_process:
    try:
        for entry in verify_cache(environ[LOCATION_ENVVAR], RESULTS):
            print(f"cache: {entry} was damaged; removed, it will be made again", file=sys.stderr)
    except InputError as error:
        raise WorkflowError(str(error)) from None
