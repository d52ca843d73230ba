from _standalone import snakemake

import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.claims import load_claims

    inputs = snakemake.input
    claims = load_claims(inputs.claims, inputs.schema)
    tables = {"metrics": inputs.metrics, "items": inputs.per_item, "costs": inputs.costs}
