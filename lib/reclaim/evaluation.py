"""From predictions and pre-training records to metric rows; pure functions over tables."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd

from reclaim.metrics.classification import f1, matthews, pearson_spearman
from reclaim.metrics.qa import answer_f1
from reclaim.outcome import stretches
from reclaim.plan import checkpoint_variant
from reclaim.tables import variant_json
from reclaim.tasks import TaskData, few_shot_sets

LAST_STEPS = 20


def task_score(metric: str, rows: pd.DataFrame) -> float:
    """The figure of one training set's predictions under a metric."""
    if metric == "accuracy":
        return float((rows["prediction"] == rows["label"]).mean())
    if metric == "auc":
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(rows["label"], rows["scores"].map(lambda scores: scores[1] - scores[0])))
    if metric == "f1":
        return f1(rows["prediction"].to_numpy(), rows["label"].to_numpy()).value
    if metric == "matthews":
        return matthews(rows["prediction"].to_numpy(), rows["label"].to_numpy()).value
    if metric == "pearson_spearman":
        return pearson_spearman(rows["prediction"].to_numpy(), rows["label"].to_numpy()).value
    return float(np.mean([answer_f1(text, golds) for text, golds in zip(rows["text"], rows["answers"], strict=True)]))


def prediction_metrics(predictions: pd.DataFrame, metric: str) -> Iterable[dict]:
    """Metric rows of one run (variant and seed), each the mean over its training sets.

    The task's metric; beside F1 accuracy, as GLUE has both for MRPC and QQP; beside accuracy AUC where there are two classes.
    `predictions` has the columns set, item, label, prediction, scores (list of floats, one a class), text, answers.
    """
    wanted = [metric, "accuracy"] if metric == "f1" else [metric]
    if metric == "accuracy" and predictions["label"].nunique() == 2 and len(predictions["scores"].iloc[0]) == 2:
        wanted.append("auc")
    sets = [rows for _, rows in predictions.groupby("set", sort=True)]
    for name in wanted:
        value = float(np.mean([task_score(name, rows) for rows in sets]))
        yield {"metric": name, "value": value, "n": len(predictions), "unit": "fraction"}


def item_rows(predictions: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Each test row's own value (right or wrong, or its F1), averaged over a run's training sets."""
    if metric == "accuracy":
        values = (predictions["prediction"] == predictions["label"]).astype(float)
    elif metric == "qa_f1":
        values = pd.Series(
            [answer_f1(text, golds) for text, golds in zip(predictions["text"], predictions["answers"], strict=True)],
            index=predictions.index,
        )
    else:  # a metric of the whole set has no value for one row
        return pd.DataFrame(columns=["metric", "item", "value"])
    means = values.groupby(predictions["item"], sort=True).mean()
    return pd.DataFrame({"metric": metric, "item": means.index, "value": means.to_numpy()})


def history_metrics(history: pd.DataFrame) -> Iterable[dict]:
    """What selection chose in a run: its development score, step and learning rate, averaged over training sets."""
    chosen = history[history["selected"]]
    for metric, unit in (("dev_score", "fraction"), ("selected_step", "count"), ("selected_learning_rate", "1")):
        column = {"dev_score": "dev_score", "selected_step": "step", "selected_learning_rate": "learning_rate"}[metric]
        values = chosen[column].dropna()
        if len(values):
            yield {"metric": metric, "value": float(values.mean()), "n": len(values), "unit": unit}


def pretraining_metrics(checkpoint: dict, training: dict, reference_loss: dict[str, float]) -> Iterable[dict]:
    """Metric rows of one pre-training run: last loss and held-out loss (nats, at its own rate), the plateau it had to leave,
    work done.

    The learned share is (plateau - loss) / (plateau - reference loss at that rate): 0 for a model that knows word frequencies
    only, 1 for one as good as the reference runs. The plateau is the unigram entropy per predicted position.
    """
    if checkpoint["masking"]["scheme"] == "none":
        return
    loss = float(np.mean(training["loss"][-LAST_STEPS:]))
    rows = [
        ("pretrain_loss", loss, "nats"),
        ("unigram_entropy", training["unigram_entropy"], "nats"),
        ("predicted_tokens", training["predictions"], "count"),
        ("input_tokens", training["input_tokens"], "count"),
        ("forward_passes", training["forward_passes"], "count"),
    ]
    if training.get("held_out_loss") is not None:
        rows.append(("held_out_loss", training["held_out_loss"], "nats"))
    # The references are of plain masking: copied tokens, spans and further predictions make another task of it.
    masking = checkpoint["masking"]
    plain = masking["scheme"] == "uniform" and masking.get("replacement", "mask") == "mask"
    plain = plain and masking.get("prediction", masking["corruption"]) == masking["corruption"]
    reference = reference_loss.get(f"{masking['corruption']:g}") if plain else None
    if reference is not None:
        plateau = training["unigram_entropy"]
        rows.append(("learned_share", (plateau - loss) / (plateau - reference), "fraction"))
    for metric, value, unit in rows:
        yield {"metric": metric, "value": float(value), "n": len(training["loss"]), "unit": unit}


def naive_bayes_metrics(name: str, task: dict, data: TaskData, seeds: Iterable[int]) -> Iterable[dict]:
    """A bag-of-words control on the very training sets of each seed: multinomial naive Bayes, add 0.5.

    A pre-trained model that stays below it has learnt no more than a good bag of words.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    for seed in seeds:
        accuracies = []
        for few_shot in few_shot_sets(task, data, seed):
            vectorizer = CountVectorizer(token_pattern=r"\S+", lowercase=False)
            # The vocabulary is that of all training rows, as a language model's is; the counts are the set's own.
            assert data.train is not None  # the few-shot set has been drawn from it
            vectorizer.fit(data.train["text"])
            model = MultinomialNB(alpha=0.5).fit(vectorizer.transform(few_shot.train["text"]), few_shot.train["label"])
            accuracies.append(model.score(vectorizer.transform(data.test["text"]), data.test["label"]))
        yield {
            "variant": variant_json({"control": "naive_bayes", "task": name}),
            "seed": seed,
            "metric": "accuracy",
            "value": float(np.mean(accuracies)),
            "n": len(data.test) * len(accuracies),
            "unit": "fraction",
        }


def evaluate_experiment(spec: dict, predictions, histories, trainings: dict[str, dict], tasks: dict[str, TaskData]):
    """The outcome of one experiment (see `reclaim.outcome`): its metrics, items and curves.

    `predictions` and `histories` are the runs' tables put together, `trainings` the record of each checkpoint, `tasks` the
    data of each task (for the controls).
    """
    metrics: list[dict] = []
    items: list[pd.DataFrame] = []
    curves: list[pd.DataFrame] = []
    for (variant, seed), rows in predictions.groupby(["variant", "seed"], sort=True):
        metric = spec["tasks"][json.loads(variant)["task"]].get("metric", "accuracy")
        metrics += [{"variant": variant, "seed": seed, **row} for row in prediction_metrics(rows, metric)]
        items.append(item_rows(rows, metric).assign(variant=variant, seed=seed))
    for (variant, seed), rows in histories.groupby(["variant", "seed"], sort=True):
        metrics += [{"variant": variant, "seed": seed, **row} for row in history_metrics(rows)]
        best = rows[rows["learning_rate"].isin(rows.loc[rows["selected"], "learning_rate"])].dropna(
            subset=["dev_score"]
        )
        means = best.groupby("step", sort=True)["dev_score"].mean()
        curve = pd.DataFrame(
            {"step": means.index, "value": means.to_numpy(), "measure": "dev_score", "unit": "fraction"}
        )
        curves.append(curve.assign(variant=variant, seed=seed))
    for name, checkpoint in spec["checkpoints"].items():
        variant = variant_json({"model": checkpoint["model"], **checkpoint_variant(checkpoint)})
        training = trainings[name]
        rows = list(pretraining_metrics(checkpoint, training, spec["reference_loss"]))
        metrics += [{"variant": variant, "seed": checkpoint["seed"], **row} for row in rows]
        if rows:
            curve = pd.DataFrame(stretches(training["loss"]), columns=["step", "value"])
            curve = curve.astype({"step": "int64", "value": "float64"})
            curves.append(curve.assign(measure="pretrain_loss", unit="nats", variant=variant, seed=checkpoint["seed"]))
    if "naive_bayes" in spec["controls"]:
        seeds = sorted(predictions["seed"].unique().tolist())
        for name, data in tasks.items():
            if data.kind == "classification" and "few_shot" in spec["tasks"][name]:
                metrics += naive_bayes_metrics(name, spec["tasks"][name], data, seeds)
    return {
        "metrics": pd.DataFrame(metrics),
        "items": pd.concat(items, ignore_index=True),
        "curves": pd.concat(curves, ignore_index=True),
    }
