# reclaim: re-tests the claims of ten papers as one DAG. Start with `snakemake --cores all`.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


# An overlay may lie in several files: those that it names as `parts`.
for part in config.get("parts", []):

    configfile: part


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/lookups.smk"
include: "rules/data.smk"
include: "rules/index.smk"
include: "rules/pretrain.smk"
include: "rules/finetune.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/targets.smk"


onstart:
    try:
        left_over = cancel_left_over(Path.cwd())
    except InputError as error:
        raise WorkflowError(str(error)) from None
    if left_over:
        print(f"cancelled what an earlier run left in SLURM's queue: {' '.join(left_over)}", file=sys.stderr)
    write_json({"started": datetime.now(UTC).isoformat(timespec="seconds")}, STARTED)


rule all:
    default_target: True
    input:
        f"{RESULTS}/report.html",
        f"{RESULTS}/metrics.parquet",
        f"{RESULTS}/costs.parquet",
        f"{RESULTS}/claims.parquet",
        # Named here although the tables rest on them, because Snakemake makes a lost file again only if a target is missing.
        metric_files(RUN),
