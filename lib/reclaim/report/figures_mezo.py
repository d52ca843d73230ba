"""Figures of MeZO (Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023).

The paper's accuracies drawn beside ours are those of RoBERTa-large with 512 examples a class, mean over five splits;
they are second-hand (not checked against the paper's text). The memory ratios are those of figure 2 of the official
README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from reclaim.report.accuracy import arms_exhibit, lines_exhibit, mean_text, rate_series
from reclaim.report.figures import Curve, Exhibit, Panel, Row, curve_plot, fixed, mean_interval, number, row_plot
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

KEY = "mezo"
# Accuracy in per cent by task and arm.
PAPER_ROBERTA = {
    "sst2": {"zero_shot": 79.0, "linear_probing": 91.3, "mezo": 93.3, "mezo accuracy": 92.7, "backprop": 93.9},
    "sst5": {"zero_shot": 35.5, "linear_probing": 51.7, "mezo": 53.2, "mezo accuracy": 48.9, "backprop": 55.9},
    "snli": {"zero_shot": 50.2, "linear_probing": 80.9, "mezo": 83.0, "mezo accuracy": 82.7, "backprop": 88.7},
    "mnli": {"zero_shot": 48.8, "linear_probing": 71.5, "mezo": 78.3, "backprop": 84.4},
    "rte": {"zero_shot": 51.4, "linear_probing": 73.1, "mezo": 78.6, "backprop": 82.7},
    "trec": {"zero_shot": 32.0, "linear_probing": 89.4, "mezo": 94.3, "mezo accuracy": 68.6, "backprop": 97.3},
}
# Peak memory of backprop fine-tuning over MeZO's, OPT on texts of MultiRC's length.
PAPER_MEMORY = {"OPT-1.3B": 7, "OPT-2.7B": 8, "OPT-6.7B": 11, "OPT-13B": 12, "OPT-30B": 11}
METHODS = {
    "zero_shot": "zero-shot",
    "calibrated": "zero-shot, calibrated",
    "icl": "in-context learning",
    "linear_probing": "linear probing",
    "mezo": "MeZO",
    "backprop": "backprop",
}
# An arm is named by its method and by what differs from the paper's main setting.
USUAL = (
    ("parameters", "full", "{}"),
    ("objective", "loss", "{} objective"),
    ("optimizer", "sgd", "{}"),
    ("directions", 1, "{} directions"),
    ("estimator", "spsa", "{}"),
    ("num_demonstrations", 32, "{} demonstrations"),
    ("labels", "true", "{} labels"),
)
MEMORY = {
    "inference": ("inference", 2),
    "mezo": ("MeZO", 0),
    "lora": ("backprop, LoRA", 3),
    "backprop": ("backprop", 1),
}


# Experiments whose arms are compared on one task and model, with what to look for.
COMPARISONS = {
    "methods": (
        "Test score by method",
        "At 16 examples a class the paper has 89.6 with the prompt and 51.9 without it.",
    ),
    "parameters": (
        "What is trained: all weights, adapters or the head",
        "The paper's best arms with LoRA and prefix tuning are as good as MeZO on all weights, on average over "
        "OPT-13B's tasks.",
    ),
    "estimators": (
        "Variants of the estimator and of the update",
        "The paper finds no consistent gain from any of them at equal numbers of forward passes.",
    ),
    "causal": (
        "Multiple choice, pairs and generated answers on a causal model",
        "The F1 objective cannot be differentiated; the paper's OPT-13B reaches an F1 of 78.5 by it on SQuAD, from 46.2.",
    ),
}
PAPER_CAPTION = (
    "A t interval knows no ceiling and may reach past 100 %. The open diamond is the paper's RoBERTa-large with 512 "
    "examples a class (second-hand), on the same task or, where the task is our own, on SST-2: compare the order of the "
    "arms, not the levels. "
)
METRICS = {"accuracy": "accuracy", "qa_f1": "F1"}


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    return [
        *_comparison(tables, "methods"),
        _learning(tables.curve("dev_score", "methods")),
        _composition(tables),
        _memory(tables.cost("memory", "peak_bytes"), tables.cost("memory", "step_s")),
        _log(tables),
        *(shown for name in ("parameters", "estimators", "causal") for shown in _comparison(tables, name)),
    ]


def _of_methods(records: Sequence[Record]) -> list[Record]:
    """Leave out controls, which have no method."""
    return [record for record in records if "method" in record.keys]


def _comparison(tables: SystemTables, experiment: str) -> list[Exhibit]:
    """Score of every arm of an experiment, one exhibit for each metric, task and model."""
    title, hint = COMPARISONS[experiment]
    shown = []
    for metric, score in METRICS.items():
        records = _of_methods(tables.metric(experiment, metric))
        groups = group(records, lambda record: tuple(str(record.keys.get(key, "?")) for key in ("task", "model")))
        for (task, model), found in groups.items():
            shown.append(
                arms_exhibit(
                    KEY,
                    f"{experiment}-{metric}-{task}-{model}",
                    f"{title} (task {task}, {model} model)",
                    _arms(found),
                    (PAPER_CAPTION if metric == "accuracy" else "") + hint,
                    score=score,
                    colour=lambda record: {"mezo": 0, "backprop": 1}.get(record.keys["method"], 2),
                    paper=_paper_accuracy if metric == "accuracy" else lambda _: math.nan,
                    paper_label="the paper (RoBERTa-large, k = 512)",
                )
            )
    return shown or [Exhibit(experiment, title, missing=f"the experiment `{experiment}` was not chosen")]


def _arm(record: Record) -> str:
    keys = record.keys
    parts = [METHODS.get(keys["method"], str(keys["method"]))]
    parts += [words.format(keys[key]) for key, usual, words in USUAL if keys.get(key, usual) != usual]
    if keys.get("scheme") == "none":
        parts.append("random initialisation")
    if keys.get("prompt") is False and keys["method"] in ("mezo", "backprop"):
        parts.append("no prompt")
    return ", ".join(parts)


def _arms(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group by arm in the order of `METHODS`; where an arm has several checkpoints or step counts, its label names
    them.
    """
    arms: dict[str, list[Record]] = {}
    for label, found in group(records, _arm).items():
        settings = group(found, lambda record: (record.keys.get("pretraining"), record.keys.get("steps")))
        several = [len({setting[place] for setting in settings}) > 1 for place in (0, 1)]
        for (checkpoint, steps), same in settings.items():
            name = (
                label
                + (f", checkpoint {checkpoint}" if several[0] else "")
                + (f", {steps} steps" if several[1] else "")
            )
            arms[name] = same
    order = list(METHODS)

    def place(label: str) -> tuple:
        method = arms[label][0].keys["method"]
        return order.index(method) if method in order else len(order), label.count(","), label

    return {label: arms[label] for label in sorted(arms, key=place)}


def _paper_accuracy(record: Record) -> float:
    """Give the paper's accuracy (%) for the same arm, or NaN; a task of our own stands beside SST-2."""
    names = {label: method for method, label in METHODS.items()} | {"MeZO, accuracy objective": "mezo accuracy"}
    task = str(record.keys.get("task", "")).lower().replace("-", "")
    return PAPER_ROBERTA.get(task, PAPER_ROBERTA["sst2"]).get(names.get(_arm(record), ""), math.nan)


def _learning(points: Sequence[Record]) -> Exhibit:
    """Accuracy on the development rows against step, for the learning rate that was selected."""
    title = "Accuracy on the development rows during fine-tuning"
    curves: dict[str, list[Curve]] = {}
    for label, found in _arms(
        [record for record in points if record.keys.get("method") in ("mezo", "backprop")]
    ).items():
        for run in group(found, lambda record: record.seed).values():
            steps = sorted((record.step, 100 * record.value) for record in run)
            curves.setdefault(label, []).append(Curve(label, *zip(*steps, strict=True)))
    if not curves:
        return Exhibit("learning", title, missing="no run was evaluated on development rows")
    rows = [
        (
            label,
            f"{mean_text(curve.values[0] for curve in same)} (step {same[0].steps[0]:g})",
            f"{mean_text(curve.values[-1] for curve in same)} (step {same[0].steps[-1]:g})",
            str(len(same)),
        )
        for label, same in curves.items()
    ]
    return Exhibit(
        key="learning",
        title=title,
        caption=(
            "Thin lines are single runs at the learning rate that was selected, thick lines the mean over seeds. A "
            "step of MeZO is two forward passes on one batch, a step of backprop one forward and one backward pass, "
            "so equal steps are not equal cost. The step is chosen on these rows, so the test accuracy is what "
            "counts. The paper trains RoBERTa-large for 100,000 steps of MeZO against 1,000 of backprop and states "
            "no values for a curve here."
        ),
        svg=curve_plot(
            f"{KEY}-learning", [curve for same in curves.values() for curve in same], "step", "dev accuracy (%)"
        ),
        alt="Mean dev accuracy in per cent from the first to the last evaluation: "
        + "; ".join(f"{row[0]}: {row[1]} to {row[2]}" for row in rows)
        + ".",
        columns=("arm", "first evaluation (%) [95 % interval]", "last evaluation (%) [95 % interval]", "runs"),
        rows=rows,
    )


def _composition(tables: SystemTables) -> Exhibit:
    """MeZO and backprop on checkpoints that were pre-trained at different masking rates."""
    title = "MeZO and backprop on checkpoints of different masking rates"
    accuracy = _of_methods(tables.metric("masking_rates", "accuracy"))
    accuracy = [record for record in accuracy if record.keys.get("corruption") is not None]
    if not accuracy:
        return Exhibit("masking-rates", title, missing="the experiment `masking_rates` was not chosen")
    methods = group(accuracy, lambda record: record.keys["method"])
    series = [
        rate_series(METHODS.get(method, str(method)), methods[method]) for method in sorted(methods, key=_method_place)
    ]
    panels = [Panel("After fine-tuning", "test accuracy (%)", series)]
    knows = rate_series("zero-shot AUC", where(tables.metric("masking_rates", "auc"), method="zero_shot"))
    if knows.values:
        limits = [("gate, lower end", 65.0), ("gate, upper end", 95.0)]
        panels.append(Panel("What the checkpoint knows before it", "AUC (%)", [knows], limits))
    return lines_exhibit(
        KEY,
        "masking-rates",
        title,
        panels,
        (
            "The two papers joined: checkpoints pre-trained at each masking rate, fine-tuned by each method. "
            "Neither paper has a number for this. The lower plot is the zero-shot AUC of the same checkpoints: "
            "outside 65 to 95 % there is nothing to adapt, or nothing left to learn, and a seed says little about "
            "MeZO."
        ),
        "method",
    )


def _method_place(method: str) -> int:
    return ("mezo", "backprop").index(method) if method in ("mezo", "backprop") else 2


def _memory(peaks: Sequence[Record], times: Sequence[Record]) -> Exhibit:
    """Peak memory above the loaded model, relative to inference on the same batch."""
    title = "Peak memory above the loaded model, relative to inference"
    rows, texts, table = [], [], []
    for model, records in group(peaks, lambda record: str(record.keys.get("model", "?"))).items():
        inference = by_seed(where(records, method="inference"))
        methods = group(records, lambda record: str(record.keys.get("method", "?")))
        for method in sorted(methods, key=lambda name: list(MEMORY).index(name) if name in MEMORY else len(MEMORY)):
            peak = by_seed(methods[method])
            ratios = [value / inference[seed] for seed, value in peak.items() if inference.get(seed, 0) > 0]
            step = mean_interval(by_seed(where(times, model=model, method=method)).values())[0]
            label, colour = MEMORY.get(method, (method, 4))
            paper = {"mezo": 1.0, "backprop": float(PAPER_MEMORY["OPT-13B"])}.get(method, math.nan)
            rows.append(Row(f"{label} ({model})", *mean_interval(ratios), points=ratios, paper=paper, colour=colour))
            mebibytes = number(mean_interval(peak.values())[0] / 2**20)
            texts.append(f"{mebibytes} MiB, {fixed(rows[-1].estimate, 2)}×")
            table.append(
                (rows[-1].label, mebibytes, mean_text(ratios, places=2), fixed(paper, 0), number(step), str(len(peak)))
            )
    if not rows:
        return Exhibit("memory", title, missing="the experiment `memory` was not chosen")
    quoted = ", ".join(f"{size} {ratio}×" for size, ratio in PAPER_MEMORY.items())
    return Exhibit(
        key="memory",
        title=title,
        caption=(
            "What one step needs beyond the loaded weights, over what evaluating the same batch needs: the bar is "
            "the mean over repeats (seeds), the marks on it are the repeats, the line is their 95 % t interval. The "
            "claim is that MeZO's bar ends at 1. The open diamonds are the paper's: MeZO as inference, and backprop "
            f"at 12 times MeZO for OPT-13B ({quoted}). Its ratios are of whole peaks with the weights in them, on "
            "its own GPUs: not the same quantity."
        ),
        svg=row_plot(
            f"{KEY}-memory",
            rows,
            "multiple of inference (×)",
            texts=texts,
            bars=True,
            paper_label="the paper (OPT-13B)",
        ),
        alt="Peak memory: "
        + "; ".join(f"{row.label} {text}" for row, text in zip(rows, texts, strict=True))
        + f". The paper's backprop over MeZO: {quoted}.",
        columns=(
            "what runs (model)",
            "peak (MiB)",
            "multiple of inference [95 % interval]",
            "the paper, OPT-13B",
            "a step (s)",
            "repeats",
        ),
        rows=table,
    )


def _log(tables: SystemTables) -> Exhibit:
    """The trajectory log, as a table."""
    title = "The log of seeds and projected gradients"
    rows = []
    for metric, what, unit, paper in (
        ("log_bytes", "size of the log", " bytes", "less than 0.1 MB (100,000 bytes) for 20,000 steps"),
        ("max_abs_difference", "largest difference of a rebuilt weight", "", "0: the log stands for the checkpoint"),
    ):
        records = tables.metric("trajectory", metric)
        for steps, found in group(records, lambda record: record.keys.get("num_steps", "?")).items():
            low, high = (f"{end(record.value for record in found):,.7g}{unit}" for end in (min, max))
            rows.append((what, f"{steps:,} steps", low if low == high else f"{low} to {high}", paper, str(len(found))))
    if not rows:
        return Exhibit("trajectory", title, missing="the experiment `trajectory` was not chosen")
    return Exhibit(
        key="trajectory",
        title=title,
        caption=(
            "Lowest to highest over the seeds. The log holds one number a step; with the base weights it rebuilds the "
            "fine-tuned ones. The paper's checkpoints of OPT-66B are 38 MB with LoRA and 12 MB with prefix tuning "
            "(second-hand)."
        ),
        columns=("what", "run", "this run", "the paper", "seeds"),
        rows=rows,
    )


SYSTEM = System(
    key="mezo",
    title="MeZO: fine-tuning with forward passes only",
    citation="Malladi, Gao, Nichani, Damian, Lee, Chen, Arora: Fine-Tuning Language Models with Just Forward Passes. "
    "NeurIPS 2023.",
    url="https://arxiv.org/abs/2305.17333",
    about=(
        "A pre-trained model is fine-tuned by two forward passes a step: the weights are moved along a random "
        "direction and back, and the difference of the losses scales an update along it. It is compared with "
        "prompting alone, and with backprop on the same rows. Seeds are those of pre-training, and arms are "
        "compared within a seed."
    ),
    limits=(
        "Whether MeZO holds up beyond the largest model of the run, up to the paper's 66 billion parameters.",
        "The paper's ratios of GPU memory and GPU hours, where the run has no GPU: resident memory stands in for them.",
    ),
    exhibits=exhibits,
)
