# claims -> report


rule claims:
    input:
        claims="claims.yaml",
        schema="schemas/claims.schema.json",
        metrics=f"{RESULTS}/metrics.parquet",
        per_item=f"{RESULTS}/items.parquet",
        costs=f"{RESULTS}/costs.parquet",
    output:
        claims=report(
            f"{RESULTS}/claims.parquet",
            caption="../report/claims.rst",
            category="Claims",
        ),
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    conda:
        "../envs/data.yaml"
    threads: demand("claims", "threads")
    resources:
        mem_mb=growing("claims", "mem_mb"),
        runtime=growing("claims", "runtime"),
        gpu=demand("claims", "gpu"),
    params:
        seeds=RUN.seeds,
        code=code("decide_claims.py"),
    script:
        "../scripts/decide_claims.py"


rule page:
    input:
        claims=f"{RESULTS}/claims.parquet",
        metrics=f"{RESULTS}/metrics.parquet",
        costs=f"{RESULTS}/costs.parquet",
        curves=f"{RESULTS}/curves.parquet",
        folders=METRIC_FOLDERS,
        template="report/report.html.j2",
    output:
        page=report(
            f"{RESULTS}/report.html",
            caption="../report/page.rst",
            category="Report",
        ),
    log:
        f"{RESULTS}/logs/page.log",
    benchmark:
        f"{RESULTS}/benchmarks/page.tsv"
    conda:
        "../envs/report.yaml"
    threads: demand("page", "threads")
    resources:
        mem_mb=growing("page", "mem_mb"),
        runtime=growing("page", "runtime"),
        gpu=demand("page", "gpu"),
    params:
        config=config,
        started=STARTED,
        code=code("build_report.py", "reclaim.provenance"),
    script:
        "../scripts/build_report.py"
