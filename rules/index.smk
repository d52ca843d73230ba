# index: BM25 and dense indexes over passages


# Finished shards lie in the state folder until the index is whole, so that a build that was killed goes on behind the last one.
rule index:
    input:
        unpack(index_inputs),
    output:
        index=directory(f"{RESULTS}/indexes/{{index}}"),
        cost=f"{RESULTS}/costs/index/{{index}}.json",
        seal=f"{RESULTS}/seals/index/{{index}}.json",
    log:
        f"{RESULTS}/logs/index/{{index}}.log",
    cache: True
    conda:
        "../envs/train.yaml"
    threads: demand("index", "threads")
    resources:
        mem_mb=growing("index", "mem_mb"),
        runtime=growing("index", "runtime"),
        # Only an encoder has use for one.
        gpu=lambda wildcards: demand("index", "gpu") if config["indexes"][wildcards.index]["backend"] == "dense" else 0,
    params:
        spec=lambda wildcards: config["indexes"][wildcards.index],
        state=f"{STATE}/index/{{index}}",
        code=code("build_index.py"),
    script:
        "../scripts/build_index.py"
