import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    import pandas as pd

    from reclaim.claims import decide, load_claims
    from reclaim.io import write_parquet

    inputs = snakemake.input
    claims = load_claims(inputs.claims, inputs.schema)
    tables = {name: pd.read_parquet(inputs[name]) for name in ("metrics", "items", "costs")}
    write_parquet(decide(claims, **tables), snakemake.output.claims)
