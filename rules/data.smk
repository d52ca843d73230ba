# data -> tokenizers, PMI vocabularies, models from elsewhere


def source_files(wildcards):
    """The user's own files behind a local data set: a change of one makes the data set anew."""
    files = config["data"][wildcards.dataset].get("files", {})
    return [os.path.expandvars(path) for path in files.values()]


rule data:
    input:
        source_files,
    output:
        data=directory(f"{RESULTS}/data/{{dataset}}"),
        cost=f"{RESULTS}/costs/data/{{dataset}}.json",
    params:
        spec=lambda wildcards: config["data"][wildcards.dataset],
        code=code("make_data.py"),
    cache: True
    log:
        f"{RESULTS}/logs/data/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/{{dataset}}.tsv"
    threads: demand("data", "threads")
    resources:
        mem_mb=growing("data", "mem_mb"),
        runtime=growing("data", "runtime"),
        gpu=demand("data", "gpu"),
    conda:
        "../envs/data.yaml"
    script:
        "../scripts/make_data.py"


rule tokenizer:
    input:
        data=lambda wildcards: expand(f"{RESULTS}/data/{{name}}", name=config["tokenizers"][wildcards.tokenizer]["data"]),
    output:
        tokenizer=directory(f"{RESULTS}/tokenizers/{{tokenizer}}"),
        cost=f"{RESULTS}/costs/tokenizer/{{tokenizer}}.json",
    params:
        spec=lambda wildcards: config["tokenizers"][wildcards.tokenizer],
        code=code("train_tokenizer.py"),
    cache: True
    log:
        f"{RESULTS}/logs/tokenizer/{{tokenizer}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tokenizer/{{tokenizer}}.tsv"
    threads: demand("tokenizer", "threads")
    resources:
        mem_mb=growing("tokenizer", "mem_mb"),
        runtime=growing("tokenizer", "runtime"),
        gpu=demand("tokenizer", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/train_tokenizer.py"


rule pmi:
    input:
        data=f"{RESULTS}/data/{{dataset}}",
    output:
        vocabulary=f"{RESULTS}/pmi/{{dataset}}.parquet",
        cost=f"{RESULTS}/costs/pmi/{{dataset}}.json",
    params:
        spec=lambda wildcards: config["pmi"][wildcards.dataset],
        code=code("build_pmi.py"),
    cache: True
    log:
        f"{RESULTS}/logs/pmi/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/pmi/{{dataset}}.tsv"
    threads: demand("pmi", "threads")
    resources:
        mem_mb=growing("pmi", "mem_mb"),
        runtime=growing("pmi", "runtime"),
        gpu=demand("pmi", "gpu"),
    conda:
        "../envs/data.yaml"
    script:
        "../scripts/build_pmi.py"


rule model:
    output:
        model=directory(f"{RESULTS}/models/{{model}}"),
        cost=f"{RESULTS}/costs/model/{{model}}.json",
    params:
        spec=lambda wildcards: config["models"][wildcards.model],
        code=code("fetch_model.py"),
    log:
        f"{RESULTS}/logs/model/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/model/{{model}}.tsv"
    threads: demand("model", "threads")
    resources:
        mem_mb=growing("model", "mem_mb"),
        runtime=growing("model", "runtime"),
        gpu=demand("model", "gpu"),
    conda:
        "../envs/train.yaml"
    script:
        "../scripts/fetch_model.py"
