# Targets beside `all`: one system or one experiment, and what a run takes from the network.

for target, plan in TARGETS.items():

    # The metric rows of a system or of an experiment: `snakemake mezo`, `snakemake mezo_methods`.
    rule:
        name:
            target
        input:
            metric_files(plan),

    # Its models and data sets alone: `snakemake fetch_mezo`.
    rule:
        name:
            f"fetch_{target}"
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
    benchmark:
        f"{RESULTS}/benchmarks/fetch_size.tsv"
    localrule: True
    conda:
        "../envs/data.yaml"
    threads: demand("fetch_size", "threads")
    resources:
        mem_mb=growing("fetch_size", "mem_mb"),
        runtime=growing("fetch_size", "runtime"),
        gpu=demand("fetch_size", "gpu"),
    params:
        specs=fetch_specs(RUN),
        code=code("fetch_size.py"),
    script:
        "../scripts/fetch_size.py"
