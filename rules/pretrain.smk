# pretrain -> checkpoints


rule pretrain:
    input:
        unpack(checkpoint_inputs),
    output:
        model=directory(f"{RESULTS}/checkpoints/{{checkpoint}}"),
        cost=f"{RESULTS}/costs/pretrain/{{checkpoint}}.json",
        seal=f"{RESULTS}/seals/pretrain/{{checkpoint}}.json",
    log:
        f"{RESULTS}/logs/pretrain/{{checkpoint}}.log",
    cache: True
    conda:
        "../envs/train.yaml"
    threads: demand("pretrain", "threads")
    resources:
        mem_mb=growing("pretrain", "mem_mb"),
        runtime=growing("pretrain", "runtime"),
        gpu=demand("pretrain", "gpu"),
    params:
        spec=checkpoint_spec,
        code=code("pretrain.py"),
        state=f"{STATE}/pretrain/{{checkpoint}}.pt",
    script:
        "../scripts/pretrain.py"
