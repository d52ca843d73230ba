import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.measure import memory_rows
    from reclaim.outcome import write_outcome

    wildcards = snakemake.wildcards
    key = {"paper": wildcards.paper, "experiment": wildcards.experiment, "seed": int(wildcards.seed)}
    rows = memory_rows(snakemake.params.spec, key["seed"], str(context.device()))
    write_outcome({"costs": rows}, snakemake.output.tables, stage="memory", job="measured", **key)
