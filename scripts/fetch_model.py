import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.io import atomic_path
    from reclaim.fetch import fetch

    with atomic_path(snakemake.output.model, directory=True) as folder:
        fetch(snakemake.params.spec, folder, snakemake.params.state)
