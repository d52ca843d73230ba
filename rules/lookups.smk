# Look-ups: what each stage's rules take as input and parameters, from the plan and the configuration.


@cache
def user_files(section, name):
    """The user's own files behind an entry of `data` or `models`: a change of one makes it anew.

    A missing one ends the run with one message: what an input function raises, Snakemake would show with a traceback.
    """
    find = {"data": source_files, "models": model_source_files}[section]
    try:
        return find(config[section][name], f"config: {section}.{name}")
    except InputError as error:
        sys.exit(str(error))


def data_files(wildcards):
    return user_files("data", wildcards.dataset)


def model_files(wildcards):
    return user_files("models", wildcards.model)


def tokenizer_inputs(wildcards):
    """The data that a tokenizer is trained on, or the model that it is taken from."""
    spec = config["tokenizers"][wildcards.tokenizer]
    if "model" in spec:
        return {"model": f"{RESULTS}/models/{spec['model']}"}
    return {"data": [f"{RESULTS}/data/{name}" for name in spec["data"]]}


def index_inputs(wildcards):
    """The passages of an index, and the model that encodes them."""
    spec = config["indexes"][wildcards.index]
    inputs = {"data": f"{RESULTS}/data/{spec['data']}"}
    if "model" in spec:
        inputs["model"] = f"{RESULTS}/models/{spec['model']}"
    return inputs


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
                **{key: value for key, value in config["models"][arm["model"]].items() if key == "device_map"},
                "data": f"{RESULTS}/data/{task['data']}",
                "task": task,
                "recipe": config["recipes"][arm["recipe"]] if "recipe" in arm else {},
                "variant": arm["variant"],
            }
        )
    return {"paper": wildcards.paper, "experiment": wildcards.experiment, "seed": job["seed"], "arms": arms}


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


def measurement_spec(wildcards):
    """What a job of an experiment of a kind of its own runs."""
    return PARTS[f"{wildcards.paper}/{wildcards.experiment}"][wildcards.get("part", "")]


def measurement_inputs(wildcards):
    """Folders of the data sets, models and indexes that the experiment names, in the order of `input_names`."""
    names = input_names(measurement_spec(wildcards))
    return [f"{RESULTS}/{section}/{name}" for section, each in names.items() for name in each]


def previous_iteration(wildcards):
    """What the iteration before left; nothing for the first."""
    if wildcards.iteration == "0":
        return []
    before = int(wildcards.iteration) - 1
    return f"{RESULTS}/iterations/{wildcards.paper}/{wildcards.experiment}/{wildcards.kind}.s{wildcards.seed}.i{before}"


def metric_folders(plan):
    """Every folder of metric rows: an evaluation, or one job of an experiment of a kind of its own."""
    folders = [f"{RESULTS}/evaluate/{name}" for name in plan.evaluations]
    return folders + [f"{RESULTS}/measure/{chosen}/{kind}.{name}" for chosen, kind, name in measurement_jobs(plan)]


METRIC_FOLDERS = metric_folders(RUN)


def metric_files(plan):
    """The file of metric rows in each of these folders: as a target, it is made again when it alone is lost."""
    return [f"{folder}/metrics.parquet" for folder in metric_folders(plan)]


def fetched(plan):
    """Folders of the models and data sets of a plan that come from the Hub, or from a repository of Git."""
    models = [name for name in plan.models if config["models"][name]["source"] == "hub"]
    data = [name for name in plan.data if config["data"][name]["source"] in ("hub", "git")]
    return [f"{RESULTS}/models/{name}" for name in models] + [f"{RESULTS}/data/{name}" for name in data]


def fetch_specs(plan):
    """The folders of `fetched` with what lies behind each, where the Hub knows its size."""
    specs = {path: config[Path(path).parent.name][Path(path).name] for path in fetched(plan)}
    return {path: spec for path, spec in specs.items() if spec["source"] == "hub"}


def cost_files():
    """The cost of every job that the tables rest on, stage by stage."""
    pmi = {spec["data"] for spec in RUN.checkpoints.values() if spec["masking"]["scheme"] == "pmi"}
    stages = {
        "data": RUN.data,
        "tokenizer": RUN.tokenizers,
        "model": RUN.models,
        "pmi": sorted(pmi),
        "index": RUN.indexes,
        "pretrain": list(RUN.checkpoints),
        "finetune": list(RUN.jobs),
        "evaluate": list(RUN.evaluations),
    }
    for chosen, kind, name in measurement_jobs(RUN):
        stages.setdefault(kind, []).append(f"{chosen}.{name}")
    return [f"{RESULTS}/costs/{stage}/{dotted(name)}.json" for stage, names in stages.items() for name in names]
