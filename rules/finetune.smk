# finetune and prompt -> predictions on the test split, learning curves, MeZO's trajectory logs


def job_of(wildcards):
    return PLAN.jobs[f"{wildcards.paper}/{wildcards.experiment}/{wildcards.job}"]


def job_inputs(wildcards):
    """Models and data sets of all arms of a job, in the order of its arms."""
    arms = job_of(wildcards)["arms"]
    return {
        "models": list(dict.fromkeys(model_folder(arm["model"], arm["id"]) for arm in arms)),
        "data": list(dict.fromkeys(f"{RESULTS}/data/{config['tasks'][arm['task']]['data']}" for arm in arms)),
    }


def job_spec(wildcards):
    """A job's arms with names replaced by what they stand for."""
    job = job_of(wildcards)
    arms = []
    for arm in job["arms"]:
        task = config["tasks"][arm["task"]]
        arms.append(
            {
                "method": arm["method"],
                "model": model_folder(arm["model"], arm["id"]),
                "dtype": config["models"][arm["model"]].get("dtype", "float32"),
                "data": f"{RESULTS}/data/{task['data']}",
                "task": task,
                "recipe": config["recipes"][arm["recipe"]] if "recipe" in arm else {},
                "variant": arm["variant"],
            }
        )
    return {"paper": wildcards.paper, "experiment": wildcards.experiment, "seed": job["seed"], "arms": arms}


rule finetune_backprop:
    input:
        unpack(job_inputs),
    output:
        predictions=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/predictions.parquet",
        history=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/history.parquet",
        cost=f"{RESULTS}/costs/finetune/{{paper}}.{{experiment}}.{{job}}.json",
    params:
        spec=job_spec,
        code=code("finetune_backprop.py"),
        state=f"{STATE}/finetune/{{paper}}.{{experiment}}.{{job}}",
    wildcard_constraints:
        job="backprop[.].+",
    log:
        f"{RESULTS}/logs/finetune/{{paper}}.{{experiment}}.{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune/{{paper}}.{{experiment}}.{{job}}.tsv"
    threads: demand("finetune", "threads")
    resources:
        mem_mb=growing("finetune", "mem_mb"),
        runtime=growing("finetune", "runtime"),
        gpu=demand("finetune", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/finetune_backprop.py"


rule finetune_mezo:
    input:
        unpack(job_inputs),
    output:
        predictions=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/predictions.parquet",
        history=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/history.parquet",
        trajectories=directory(f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/trajectories"),
        cost=f"{RESULTS}/costs/finetune/{{paper}}.{{experiment}}.{{job}}.json",
    params:
        spec=job_spec,
        code=code("finetune_mezo.py"),
        state=f"{STATE}/finetune/{{paper}}.{{experiment}}.{{job}}",
    wildcard_constraints:
        job="mezo[.].+",
    log:
        f"{RESULTS}/logs/finetune/{{paper}}.{{experiment}}.{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune/{{paper}}.{{experiment}}.{{job}}.tsv"
    threads: demand("finetune", "threads")
    resources:
        mem_mb=growing("finetune", "mem_mb"),
        runtime=growing("finetune", "runtime"),
        gpu=demand("finetune", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/finetune_mezo.py"


rule prompt:
    input:
        unpack(job_inputs),
    output:
        predictions=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/predictions.parquet",
        history=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/history.parquet",
        cost=f"{RESULTS}/costs/finetune/{{paper}}.{{experiment}}.{{job}}.json",
    params:
        spec=job_spec,
        code=code("prompt.py"),
        state=f"{STATE}/finetune/{{paper}}.{{experiment}}.{{job}}",
    wildcard_constraints:
        job="prompt[.].+",
    log:
        f"{RESULTS}/logs/finetune/{{paper}}.{{experiment}}.{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune/{{paper}}.{{experiment}}.{{job}}.tsv"
    threads: demand("finetune", "threads")
    resources:
        mem_mb=growing("finetune", "mem_mb"),
        runtime=growing("finetune", "runtime"),
        gpu=demand("finetune", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/prompt.py"
