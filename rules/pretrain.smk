# pretrain -> checkpoints


def checkpoint_inputs(wildcards):
    spec = PLAN.checkpoints[wildcards.checkpoint]
    model = config["models"][spec["model"]]
    inputs = {
        "data": f"{RESULTS}/data/{spec['data']}",
        "tokenizer": f"{RESULTS}/tokenizers/{model['tokenizer']}",
    }
    if spec["masking"]["scheme"] == "pmi":
        inputs["pmi"] = f"{RESULTS}/pmi/{spec['data']}.parquet"
    return inputs


def checkpoint_spec(wildcards):
    """A checkpoint's parameters with names replaced by what they stand for."""
    spec = PLAN.checkpoints[wildcards.checkpoint]
    return {**spec, "model": config["models"][spec["model"]], "recipe": config["recipes"][spec["recipe"]]}


rule pretrain:
    input:
        unpack(checkpoint_inputs),
    output:
        model=directory(f"{RESULTS}/checkpoints/{{checkpoint}}"),
        cost=f"{RESULTS}/costs/pretrain/{{checkpoint}}.json",
    params:
        spec=checkpoint_spec,
        code=code("pretrain.py"),
        state=f"{STATE}/pretrain/{{checkpoint}}.pt",
    cache: True
    log:
        f"{RESULTS}/logs/pretrain/{{checkpoint}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain/{{checkpoint}}.tsv"
    threads: demand("pretrain", "threads")
    resources:
        mem_mb=growing("pretrain", "mem_mb"),
        runtime=growing("pretrain", "runtime"),
        gpu=demand("pretrain", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/pretrain.py"
