# evaluate -> metric rows; measurements of their own; the long tables


def evaluation_of(wildcards):
    return PLAN.evaluations[f"{wildcards.paper}/{wildcards.experiment}"]


def evaluation_inputs(wildcards):
    evaluation = evaluation_of(wildcards)
    return {
        "predictions": [f"{RESULTS}/runs/{job}/predictions.parquet" for job in evaluation["jobs"]],
        "histories": [f"{RESULTS}/runs/{job}/history.parquet" for job in evaluation["jobs"]],
        "checkpoints": [f"{RESULTS}/checkpoints/{name}" for name in evaluation["checkpoints"]],
        "data": [f"{RESULTS}/data/{config['tasks'][task]['data']}" for task in evaluation["tasks"]],
    }


def evaluation_spec(wildcards):
    evaluation = evaluation_of(wildcards)
    return {
        "paper": wildcards.paper,
        "experiment": wildcards.experiment,
        "checkpoints": {name: PLAN.checkpoints[name] for name in evaluation["checkpoints"]},
        "reference_loss": evaluation["reference_loss"],
        "controls": evaluation["controls"],
        "tasks": {task: config["tasks"][task] for task in evaluation["tasks"]},
    }


rule evaluate:
    input:
        unpack(evaluation_inputs),
    output:
        metrics=f"{RESULTS}/evaluate/{{paper}}/{{experiment}}/metrics.parquet",
        items=f"{RESULTS}/evaluate/{{paper}}/{{experiment}}/items.parquet",
        curves=f"{RESULTS}/evaluate/{{paper}}/{{experiment}}/curves.parquet",
        cost=f"{RESULTS}/costs/evaluate/{{paper}}.{{experiment}}.json",
    params:
        spec=evaluation_spec,
        code=code("evaluate.py"),
    log:
        f"{RESULTS}/logs/evaluate/{{paper}}.{{experiment}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{paper}}.{{experiment}}.tsv"
    threads: demand("evaluate", "threads")
    resources:
        mem_mb=growing("evaluate", "mem_mb"),
        runtime=growing("evaluate", "runtime"),
        gpu=demand("evaluate", "gpu"),
    conda:
        "../envs/data.yaml"
    script:
        "../scripts/evaluate.py"


rule measure_memory:
    output:
        measures=f"{RESULTS}/measure/{{paper}}/{{experiment}}/memory.parquet",
        cost=f"{RESULTS}/costs/memory/{{paper}}.{{experiment}}.json",
    params:
        spec=lambda wildcards: PLAN.measurements[f"{wildcards.paper}/{wildcards.experiment}"],
        code=code("measure_memory.py"),
    log:
        f"{RESULTS}/logs/memory/{{paper}}.{{experiment}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/memory/{{paper}}.{{experiment}}.tsv"
    threads: demand("memory", "threads")
    resources:
        mem_mb=growing("memory", "mem_mb"),
        runtime=growing("memory", "runtime"),
        gpu=demand("memory", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/measure_memory.py"


rule measure_trajectory:
    output:
        metrics=f"{RESULTS}/measure/{{paper}}/{{experiment}}/trajectory.parquet",
        cost=f"{RESULTS}/costs/trajectory/{{paper}}.{{experiment}}.json",
    params:
        spec=lambda wildcards: PLAN.measurements[f"{wildcards.paper}/{wildcards.experiment}"],
        code=code("measure_trajectory.py"),
    log:
        f"{RESULTS}/logs/trajectory/{{paper}}.{{experiment}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/trajectory/{{paper}}.{{experiment}}.tsv"
    threads: demand("trajectory", "threads")
    resources:
        mem_mb=growing("trajectory", "mem_mb"),
        runtime=growing("trajectory", "runtime"),
        gpu=demand("trajectory", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/measure_trajectory.py"


MEASURED = {
    kind: [chosen for chosen, spec in PLAN.measurements.items() if spec["kind"] == kind]
    for kind in ("memory", "trajectory")
}


def cost_files():
    """The cost of every job that the tables rest on, stage by stage."""
    tokenizers = {config["models"][spec["model"]]["tokenizer"] for spec in PLAN.checkpoints.values()}
    data = {spec["data"] for spec in PLAN.checkpoints.values()}
    data |= {config["tasks"][task]["data"] for e in PLAN.evaluations.values() for task in e["tasks"]}
    data |= {name for tokenizer in tokenizers for name in config["tokenizers"][tokenizer]["data"]}
    pmi = {spec["data"] for spec in PLAN.checkpoints.values() if spec["masking"]["scheme"] == "pmi"}
    jobs = [job.replace("/", ".") for job in PLAN.jobs]
    evaluations = [name.replace("/", ".") for name in PLAN.evaluations]
    stages = {
        "data": sorted(data),
        "tokenizer": sorted(tokenizers),
        "pmi": sorted(pmi),
        "pretrain": list(PLAN.checkpoints),
        "finetune": jobs,
        "evaluate": evaluations,
        **{kind: [name.replace("/", ".") for name in chosen] for kind, chosen in MEASURED.items()},
    }
    return [f"{RESULTS}/costs/{stage}/{name}.json" for stage, names in stages.items() for name in names]


rule tables:
    input:
        metrics=expand(f"{RESULTS}/evaluate/{{name}}/metrics.parquet", name=PLAN.evaluations)
        + expand(f"{RESULTS}/measure/{{name}}/trajectory.parquet", name=MEASURED["trajectory"]),
        items=expand(f"{RESULTS}/evaluate/{{name}}/items.parquet", name=PLAN.evaluations),
        curves=expand(f"{RESULTS}/evaluate/{{name}}/curves.parquet", name=PLAN.evaluations),
        measures=expand(f"{RESULTS}/measure/{{name}}/memory.parquet", name=MEASURED["memory"]),
        costs=cost_files(),
    output:
        metrics=f"{RESULTS}/metrics.parquet",
        items=f"{RESULTS}/items.parquet",
        curves=f"{RESULTS}/curves.parquet",
        costs=f"{RESULTS}/costs.parquet",
    params:
        code=code("join_tables.py"),
    log:
        f"{RESULTS}/logs/tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/tables.tsv"
    threads: demand("tables", "threads")
    resources:
        mem_mb=growing("tables", "mem_mb"),
        runtime=growing("tables", "runtime"),
        gpu=demand("tables", "gpu"),
    conda:
        "../envs/data.yaml"
    script:
        "../scripts/join_tables.py"
