"""Figures of masking rates in masked language modelling (Wettig et al., EACL 2023; arXiv 2202.08005).

The paper's numbers drawn beside ours are the development scores of its released large models (README of DinkyTrain).
Those of corruption and prediction rates, and the perplexities, are second-hand: they were not checked against the
paper's text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from reclaim.report.accuracy import (
    arms_exhibit,
    corruption,
    lines_exhibit,
    mean_text,
    rate_series,
    summary,
)
from reclaim.report.figures import (
    Curve,
    Exhibit,
    Panel,
    Series,
    curve_plot,
    fixed,
    mean_interval,
    percent,
)
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

KEY = "mlm-masking"
# Development accuracy in per cent of the paper's large model by masking rate (24 layers, 23,000 updates of 4,096 x 128
# tokens); QQP is left out because the source does not say whether it is F1.
PAPER_RATES = (0.15, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80)
PAPER_SCORES = {
    "MNLI": (84.2, 84.1, 84.2, 84.5, 84.1, 83.2, 82.3, 80.8),
    "QNLI": (90.9, 91.3, 91.6, 91.6, 91.1, 90.7, 89.4, 87.9),
    "SST-2": (93.3, 92.7, 93.0, 92.8, 92.7, 92.6, 91.9, 90.5),
}
# MNLI of the same model by (corruption, prediction) in per cent; second-hand.
PAPER_PAIRS = {(40, 40): 84.5, (40, 20): 83.7, (20, 20): 84.1, (20, 40): 85.7, (10, 40): 86.3, (5, 40): 86.4}
SCHEMES = {"uniform": "uniform", "whole_word": "whole word", "span": "span", "pmi": "PMI units"}
OVERNIGHT = "config/overnight.yaml runs it"


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    return [
        *_rates(tables.metric("rates", "accuracy")),
        _losses(tables),
        _spent(tables),
        _schemes(tables.metric("schemes", "accuracy")),
        _sizes(tables.metric("sizes", "accuracy")),
        _pairs(tables.metric("corruption_prediction", "accuracy")),
        _replacement(tables.metric("replacement", "accuracy")),
    ]


def _rates(accuracy: Sequence[Record]) -> list[Exhibit]:
    """Accuracy against masking rate, one exhibit for each task, model and recipe, the paper's curve below ours."""
    groups = group(
        filter(_is_plain, accuracy), lambda r: tuple(str(r.keys.get(k, "?")) for k in ("task", "model", "recipe"))
    )
    if not groups:
        return [
            Exhibit("rates", "Accuracy after fine-tuning, by masking rate", missing="no checkpoint at any masking rate")
        ]
    return [_rates_of(accuracy, records, *names) for names, records in groups.items()]


def _is_plain(record: Record) -> bool:
    """Whether an arm masks uniformly, replaces by the mask alone, and predicts all it corrupts."""
    keys = record.keys
    return (
        keys.get("scheme") == "uniform"
        and keys.get("replacement", "mask") == "mask"
        and keys.get("prediction", keys["corruption"]) == keys["corruption"]
    )


def _rates_of(accuracy: Sequence[Record], plain: Sequence[Record], task: str, model: str, recipe: str) -> Exhibit:
    controls = {
        "no pre-training": where(accuracy, scheme="none", task=task, model=model),
        "naive Bayes": where(accuracy, control="naive_bayes", task=task),
    }
    levels = {name: mean_interval(by_seed(found, 100).values())[0] for name, found in controls.items() if found}
    paper = [
        Series(name, {rate: {0: score} for rate, score in zip(PAPER_RATES, scores, strict=True)})
        for name, scores in PAPER_SCORES.items()
    ]
    panels = [
        Panel(
            f"This run: {task}, {model} model, {recipe} training",
            "test accuracy (%)",
            [rate_series("uniform masking", plain)],
            [(f"{name} {fixed(level, 1)}", level) for name, level in levels.items()],
        ),
        Panel("The paper: large model, one run a point", "dev accuracy (%)", paper),
    ]
    exhibit = lines_exhibit(
        KEY,
        f"rates-{task}-{model}-{recipe}",
        f"Accuracy after fine-tuning, by masking rate ({task}, {model}, {recipe})",
        panels,
        (
            "The levels named below it are the same fine-tuning without pre-training, and naive Bayes on the same "
            "labels: an arm has to lie above both to have learned more than a bag of words. The paper's curves are "
            "of other tasks and a far larger model, one value a point and no interval: compare the shapes, not the "
            "levels."
        ),
        alt=" The paper's MNLI accuracy: 84.2 at 15 %, 84.5 at 40 %, 80.8 at 80 %.",
    )
    rows = [summary(f"uniform {percent(r, 0)} %", found) for r, found in sorted(group(plain, corruption).items())]
    rows += [summary(name, found) for name, found in controls.items() if found]
    return _with_rows(exhibit, ("arm", "mean accuracy (%) [95 % interval]", "seeds", "by seed (%)"), rows)


def _with_rows(exhibit: Exhibit, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Exhibit:
    return Exhibit(exhibit.key, exhibit.title, exhibit.caption, exhibit.svg, exhibit.alt, columns, rows)


def _losses(tables: SystemTables) -> Exhibit:
    """Pre-training loss against step for each rate."""
    title = "Pre-training loss"
    points = tables.curve("pretrain_loss", "rates")
    name = _arm_of(points)
    runs = group(points, lambda record: (name(record), record.seed))
    if not runs:
        return Exhibit("losses", title, missing="no pre-training curve")
    curves: dict[str, list[Curve]] = {}
    for (label, _), records in sorted(runs.items(), key=lambda item: (corruption(item[1][0]), item[0])):
        ordered = sorted((record.step, record.value) for record in records)
        curves.setdefault(label, []).append(Curve(label, *zip(*ordered, strict=True)))
    entropy = by_seed(tables.metric("rates", "unigram_entropy")).values()
    plateau = mean_interval(entropy)[0]
    rows = [
        (label, mean_text((curve.values[-1] for curve in same), places=3), str(len(same)))
        for label, same in curves.items()
    ]
    return Exhibit(
        key="losses",
        title=title,
        caption=(
            "Thin lines are single runs, thick lines the mean over seeds. A run that stays at the unigram entropy "
            "has learned word frequencies only, and its claims turn invalid. Losses at different masking rates are "
            "different tasks: a lower line is not a better model. The paper's perplexities at the training rate, "
            "17.7 at 15 %, 69.4 at 40 % and 1141.4 at 80 % (second-hand), are losses of 2.87, 4.24 and 7.04 nats on "
            "its own corpus."
        ),
        svg=curve_plot(
            f"{KEY}-losses",
            [curve for same in curves.values() for curve in same],
            "step",
            "loss at the run's own rate (nats)",
            references=[(f"unigram entropy {fixed(plateau, 2)}", plateau)] if entropy else [],
        ),
        alt="Mean loss at the last logged step, in nats: " + "; ".join(f"{row[0]}: {row[1]}" for row in rows) + ".",
        columns=("arm", "loss at the last logged step (nats) [95 % interval]", "runs"),
        rows=rows,
    )


def _arm(record: Record) -> str:
    """Name a pre-training arm by scheme, rates and replacement, leaving out what is the default."""
    keys = record.keys
    rate, prediction = keys["corruption"], keys.get("prediction", keys["corruption"])
    parts = [SCHEMES.get(keys["scheme"], str(keys["scheme"])), f"{percent(rate, 0)} %"]
    if prediction != rate:
        parts.append(f"predicting {percent(prediction, 0)} %")
    if keys.get("replacement", "mask") != "mask":
        parts.append(str(keys["replacement"]))
    return " ".join(parts)


def _arm_of(records: Iterable[Record]) -> Callable[[Record], str]:
    """Give the function that names arms: with model and recipe where the records have several."""
    several = [key for key in ("model", "recipe") if len({record.keys.get(key) for record in records}) > 1]
    return lambda record: ", ".join([_arm(record), *(str(record.keys.get(key, "?")) for key in several)])


SPENT = {
    "input_tokens": ("input tokens", 0),
    "predicted_tokens": ("predicted tokens", 0),
    "forward_passes": ("forward passes", 0),
    "pretrain_loss": ("last loss (nats)", 3),
    "held_out_loss": ("held-out loss (nats)", 3),
    "learned_share": ("learned share", 2),
}


def _spent(tables: SystemTables) -> Exhibit:
    """What each arm was given and how far it trained, as a table."""
    title = "What each arm was given, and how far it trained"
    measured = {metric: tables.metric("rates", metric) for metric in SPENT}
    name = _arm_of([record for records in measured.values() for record in records])
    found = {metric: group(records, name) for metric, records in measured.items()}
    arms = {arm: corruption(records[0]) for groups in found.values() for arm, records in groups.items()}
    if not arms:
        return Exhibit("spent", title, missing="no pre-training run")
    rows = [
        (arm, *(_range(found[metric].get(arm, []), places) for metric, (_, places) in SPENT.items()))
        for arm in sorted(arms, key=lambda arm: (arms[arm], arm))
    ]
    return Exhibit(
        key="spent",
        title=title,
        caption=(
            "Lowest to highest over the seeds. Input tokens and updates have to be equal for a fair comparison at "
            "equal steps; predicted tokens are not, and forward passes grow where a text is copied to predict more "
            "than it corrupts. The held-out loss is that of the trained model on texts that it has not seen, masked at "
            "its own rate; its exponential is the perplexity. The learned share says how much of the way from the "
            "unigram entropy to the loss of converged runs a run has come; below 0.85 it has not converged and decides "
            "nothing."
        ),
        columns=("arm", *(label for label, _ in SPENT.values())),
        rows=rows,
    )


def _range(records: Sequence[Record], places: int) -> str:
    values = [record.value for record in records] or [math.nan]
    low, high = fixed(min(values), places), fixed(max(values), places)
    return low if low == high else f"{low} to {high}"


def _schemes(accuracy: Sequence[Record]) -> Exhibit:
    """Uniform, whole-word, span and PMI masking against the rate."""
    title = "Uniform, whole-word, span and PMI masking"
    found = group((record for record in accuracy if record.keys.get("scheme") in SCHEMES), lambda r: r.keys["scheme"])
    if not found:
        return Exhibit("schemes", title, missing=OVERNIGHT)
    series = [rate_series(label, found[scheme]) for scheme, label in SCHEMES.items() if scheme in found]
    caption = (
        "Read the slopes: the paper says that uniform masking needs a higher rate than span or PMI masking, so "
        "uniform should rise from 15 % to 40 % and the other two should not. The paper shows this in a figure, "
        "without numbers. Where every word is one token, as in the generated text, whole-word masking is uniform masking."
    )
    return lines_exhibit(KEY, "schemes", title, [Panel("This run", "test accuracy (%)", series)], caption, "scheme")


def _sizes(accuracy: Sequence[Record]) -> Exhibit:
    """Accuracy against rate for each model size."""
    title = "Masking rate and model size"
    found = group(filter(_is_plain, accuracy), lambda record: str(record.keys.get("model", "?")))
    if not found:
        return Exhibit("sizes", title, missing=OVERNIGHT)
    series = [rate_series(model, records) for model, records in found.items()]
    caption = (
        "Read where each line is highest. The paper's best rate is 40 % for its large model (354M parameters) and "
        "20 % for base (124M) and medium (51M), second-hand."
    )
    return lines_exhibit(KEY, "sizes", title, [Panel("This run", "test accuracy (%)", series)], caption, "model")


def _pairs(accuracy: Sequence[Record]) -> Exhibit:
    """Corruption and prediction rate taken apart."""
    title = "Corruption rate and prediction rate, taken apart"
    found = group(
        where(accuracy, scheme="uniform"), lambda r: (corruption(r), float(r.keys.get("prediction", corruption(r))))
    )
    if not found:
        return Exhibit("pairs", title, missing=OVERNIGHT)
    arms = {f"corrupt {percent(c, 0)} %, predict {percent(p, 0)} %": found[c, p] for c, p in sorted(found)}
    quoted = ", ".join(f"{score} at {c}/{p}" for (c, p), score in PAPER_PAIRS.items())
    return arms_exhibit(
        KEY,
        "pairs",
        title,
        arms,
        "The paper says that more corruption hurts and more prediction helps: compare rows that share one of the two "
        f"rates. The paper's MNLI accuracy by corruption and prediction in % (second-hand): {quoted}.",
    )


def _replacement(accuracy: Sequence[Record]) -> Exhibit:
    """Mask only against 80-10-10."""
    title = "Mask only against 80-10-10"
    found = group(
        where(accuracy, scheme="uniform"),
        lambda record: f"{percent(corruption(record), 0)} %, {record.keys.get('replacement', 'mask')}",
    )
    if not found:
        return Exhibit("replacement", title, missing=OVERNIGHT)
    return arms_exhibit(
        KEY,
        "replacement",
        title,
        dict(sorted(found.items())),
        "80-10-10 keeps a tenth of the chosen tokens and replaces a tenth by random ones. The paper's MNLI "
        "accuracy: mask only 84.2 at 15 % and 84.5 at 40 %, 80-10-10 83.7 and 84.3.",
    )


SYSTEM = System(
    key="mlm_masking",
    title="Masking rates in masked language modelling",
    citation="Wettig, Gao, Zhong, Chen: Should You Mask 15% in Masked Language Modeling? EACL 2023.",
    url="https://arxiv.org/abs/2202.08005",
    about=(
        "Encoders of one architecture are pre-trained on the same texts for the same number of steps at different "
        "masking rates, and fine-tuned on the same labels. A seed fixes initial weights, order of texts and masks "
        "of all arms, so arms are compared within a seed."
    ),
    limits=(
        "Which rate is best, where only two or three were run: a maximum has to lie inside the range of rates.",
        "Rates at equal compute: arms have equal steps and texts, and a higher rate predicts more tokens a step.",
        "How scores grow with pre-training: only its end is fine-tuned.",
        "What the encoders know of language: the paper's linguistic probing is not repeated.",
    ),
    exhibits=exhibits,
)
