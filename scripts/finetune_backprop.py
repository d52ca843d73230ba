import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    if not context.spread():
        from reclaim.finetune import run_job
        from reclaim.finetune_backprop import finetune_backprop
        from reclaim.io import write_parquet
        from reclaim.parallel import is_main

        predictions, history = run_job(
            snakemake.params.spec,
            finetune_backprop,
            device=context.device(),
            state_dir=snakemake.params.state,
            identity=context.identity(),
            progress=context.progress,
            count=context.count,
        )
        if is_main():
            write_parquet(predictions, snakemake.output.predictions)
            write_parquet(history, snakemake.output.history)
