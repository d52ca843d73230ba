"""The paper overlay's code on small copies in the Hub's formats: data sets in their real schemas, each architecture of models.

Sizes, steps and rows are cut; sources, templates, few-shot rules, arms and settings are those of `config/paper.yaml`.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from snakemake.common.configfile import load_configfile

import hub_copies
from reclaim import tables
from reclaim.autoseq import experiment as autoseq
from reclaim.claims import decide
from reclaim.claims_yaml import load_claims
from reclaim.config import check_config
from reclaim.data import load_info
from reclaim.finetune import prediction_table, run_job
from reclaim.finetune_backprop import finetune_backprop
from reclaim.finetune_mezo import finetune_mezo
from reclaim.icl import experiment as icl
from reclaim.models import build, load, load_tokenizer, model_family
from reclaim.plan import make_plan, measurement_parts
from reclaim.problems import Predictions, make_problem
from reclaim.prompted import run_prompt_job
from reclaim.scoring import Request, score_continuations
from reclaim.tasks import load_task

CONFIG = hub_copies.overlay()
DATA = [
    name
    for name in make_plan(CONFIG, [*CONFIG["run"], *CONFIG["on_request"]]).data
    if CONFIG["data"][name].get("kind") != "prompt_files"  # no table; tested with the prompts
]
MODELS = [
    "opt-13b",
    "opt-350m",
    "llama-7b",
    "pythia-1b",
    "roberta-large",
    "t5-v1_1-base",
    "gpt2",
    "bert-base",
    "blenderbot-400m",
]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    torch.set_num_threads(1)


def test_the_overlay_is_sound_and_names_every_experiment_of_its_files():
    check_config(CONFIG, hub_copies.ROOT / "schemas" / "config.schema.json")
    own = set()
    for part in load_configfile(hub_copies.ROOT / "config" / "paper.yaml")["parts"]:
        for paper, experiments in load_configfile(hub_copies.ROOT / part).get("experiments", {}).items():
            own |= {f"{paper}/{name}" for name in experiments}
    assert own == {*CONFIG["run"], *CONFIG["on_request"]}


@pytest.mark.parametrize("name", DATA)
def test_a_data_set_is_read_in_its_schema(folders, name):
    info, spec = load_info(folders(name)), CONFIG["data"][name]
    splits = set(spec.get("splits", spec.get("files", {"test": ""})))
    wanted = {"train"} if splits == {"all"} and "split" in spec else splits
    assert wanted <= set(info["rows"]) and min(info["rows"].values()) > 0
    if "label_names" in spec:
        assert info["label_names"] == spec["label_names"]
        assert set(next(iter(info["label_counts"].values()))) == set(spec["label_names"])


def test_labels_keep_their_meaning(folders):
    """Names of the overlay stand for the right classes of the Hub, by position or by name."""
    for name, column, sources in (
        ("trec", "coarse_label", ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]),
        ("subj", "label_text", ["subjective", "objective"]),
        ("cb", "label", ["entailment", "contradiction", "neutral"]),
    ):
        source = datasets.load_dataset(
            str(folders(name).parents[1] / "hub" / name), CONFIG["data"][name].get("name"), split="train"
        )
        feature = source.features[column]
        raw = [feature.names[value] for value in source[column]] if hasattr(feature, "names") else source[column]
        ours = pd.read_parquet(folders(name) / "train.parquet").set_index("id")["label"]
        assert [sources.index(value) for value in raw] == [ours[f"train-{i}"] for i in range(len(raw))]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_each_architecture_is_fetched_and_loaded(fetched, name):
    folder = fetched(name)
    family = model_family(folder)
    assert family == CONFIG["models"][name]["family"]
    assert not list(folder.glob("*.bin")) and (folder / "model.safetensors").exists()
    model, tokenizer = load(folder, family), load_tokenizer(folder)
    context, words = tokenizer("The river has a stone.")["input_ids"], [[7, 8], [9], [7, 10]]
    if family == "masked":
        ids = torch.tensor([context])
        assert model(input_ids=ids).logits.shape == (1, len(context), len(tokenizer))
        head = load(folder, "classification", num_labels=3)
        assert head(input_ids=ids).logits.shape == (1, 3)
        return
    scores = score_continuations(model, [Request(context, word) for word in words])
    for word, score in zip(words, scores, strict=True):
        assert np.allclose(score, _one_by_one(model, context, word), atol=1e-4)
    if family == "seq2seq":
        assert model.generate(input_ids=torch.tensor([context]), max_new_tokens=3).shape[0] == 1


@torch.no_grad()
def _one_by_one(model, context: list[int], word: list[int]) -> np.ndarray:
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id, *word[:-1]]
        logits = model(input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([start])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*context, *word[:-1]]])).logits[0, len(context) - 1 :]
    return logits.double().log_softmax(-1)[range(len(word)), word].numpy()


@pytest.mark.parametrize("architecture", ["vit", "swin"])
def test_models_of_images_are_fetched_as_they_are(fetched, tmp_path, architecture):
    """No experiment of the overlay starts from such weights yet: the networks that have these blocks start from scratch."""
    from transformers import AutoModelForImageClassification

    hub_copies.model_copy(architecture, tmp_path / "direct")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours, direct = (
        AutoModelForImageClassification.from_pretrained(f).eval() for f in (fetched(architecture), tmp_path / "direct")
    )
    with torch.no_grad():
        assert torch.equal(ours(pixels).logits, direct(pixels).logits)


# ------------------------------------------------------------------------------------------------- in-context learning


def _icl_part(experiment: str, model: str, sets: list[str]) -> dict:
    """A job's spec with few rows of some of its data sets."""
    spec = copy.deepcopy(measurement_parts(CONFIG["experiments"]["icl"][experiment])[f"-{model}"])
    chosen = {name: spec["data_sets"][name] for name in sets}
    spec["data_sets"] = {name: {**entry, "pool_rows": 60, "rows": 1} for name, entry in chosen.items()}
    spec["free_rows"] = 1
    return spec


@pytest.mark.parametrize(
    ("experiment", "model", "sets"),
    [
        ("opt", "opt-350m", ["sst2", "poem"]),
        ("llama", "llama-7b", ["mrpc"]),
        ("pythia", "pythia-1b", ["trec"]),
        ("opt_copies", "opt-13b", ["ethos_gender"]),
    ],
)
def test_in_context_learning_runs(folders, fetched, tmp_path, experiment, model, sets):
    spec = _icl_part(experiment, model, sets)
    data = {entry["data"]: folders(entry["data"]) for entry in spec["data_sets"].values()} | {model: fetched(model)}
    assert spec["needs"] == {"models": [model]} and set(data) <= {*spec["data"], model}
    outcome = icl.run(spec, 1, data=data, state_dir=tmp_path / "state")
    cells = sum(
        np.prod([len(value) if isinstance(value, list) else 1 for value in entry.values()])
        for entry in spec["settings"]
    )
    assert len(outcome["predictions"]) == cells * len(sets)
    metrics = outcome["metrics"]
    assert (metrics["metric"] == "accuracy").sum() == cells * len(sets) * len(spec["scorers"])
    assert outcome["predictions"]["num_tokens"].max() > 300  # 32 demonstrations


def test_in_context_learning_runs_with_the_tokenizer_of_gpt2(folders, fetched, tmp_path):
    real = Path(os.environ.get("RECLAIM_DATA", "absent")) / "tokenizers" / "gpt2"
    if not real.exists():
        pytest.skip("RECLAIM_DATA names no folder with tokenizers/gpt2")
    tokenizer = load_tokenizer(real)
    build("gpt2", tokenizer, {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 2048}, 0).save_pretrained(
        tmp_path / "gpt2"
    )
    tokenizer.save_pretrained(tmp_path / "gpt2")
    spec = _icl_part("opt", "opt-350m", ["tweet_eval_hate"])
    spec["settings"] = [entry for entry in spec["settings"] if entry.get("draws") != "official"]
    outcome = icl.run(
        spec,
        1,
        data={"tweet_eval_hate": folders("tweet_eval_hate"), "opt-350m": tmp_path / "gpt2"},
        state_dir=tmp_path / "s",
    )
    assert set(outcome["predictions"]["label_pieces"].map(max)) == {1}  # its label words and symbols are single tokens


# ------------------------------------------------------------------------------------------------------------- AutoSeq


@pytest.mark.parametrize("task", ["CB", "COPA", "MultiRC", "WiC"])
def test_label_sequences_are_searched_and_trained(folders, fetched, tmp_path, task):
    spec = _autoseq("tasks", task)
    assert len(spec["data"]) == 1 and spec["needs"]["models"] == ["t5-v1_1-large", "t5-v1_1-base"]
    data = {spec["data"][0]: folders(spec["data"][0])} | {name: fetched(name) for name in spec["needs"]["models"]}
    outcome = autoseq.run(spec, 13, data=data, device="cpu", state_dir=tmp_path)
    found = pd.DataFrame(outcome["metrics"])
    assert (found["metric"] == "accuracy").sum() == len(spec["arms"])
    extra = {"CB": "f1", "MultiRC": "em"}.get(task)
    assert extra is None or (found["metric"] == extra).sum() == len(spec["arms"])
    chosen_by = set(found["metric"][found["metric"].str.startswith("dev_")])
    assert chosen_by == {"dev_f1" if task in ("CB", "MultiRC") else "dev_accuracy"}
    claims = load_claims(hub_copies.ROOT / "claims.yaml", hub_copies.ROOT / "schemas" / "claims.schema.json")
    keys = {"paper": "autoseq", "experiment": "tasks", "seed": 13}
    frames = [tables.frame([row | keys for row in outcome[kind]], kind) for kind in ("metrics", "items")]
    decided = decide([claim for claim in claims if claim.paper == "autoseq"], *frames)
    assert not (decided["verdict"] == "invalid").any(), decided[["claim", "reason"]].to_dict("records")
    compared = decided[decided["verdict"] != "not_testable"]["claim"]
    assert {"C1", "C2", "C2b", "C2c", "C3", "C4a", "C5a", "C5b", "C5c", "C5d", "C6", "C7"} <= set(compared)


def test_arms_that_are_trained_have_grids_of_the_same_size():
    spec = CONFIG["experiments"]["autoseq"]["tasks"]
    recipes = {arm["recipe"] for arm in spec["arms"] if "recipe" in arm} - {"few-high"}  # which is compared with itself
    sizes = {
        name: len(spec["recipes"][name]["learning_rate"]) * len(spec["recipes"][name]["per_device_train_batch_size"])
        for name in recipes
    }
    assert len(sizes) == 5 and set(sizes.values()) == {9}


def _autoseq(experiment: str, task: str) -> dict:
    """A job's spec with a small search and one step of each training."""
    spec = copy.deepcopy(measurement_parts(CONFIG["experiments"]["autoseq"][experiment])[f"-{task}"])
    spec["search"] |= {"beam": 4, "max_length": 5, "num_candidates": 4, "per_class": 2, "num_combinations": 2}
    for recipe in spec["recipes"].values():
        if "num_train_steps" in recipe:
            recipe |= {"num_train_steps": 1, "eval_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1.0e-4}
    spec["few_shot"]["k"] = 2
    spec["tasks"][0]["test_rows"] = 4
    spec["tasks"][0].pop("search", None)
    return spec


def _run_autoseq(spec: dict, folders, fetched, tmp_path) -> pd.DataFrame:
    data = {name: folders(name) for name in spec["data"]} | {name: fetched(name) for name in spec["needs"]["models"]}
    return pd.DataFrame(autoseq.run(spec, 42, data=data, device="cpu", state_dir=tmp_path)["metrics"])


def test_a_regression_is_predicted_by_two_sequences(folders, fetched, tmp_path):
    spec = _autoseq("tasks", "STS-B")
    found = _run_autoseq(spec, folders, fetched, tmp_path)
    for metric in ("pearson", "spearmanr", "dev_pearson"):
        assert (found["metric"] == metric).sum() == len(spec["arms"])
    assert not found["metric"].isin(["accuracy", "dev_accuracy"]).any()
    used = found[found["metric"] == "label_used"]["variant"].map(lambda variant: variant["class"])
    assert set(used) == {"0", "1"}


def test_mnli_has_two_test_sets(folders, fetched, tmp_path):
    spec = _autoseq("tasks", "MNLI")
    assert spec["data"] == ["mnli", "mnli_mismatched"]
    spec["arms"] = [arm for arm in spec["arms"] if arm["method"] == "manual"]
    found = _run_autoseq(spec, folders, fetched, tmp_path)
    tests = found[found["metric"] == "accuracy"]["variant"].map(lambda variant: variant.get("test"))
    assert tests.isna().sum() == (tests == "MNLI-mm").sum() == len(spec["arms"])
    assert (found["metric"] == "mnli_acc").sum() == (found["metric"] == "mnli-mm_acc").sum() == len(spec["arms"])


@pytest.mark.parametrize("task", ["CB", "STS-B"])
def test_all_rows_are_fine_tuned_on(folders, fetched, tmp_path, task):
    spec = _autoseq("full_data", task)
    assert [recipe["num_train_epochs"] for recipe in spec["recipes"].values()] == [64]
    spec["recipes"]["all"]["num_train_epochs"] = 1
    found = _run_autoseq(spec, folders, fetched, tmp_path)
    metric = "pearson" if task == "STS-B" else "accuracy"
    ((variant, value),) = found[found["metric"] == metric][["variant", "value"]].to_numpy()
    assert (variant["rows"], variant["epochs"]) == ("all", 1) and -1 <= value <= 1
    assert not found["metric"].str.startswith("dev").any()
    assert not list(tmp_path.glob("*.train"))


# -------------------------------------------------------------------------------------------- MeZO and masking rates


def _jobs(chosen: str, folders, model: Path, tasks: list[str]):
    """(method, spec) of an experiment's jobs on some tasks at its first seed, with few rows and steps."""
    paper, _, name = chosen.partition("/")
    seed = CONFIG["experiments"][paper][name]["seeds"][0]
    for job in make_plan(CONFIG, [chosen]).jobs.values():
        arm = job["arms"][0]
        if arm["task"] not in tasks or job["seed"] != seed:
            continue
        task = copy.deepcopy(CONFIG["tasks"][arm["task"]]) | {"test_rows": 3, "max_new_tokens": 2}
        few = task["few_shot"]
        few |= {"k": 5} if few["sampling"] == "kshot" else {"size": 16, "dev": 4}
        recipe = copy.deepcopy(CONFIG["recipes"].get(arm.get("recipe"), {}))
        if recipe:
            recipe |= {"num_train_steps": 1, "eval_steps": 1, "per_device_train_batch_size": 2}
            recipe["learning_rate"] = recipe["learning_rate"][:1]
        if "num_demonstrations" in arm["variant"]:
            arm["variant"]["num_demonstrations"] = 4
        own = {"method": arm["method"], "model": str(model), "dtype": "float32", "data": str(folders(task["data"]))}
        yield (
            arm["method"],
            {"seed": seed, "arms": [{**own, "task": task, "recipe": recipe, "variant": arm["variant"]}]},
        )


def _run(method: str, spec: dict, state: Path) -> pd.DataFrame:
    if method not in ("mezo", "backprop"):
        return run_prompt_job(spec, "cpu")[0]
    options = {"identity": "x", "progress": lambda rows, *_, **__: rows, "count": lambda **_: None}
    function = finetune_mezo if method == "mezo" else finetune_backprop
    if method == "mezo":
        options["trajectories"] = state / "trajectories"
        options["trajectories"].mkdir(parents=True)
    return run_job(spec, function, device="cpu", state_dir=state / "state", **options)[0]


@pytest.mark.parametrize(
    ("chosen", "model", "tasks"),
    [
        ("mezo/few_rows", "roberta-large", ["sst2-16", "snli-16", "trec-16"]),
        ("mezo/adapters", "roberta-large", ["rte-512"]),
        ("mezo/parameters", "opt-13b", ["wsc-54", "multirc-1000", "copa-300", "record-1000"]),
        ("mezo/causal", "opt-13b", ["squad-1000", "drop-1000"]),
    ],
)
def test_every_arm_of_mezo_runs(folders, fetched, tmp_path, chosen, model, tasks):
    ran = 0
    for number, (method, spec) in enumerate(_jobs(chosen, folders, fetched(model), tasks)):
        predictions = _run(method, spec, tmp_path / str(number))
        assert len(predictions) == 3, spec
        ran += 1
    paper, _, name = chosen.partition("/")
    arms = CONFIG["experiments"][paper][name]["arms"]
    assert ran == sum(
        len(set(arm["task"] if isinstance(arm["task"], list) else [arm["task"]]) & set(tasks)) for arm in arms
    )


def test_any_right_entity_counts(folders, fetched):
    """ReCoRD: rows have several right entities and different numbers of them; all are as good as the first."""
    data = load_task(CONFIG["tasks"]["record-1000"], folders("record"))
    several = data.test["answers"].map(len) > 1
    assert several.any() and data.test["choices"].map(len).nunique() > 1
    for label, choices, answers in data.test[["label", "choices", "answers"]].to_numpy():
        assert choices[label] in answers and not set(choices[:label]) & set(answers)
    last = [max(map(choices.index, answers)) for choices, answers in data.test[["choices", "answers"]].to_numpy()]
    wrong = [0] * len(last)
    for found, share in ((last, 1.0), (wrong, 0.0)):
        table = prediction_table(data, Predictions(np.array(found), np.zeros((len(found), 1)), [""] * len(found)))
        assert (table["prediction"] == table["label"]).mean() == share
    arm = {"model": str(fetched("opt-13b")), "dtype": "float32", "task": CONFIG["tasks"]["record-1000"]}
    problem = make_problem({**arm, "variant": {"prompt": True}}, data, "cpu", 0)
    encoded = problem.encode(data.test)
    guessed = problem.predict(encoded).labels
    rows = zip(guessed, data.test["choices"], data.test["answers"], strict=True)
    assert problem.score(encoded) == np.mean([choices[found] in answers for found, choices, answers in rows])
    assert "Many saw" in problem.tokenizer.decode(encoded[0].options[0].continuation_ids)


def test_the_tasks_of_the_masking_study_run(folders, fetched, tmp_path):
    """Its network from scratch, with the tokenizer of a model that was fetched, fine-tuned on classes, pairs and a score."""
    tokenizer = load_tokenizer(fetched("roberta-large"))
    sizes = {**CONFIG["models"]["large"]["config"], "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build(CONFIG["models"]["large"]["architecture"], tokenizer, sizes | {"intermediate_size": 32}, seed=1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tasks = ["glue-cola", "glue-stsb", "glue-mnli"]
    arms = [arm for arm in CONFIG["experiments"]["mlm_masking"]["rates"]["arms"] if arm["task"] in tasks]
    for number, arm in enumerate(arms):
        task = copy.deepcopy(CONFIG["tasks"][arm["task"]]) | {"test_rows": 3}
        task["few_shot"] |= {"size": 8, "dev": 4}
        recipe = CONFIG["recipes"][arm["recipe"]] | {
            "num_train_steps": 1,
            "eval_steps": 1,
            "per_device_train_batch_size": 2,
        }
        own = {
            "method": "backprop",
            "model": str(tmp_path / "model"),
            "dtype": "float32",
            "data": str(folders(task["data"])),
        }
        variant = {"task": arm["task"], "prompt": False, "parameters": "full", "objective": "loss"}
        spec = {"seed": 1, "arms": [{**own, "task": task, "recipe": recipe, "variant": variant}]}
        assert len(_run("backprop", spec, tmp_path / str(number))) == 3
