# evaluate -> metric rows; measurements of their own; the long tables


rule evaluate:
    input:
        unpack(evaluation_inputs),
    output:
        tables=directory(f"{RESULTS}/evaluate/{{paper}}/{{experiment}}"),
        metrics=f"{RESULTS}/evaluate/{{paper}}/{{experiment}}/metrics.parquet",
        cost=f"{RESULTS}/costs/evaluate/{{paper}}.{{experiment}}.json",
    log:
        f"{RESULTS}/logs/evaluate/{{paper}}.{{experiment}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{paper}}.{{experiment}}.tsv"
    conda:
        "../envs/data.yaml"
    threads: demand("evaluate", "threads")
    resources:
        mem_mb=growing("evaluate", "mem_mb"),
        runtime=growing("evaluate", "runtime"),
        gpu=demand("evaluate", "gpu"),
    params:
        spec=evaluation_spec,
        code=code("evaluate.py"),
    script:
        "../scripts/evaluate.py"


# An experiment of a kind of its own (`kind` in the configuration): one job a seed, or for each part of it (`job_per`), which
# leaves a folder of tables.
rule measure:
    input:
        inputs=measurement_inputs,
    output:
        tables=directory(f"{RESULTS}/measure/{{paper}}/{{experiment}}/{{kind}}.s{{seed}}{{part}}"),
        metrics=f"{RESULTS}/measure/{{paper}}/{{experiment}}/{{kind}}.s{{seed}}{{part}}/metrics.parquet",
        cost=f"{RESULTS}/costs/{{kind}}/{{paper}}.{{experiment}}.s{{seed}}{{part}}.json",
    log:
        f"{RESULTS}/logs/{{kind}}/{{paper}}.{{experiment}}.s{{seed}}{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{kind}}/{{paper}}.{{experiment}}.s{{seed}}{{part}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: demand("measure", "threads")
    resources:
        mem_mb=growing("measure", "mem_mb"),
        runtime=growing("measure", "runtime"),
        gpu=demand("measure", "gpu"),
    params:
        spec=measurement_spec,
        state=f"{STATE}/measure/{{paper}}.{{experiment}}.{{kind}}.s{{seed}}{{part}}",
        code=lambda wildcards: code(f"measure_{wildcards.kind}.py"),
    script:
        "../scripts/measure_{wildcards.kind}.py"


# The same where each iteration builds on what the one before left behind (models, generated and judged data).
rule iterate:
    input:
        inputs=measurement_inputs,
        previous=previous_iteration,
    output:
        tables=directory(f"{RESULTS}/measure/{{paper}}/{{experiment}}/{{kind}}.s{{seed}}.i{{iteration}}"),
        metrics=f"{RESULTS}/measure/{{paper}}/{{experiment}}/{{kind}}.s{{seed}}.i{{iteration}}/metrics.parquet",
        state=directory(f"{RESULTS}/iterations/{{paper}}/{{experiment}}/{{kind}}.s{{seed}}.i{{iteration}}"),
        cost=f"{RESULTS}/costs/{{kind}}/{{paper}}.{{experiment}}.s{{seed}}.i{{iteration}}.json",
    log:
        f"{RESULTS}/logs/{{kind}}/{{paper}}.{{experiment}}.s{{seed}}.i{{iteration}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{kind}}/{{paper}}.{{experiment}}.s{{seed}}.i{{iteration}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: demand("measure", "threads")
    resources:
        mem_mb=growing("measure", "mem_mb"),
        runtime=growing("measure", "runtime"),
        gpu=demand("measure", "gpu"),
    params:
        spec=measurement_spec,
        state=f"{STATE}/measure/{{paper}}.{{experiment}}.{{kind}}.s{{seed}}.i{{iteration}}",
        code=lambda wildcards: code(f"measure_{wildcards.kind}.py"),
    script:
        "../scripts/measure_{wildcards.kind}.py"


rule tables:
    input:
        folders=METRIC_FOLDERS,
        costs=cost_files(),
    output:
        metrics=report(f"{RESULTS}/metrics.parquet", caption="../report/metrics.rst", category="Tables"),
        per_item=report(f"{RESULTS}/items.parquet", caption="../report/items.rst", category="Tables"),
        curves=report(f"{RESULTS}/curves.parquet", caption="../report/curves.rst", category="Tables"),
        costs=report(f"{RESULTS}/costs.parquet", caption="../report/costs.rst", category="Tables"),
    log:
        f"{RESULTS}/logs/tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/tables.tsv"
    conda:
        "../envs/data.yaml"
    threads: demand("tables", "threads")
    resources:
        mem_mb=growing("tables", "mem_mb"),
        runtime=growing("tables", "runtime"),
        gpu=demand("tables", "gpu"),
    params:
        code=code("join_tables.py"),
    script:
        "../scripts/join_tables.py"
