# evaluate -> metric rows; measurements of their own; the long tables


rule evaluate:
    input:
        unpack(evaluation_inputs),
    output:
        tables=directory(f"{RESULTS}/evaluate/{{paper}}/{{experiment}}"),
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


# Experiments of a kind of their own: one job a seed, which leaves a folder of tables (metrics, items, curves, costs).


rule measure_memory:
    output:
        tables=directory(f"{RESULTS}/measure/{{paper}}/{{experiment}}/memory.s{{seed}}"),
        cost=f"{RESULTS}/costs/memory/{{paper}}.{{experiment}}.s{{seed}}.json",
    log:
        f"{RESULTS}/logs/memory/{{paper}}.{{experiment}}.s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/memory/{{paper}}.{{experiment}}.s{{seed}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: demand("memory", "threads")
    resources:
        mem_mb=growing("memory", "mem_mb"),
        runtime=growing("memory", "runtime"),
        gpu=demand("memory", "gpu"),
    params:
        spec=measurement_spec,
        code=code("measure_memory.py"),
    script:
        "../scripts/measure_memory.py"


rule measure_trajectory:
    output:
        tables=directory(f"{RESULTS}/measure/{{paper}}/{{experiment}}/trajectory.s{{seed}}"),
        cost=f"{RESULTS}/costs/trajectory/{{paper}}.{{experiment}}.s{{seed}}.json",
    log:
        f"{RESULTS}/logs/trajectory/{{paper}}.{{experiment}}.s{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/trajectory/{{paper}}.{{experiment}}.s{{seed}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: demand("trajectory", "threads")
    resources:
        mem_mb=growing("trajectory", "mem_mb"),
        runtime=growing("trajectory", "runtime"),
        gpu=demand("trajectory", "gpu"),
    params:
        spec=measurement_spec,
        code=code("measure_trajectory.py"),
    script:
        "../scripts/measure_trajectory.py"


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
