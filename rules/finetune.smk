# finetune and prompt -> predictions on the test split, learning curves, MeZO's trajectory logs


rule finetune_backprop:
    input:
        unpack(job_inputs),
    output:
        predictions=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/predictions.parquet",
        history=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/history.parquet",
        cost=f"{RESULTS}/costs/finetune/{{paper}}.{{experiment}}.{{job}}.json",
    log:
        f"{RESULTS}/logs/finetune/{{paper}}.{{experiment}}.{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune/{{paper}}.{{experiment}}.{{job}}.tsv"
    wildcard_constraints:
        job="backprop[.].+",
    conda:
        "../envs/train.yaml"
    threads: demand("finetune", "threads")
    resources:
        mem_mb=growing("finetune", "mem_mb"),
        runtime=growing("finetune", "runtime"),
        gpu=demand("finetune", "gpu"),
    params:
        spec=job_spec,
        code=code("finetune_backprop.py"),
        state=f"{STATE}/finetune/{{paper}}.{{experiment}}.{{job}}",
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
    log:
        f"{RESULTS}/logs/finetune/{{paper}}.{{experiment}}.{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune/{{paper}}.{{experiment}}.{{job}}.tsv"
    wildcard_constraints:
        job="mezo[.].+",
    conda:
        "../envs/train.yaml"
    threads: demand("finetune", "threads")
    resources:
        mem_mb=growing("finetune", "mem_mb"),
        runtime=growing("finetune", "runtime"),
        gpu=demand("finetune", "gpu"),
    params:
        spec=job_spec,
        code=code("finetune_mezo.py"),
        state=f"{STATE}/finetune/{{paper}}.{{experiment}}.{{job}}",
    script:
        "../scripts/finetune_mezo.py"


rule prompt:
    input:
        unpack(job_inputs),
    output:
        predictions=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/predictions.parquet",
        history=f"{RESULTS}/runs/{{paper}}/{{experiment}}/{{job}}/history.parquet",
        cost=f"{RESULTS}/costs/finetune/{{paper}}.{{experiment}}.{{job}}.json",
    log:
        f"{RESULTS}/logs/finetune/{{paper}}.{{experiment}}.{{job}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/finetune/{{paper}}.{{experiment}}.{{job}}.tsv"
    wildcard_constraints:
        job="prompt[.].+",
    conda:
        "../envs/train.yaml"
    threads: demand("finetune", "threads")
    resources:
        mem_mb=growing("finetune", "mem_mb"),
        runtime=growing("finetune", "runtime"),
        gpu=demand("finetune", "gpu"),
    params:
        spec=job_spec,
        code=code("prompt.py"),
        state=f"{STATE}/finetune/{{paper}}.{{experiment}}.{{job}}",
    script:
        "../scripts/prompt.py"
