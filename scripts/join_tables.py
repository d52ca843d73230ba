import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.io import read_json, write_parquet
    from reclaim.outcome import read_outcomes
    from reclaim.tables import concat, frame

    inputs, output = snakemake.input, snakemake.output
    for kind, path in (("metrics", output.metrics), ("items", output.per_item), ("curves", output.curves)):
        write_parquet(read_outcomes(inputs.folders, kind), path)
    jobs = [frame(read_json(path), "costs", path) for path in inputs.costs]
    write_parquet(concat([*jobs, read_outcomes(inputs.folders, "costs")], "costs"), output.costs)
