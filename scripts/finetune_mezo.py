import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    if not context.spread():
        from contextlib import nullcontext

        from reclaim.finetune import run_job
        from reclaim.finetune_mezo import finetune_mezo
        from reclaim.io import atomic_path, write_parquet
        from reclaim.parallel import is_main

        device = context.device()
        with atomic_path(snakemake.output.trajectories, True) if is_main() else nullcontext() as trajectories:
            predictions, history = run_job(
                snakemake.params.spec,
                finetune_mezo,
                device=device,
                state_dir=snakemake.params.state,
                identity=context.identity(),
                progress=context.progress,
                count=context.count,
                trajectories=trajectories,
            )
        if is_main():
            write_parquet(predictions, snakemake.output.predictions)
            write_parquet(history, snakemake.output.history)
