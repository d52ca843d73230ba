import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    import pandas as pd

    from reclaim.evaluation import evaluate_experiment
    from reclaim.io import read_json, write_parquet
    from reclaim.tables import validate
    from reclaim.tasks import load_task

    spec, inputs, output = snakemake.params.spec, snakemake.input, snakemake.output
    folders = dict(zip(spec["tasks"], inputs.data, strict=True))
    metrics, items, curves = evaluate_experiment(
        spec,
        pd.concat(map(pd.read_parquet, inputs.predictions), ignore_index=True),
        pd.concat(map(pd.read_parquet, inputs.histories), ignore_index=True),
        {
            name: read_json(f"{folder}/training.json")
            for name, folder in zip(spec["checkpoints"], inputs.get("checkpoints", []), strict=True)
        },
        {name: load_task(task, folders[name]) for name, task in spec["tasks"].items()},
    )
    key = {"paper": spec["paper"], "experiment": spec["experiment"]}
    write_parquet(validate(metrics.assign(**key), "metrics", output.metrics), output.metrics)
    write_parquet(validate(items.assign(**key), "items", output.items), output.items)
    write_parquet(curves.assign(**key), output.curves)
