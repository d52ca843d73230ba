import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.sources import materialize

    materialize(snakemake.params.spec, snakemake.output.data)
