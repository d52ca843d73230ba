import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    import pandas as pd

    from reclaim.io import read_json, write_parquet
    from reclaim.tables import concat, frame, read

    inputs, output = snakemake.input, snakemake.output
    write_parquet(concat([read(path, "metrics") for path in inputs.metrics], "metrics"), output.metrics)
    write_parquet(concat([read(path, "items") for path in inputs.items], "items"), output.items)
    write_parquet(pd.concat(map(pd.read_parquet, inputs.curves), ignore_index=True), output.curves)
    costs = [frame(read_json(path), "costs", path) for path in inputs.costs]
    write_parquet(concat([*costs, *(read(path, "costs") for path in inputs.measures)], "costs"), output.costs)
