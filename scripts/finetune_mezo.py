import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.finetune import run_job
    from reclaim.finetune_mezo import finetune_mezo
    from reclaim.io import atomic_path, write_parquet

    with atomic_path(snakemake.output.trajectories, directory=True) as trajectories:
        predictions, history = run_job(
            snakemake.params.spec,
            finetune_mezo,
            device=context.device(),
            state_dir=snakemake.params.state,
            identity=context.identity(),
            progress=context.progress,
            count=context.count,
            trajectories=trajectories,
        )
    write_parquet(predictions, snakemake.output.predictions)
    write_parquet(history, snakemake.output.history)
