"""The AutoSeq experiment: what it leaves behind, what it may read, and how it goes on after a kill."""

import copy
import json

import numpy as np
import pandas as pd
import pytest

from reclaim.autoseq import arms, experiment
from reclaim.autoseq.arms import few_shot_rows
from reclaim.autoseq.experiment import run
from reclaim.autoseq.selection import (
    grid_report,
    macro_f1,
    objective,
    official_split,
    rank_by_dev,
    selection_score,
    task_metrics,
)
from reclaim.data import materialize
from reclaim.errors import InputError
from reclaim.outcome import write_outcome
from reclaim.tables import variant_json

PROMPTS = {
    "auto": {"template": "*cls**sent_0**mask**sep+*"},
    "manual": {
        "template": "*cls**sent_0*_The_film_is*mask*.*sep+*",
        "labels": {"negative": "dull", "positive": "clever"},
    },
    "fine_tuning_k_shot": {"template": "*cls**sent_0**sep+*", "labels": {"negative": "dull", "positive": "clever"}},
}
ARMS = [
    {"method": "autoseq"},
    {"method": "autoword"},
    {"method": "autoseq", "search": {"contrast": "none"}},
    {"method": "autoseq", "labels": "shuffled", "draw": 1},
    {"method": "random_words"},
    {"method": "manual"},
    {"method": "manual", "trained": "prompt", "recipe": "few"},
    {"method": "manual", "trained": "lora", "recipe": "grid"},
    {"method": "autoseq", "trained": "full", "recipe": "few", "selection": "dev"},
    {"method": "fine_tuning", "trained": "full", "recipe": "few"},
]
FEW = {"num_train_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
SPEC = {
    "corpus": "phrases",
    "tasks": [{"data": "task", "prompts": PROMPTS, "test_rows": 30}],
    "model": {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1},
    "pretraining": {"num_train_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 3e-3},
    "few_shot": {"sampling": "per_class", "k": 4, "sets": 2},
    "search": {"beam": 6, "max_length": 6, "terminator": "sentinel", "num_combinations": 2},
    "rerank_recipe": "few",
    "recipes": {"few": FEW, "grid": {**FEW, "learning_rate": [1e-3, 1e-2], "eval_steps": 1}},
    "arms": ARMS,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    sizes = {"phrases": {"train": 200}, "task": {"train": 60, "test": 50}}
    for name, splits in sizes.items():
        generator = "phrases_corpus" if name == "phrases" else "phrases_task"
        materialize({"source": "world", "generator": generator, "seed": 0, "splits": splits}, root / name)
    return {name: root / name for name in sizes}


@pytest.fixture(scope="module")
def outcome(data, tmp_path_factory):
    return run(SPEC, 7, data=data, device="cpu", state_dir=tmp_path_factory.mktemp("state"))


def accuracies(outcome):
    rows = [row for row in outcome["metrics"] if row["metric"] == "accuracy"]
    return {variant_json(row["variant"]): row["value"] for row in rows}


def used_labels(outcome):
    return sorted(variant_json(row["variant"]) for row in outcome["metrics"] if row["metric"] == "label_used")


def test_every_arm_has_rows_of_its_own_in_every_split(outcome, tmp_path):
    assert len(accuracies(outcome)) == len(ARMS) * 2
    items = pd.DataFrame(outcome["items"])
    assert len(items) == len(ARMS) * 2 * 30
    keys = pd.Series([variant_json(variant) for variant in items["variant"]])
    means = items["value"].groupby(keys).mean()
    for variant, value in accuracies(outcome).items():
        assert means[variant] == pytest.approx(value)
    outcome = {**outcome, "costs": [{**row, "stage": "measure", "job": "j"} for row in outcome["costs"]]}
    write_outcome(outcome, tmp_path / "tables", paper="autoseq", experiment="phrases", seed=7)
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {f"{k}.parquet" for k in experiment.KINDS}


def test_gates_have_their_figures(outcome):
    found = {row["metric"]: row["value"] for row in outcome["metrics"]}
    assert {"least_phrase_probability", "phrase_ratio", "pretrain_loss", "parameters"} <= set(found)
    assert found["encoder_passes"] == 2  # one for each class
    assert 0 < found["least_phrase_probability"] < 1


def test_a_run_is_a_function_of_its_seed(data, outcome, tmp_path):
    again = run(SPEC, 7, data=data, device="cpu", state_dir=tmp_path / "state")
    assert again["metrics"] == outcome["metrics"] and again["items"] == outcome["items"]
    other = run({**SPEC, "arms": ARMS[:1]}, 8, data=data, device="cpu", state_dir=tmp_path / "state")
    assert used_labels(other) != used_labels(outcome)


def test_a_killed_run_goes_on_with_what_is_finished(data, outcome, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def stop(units):
        yield units[0]
        raise Killed

    with pytest.raises(Killed):
        run(SPEC, 7, data=data, device="cpu", state_dir=tmp_path, progress=stop)
    assert len(list(tmp_path.glob("split-*.json"))) == 1
    monkeypatch.setattr(experiment, "pretrain_spans", None)  # the model is there already
    assert run(SPEC, 7, data=data, device="cpu", state_dir=tmp_path)["metrics"] == outcome["metrics"]


def test_test_labels_choose_nothing(data, outcome, tmp_path, monkeypatch):
    """With other test labels the same label words are chosen and the same rows are predicted."""
    read = experiment.load_split

    def turned(folder, split):
        frame = read(folder, split)
        return frame.assign(label=1 - frame["label"]) if split == "test" and "label" in frame else frame

    monkeypatch.setattr(experiment, "load_split", turned)
    other = run(SPEC, 7, data=data, device="cpu", state_dir=tmp_path)
    assert used_labels(other) == used_labels(outcome)
    for variant, value in accuracies(outcome).items():
        if json.loads(variant)["method"] != "fine_tuning":  # which may name no class
            assert accuracies(other)[variant] == pytest.approx(1 - value)


def test_standard_fine_tuning_has_its_checkpoint_chosen_too(data, tmp_path, monkeypatch):
    """As often as every other arm: at each evaluation, and once for the grid."""
    score, calls = arms.selection_score, []

    def counted(*arguments):
        calls.append(arguments)
        return score(*arguments)

    monkeypatch.setattr(arms, "selection_score", counted)
    recipes = {"few": {**FEW, "eval_steps": 1}}
    trained = {"trained": "full", "recipe": "few"}
    for method in ("manual", "fine_tuning"):
        calls.clear()
        spec = {**SPEC, "few_shot": {**SPEC["few_shot"], "sets": 1}, "recipes": recipes}
        spec["arms"] = [{"method": method, **trained}]
        run(spec, 7, data=data, device="cpu", state_dir=tmp_path / method)
        assert len(calls) == FEW["num_train_steps"] + 1


def test_a_task_may_have_other_numbers_of_rows(data, tmp_path):
    spec = {**SPEC, "arms": ARMS[:1]}
    spec["tasks"] = [
        {**SPEC["tasks"][0], "name": f"{k} rows", "few_shot": {"k": k}} if k else SPEC["tasks"][0] for k in (2, None)
    ]
    found = run(spec, 7, data=data, device="cpu", state_dir=tmp_path)
    keys = {(row["variant"]["task"], row["variant"]["k"]) for row in found["items"]}
    assert keys == {("2 rows", 2), ("task", 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": [{"method": "autophrase"}]}, "autophrase"),
        ({"arms": [{"method": "autoseq"}, {"method": "autoseq", "search": {"beam": 6}}]}, "each arm once"),
        ({"arms": [{"method": "autoseq", "trained": "full"}]}, "recipe"),
        ({"arms": [{"method": "autoseq", "labels": "wrong"}]}, "shuffled"),
        ({"arms": [{"method": "manual", "prompt": "curated"}]}, "curated"),
        ({"models": {"search": "a", "tuning": "a"}}, "models"),
        ({"few_shot": {"sampling": "random", "k": 4}}, "per_class"),
        ({"tasks": [{"data": "phrases", "prompts": PROMPTS}]}, "classes"),
        ({"tasks": [{"data": "task", "prompts": PROMPTS, "sentences": ["premise"]}]}, "premise"),
    ],
)
def test_wrong_settings_are_one_clear_error(data, tmp_path, change, message):
    spec = {**copy.deepcopy(SPEC), **change}
    with pytest.raises(InputError, match=message):
        run(spec, 7, data=data, device="cpu", state_dir=tmp_path)


def test_models_from_a_folder_are_searched_and_trained(data, tmp_path):
    """The way of the paper's overlay: a model that was saved, for search and training."""
    kept = tmp_path / "kept"
    units = []

    def stop(found):
        units.extend(found)
        (tmp_path / "model").rename(kept)
        return []

    run(SPEC, 7, data=data, device="cpu", state_dir=tmp_path, progress=stop)
    spec = {key: value for key, value in SPEC.items() if key not in ("corpus", "model", "pretraining")}
    spec |= {"models": {"search": "t5", "tuning": "t5"}, "arms": ARMS[:2]}
    found = run(spec, 7, data={**data, "t5": kept}, device="cpu", state_dir=tmp_path / "state")
    assert len(accuracies(found)) == 4


# ------------------------------------------------------------------------------------------------------------ selection


def test_official_splits_depend_on_earlier_seeds_in_place():
    labels = np.random.default_rng(0).integers(2, size=60).tolist()
    plain = official_split(labels, 4, 21)
    in_place = official_split(labels, 4, 21, seeds_before=[100, 13])
    assert plain[0].tolist() != in_place[0].tolist()
    rule = {"sampling": "kshot", "k": 4, "in_place": True}
    assert few_shot_rows(rule, labels, 21, 0)[0].tolist() == in_place[0].tolist()
    with pytest.raises(InputError, match="in_place"):
        few_shot_rows(rule, labels, 22, 0)
    train, dev = official_split([0] * 20 + [1] * 5, 4, 13)
    assert len(train) == 8 and len(dev) == 5  # one class has a single row left


def test_ranks_and_reports():
    assert rank_by_dev([("a", 0.5), ("b", 0.7), ("c", 0.7), ("a", 0.9)]) == ["b", "c", "a"]
    trials = [
        {"seed": 1, "dev": 0.5, "test": 0.1},
        {"seed": 1, "dev": 0.5, "test": 0.9},
        {"seed": 2, "dev": 0.4, "test": 0.3},
    ]
    assert grid_report(trials, "dev", "test") == pytest.approx({"mean": 20.0, "std": 10.0, "median": 20.0})


def test_metrics_of_tasks():
    assert macro_f1([0, 2, 1, 1], [0, 0, 1, 1]) == pytest.approx((2 / 3 + 0 + 1) / 3)
    found = [objective(task) for task in ("QQP", "CoLA", "sts-b", "mnli", "")]
    assert found == ["f1", "mcc", "pearson", "accuracy", "accuracy"]
    assert selection_score("mrpc", [1, 1, 0], [1, 0, 0]) == pytest.approx(2 / 3)
    assert selection_score("", [1, 1, 0, 0], [1, 0, 0, 0]) == 0.75
    with pytest.raises(InputError, match="MultiRC"):
        task_metrics("multirc", [0], [1])
