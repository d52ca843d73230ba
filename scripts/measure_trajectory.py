import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.measure import trajectory_rows
    from reclaim.outcome import write_outcome

    wildcards = snakemake.wildcards
    key = {"paper": wildcards.paper, "experiment": wildcards.experiment, "seed": int(wildcards.seed)}
    write_outcome({"metrics": trajectory_rows(snakemake.params.spec, key["seed"])}, snakemake.output.tables, **key)
