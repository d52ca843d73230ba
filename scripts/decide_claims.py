import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.claims import decide, load_claims
    from reclaim.io import write_parquet
    from reclaim.tables import read

    inputs = snakemake.input
    verdicts = decide(
        load_claims(inputs.claims, inputs.schema),
        read(inputs.metrics, "metrics"),
        read(inputs.per_item, "items"),
        read(inputs.costs, "costs"),
        {tuple(name.split("/")): seeds for name, seeds in snakemake.params.seeds.items()},
    )
    write_parquet(verdicts, snakemake.output.claims)
