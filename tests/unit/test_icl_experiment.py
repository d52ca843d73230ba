"""The experiment of the in-context study from pre-training to tables and figures, as small as it runs."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch

from reclaim import data, tables
from reclaim.errors import InputError
from reclaim.icl import experiment
from reclaim.icl.metrics import cell_metrics
from reclaim.models import load
from reclaim.report.figures_icl import SYSTEM
from reclaim.report.system import SystemTables

WORLD = {
    "clean": {"generator": "episodes_corpus", "splits": {"train": 120, "test": 8}},
    "noisy": {
        "generator": "episodes_corpus",
        "splits": {"train": 120, "test": 8},
        "parameters": {"num_examples": 5, "swap": 0.15, "blank": 0.2},
    },
    "tasks": {"generator": "episodes_tasks", "splits": {"train": 120, "test": 120}},
}
DECODER = {"source": "scratch", "family": "episodes", "documents": {"episode": 4, "natural": 2}}
SPEC = {
    "kind": "icl",
    "data_sets": {"episodes": {"data": "tasks", "pool_rows": 8, "rows": 3}},
    "models": {
        "one-layer": {**DECODER, "size": "smallest", "config": {"num_hidden_layers": 1, "hidden_size": 16}},
        "two-layers": {**DECODER, "size": "largest", "config": {"num_hidden_layers": 2, "hidden_size": 16}},
    },
    "pretraining": {
        "example_length": 4,
        "phases": [{"data": "clean", "num_train_steps": 6}, {"data": "noisy", "num_train_steps": 4}],
        "recipe": {"learning_rate": 4.0e-3, "warmup_steps": 2, "adam_betas": [0.9, 0.98], "max_grad_norm": 1.0},
    },
    "settings": [
        {"setting": ["gold", "random"], "num_demonstrations": [0, 4]},
        {"setting": "abstract", "label_space": ["number", "letter", "symbol"], "num_demonstrations": [0, 4]},
        {"setting": "abstract_shuffled", "label_space": "letter", "num_demonstrations": 4},
        {"setting": "random", "draws": "independent", "num_demonstrations": 4, "models": ["two-layers"]},
        {"setting": "random", "template_kind": "minimal", "num_demonstrations": 4, "models": ["two-layers"]},
    ],
    "scorers": ["word", "official_last", "word_calibrated"],
    "free_rows": 1,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("data")
    for name, spec in WORLD.items():
        data.materialize({"source": "world", "seed": 0, **spec}, root / name)
    return {name: root / name for name in WORLD}


@pytest.fixture(scope="module")
def outcome(folders, tmp_path_factory):
    return experiment.run(SPEC, 7, data=folders, state_dir=tmp_path_factory.mktemp("state"))


def metric_table(outcome) -> pd.DataFrame:
    frame = outcome["metrics"].assign(paper="icl", experiment="settings", seed=7)
    return tables.frame(frame.to_dict("records"), "metrics")


def accuracy(outcome, **where) -> float:
    found = tables.select(metric_table(outcome), metric="accuracy", where=where)
    assert len(found) == 1
    return found["value"].iloc[0]


def test_every_cell_has_its_metrics_under_each_scorer(outcome):
    table = metric_table(outcome)
    cells = tables.select(table, metric="accuracy")
    # 2 settings and 3 label spaces at 2 numbers, 1 control; 2 more for the larger model; each under 3 scorers.
    assert len(cells) == 3 * (11 + 13)
    assert set(cells["n"]) == {36} and cells["value"].between(0, 1).all()
    for metric in ("normalised_accuracy", "macro_f1", "majority_rate", "degenerate", "above_chance"):
        assert len(tables.select(table, metric=metric)) == len(cells)
    assert len(tables.select(table, metric="paired_variance_ratio")) <= 1
    sizes = tables.select(table, metric="num_parameters")["value"].tolist()
    assert sizes == [166 * 16 + 4 * 16**2, 166 * 16 + 8 * 16**2 + 32]
    assert {row["document"] for row in map(tables.parse_variant, table[table.metric == "heldout_loss"]["variant"])} == {
        "natural",
        "episode",
    }


def test_any_metric_can_be_made_anew_from_the_predictions(outcome):
    predictions = outcome["predictions"].rename(columns={"data_set": "part"})
    where = {"model": "two-layers", "setting": "abstract", "label_space": "letter", "num_demonstrations": 4}
    chosen = predictions
    for key, value in where.items():
        chosen = chosen[chosen[key] == value]
    found = {row["metric"]: row["value"] for row in cell_metrics(chosen, "word")}
    assert found["accuracy"] == accuracy(outcome, **where, scorer="word")


def test_all_models_and_settings_see_the_same_rows(outcome):
    predictions = outcome["predictions"]
    keys = ["setting", "label_space", "num_demonstrations", "data_set", "row", "template_kind", "draws"]
    by_model = [part.set_index(keys)["demonstrations"].map(tuple) for _, part in predictions.groupby("model")]
    both = by_model[0].index.intersection(by_model[1].index)
    assert len(both) == 36 * 11 and (by_model[0][both] == by_model[1][both]).all()
    usual = predictions[(predictions["draws"] == "paired") & (predictions["num_demonstrations"] == 4)]
    assert usual.groupby(["data_set", "row"])["demonstrations"].agg(lambda c: len(set(map(tuple, c)))).eq(1).all()


def test_a_seed_fixes_everything_and_another_changes_it(outcome, folders, tmp_path):
    again = experiment.run(SPEC, 7, data=folders, state_dir=tmp_path / "again")
    for name in ("metrics", "predictions", "curves"):
        pd.testing.assert_frame_equal(again[name], outcome[name])
    other = experiment.run(SPEC, 8, data=folders, state_dir=tmp_path / "other")
    assert set(other["predictions"]["row"]) != set(outcome["predictions"]["row"])
    assert other["curves"]["value"].tolist() != outcome["curves"]["value"].tolist()


def test_a_stopped_run_goes_on_with_what_is_finished(outcome, folders, tmp_path, monkeypatch):
    scored = []
    original = experiment.score

    def score_until_stopped(model, prepared, **options):
        if len(scored) == 14:  # the first model is done, and two parts of the second
            raise KeyboardInterrupt
        scored.append(prepared)
        return original(model, prepared, **options)

    monkeypatch.setattr(experiment, "score", score_until_stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(SPEC, 7, data=folders, state_dir=tmp_path)
    assert isinstance(load(tmp_path / "one-layer", "causal"), torch.nn.Module)
    scored.clear()
    found = experiment.run(SPEC, 7, data=folders, state_dir=tmp_path)
    assert len(scored) == 24 - 14
    for name in ("metrics", "predictions"):
        pd.testing.assert_frame_equal(found[name], outcome[name])


def test_the_state_of_another_run_is_not_taken_up(folders, tmp_path):
    small = copy.deepcopy(SPEC)
    small["models"].pop("two-layers")
    small["settings"] = [{"setting": "gold", "num_demonstrations": 0}]
    first = experiment.run(small, 1, data=folders, state_dir=tmp_path)
    small["pretraining"]["recipe"]["learning_rate"] = 1.0e-3
    second = experiment.run(small, 1, data=folders, state_dir=tmp_path)
    assert first["curves"]["value"].tolist() != second["curves"]["value"].tolist()


def test_models_from_a_folder_go_the_same_way(outcome, folders, tmp_path):
    """What was pre-trained here, loaded by its folder, gives the same answers."""
    state = tmp_path / "state"
    spec = copy.deepcopy(SPEC)
    spec["settings"] = [{"setting": ["gold", "random"], "num_demonstrations": 4}]
    experiment.run(spec, 7, data=folders, state_dir=state)
    spec["models"] = {"two-layers": {"source": "local", "family": "episodes", "size": "largest"}}
    del spec["pretraining"]
    loaded = experiment.run(
        spec, 7, data={"tasks": folders["tasks"], "two-layers": state / "two-layers"}, state_dir=tmp_path / "other"
    )
    where = {"setting": "random", "num_demonstrations": 4, "scorer": "word", "model": "two-layers", "draws": "paired"}
    assert accuracy(loaded, **where) == accuracy(outcome, **where, template_kind="natural")


def test_data_that_does_not_fit_is_refused(folders, tmp_path):
    spec = copy.deepcopy(SPEC)
    spec["pretraining"]["phases"][0]["num_train_steps"] = 100
    with pytest.raises(InputError, match="data.clean"):
        experiment.run(spec, 7, data=folders, state_dir=tmp_path)
    spec = copy.deepcopy(SPEC)
    spec["pretraining"]["example_length"] = 5
    with pytest.raises(InputError, match="multiple of 5"):
        experiment.run(spec, 7, data=folders, state_dir=tmp_path)
    spec = copy.deepcopy(SPEC)
    spec["settings"] = [{"setting": "gold", "num_demonstrations": 4, "models": ["one-layer"]}]
    with pytest.raises(InputError, match="two-layers"):
        experiment.run(spec, 7, data=folders, state_dir=tmp_path)
    spec["settings"] = [{"setting": "abstract", "num_demonstrations": 4}]
    with pytest.raises(InputError, match="label space"):
        experiment.run(spec, 7, data=folders, state_dir=tmp_path)
    assert not (tmp_path / "one-layer").exists()  # settings are looked at before anything is trained
    spec = copy.deepcopy(SPEC)
    spec["settings"] = [{"setting": "gold", "num_demonstrations": 9}]
    with pytest.raises(InputError, match="rows of the pool"):
        experiment.run(spec, 7, data=folders, state_dir=tmp_path)


def test_the_section_of_the_report_draws_every_exhibit(outcome):
    frames = {"metrics": [], "curves": []}
    for seed in (7, 8, 9):
        for name in frames:
            frame = outcome[name].assign(paper="icl", experiment="settings", seed=seed)
            frames[name].append(frame.assign(variant=[tables.variant_json(v) for v in frame["variant"]]))
    costs = tables.empty("costs")
    metrics, curves = (pd.concat(found) for found in frames.values())
    exhibits = SYSTEM.exhibits(SystemTables(pd.DataFrame(), metrics, costs, curves))
    assert [exhibit.key for exhibit in exhibits] == [
        "curves", "label-spaces", "scorers", "controls", "models", "pretraining", "cells",
    ]  # fmt: skip
    assert not any(exhibit.missing for exhibit in exhibits)
    assert all(exhibits[i].svg.startswith("<svg") for i in (0, 1, 3))
    assert len(exhibits[-1].rows) == 11 + 13
    controls = [row[0] for row in exhibits[3].rows]
    assert "two-layers: RANDOM, minimal template" in controls and "two-layers: RANDOM, independent" in controls
    # Data sets and templates are shown apart where there are several, whichever experiment they are in.
    copies = metrics.assign(
        experiment="opt_copies",
        variant=[text.replace('"data_set":"episodes"', '"data_set":"sick"') for text in metrics["variant"]],
    )
    several = pd.concat([metrics, copies.assign(value=copies["value"] + 0.1)])
    (apart,) = (
        exhibit
        for exhibit in SYSTEM.exhibits(SystemTables(pd.DataFrame(), several, costs, curves))
        if exhibit.key == "data-sets"
    )
    assert [row[1] for row in apart.rows[:3]] == ["episodes", "sick", "standard deviation over data sets and templates"]
    first, second = (float(row[3].replace("−", "-")) for row in apart.rows[:2])
    assert second - first == pytest.approx(10, abs=0.11)
    assert apart.rows[2][3] == f"{10 / 2**0.5:.1f}"
    none = SYSTEM.exhibits(SystemTables(pd.DataFrame(), metrics[:0], costs, curves[:0]))
    assert len(none) == 1 and none[0].missing
