import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _measure import measure
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.alce.experiment import run

    measure(context, run)
