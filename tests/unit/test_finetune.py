"""Fine-tuning jobs: every kind of problem learns, selection sees development rows only, finished arms are kept."""

import math
import shutil
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

from reclaim.data import iter_texts, load_split, materialize
from reclaim.errors import InputError
from reclaim.finetune import run_job
from reclaim.finetune_backprop import finetune_backprop
from reclaim.finetune_mezo import finetune_mezo
from reclaim.optim.trajectory import read_log, replay
from reclaim.pretrain import pretrain
from reclaim.problems import evaluation_batches, make_problem
from reclaim.prompted import draw_demonstrations, run_prompt_job
from reclaim.sampling import icl_seeds, mezo_subset
from reclaim.tasks import few_shot_sets, load_task
from reclaim.tokenization import train_tokenizer

SIZES = {
    "roberta": {"intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
}
TEMPLATES = {"masked": "last", "causal": {"name": "last", "separator": " "}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data sets, and a RoBERTa and an OPT pre-trained for a moment, by name."""
    base = tmp_path_factory.mktemp("finetune")
    world = {"source": "world", "seed": 0}
    materialize(world | {"generator": "polarity_corpus", "splits": {"train": 600}}, base / "polarity")
    materialize(world | {"generator": "polarity_last", "splits": {"train": 200, "test": 80}}, base / "last")
    materialize(world | {"generator": "causes", "splits": {"train": 100, "test": 40}}, base / "causes")
    parameters = {"num_facts": 1}
    questions = world | {"generator": "questions", "splits": {"train": 60, "test": 20}, "parameters": parameters}
    materialize(questions, base / "questions")
    for architecture, sizes in SIZES.items():
        texts = [text for name in ("polarity", "last", "causes", "questions") for text in iter_texts(base / name)]
        tokenizer = train_tokenizer(architecture, texts, words=["overall", "question", "answer"])
        config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
        spec = {
            "model": {"architecture": architecture, "config": config | sizes, "linear_init": "fan_in"},
            "recipe": {
                "num_train_steps": 80,
                "per_device_train_batch_size": 32,
                "learning_rate": 5e-3,
                "max_length": 24,
                "packing": "documents",
            },
            "masking": {"scheme": "causal"} if architecture == "opt" else {"scheme": "uniform", "corruption": 0.3},
            "seed": 0,
        }
        model, _ = pretrain(spec, iter_texts(base / "polarity", ["train"]), tokenizer)
        model.save_pretrained(base / architecture)
        tokenizer.save_pretrained(base / architecture)
    return base


def arm(made, method="backprop", model="roberta", task="last", recipe=None, **variant):
    tasks = {
        "last": {"few_shot": {"sampling": "per_class", "k": 32, "dev": 16}, "templates": TEMPLATES},
        "causes": {
            "few_shot": {"sampling": "random", "size": 60, "dev": 20},
            "templates": {"causal": {"prompt": "{text}", "candidates": "choices", "option": " {candidate}"}},
        },
        "questions": {
            "few_shot": {"sampling": "random", "size": 40, "dev": 10},
            "max_new_tokens": 2,
            "templates": {
                "causal": {
                    "prompt": "{context} question {question} answer",
                    "candidates": "answers",
                    "option": " {candidate} .",
                    "generation": True,
                }
            },
        },
    }
    steps = {"backprop": 60, "mezo": 40}.get(method, 0)
    defaults = {"num_train_steps": steps, "per_device_train_batch_size": 16, "learning_rate": [3e-3]}
    return {
        "method": method,
        "model": str(made / model),
        "dtype": "float32",
        "data": str(made / task),
        "task": {"data": task, "max_length": 48, **tasks[task]},
        "recipe": {**defaults, "eval_steps": 20, "select": "best_dev", **(recipe or {})},
        "variant": {"task": task, "method": method, "prompt": True, **variant},
    }


def run(made, *arms, seed=1, folder="state", identity="x", **options):
    method = {"backprop": finetune_backprop, "mezo": finetune_mezo}[arms[0]["method"]]
    return run_job(
        {"seed": seed, "arms": list(arms)},
        method,
        device="cpu",
        state_dir=made / folder,
        identity=identity,
        progress=iter,
        count=lambda **work: None,
        **options,
    )


def accuracy(predictions):
    return float((predictions["prediction"] == predictions["label"]).mean())


@pytest.mark.parametrize(
    ("model", "variant"),
    [("roberta", {"prompt": True}), ("roberta", {"prompt": False}), ("opt", {"prompt": True})],
    ids=["label words", "fresh head", "options"],
)
def test_backprop_learns_the_task(made, model, variant):
    predictions, history = run(made, arm(made, model=model, **variant))
    assert accuracy(predictions) > 0.75
    assert history["selected"].sum() == 1
    assert predictions["scores"].map(len).eq(2).all()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_adapter_learns_on_frozen_float16_weights(made, precision):
    recipe = {"learning_rate": [1e-2], "precision": precision}
    predictions, _ = run(made, arm(made, model="opt", recipe=recipe, parameters="lora") | {"dtype": "float16"})
    assert accuracy(predictions) > 0.75


@pytest.mark.parametrize("parameters", ["full", "lora", "prefix", "head"])
@pytest.mark.parametrize("model", ["roberta", "opt"])
@pytest.mark.parametrize("method", ["backprop", "mezo"])
def test_only_what_is_named_is_trained(made, model, parameters, method):
    spec = arm(
        made, method, model, recipe={"num_train_steps": 2, "eval_steps": 0, "select": "last"}, parameters=parameters
    )
    problem = make_problem(spec, load_task(spec["task"], spec["data"]), "cpu", seed=1)
    trained = {name for name, _ in problem.trainable()}
    base = {name for name, _ in problem.model.named_parameters() if name not in trained}
    assert trained and (parameters == "full") == (not base)
    marks = {"full": "", "lora": "lora_", "prefix": "prefix_", "head": "head"}
    adapters = [name for name in trained if marks[parameters] in name]
    assert adapters
    predictions, _ = run(made, spec)
    assert len(predictions) == 80


def test_choices_and_questions_run_through_their_own_objectives(made):
    choices = arm(made, model="opt", task="causes")
    questions = arm(made, model="opt", task="questions")
    predictions, _ = run(made, choices, questions)
    assert accuracy(predictions[predictions["variant"].str.contains("causes")]) > 0.5
    answered = predictions[predictions["variant"].str.contains("questions")]
    assert answered["label"].eq(-1).all() and answered["text"].map(bool).any()
    by_f1 = arm(made, "mezo", "opt", "questions", {"num_train_steps": 2, "eval_steps": 1}, objective="f1")
    predictions, history = run(made, by_f1)
    assert history["dev_score"].between(0, 1).all()


def test_the_accuracy_objective_has_steps_of_one_row(made):
    spec = arm(made, "mezo", objective="accuracy")
    data = load_task(spec["task"], spec["data"])
    problem = make_problem(spec, data, "cpu", seed=1)
    rows = problem.encode(data.test.iloc[:16])
    value = problem.objective(rows)
    assert value * 16 == pytest.approx(round(value * 16))


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_the_log_of_a_job_rebuilds_the_weights_that_it_tested(made, tmp_path, parameters):
    spec = arm(made, "mezo", recipe={"learning_rate": [1e-2, 1e-3], "eval_steps": 10}, parameters=parameters)
    predictions, history = run(made, spec, trajectories=tmp_path)
    data, selected = load_task(spec["task"], spec["data"]), history[history["selected"]].iloc[0]
    problem = make_problem(spec, data, "cpu", seed=1)
    (path,) = tmp_path.iterdir()
    assert read_log(path).header["learning_rate"] == selected["learning_rate"]
    replay(path, problem.model, num_steps=int(selected["step"]))
    found = problem.predict(problem.encode(data.test))
    assert np.array_equal(found.scores, np.stack(predictions["scores"]).astype(np.float32))


def test_mezo_follows_every_key_of_its_recipe_or_refuses_it(made):
    adam = {"num_train_steps": 2, "eval_steps": 1, "optimizer": "adam"}
    plain, _ = run(made, arm(made, "mezo", recipe=adam))
    other, _ = run(made, arm(made, "mezo", recipe=adam | {"adam_betas": [0.1, 0.2]}))
    assert np.stack(plain["scores"]).tolist() != np.stack(other["scores"]).tolist()
    with pytest.raises(InputError, match="warmup_steps"):
        run(made, arm(made, "mezo", recipe={"warmup_steps": 5}), folder="warm")


def test_texts_whose_letters_the_tokenizer_would_drop_are_refused(made, tmp_path):
    folder = tmp_path / "menus"
    shutil.copytree(made / "last", folder)
    rows = pd.read_parquet(folder / "test.parquet")
    rows["text"] = rows["text"] + " 漢"
    rows.to_parquet(folder / "test.parquet")
    with pytest.raises(InputError, match="data.menus.*漢"):
        run(made, arm(made) | {"data": str(folder)}, folder="foreign")


def test_selection_does_not_see_test_labels(made, tmp_path):
    """With other test labels the same rate, step and predictions come out."""
    copy = tmp_path / "last"
    copy.mkdir()
    for path in (made / "last").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    flipped = load_split(copy, "test").assign(label=lambda rows: 1 - rows["label"])
    flipped.to_parquet(copy / "test.parquet")
    spec = arm(made, recipe={"learning_rate": [1e-3, 3e-3]})
    plain, history = run(made, spec)
    other, other_history = run(made, {**spec, "data": str(copy)})
    pd.testing.assert_frame_equal(history, other_history)
    assert plain["prediction"].tolist() == other["prediction"].tolist()
    assert plain["label"].tolist() != other["label"].tolist()


def test_the_best_step_is_tested_and_later_training_does_not_touch_it(made):
    long = arm(made, recipe={"num_train_steps": 60, "learning_rate": [3e-2]})
    predictions, history = run(made, long)
    step = int(history.loc[history["selected"], "step"].iloc[0])
    assert history.loc[history["selected"], "dev_score"].iloc[0] == history["dev_score"].max()
    # A constant rate makes the first steps of a shorter run those of the longer one.
    recipe = {"learning_rate": [3e-2], "lr_scheduler_type": "constant", "select": "last"}
    best_of_constant, history = run(made, arm(made, recipe=recipe | {"select": "best_dev"}))
    step = int(history.loc[history["selected"], "step"].iloc[0])
    stopped, _ = run(made, arm(made, recipe=recipe | {"num_train_steps": step}))
    assert best_of_constant["prediction"].tolist() == stopped["prediction"].tolist()


def test_finished_arms_are_kept_and_those_of_another_run_are_not(made):
    class Stop(Exception):
        pass

    calls = []

    def stops_in_the_second_arm(problem, rows, recipe, watch, **options):
        calls.append(watch.folder.parent.name)
        if len(calls) == 2:
            raise Stop
        finetune_backprop(problem, rows, recipe, watch, **options)

    arms = [arm(made), arm(made, prompt=False)]
    options = {"device": "cpu", "state_dir": made / "kept", "progress": iter, "count": lambda **work: None}
    with pytest.raises(Stop):
        run_job({"seed": 1, "arms": arms}, stops_in_the_second_arm, identity="x", **options)
    calls.clear()
    run_job(
        {"seed": 1, "arms": arms},
        lambda *a, **k: (calls.append(1), finetune_backprop(*a, **k)),
        identity="x",
        **options,
    )
    assert len(calls) == 1 and not (made / "kept").exists()
    calls.clear()
    with pytest.raises(Stop):
        run_job({"seed": 1, "arms": arms}, stops_in_the_second_arm, identity="x", **options)
    calls.clear()
    run_job(
        {"seed": 1, "arms": arms},
        lambda *a, **k: (calls.append(1), finetune_backprop(*a, **k)),
        identity="y",
        **options,
    )
    assert len(calls) == 2


def test_a_rate_that_diverges_is_never_chosen_and_one_model_is_held_at_a_time(made):
    held = []

    def method(problem, rows, recipe, watch, **options):
        held.append(weakref.ref(problem))
        assert sum(one() is not None for one in held) == 1
        finetune_backprop(problem, rows, recipe, watch, **options)
        if recipe["learning_rate"] == 5e-3:
            watch.scores = dict.fromkeys(watch.scores, math.nan)

    grid = arm(made, recipe={"learning_rate": [5e-3, 3e-3, 1e-3]})
    options = {"device": "cpu", "progress": iter, "count": lambda **work: None}
    predictions, history = run_job(
        {"seed": 1, "arms": [grid]}, method, state_dir=made / "held", identity="x", **options
    )
    chosen = history[history["selected"]].iloc[0]
    assert len(held) == 3 and chosen["learning_rate"] != 5e-3 and chosen["dev_score"] == history["dev_score"].max()
    alone, _ = run(made, arm(made, recipe={"learning_rate": [chosen["learning_rate"]]}), folder="alone")
    assert predictions["prediction"].tolist() == alone["prediction"].tolist()


def test_a_stopped_grid_goes_on_at_the_rate_where_it_was(made):
    calls = []

    def stops_at_the_second_rate(problem, rows, recipe, watch, **options):
        calls.append(recipe["learning_rate"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        finetune_backprop(problem, rows, recipe, watch, **options)

    spec = {"seed": 1, "arms": [arm(made, recipe={"learning_rate": [3e-3, 1e-3]})]}
    options = {
        "device": "cpu",
        "state_dir": made / "grid",
        "identity": "x",
        "progress": iter,
        "count": lambda **work: None,
    }
    with pytest.raises(KeyboardInterrupt):
        run_job(spec, stops_at_the_second_rate, **options)
    resumed, history = run_job(spec, stops_at_the_second_rate, **options)
    assert calls == [3e-3, 1e-3, 1e-3]
    whole, whole_history = run(made, *spec["arms"])
    pd.testing.assert_frame_equal(resumed, whole)
    pd.testing.assert_frame_equal(history, whole_history)


def test_batches_of_test_rows_are_bounded_in_rows_and_tokens():
    assert [len(batch) for batch in evaluation_batches([64] * 600)] == [256, 256, 88]
    batches = list(evaluation_batches([2000] * 100))
    assert sum(batches, []) == list(range(100)) and max(map(len, batches)) == 2**16 // 2000
    assert [len(batch) for batch in evaluation_batches([10**6, 10**6])] == [1, 1]


def test_prompting_arms(made):
    spec = {
        "seed": 1,
        "arms": [
            arm(made, "zero_shot", "opt"),
            arm(made, "calibrated", "opt"),
            arm(made, "icl", "opt", num_demonstrations=1),
            arm(made, "linear_probing", "opt"),
            arm(made, "linear_probing", "roberta"),
        ],
    }
    predictions, history = run_prompt_job(spec, "cpu")
    assert len(history) == 0
    assert len(predictions) == 5 * 80 and predictions["variant"].nunique() == 4
    probing = predictions[predictions["variant"].str.contains("linear_probing")]
    assert accuracy(probing) > 0.6
    calibrated = predictions[predictions["variant"].str.contains("calibrated")]
    assert 0.2 < calibrated["prediction"].mean() < 0.8


def test_demonstrations_are_drawn_as_in_the_official_code():
    rows = pd.DataFrame({"text": [f"row {number}" for number in range(50)], "label": 0})
    drawn = draw_demonstrations(rows, 3, 4, seed=0)
    expected = [rows["text"].iloc[mezo_subset(50, 4, seed)].tolist() for seed in icl_seeds(3)]
    assert [[row["text"] for row in each] for each in drawn] == expected
    assert draw_demonstrations(rows, 3, 4, seed=1) != drawn
    with pytest.raises(InputError, match="at most the 50"):
        draw_demonstrations(rows, 3, 51, seed=0)


def test_mezos_rule_for_opt_takes_demonstrations_from_all_training_rows(made, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "reclaim.prompted.draw_demonstrations", lambda train, n, *_: seen.append(len(train)) or [[]] * n
    )
    spec = arm(made, "icl", "opt", num_demonstrations=1)
    run_prompt_job({"seed": 1, "arms": [spec]}, "cpu")
    spec["task"] = spec["task"] | {"few_shot": {"sampling": "subset", "size": 30, "dev": 10}}
    run_prompt_job({"seed": 1, "arms": [spec]}, "cpu")
    assert seen == [64, 200]


def test_mean_loss_is_the_objective(made):
    spec = arm(made, "mezo")
    data = load_task(spec["task"], spec["data"])
    problem = make_problem(spec, data, "cpu", seed=1)
    few_shot = next(few_shot_sets(spec["task"], data, 1))
    rows = problem.encode(few_shot.train.iloc[:8])
    with torch.no_grad():
        total, count = problem.loss(rows)
        assert float(problem.objective(rows)) == pytest.approx(float(total) / count)
        one_by_one = np.mean([float(problem.objective([row])) for row in rows])
    assert float(total) / count == pytest.approx(one_by_one, abs=1e-5)
