# Targets beside `all`: the metric rows of one system, and what a run takes from the network.

for paper, plan in PLANS.items():

    # All experiments of a system, those on request too: `snakemake mezo`.
    rule:
        name:
            paper
        input:
            metric_folders(plan),

    # Its models and data sets alone: `snakemake fetch_mezo`.
    rule:
        name:
            f"fetch_{paper}"
        input:
            fetched(plan),


# All models and data sets of the run, for machines whose jobs have no network. What is there is kept, and a download that was
# broken off goes on.
rule fetch:
    input:
        fetched(RUN),


# How much that is, asked from the Hub.
rule fetch_size:
    log:
        f"{RESULTS}/logs/fetch_size.log",
    conda:
        "../envs/data.yaml"
    params:
        specs=fetch_specs(RUN),
    localrule: True
    script:
        "../scripts/fetch_size.py"
