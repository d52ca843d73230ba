import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.io import write_parquet
    from reclaim.prompted import run_prompt_job

    predictions, history = run_prompt_job(snakemake.params.spec, context.device())
    write_parquet(predictions, snakemake.output.predictions)
    write_parquet(history, snakemake.output.history)
