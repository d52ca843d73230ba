"""Check a configuration: its form by JSON Schema, then what a schema cannot say (names that must exist, tasks that fit)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from reclaim.architectures import ARCHITECTURES
from reclaim.errors import InputError
from reclaim.prompting import CausalTemplate, get_template
from reclaim.sources import check_spec

ARM_KEYS = {
    "mezo": {"recipe", "parameters", "objective", "labels"},
    "backprop": {"recipe", "parameters", "labels"},
    "icl": {"num_demonstrations"},
}
"""What an arm of a method may hold beside method, task, checkpoints and prompt."""
PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def key_path(parts: Iterable[Any], root: str = "config") -> str:
    """Write a path into a document the way a person would: `config: models.medium.config[0]`.

    `root` is the document, or a place in it (`config: models.medium`).
    """
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return f"{root}{'.' if ': ' in root else ': '}{text}" if text else root


def explain(error: ValidationError, root: str = "config") -> InputError:
    """Turn a schema violation into the one message a person needs."""
    place = key_path(error.absolute_path, root)
    found = f"{json.dumps(error.instance, ensure_ascii=False, default=str)[:80]}"
    bounds = {
        "minimum": "a number of at least {}",
        "maximum": "a number of at most {}",
        "exclusiveMinimum": "a number greater than {}",
        "exclusiveMaximum": "a number less than {}",
        "type": "a value of type {}",
        "const": "{!r}",
        "pattern": "text of the form {}",
    }
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        allowed = sorted(error.schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(allowed))
        return InputError(
            key_path([*error.absolute_path, unknown[0]], root), "an unknown key", f"one of {', '.join(allowed)}"
        )
    if error.validator == "required":
        missing = sorted(set(error.validator_value) - set(error.instance))
        return InputError(place, f"no key {missing[0]!r}", f"the keys {', '.join(error.validator_value)}")
    if error.validator == "enum":
        return InputError(place, found, f"one of {', '.join(map(str, error.validator_value))}")
    if error.validator in ("minItems", "minProperties"):
        return InputError(place, found, f"at least {error.validator_value} entry")
    if error.validator == "uniqueItems":
        return InputError(place, found, "entries that differ from each other")
    if error.validator in bounds:
        return InputError(place, found, bounds[error.validator].format(error.validator_value))
    return InputError(place, found, error.message[:200])


def check_schema(document: Any, schema_path: Path, root: str = "config") -> None:
    """Validate a document; raises `InputError` for the most telling violation."""
    validator = Draft202012Validator(json.loads(schema_path.read_text(encoding="utf-8")))
    error = best_match(validator.iter_errors(document))
    if error is not None:
        raise explain(error, root)


def check_config(config: dict, schema_path: Path) -> None:
    """Check form and references of a whole configuration; raises `InputError` with the key path of the first fault.

    The schema of an experiment of a kind of its own is kinds/KIND.schema.json beside `schema_path`.
    """
    check_schema(config, schema_path)
    for name, spec in config["data"].items():
        check_spec(spec, f"config: data.{name}")
    for name, tokenizer in config["tokenizers"].items():
        if "model" in tokenizer:
            _must_exist(config, "models", tokenizer["model"], f"tokenizers.{name}.model")
        for data in tokenizer.get("data", []):
            _must_exist(config, "data", data, f"tokenizers.{name}.data")
    for name, index in config.get("indexes", {}).items():
        _must_exist(config, "data", index["data"], f"indexes.{name}.data")
        if "model" in index:
            _must_exist(config, "models", index["model"], f"indexes.{name}.model")
    for name, model in config["models"].items():
        if model["source"] == "scratch" and model["architecture"] not in ARCHITECTURES:
            place = f"config: models.{name}.architecture"
            raise InputError(place, repr(model["architecture"]), f"one of {', '.join(ARCHITECTURES)}")
        if "tokenizer" in model:
            _must_exist(config, "tokenizers", model["tokenizer"], f"models.{name}.tokenizer")
    for name, task in config["tasks"].items():
        _must_exist(config, "data", task["data"], f"tasks.{name}.data")
        _check_task(config, name, task)
        _check_templates(name, task)
    for key in ("run", "on_request"):
        for chosen in config.get(key, []):
            paper, _, experiment = chosen.partition("/")
            if experiment not in config["experiments"].get(paper, {}):
                known = [f"{p}/{e}" for p, experiments in config["experiments"].items() for e in experiments]
                raise InputError(f"config: {key}", repr(chosen), f"one of {', '.join(known)}")
    for paper, experiments in config["experiments"].items():
        for name, experiment in experiments.items():
            place = f"experiments.{paper}.{name}"
            if "kind" in experiment:
                _check_kind(experiment, schema_path.parent / "kinds", f"config: {place}")
                for section, names in input_names(experiment).items():
                    for each in names:
                        _must_exist(config, section, each, f"{place}.data" if section == "data" else f"{place}.needs")
            else:
                _check_experiment(config, place, experiment)


def listed(value: Any) -> list:
    """A config value that may be one entry or a list of them, as a list."""
    return list(value) if isinstance(value, list) else [value]


def input_names(measurement: dict) -> dict[str, list[str]]:
    """What an experiment of a kind of its own reads: section of the config -> names there, each once.

    Data sets are those under its keys `data` and `test`; models and indexes those under `needs`.
    """
    data = listed(measurement.get("data", [])) + listed(measurement.get("test", []))
    needs = measurement.get("needs", {})
    names = {"data": data, "models": needs.get("models", []), "indexes": needs.get("indexes", [])}
    return {section: list(dict.fromkeys(each)) for section, each in names.items()}


def job_entries(measurement: dict) -> dict[str, Any]:
    """What each job of a seed has of the key that `job_per` names: name -> the value of that key; {} without `job_per`.

    Entries of a mapping go by their keys, those of a list by themselves or by their `name`.
    """
    entries = measurement[measurement["job_per"]] if "job_per" in measurement else {}
    if isinstance(entries, dict):
        return {name: {name: entry} for name, entry in entries.items()}
    return {entry if isinstance(entry, str) else entry.get("name"): [entry] for entry in entries}


def _check_kind(experiment: dict, schemas: Path, place: str) -> None:
    schema_path = schemas / f"{experiment['kind']}.schema.json"
    if not schema_path.exists():
        known = ", ".join(sorted(path.name.removesuffix(".schema.json") for path in schemas.glob("*.schema.json")))
        raise InputError(f"{place}.kind", repr(experiment["kind"]), f"one of {known}")
    check_schema(experiment, schema_path, place)
    _check_parts(experiment, place)
    names = [name for each in input_names(experiment).values() for name in each]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{place}.needs", f"the name {twice[0]!r} twice", "different names for data, models, indexes")


def _check_parts(experiment: dict, place: str) -> None:
    if "job_per" not in experiment:
        return
    key = experiment["job_per"]
    if "iterations" in experiment:
        raise InputError(f"{place}.job_per", "iterations beside it", "one of the two")
    names = list(job_entries(experiment))
    if len(names) < len(experiment[key]) or not all(name and PART_NAME.fullmatch(name) for name in names):
        expected = "a `name` for each, different, of letters, digits, dots and dashes: they name the jobs"
        raise InputError(f"{place}.{key}", f"entries named {names}", expected)


def family_of(config: dict, model: str) -> str:
    """`masked`, `causal` or `seq2seq`."""
    spec = config["models"][model]
    return ARCHITECTURES[spec["architecture"]][1] if spec["source"] == "scratch" else spec["family"]


def _must_exist(config: dict, section: str, name: str, place: str) -> None:
    if name not in config.get(section, {}):
        known = ", ".join(sorted(config.get(section, {}))) or "nothing"
        raise InputError(f"config: {place}", repr(name), f"a name under `{section}` ({known})")


def _check_task(config: dict, name: str, task: dict) -> None:
    data = config["data"][task["data"]]
    needs_training_rows = "few_shot" in task
    splits = set(data.get("splits", {})) | set(data.get("files", {})) | set(data.get("split", {})) & {"dev", "test"}
    if "all" in splits:
        splits |= {"train"}
    if "test" not in splits:
        raise InputError(
            f"config: tasks.{name}.data", f"{task['data']!r} with the splits {sorted(splits)}", "a test split"
        )
    if needs_training_rows and "train" not in splits:
        raise InputError(f"config: tasks.{name}.few_shot", "no train split to sample from", "a data set with one")


def _check_templates(name: str, task: dict) -> None:
    for family, spec in task.get("templates", {}).items():
        get_template(spec, family, f"config: tasks.{name}.templates.{family}")


def _check_experiment(config: dict, place: str, experiment: dict) -> None:
    families = set()
    for index, checkpoint in enumerate(experiment["checkpoints"]):
        where = f"{place}.checkpoints[{index}]"
        for model in listed(checkpoint["model"]):
            _must_exist(config, "models", model, f"{where}.model")
            families.add((model, family_of(config, model)))
            scratch = config["models"][model]["source"] == "scratch"
            if scratch and not {"data", "recipe", "masking"} <= set(checkpoint):
                raise InputError(
                    f"config: {where}",
                    f"the model {model!r}, which starts from scratch",
                    "the keys data, recipe, masking",
                )
            for masking in checkpoint.get("masking", []):
                if masking["scheme"] == "pmi" and checkpoint.get("data") not in config.get("pmi", {}):
                    raise InputError(
                        f"config: {where}.masking",
                        "the scheme pmi",
                        f"an entry of `pmi` for {checkpoint.get('data')!r}",
                    )
                _check_masking(config, where, model, masking)
        if "data" in checkpoint:
            _must_exist(config, "data", checkpoint["data"], f"{where}.data")
        if "recipe" in checkpoint:
            _must_exist(config, "recipes", checkpoint["recipe"], f"{where}.recipe")
            if "max_length" not in config["recipes"][checkpoint["recipe"]]:
                raise InputError(
                    f"config: recipes.{checkpoint['recipe']}", "no max_length", "one, to pre-train with it"
                )
    for index, arm in enumerate(experiment["arms"]):
        where = f"{place}.arms[{index}]"
        _check_arm(arm, f"config: {where}")
        if arm["method"] in ("mezo", "backprop"):
            if "recipe" not in arm:
                raise InputError(f"config: {where}", "no recipe", f"one, for the method {arm['method']}")
            _must_exist(config, "recipes", arm["recipe"], f"{where}.recipe")
        for task_name in listed(arm["task"]):
            _must_exist(config, "tasks", task_name, f"{where}.task")
            task = config["tasks"][task_name]
            if arm["method"] != "zero_shot" and "few_shot" not in task:
                raise InputError(f"config: tasks.{task_name}", "no few_shot", "how its training rows are sampled")
            reader = arm["method"] if arm["method"] == "calibrated" else ""
            if arm.get("recipe") and config["recipes"][arm["recipe"]].get("select") == "best_dev":
                reader = arm["recipe"]
            if reader and not task["few_shot"].get("dev") and task["few_shot"]["sampling"] != "kshot":
                raise InputError(f"config: tasks.{task_name}.few_shot", "no dev rows", f"some: {reader} looks at them")
            if arm.get("prompt", True):
                for model, family in sorted(families):
                    if family not in task.get("templates", {}):
                        raise InputError(
                            f"config: tasks.{task_name}.templates",
                            f"no template for {family} models such as {model!r}",
                            f"one under `{family}`, or `prompt: false` at {where}",
                        )
            templates = task["templates"] if arm.get("prompt", True) else {}
            template = get_template(templates["causal"], "causal") if "causal" in templates else None
            generates = isinstance(template, CausalTemplate) and template.generation
            if generates and arm["method"] in ("calibrated", "linear_probing"):
                found = f"{arm['method']!r} for {task_name!r}, whose answers are generated"
                raise InputError(f"config: {where}.method", found, "a method that does not choose a label")
            fit = ("loss", "f1") if generates else ("loss", "accuracy")
            if arm.get("objective", "loss") not in fit:
                found = f"{arm['objective']!r} for the task {task_name!r}"
                raise InputError(f"config: {where}.objective", found, f"{' or '.join(fit)} for it")


def _check_arm(arm: dict, place: str) -> None:
    """Refuse what the arm's method would not follow, and what it cannot do without."""
    method = arm["method"]
    unread = sorted(set(arm) - {"method", "task", "checkpoints", "prompt"} - ARM_KEYS.get(method, set()))
    if unread:
        raise InputError(f"{place}.{unread[0]}", f"a key that {method} does not read", "an arm without it")
    if method == "icl" and "num_demonstrations" not in arm:
        raise InputError(place, "no num_demonstrations", "how many, for the method icl")
    if method in ("icl", "linear_probing") and not arm.get("prompt", True):
        raise InputError(f"{place}.prompt", f"false for the method {method}", "true")


def _check_masking(config: dict, where: str, model: str, masking: dict) -> None:
    family = family_of(config, model)
    if masking["scheme"] == "none":
        return
    if (family == "causal") != (masking["scheme"] == "causal"):
        raise InputError(
            f"config: {where}.masking", f"the scheme {masking['scheme']} for the {family} model {model!r}",
            "causal for a causal model, a masking scheme for a masked one, or none for either",
        )  # fmt: skip
    if family == "causal":
        return
    prediction = masking.get("prediction", masking["corruption"])
    if prediction > masking["corruption"] and masking["scheme"] != "uniform":
        raise InputError(
            f"config: {where}.masking",
            f"prediction {prediction} above corruption {masking['corruption']} with the scheme {masking['scheme']}",
            "the scheme uniform, whose disjoint copies are defined",
        )
    copies = math.ceil(prediction / masking["corruption"] - 1e-9)  # as in `reclaim.masking`: 0.9 has three parts of 0.3
    if copies * masking["corruption"] > 1 + 1e-9:
        raise InputError(
            f"config: {where}.masking",
            f"{copies} disjoint copies of {masking['corruption']} of the tokens",
            "copies that fit in one sequence",
        )
