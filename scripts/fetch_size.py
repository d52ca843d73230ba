from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.fetch import print_sizes

    print_sizes(snakemake.params.specs, context.terminal)
