"""From a checked configuration to the tables of what the run makes: checkpoints, jobs, evaluations.

Plain data, made once; the workflow's rules look their inputs and parameters up here. Names are readable and a function of
what they name, so that two experiments that need the same checkpoint share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from reclaim.config import input_names, job_entries, listed

Names = dict[str, dict]


@dataclass
class Plan:
    """What a run makes, by name.

    `checkpoints`: a pre-trained or untrained model from scratch: model, data, recipe, masking, seed.
    `jobs`: `paper/experiment/name` -> one fine-tuning or prompting job: method, seed and its arms.
    `evaluations`: `paper/experiment` -> its jobs, checkpoints and controls.
    `measurements`: `paper/experiment` -> an experiment of a kind of its own (memory, trajectory).
    `seeds`: `paper/experiment` -> its seeds, as fixed before the run.
    `data`, `tokenizers`, `models` (from the Hub or a folder), `indexes`: names of those that the run needs.
    """

    checkpoints: Names = field(default_factory=dict)
    jobs: Names = field(default_factory=dict)
    evaluations: Names = field(default_factory=dict)
    measurements: Names = field(default_factory=dict)
    seeds: dict[str, list[int]] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    tokenizers: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)


def make_plan(config: dict, run: Sequence[str] | None = None) -> Plan:
    """Expand the experiments `paper/experiment` of `run`, by default those that the configuration's `run` names."""
    plan = Plan()
    for chosen in config["run"] if run is None else run:
        paper, _, name = chosen.partition("/")
        experiment = config["experiments"][paper][name]
        plan.seeds[chosen] = experiment["seeds"]
        if "kind" in experiment:
            plan.measurements[chosen] = experiment
            continue
        evaluation = plan.evaluations[chosen] = {
            "jobs": [],
            "checkpoints": [],
            "reference_loss": experiment.get("reference_loss") or {},
            "controls": experiment.get("controls", []),
            "tasks": sorted({task for arm in experiment["arms"] for task in listed(arm["task"])}),
        }
        for seed in experiment["seeds"]:
            groups: Names = {}
            for checkpoint in _checkpoints(config, experiment, seed):
                if checkpoint["id"] and checkpoint["id"] not in plan.checkpoints:
                    plan.checkpoints[checkpoint["id"]] = checkpoint["spec"]
                if checkpoint["id"] and checkpoint["id"] not in evaluation["checkpoints"]:
                    evaluation["checkpoints"].append(checkpoint["id"])
                for index, arm in enumerate(experiment["arms"]):
                    if checkpoint["name"] not in arm.get("checkpoints", [checkpoint["name"]]):
                        continue
                    for task in listed(arm["task"]):
                        single = {**arm, "task": task, **{k: checkpoint[k] for k in ("id", "model", "name")}}
                        single["variant"] = _variant(config, checkpoint, single)
                        kind = _kind(arm["method"])
                        label = f"{kind}.s{seed}"
                        if config.get("jobs") == "per_arm":
                            label = f"{kind}.{index}-{task}.{checkpoint['model']}.{checkpoint['name']}.s{seed}"
                        group = groups.setdefault(label, {"kind": kind, "seed": seed, "arms": []})
                        group["arms"].append(single)
            for label, group in groups.items():
                plan.jobs[f"{chosen}/{label}"] = group
                evaluation["jobs"].append(f"{chosen}/{label}")
    _add_needs(plan, config)
    return plan


def _add_needs(plan: Plan, config: dict) -> None:
    """Fill in the data sets, tokenizers and models that checkpoints and evaluations rest on."""
    arms = [arm for job in plan.jobs.values() for arm in job["arms"]]
    specs = [config["models"][checkpoint["model"]] for checkpoint in plan.checkpoints.values()]
    tokenizers = {spec["tokenizer"] for spec in specs}
    models = {arm["model"] for arm in arms if not arm["id"]}
    data = {checkpoint["data"] for checkpoint in plan.checkpoints.values()}
    data |= {config["tasks"][arm["task"]]["data"] for arm in arms}
    indexes = set()
    for measurement in plan.measurements.values():
        inputs = input_names(measurement)
        data |= set(inputs["data"])
        models |= set(inputs["models"])
        indexes |= set(inputs["indexes"])
    for name in indexes:
        data.add(config["indexes"][name]["data"])
        models |= {config["indexes"][name].get("model")} - {None}
    for name in tokenizers:
        data |= set(config["tokenizers"][name].get("data", []))
        models |= {config["tokenizers"][name].get("model")} - {None}
    plan.data, plan.tokenizers, plan.models = sorted(data), sorted(tokenizers), sorted(models)
    plan.indexes = sorted(indexes)


def dotted(name: str) -> str:
    """A plan name as one path component: `paper.experiment.job`."""
    return name.replace("/", ".")


def masking_name(masking: dict) -> str:
    """`uniform-0.4`, `uniform-0.2-0.4` (corruption, prediction), `uniform-0.4-80-10-10`, `none`, `causal`."""
    if "corruption" not in masking:
        return masking["scheme"]
    parts = [masking["scheme"], f"{masking['corruption']:g}"]
    if masking.get("prediction", masking["corruption"]) != masking["corruption"]:
        parts.append(f"{masking['prediction']:g}")
    if _replacement_name(masking) != "mask":
        parts.append(_replacement_name(masking))
    return "-".join(parts)


def _replacement_name(masking: dict) -> str:
    """`mask`, `80-10-10`, or the shares of mask, random and same: `0.875-0.125-0`."""
    replacement = masking.get("replacement", "mask")
    return replacement if isinstance(replacement, str) else "-".join(f"{share:g}" for share in replacement)


def _checkpoints(config: dict, experiment: dict, seed: int):
    """Each checkpoint of an experiment at a seed: its name there, model, id (None for Hub and local models) and spec."""
    for block in experiment["checkpoints"]:
        for model in listed(block["model"]):
            if config["models"][model]["source"] != "scratch":
                yield {"name": block.get("name", model), "model": model, "id": None, "spec": {}}
                continue
            for masking in block["masking"]:
                label = masking_name(masking)
                yield {
                    "name": block.get("name", label),
                    "model": model,
                    "id": f"{block['data']}.{model}.{block['recipe']}.{label}.s{seed}",
                    "spec": {k: block[k] for k in ("data", "recipe")}
                    | {"model": model, "masking": masking, "seed": seed},
                }


def checkpoint_variant(checkpoint: dict) -> dict:
    """The part of a metric row's variant that a checkpoint's spec fixes."""
    masking = checkpoint.get("masking")
    if masking is None:
        return {}
    variant = {"recipe": checkpoint["recipe"], "scheme": masking["scheme"]}
    if "corruption" in masking:
        variant["corruption"] = masking["corruption"]
        variant["prediction"] = masking.get("prediction", masking["corruption"])
        variant["replacement"] = _replacement_name(masking)
    return variant


def _variant(config: dict, checkpoint: dict, arm: dict) -> dict:
    variant = {
        "model": checkpoint["model"],
        "pretraining": checkpoint["name"],
        **checkpoint_variant(checkpoint["spec"]),
    }
    variant |= {"task": arm["task"], "method": arm["method"], "prompt": arm.get("prompt", True)}
    if "labels" in arm:
        variant["labels"] = arm["labels"]
    if "num_demonstrations" in arm:
        variant["num_demonstrations"] = arm["num_demonstrations"]
    if arm["method"] in ("mezo", "backprop"):
        recipe = config["recipes"][arm["recipe"]]
        variant |= {"parameters": arm.get("parameters", "full"), "objective": arm.get("objective", "loss")}
        variant |= {"steps": recipe["num_train_steps"]}
        if arm["method"] == "mezo":
            variant |= {"optimizer": recipe.get("optimizer", "sgd"), "directions": recipe.get("num_directions", 1)}
            variant |= {"estimator": recipe.get("estimator", "spsa")}
    return variant


def measurement_jobs(plan: Plan) -> list[tuple[str, str, str]]:
    """The jobs of experiments of a kind of their own: `paper/experiment`, kind and `sSEED`.

    Where an experiment has iterations, each is a job, `sSEED.iITERATION`; where it has parts, `sSEED-PART`.
    """
    jobs = []
    for chosen, spec in plan.measurements.items():
        for seed in spec["seeds"]:
            endings = [f".i{iteration}" for iteration in range(spec["iterations"])] if "iterations" in spec else [""]
            endings = list(measurement_parts(spec)) if "job_per" in spec else endings
            jobs += [(chosen, spec["kind"], f"s{seed}{ending}") for ending in endings]
    return jobs


def targets(config: dict) -> dict[str, list[str]]:
    """Names that can be made by themselves -> their experiments: each SYSTEM, and each SYSTEM_EXPERIMENT.

    A system is what `run` has of it; one of which the run has nothing is what it has on request.
    """
    found: dict[str, list[str]] = {}
    on_request = config.get("on_request", [])
    in_run = {chosen.partition("/")[0] for chosen in config["run"]}
    for chosen in [*config["run"], *on_request]:
        paper = chosen.partition("/")[0]
        if chosen not in on_request or paper not in in_run:
            found.setdefault(paper, []).append(chosen)
    return found | {chosen.replace("/", "_"): [chosen] for chosen in [*config["run"], *on_request]}


def measurement_parts(experiment: dict) -> dict[str, dict]:
    """What the jobs of a seed run: ending of the job's name ("", or -PART for each entry of `job_per`) -> spec.

    A part needs the data sets and models that it names or that no part names. Seeds are no part of a spec, so that a new
    seed changes no other's job.
    """
    spec = {key: value for key, value in experiment.items() if key not in ("seeds", "job_per")}
    parts = {}
    for name, entry in job_entries(experiment).items():
        key = experiment["job_per"]
        own = {**spec, key: entry}
        named = set(_texts({k: v for k, v in own.items() if k not in ("data", "test", "needs")}))
        others = set(_texts(experiment[key])) - named
        for section in ("data", "test"):
            if section in own:
                own[section] = [each for each in listed(own[section]) if each not in others]
        needs = {
            section: [each for each in names if each not in others] for section, names in own.get("needs", {}).items()
        }
        parts[f"-{name}"] = own | ({"needs": needs} if needs else {})
    return parts or {"": spec}


def _texts(value: Any) -> Iterator[str]:
    """All texts in a part of the configuration, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(each)


def _kind(method: str) -> str:
    """The rule that runs a method."""
    return method if method in ("mezo", "backprop") else "prompt"
