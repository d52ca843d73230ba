import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    import pandas as pd

    from reclaim.evaluation import evaluate_experiment
    from reclaim.io import read_json
    from reclaim.outcome import write_outcome
    from reclaim.tasks import load_task

    spec, inputs = snakemake.params.spec, snakemake.input
    folders = dict(zip(spec["tasks"], inputs.data, strict=True))
    trainings = dict(zip(spec["checkpoints"], inputs.get("checkpoints", []), strict=True))
    outcome = evaluate_experiment(
        spec,
        pd.concat(map(pd.read_parquet, inputs.predictions), ignore_index=True),
        pd.concat(map(pd.read_parquet, inputs.histories), ignore_index=True),
        {name: read_json(f"{folder}/training.json") for name, folder in trainings.items()},
        {name: load_task(task, folders[name]) for name, task in spec["tasks"].items()},
    )
    write_outcome(outcome, snakemake.output.tables, paper=spec["paper"], experiment=spec["experiment"])
