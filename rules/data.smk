# data -> tokenizers, PMI vocabularies, models from elsewhere
# Snakemake allows no `benchmark:` on a rule with `cache: True`; the cost file that the job writes has the same figures.


rule data:
    input:
        data_files,
    output:
        data=directory(f"{RESULTS}/data/{{dataset}}"),
        cost=f"{RESULTS}/costs/data/{{dataset}}.json",
        seal=f"{RESULTS}/seals/data/{{dataset}}.json",
    log:
        f"{RESULTS}/logs/data/{{dataset}}.log",
    cache: True
    conda:
        "../envs/data.yaml"
    threads: demand("data", "threads")
    resources:
        mem_mb=growing("data", "mem_mb"),
        runtime=growing("data", "runtime"),
        gpu=demand("data", "gpu"),
    params:
        spec=lambda wildcards: config["data"][wildcards.dataset],
        code=lambda wildcards: code("make_data.py", *modules_of(config["data"][wildcards.dataset])),
    script:
        "../scripts/make_data.py"


rule tokenizer:
    input:
        unpack(tokenizer_inputs),
    output:
        tokenizer=directory(f"{RESULTS}/tokenizers/{{tokenizer}}"),
        cost=f"{RESULTS}/costs/tokenizer/{{tokenizer}}.json",
        seal=f"{RESULTS}/seals/tokenizer/{{tokenizer}}.json",
    log:
        f"{RESULTS}/logs/tokenizer/{{tokenizer}}.log",
    cache: True
    conda:
        "../envs/train.yaml"
    threads: demand("tokenizer", "threads")
    resources:
        mem_mb=growing("tokenizer", "mem_mb"),
        runtime=growing("tokenizer", "runtime"),
        gpu=demand("tokenizer", "gpu"),
    params:
        spec=lambda wildcards: config["tokenizers"][wildcards.tokenizer],
        code=code("train_tokenizer.py"),
    script:
        "../scripts/train_tokenizer.py"


rule pmi:
    input:
        data=f"{RESULTS}/data/{{dataset}}",
    output:
        vocabulary=f"{RESULTS}/pmi/{{dataset}}.parquet",
        cost=f"{RESULTS}/costs/pmi/{{dataset}}.json",
        seal=f"{RESULTS}/seals/pmi/{{dataset}}.json",
    log:
        f"{RESULTS}/logs/pmi/{{dataset}}.log",
    cache: True
    conda:
        "../envs/data.yaml"
    threads: demand("pmi", "threads")
    resources:
        mem_mb=growing("pmi", "mem_mb"),
        runtime=growing("pmi", "runtime"),
        gpu=demand("pmi", "gpu"),
    params:
        spec=lambda wildcards: config["pmi"][wildcards.dataset],
        code=code("build_pmi.py"),
    script:
        "../scripts/build_pmi.py"


rule model:
    input:
        model_files,
    output:
        model=directory(f"{RESULTS}/models/{{model}}"),
        cost=f"{RESULTS}/costs/model/{{model}}.json",
    log:
        f"{RESULTS}/logs/model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/model/{{model}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: demand("model", "threads")
    resources:
        mem_mb=growing("model", "mem_mb"),
        runtime=growing("model", "runtime"),
        gpu=demand("model", "gpu"),
    params:
        spec=lambda wildcards: config["models"][wildcards.model],
        state=f"{STATE}/model/{{model}}",
        code=code("fetch_model.py"),
    script:
        "../scripts/fetch_model.py"
