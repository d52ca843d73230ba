"""An AutoSeq experiment at one seed: a T5 made here or given, every arm on every split of every task, and what it costs.

Yu et al. 2022. Two ways to a model: `corpus`, `model` and `pretraining` (a small T5 from scratch, whose weights and data
order follow the seed), or `models` (a T5 of the Hub or of a folder to search with, and one to train). Both are loaded with
`from_pretrained`. Arms are in `arms`; they share splits, searches and trained models.

The check that a model from scratch knows its language: its probability of each comment that belongs to one class, given
sentences of that class and of others, read from the test rows' column `comment` where the data has one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reclaim.autoseq.arms import Models, Split, Task, border_classes, encode_rows
from reclaim.autoseq.pretraining import build_t5, pretrain_spans
from reclaim.autoseq.prompts import target_ids
from reclaim.autoseq.selection import objective, task_metrics
from reclaim.autoseq.tuning import class_scores
from reclaim.data import load_info, load_split
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json
from reclaim.models import load, load_tokenizer
from reclaim.sampling import evaluation_sample
from reclaim.state import begin_state
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe

LISTED = 5  # candidates of a class that are written down with their texts
CHECKED = 100  # test rows of a class by which a model's language is checked
NUM_SENTINELS = 10
SPAN_SETTINGS = ("max_length", "comment_share", "density", "mean_span")
KINDS = ("metrics", "items", "curves", "costs")


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: Any,
    state_dir: str | Path,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> dict[str, Any]:
    """Run all arms of an AutoSeq experiment at one seed: rows of metrics, items, curves and costs.

    spec: `tasks` (each with `data`, `prompts`: the name of a task of templates/autoseq.yaml or its forms; optional `name`,
    `classes`, `sentences`, `metrics`, `groups`, `test_rows`, `more_tests` (`name`, `data`, `metrics`: further test sets for the
    models of the task), and changes of `search` and `few_shot`), `few_shot` (`sampling`, `k`, `sets`, `dev`, `in_place`),
    `search` (`SearchSettings`), `recipes` (of `train.Recipe`; `learning_rate` and `per_device_train_batch_size` may be lists,
    with `eval_steps`; `num_train_epochs`), `rerank_recipe`, `arms`, and either `corpus`, `model`, `pretraining` (one token a
    word, or `vocab_size`) or `models` (`search`, `tuning`).
    data: the canonical folder of each data set, and the model folder of each name in `models`. Finished splits and the
    pre-trained model stay in `state_dir`, from which a run that was stopped goes on.

    Raises `InputError` for what does not exist or does not fit.
    """
    state_dir = Path(state_dir)
    begin_state(state_dir, spec, seed, data, __name__, device=device)
    tasks = [_task(entry, data) for entry in spec["tasks"]]
    models, outcome = _models(spec, seed, data, device, state_dir / "model")
    for task in tasks:
        outcome["metrics"] += _language_check(task, models, spec["search"].get("terminator", "end"))
    units = [(task, number) for task in tasks for number in range(spec["few_shot"].get("sets", 1))]
    for place, (task, number) in enumerate(progress(units)):
        path = state_dir / f"split-{place}.json"
        if not path.exists():
            split = Split(task, models, spec, seed, number, path.with_suffix(".train"))
            write_json(_run_split(split, spec["arms"]), path)
        done = read_json(path)
        for kind in KINDS:
            outcome[kind] += done.get(kind, [])
    return outcome


def _task(entry: Mapping[str, Any], data: Mapping[str, Path]) -> Task:
    info, place = load_info(data[entry["data"]]), f"tasks, data {entry['data']}"
    is_regression = info["kind"] == "regression"
    if not info["label_names"] and not is_regression:
        raise InputError(place, f"kind {info['kind']}", "a kind with classes, or regression")
    train = load_split(data[entry["data"]], "train")
    tests = {"": entry, **{each["name"]: each for each in entry.get("more_tests", [])}}
    frames = {name: load_split(data[each["data"]], "test") for name, each in tests.items()}
    if "test_rows" in entry:
        frames = {
            name: frame.iloc[np.sort(evaluation_sample(len(frame), size=entry["test_rows"]))]
            for name, frame in frames.items()
        }
    test = pd.concat(frames.values(), ignore_index=True)
    sentences = entry.get("sentences", [name for name in ("text", "text_pair") if name in train])
    if missing := [name for name in sentences if name not in train]:
        raise InputError(f"{place}: sentences", repr(missing[0]), f"columns among {', '.join(train.columns)}")
    if is_regression:
        train, test = border_classes(train), border_classes(test)
    found = ["0", "1"] if is_regression else info["label_names"]
    classes = [str(name) for name in entry.get("classes", found)]
    if len(classes) != len(found):
        raise InputError(f"{place}: classes", f"{len(classes)} classes", f"one for each of {found}")
    changes = {key: entry.get(key, {}) for key in ("search", "few_shot")}
    usual = "sts-b" if is_regression else ""
    parts = {name: (len(frame), tests[name].get("metrics", usual)) for name, frame in frames.items()}
    return Task(
        entry.get("name", entry["data"]), classes, entry["prompts"], sentences, train, test, tests=parts,
        metrics=parts[""][1], groups=entry.get("groups", ()), **changes,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- models


def _models(spec, seed: int, data, device, folder: Path) -> tuple[Models, dict[str, list]]:
    outcome: dict[str, list] = {kind: [] for kind in KINDS}
    if ("models" in spec) == ("corpus" in spec):
        expected = "`models`, or `corpus` with `model` and `pretraining`"
        raise InputError("autoseq experiment", "both or neither", expected)
    if "models" in spec:
        folders = [data[spec["models"][role]] for role in ("search", "tuning")]
        searched = load(folders[0], "seq2seq").to(device)
        tuned = searched if folders[0] == folders[1] else load(folders[1], "seq2seq").to(device)
        return Models(searched, tuned, load_tokenizer(folders[0])), outcome
    if not (folder / "record.json").exists():
        _pretrain(spec, seed, data, device, folder)
    record = read_json(folder / "record.json")
    outcome["metrics"] = record["metrics"]
    outcome["curves"], outcome["costs"] = record["curves"], record["costs"]
    model = load(folder, "seq2seq").to(device)
    return Models(model, model, load_tokenizer(folder)), outcome


def _pretrain(spec, seed: int, data, device, folder: Path) -> None:
    """Pre-train the model of `spec` and save it with its tokenizer and the record of its training."""
    corpus = load_split(data[spec["corpus"]], "train")
    texts = [corpus["text"]]
    options = {"num_sentinels": NUM_SENTINELS, "vocab_size": spec.get("vocab_size")}
    if "vocab_size" not in spec:  # one token a word: of the tasks and of the prompts, too
        texts += [
            load_split(data[entry["data"]], part)["text"] for entry in spec["tasks"] for part in ("train", "test")
        ]
        options["words"] = [word for entry in spec["tasks"] for word in _prompt_words(entry["prompts"])]
    tokenizer = train_tokenizer("t5", [text for part in texts for text in part], **options)
    settings = dict(spec["pretraining"])
    extra = {name: settings.pop(name) for name in SPAN_SETTINGS if name in settings}
    recipe = Recipe.from_config(settings, "pretraining")
    model = build_t5(tokenizer, spec["model"], seed).to(device)
    started, cpu = time.perf_counter(), time.process_time()
    state = folder.with_suffix(".state")
    first, second = (corpus["sentence"], corpus["comment"]) if "comment" in corpus else (corpus["text"], None)
    history = pretrain_spans(model, tokenizer, first, second, recipe, seed=seed, state_path=state, **extra)
    variant = {"corpus": spec["corpus"], "steps": recipe.num_train_steps}

    def row(metric: str, value: float, n: int, unit: str) -> dict[str, Any]:
        return {"variant": variant, "metric": metric, "value": value, "n": n, "unit": unit}

    spent = {"pretrain_wall_s": time.perf_counter() - started, "pretrain_cpu_s": time.process_time() - cpu}
    last, size = history.loss[-20:], sum(parameter.numel() for parameter in model.parameters())
    step = max(1, recipe.num_train_steps // 100)
    record = {
        "metrics": [
            row("pretrain_loss", float(np.mean(last)), len(last), "nats"),
            row("parameters", float(size), 1, "count"),
        ],
        "curves": [
            {"variant": variant, "step": i + 1, "measure": "pretrain_loss", "value": value, "unit": "nats"}
            for i, value in enumerate(history.loss)
            if i % step == 0
        ],
        "costs": [{"variant": variant, "measure": name, "value": value, "unit": "s"} for name, value in spent.items()],
    }
    with atomic_path(folder, directory=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(record, temporary / "record.json")


def _prompt_words(prompts: Mapping[str, Any]) -> list[str]:
    """The words of a task's templates and labels, which a word-level tokenizer must know."""
    if isinstance(prompts, str):
        raise InputError("tasks.prompts", repr(prompts), "the forms in full, for a model from scratch")
    words = []
    for form in prompts.values():
        words += [part.replace("_", " ") for part in form["template"].split("*") if part.startswith("_")]
        words += list(form.get("labels", {}).values())
    return words


def _language_check(task: Task, models: Models, terminator: str) -> list[dict]:
    """Probability of each class's own comments given its sentences and given others': the least, and the ratio of means."""
    if "comment" not in task.test:
        return []
    owners: dict[str, set[int]] = {}
    for label, comment in zip(task.test["label"], task.test["comment"], strict=True):
        owners.setdefault(comment, set()).add(int(label))
    specific = {comment: found.copy().pop() for comment, found in sorted(owners.items()) if len(found) == 1}
    if not specific:
        return []
    rows = task.test.groupby("label").head(CHECKED)
    targets = [target_ids(models.tokenizer, comment, terminator) for comment in specific]
    values = np.exp(class_scores(models.tuned, encode_rows(models.tokenizer, task, "auto", rows), targets))
    own = np.array(list(specific.values()))[None, :] == rows["label"].to_numpy()[:, None]
    mine = np.array([values[own[:, i], i].mean() for i in range(len(specific))])
    others = np.array([values[~own[:, i], i].mean() for i in range(len(specific))])
    variant = {"task": task.name, "check": "language"}
    found = {"least_phrase_probability": (mine.min(), "fraction"), "phrase_ratio": (mine.mean() / others.mean(), "1")}
    return [
        {"variant": variant, "metric": name, "value": float(value), "n": len(rows), "unit": unit}
        for name, (value, unit) in found.items()
    ]


# ----------------------------------------------------------------------------------------------------------------- arms


def _run_split(split: Split, arms: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """All arms of a split: accuracy with items, the score on dev, the labels that were used, and the searches.

    Rows of a further test set have its name as `test` in their variant. A regression has its official metrics alone.
    """
    metrics, items, listed = [], [], set()
    groups = split.task.groups_of(split.task.test)
    labels, ids = split.test_labels(), split.task.test["id"].tolist()
    ends = np.cumsum([size for size, _ in split.task.tests.values()]).tolist()
    parts = {
        name: (slice(end - size, end), official)
        for (name, (size, official)), end in zip(split.task.tests.items(), ends, strict=True)
    }

    def add(variant: dict, metric: str, value: float, n: int, unit: str) -> None:
        metrics.append({"variant": variant, "metric": metric, "value": float(value), "n": n, "unit": unit})

    names = [json.dumps(split.variant(arm), sort_keys=True) for arm in arms]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(f"arms.{place}", f"the settings of arm {names.index(name)}", "each arm once")
    for arm in arms:
        variant, result = split.variant(arm), split.run(arm)
        for name, (part, official) in parts.items():
            own = {**variant, "test": name} if name else variant
            predicted, true = result.predicted[part], labels[part]
            if not split.task.is_regression:
                right = predicted == true
                add(own, "accuracy", right.mean(), len(right), "fraction")
                items += [
                    {"variant": own, "metric": "accuracy", "item": str(item), "value": float(value)}
                    for item, value in zip(ids[part], right, strict=True)
                ]
            for metric, value in task_metrics(official, predicted, true, groups[part] if groups else None).items():
                if metric != "acc":
                    add(own, metric.replace("/", "_"), value, len(true), "fraction")
        if not math.isnan(result.dev_score):
            add(variant, f"dev_{objective(split.task.metrics)}", result.dev_score, split.n_dev, "fraction")
        label_words = float(np.mean([len(text.split()) for text in result.labels]))
        add(variant, "label_words", label_words, len(result.labels), "count")
        for name, text in zip(split.task.classes, result.labels, strict=True):
            add({**variant, "class": name, "text": text}, "label_used", 1.0, 1, "count")
        search_key = json.dumps(
            {k: v for k, v in variant.items() if k not in ("trained", "recipe", "steps", "selection")}
        )
        if arm["method"] in ("autoseq", "autoword") and search_key not in listed:
            listed.add(search_key)
            metrics += _search_rows(split, arm, json.loads(search_key))
    return {
        "metrics": metrics,
        "items": items,
        "costs": [
            {"variant": variant, "measure": measure, "value": value, "unit": unit}
            for variant, measure, value, unit in split.costs
        ],
    }


def _search_rows(split: Split, arm: Mapping[str, Any], variant: dict) -> list[dict]:
    """What a search found: counts, lengths, and the first candidates of each class with their values."""
    found = split.search(arm)
    lengths = found.candidates["text"].str.split().str.len()
    values = [
        ("candidates", len(lengths), "count"),
        ("candidate_words", lengths.mean(), "count"),
        ("one_word_candidates", (lengths == 1).mean(), "fraction"),
        *((name, value, "count") for name, value in found.counts.items()),
    ]
    rows = [
        {"variant": variant, "metric": name, "value": float(value), "n": len(lengths), "unit": unit}
        for name, value, unit in values
    ]
    for row in found.candidates[found.candidates["rank"] < LISTED].to_dict("records"):
        keys = {**variant, "class": split.task.classes[row["class"]], "text": row["text"], "rank": int(row["rank"])}
        for name in ("own", "others", "score"):
            rows.append(
                {"variant": keys, "metric": f"candidate_{name}", "value": float(row[name]), "n": 1, "unit": "1"}
            )
    return rows
