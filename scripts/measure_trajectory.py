import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    import tempfile
    from pathlib import Path

    from reclaim.io import write_parquet
    from reclaim.measure import trajectory_rows
    from reclaim.tables import frame

    key = {"paper": snakemake.wildcards.paper, "experiment": snakemake.wildcards.experiment}
    with tempfile.TemporaryDirectory() as folder:
        rows = [{**key, **row} for row in trajectory_rows(snakemake.params.spec, Path(folder))]
    write_parquet(frame(rows, "metrics"), snakemake.output.metrics)
