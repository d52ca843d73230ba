import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.io import write_parquet
    from reclaim.measure import memory_rows
    from reclaim.tables import frame

    key = {"paper": snakemake.wildcards.paper, "experiment": snakemake.wildcards.experiment}
    rows = memory_rows(snakemake.params.spec, str(context.device()))
    write_parquet(frame([{**key, **row} for row in rows], "costs"), snakemake.output.measures)
