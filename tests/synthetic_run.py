"""A made-up run for the tests of the report: every table it reads, with the variants that the chain writes."""

from functools import cache

import numpy as np
import pandas as pd

from reclaim import tables
from reclaim.claims import decide
from reclaim.claims_yaml import Check, Claim

SEEDS = {"mlm_masking": (101, 102, 103, 104), "mezo": (11, 12, 13, 14)}
RATES = {0.15: 0.699, 0.4: 0.702, 0.8: 0.715}
MEMORY = (("inference", 1.0, 0.2), ("mezo", 1.02, 0.5), ("lora", 2.1, 0.5), ("backprop", 5.4, 0.7))
METHODS = (
    ({"method": "zero_shot"}, "polarity", 0.56, 0.08),
    ({"method": "calibrated"}, "polarity", 0.72, 0.05),
    ({"method": "mezo"}, "polarity", 0.985, 0.008),
    ({"method": "mezo", "labels": "shuffled"}, "polarity", 0.51, 0.03),
    ({"method": "mezo", "prompt": False}, "polarity", 0.96, 0.04),
    ({"method": "mezo", "objective": "accuracy"}, "polarity", 0.86, 0.16),
    ({"method": "mezo"}, "random", 0.58, 0.07),
    ({"method": "backprop"}, "polarity", 0.998, 0.001),
    ({"method": "backprop"}, "random", 0.996, 0.002),
)


def _rates_variant(rate):
    base = {"model": "medium", "recipe": "long", "scheme": "none" if rate is None else "uniform"}
    return base if rate is None else base | {"corruption": rate, "prediction": rate, "replacement": "mask"}


def _mezo_variant(arm, pretraining, corruption=0.3):
    checkpoint = {"model": "polarity", "recipe": "polarity", "pretraining": pretraining}
    if pretraining == "random":
        checkpoint["scheme"] = "none"
    else:
        checkpoint |= {"scheme": "uniform", "corruption": corruption, "prediction": corruption, "replacement": "mask"}
    variant = checkpoint | {"task": "last", "prompt": True} | arm
    if arm["method"] in ("mezo", "backprop"):
        variant = {
            "parameters": "full",
            "objective": "loss",
            "steps": 500 if arm["method"] == "mezo" else 200,
        } | variant
    if arm["method"] == "mezo":
        variant = {"optimizer": "sgd", "directions": 1, "estimator": "spsa"} | variant
    return variant


def make_metrics():
    """Metric rows of both systems."""
    rng, rows = np.random.default_rng(0), []

    def add(paper, experiment, variant, seed, metric, value, unit="fraction", n=1000):
        rows.append(
            dict(
                paper=paper,
                experiment=experiment,
                variant=variant,
                seed=seed,
                metric=metric,
                value=float(value),
                n=n,
                unit=unit,
            )
        )

    for seed in SEEDS["mlm_masking"]:
        task = {
            "task": "topics",
            "method": "backprop",
            "prompt": False,
            "parameters": "full",
            "objective": "loss",
            "steps": 80,
        }
        add("mlm_masking", "rates", _rates_variant(None) | task, seed, "accuracy", 0.42 + 0.02 * rng.normal())
        add(
            "mlm_masking",
            "rates",
            {"control": "naive_bayes", "task": "topics"},
            seed,
            "accuracy",
            0.657 + 0.004 * rng.normal(),
        )
        for rate, mean in RATES.items():
            variant = _rates_variant(rate)
            add("mlm_masking", "rates", variant | task, seed, "accuracy", mean + 0.012 * rng.normal())
            add("mlm_masking", "rates", variant, seed, "pretrain_loss", 3.57 + 0.02 * rng.normal(), "nats")
            add("mlm_masking", "rates", variant, seed, "held_out_loss", 3.58 + 0.02 * rng.normal(), "nats")
            add("mlm_masking", "rates", variant, seed, "unigram_entropy", 4.303, "nats")
            add("mlm_masking", "rates", variant, seed, "learned_share", 0.97 + 0.02 * rng.normal())
            add("mlm_masking", "rates", variant, seed, "predicted_tokens", 2_048_000 * rate, "count")
            add("mlm_masking", "rates", variant, seed, "input_tokens", 2_048_000, "count")
            add("mlm_masking", "rates", variant, seed, "forward_passes", 1000, "count")
    for seed in SEEDS["mezo"]:
        for arm, pretraining, mean, sd in METHODS:
            value = np.clip(mean + sd * rng.normal(), 0, 1)
            add("mezo", "methods", _mezo_variant(arm, pretraining), seed, "accuracy", value)
        for corruption, shift in ((0.15, -0.03), (0.3, 0.0), (0.6, -0.09)):
            for method, mean in (("zero_shot", 0.55), ("mezo", 0.97), ("backprop", 0.998)):
                variant = _mezo_variant({"method": method}, f"uniform-{corruption:.2f}", corruption)
                value = mean + (shift if method == "mezo" else shift / 10) + 0.01 * rng.normal()
                add("mezo", "masking_rates", variant, seed, "accuracy", min(1, value))
                add("mezo", "masking_rates", variant, seed, "auc", 0.8 + shift + 0.04 * rng.normal())
    for seed in SEEDS["mezo"]:
        variant = {"num_steps": 20_000, "num_parameters": 1024}
        add("mezo", "trajectory", variant, seed, "log_bytes", 80_412, "bytes", n=1)
        add("mezo", "trajectory", variant, seed, "max_abs_difference", 0.0, "1", n=1)
        add("mezo", "trajectory", variant, seed, "max_abs_change", 3.0, "1", n=1)
    return tables.frame(rows, "metrics")


def make_costs():
    """Cost rows: three stages of four jobs, and the measured peaks."""
    rows = []
    for stage, cpu, wall, peak in (("data", 3, 3.4, 300), ("pretrain", 41, 44, 900), ("finetune", 12, 13.1, 700)):
        for seed in SEEDS["mlm_masking"]:
            for measure, value, unit in (
                ("cpu_s", cpu, "s"),
                ("wall_s", wall, "s"),
                ("peak_mem_bytes", peak * 2**20, "bytes"),
            ):
                rows.append(
                    dict(
                        paper="mlm_masking",
                        experiment="rates",
                        variant={},
                        seed=seed,
                        stage=stage,
                        job=f"{stage}.s{seed}",
                        measure=measure,
                        value=value,
                        unit=unit,
                    )
                )
    for seed in SEEDS["mezo"]:
        for method, factor, seconds in MEMORY:
            variant = {"model": "opt", "method": method, "batch_size": 16}
            key = dict(paper="mezo", experiment="memory", variant=variant, seed=seed, stage="memory", job="measured")
            peak = 50 * (factor + (0 if method == "inference" else (seed - 11) / 100)) * 2**20
            rows.append(key | dict(measure="peak_bytes", value=peak, unit="bytes"))
            rows.append(key | dict(measure="step_s", value=seconds, unit="s"))
    return tables.frame(rows, "costs")


def make_curves():
    """Pre-training losses and accuracies on development rows, one point each 10 or 50 steps."""
    rng, rows = np.random.default_rng(1), []

    def add(paper, experiment, variant, seed, steps, measure, values, unit):
        for step, value in zip(steps, values, strict=True):
            rows.append(
                dict(
                    paper=paper,
                    experiment=experiment,
                    variant=tables.variant_json(variant),
                    seed=seed,
                    step=int(step),
                    measure=measure,
                    value=float(value),
                    unit=unit,
                )
            )

    for seed in SEEDS["mlm_masking"]:
        for rate in RATES:
            steps = np.arange(10, 1001, 10)
            losses = 3.56 + 0.95 * np.exp(-steps / (120 + 250 * rate)) + 0.015 * rng.normal(size=len(steps))
            add("mlm_masking", "rates", _rates_variant(rate), seed, steps, "pretrain_loss", losses, "nats")
    for seed in SEEDS["mezo"]:
        for arm, pretraining, mean, sd in METHODS:
            if arm["method"] in ("mezo", "backprop"):
                steps = np.arange(0, 501 if arm["method"] == "mezo" else 201, 50)
                values = mean - (mean - 0.5) * np.exp(-steps / 120) + sd * rng.normal(size=len(steps))
                values = np.clip(values, 0, 1)
                add("mezo", "methods", _mezo_variant(arm, pretraining), seed, steps, "dev_score", values, "fraction")
    return pd.DataFrame(rows)


AT_15, AT_40, AT_80 = ({"corruption": rate, "task": "topics"} for rate in (0.15, 0.4, 0.8))
MEZO = {"method": "mezo", "pretraining": "polarity", "objective": "loss", "prompt": True, "labels": {"not": "shuffled"}}
MASKING = {
    "paper": "mlm_masking",
    "experiment": "rates",
    "metric": "accuracy",
    "source": "abstract",
    "differ_in": ("prediction",),
}
METHOD = {"paper": "mezo", "experiment": "methods", "metric": "accuracy", "source": "abstract"}
CLAIMS = (
    Claim(
        claim="T1-not-worse",
        headline=True,
        kind="not_inferior",
        margin=0.02,
        treatment=AT_40,
        baseline=AT_15,
        statement="A model pre-trained at a masking rate of 40 % is not worse after fine-tuning than one at 15 %.",
        paper_value="MNLI 84.5 at 40 %, 84.2 at 15 %",
        paper_estimate=0.003,
        **MASKING,
    ),
    Claim(
        claim="T1-better",
        kind="superior",
        treatment=AT_40,
        baseline=AT_15,
        statement="It is better.",
        paper_value="MNLI +0.3",
        paper_estimate=0.003,
        **MASKING,
    ),
    Claim(
        claim="T2",
        headline=True,
        kind="ratio",
        at_least=0.95,
        treatment=AT_80,
        baseline=AT_40,
        statement="A masking rate of 80 % keeps at least 95 % of the fine-tuning performance.",
        paper_value="MNLI 80.8 of 84.5, a ratio of 0.956",
        paper_estimate=0.956,
        scale_note="At this scale the rate of 80 % is late rather than worse: the training length decides.",
        **MASKING,
    ),
    Claim(
        claim="T3",
        kind="superior",
        treatment={"corruption": 0.8},
        baseline={"corruption": 0.4},
        margin=0.5,
        statement="The loss at the run's own rate rises steeply with the rate.",
        paper_value="perplexity 69.4 to 1141.4",
        paper_estimate=2.8,
        **(MASKING | {"metric": "pretrain_loss"}),
    ),
    Claim(
        claim="T4",
        kind="slope",
        overlay="overnight",
        over={"key": "model", "values": {"small": 1, "medium": 2}},
        treatment=AT_40,
        baseline=AT_15,
        statement="Larger models have a higher best masking rate.",
        paper_value="large 40 %, base and medium 20 %",
        **(MASKING | {"experiment": "sizes"}),
    ),
    Claim(
        claim="C2",
        headline=True,
        kind="superior",
        treatment=MEZO,
        paper_value="SST-2 93.3 against 79.0",
        baseline={"best_of": [{"method": "zero_shot"}, {"method": "calibrated"}]},
        paper_estimate=0.143,
        statement="MeZO beats zero-shot prompting, calibrated or not.",
        **METHOD,
    ),
    Claim(
        claim="C5",
        kind="superior",
        treatment={"method": "zero_shot"},
        baseline={"method": "backprop", "scheme": "uniform"},
        statement="A claim made up to be contradicted.",
        paper_value="qualitative",
        **METHOD,
    ),
    Claim(
        claim="C8",
        kind="superior",
        margin=0.1,
        treatment=MEZO,
        baseline={"method": "mezo", "pretraining": "random"},
        differ_in=("scheme",),
        statement="Pre-training is essential: the same budget leaves a random model near chance.",
        paper_value="qualitative",
        gates=(
            Check(
                name="zero-shot",
                metric="accuracy",
                experiment="methods",
                where={"method": "zero_shot"},
                between=(0.9, 1.0),
            ),
        ),
        **METHOD,
    ),
    Claim(
        claim="C9",
        kind="bound",
        at_most=100_000,
        min_seeds=1,
        resample="exact",
        treatment={"num_steps": 20_000},
        statement="The trajectory of 20,000 steps is stored in less than 0.1 MB.",
        paper_value="less than 0.1 MB",
        paper_estimate=100_000,
        **(METHOD | {"experiment": "trajectory", "metric": "log_bytes"}),
    ),
    Claim(
        claim="C11",
        not_testable="out of a CPU's reach",
        overlay="paper",
        paper="mezo",
        source="section 3.3",
        statement="MeZO scales to 66 billion parameters.",
        paper_value="OPT-66B: SST-2 93.6",
    ),
)


MANIFEST = {
    "overlay": "default",
    "git_commit": "0123456789abcdef",
    "started": "2025-01-02T03:04:05+00:00",
    "ended": "2025-01-02T03:09:15+00:00",
    "git_dirty": True,
    "machine": {"cpu": "Example CPU at 2.0 GHz", "cores": 2, "ram_bytes": 8 * 2**30, "gpus": []},
    "versions": {"python": "3.11.9", "torch": "2.13.0", "timm": None},
    "config": "overlay: default\nrun:\n  - mlm_masking/rates  # <b>not markup</b>\n",
}


@cache
def _frames():
    metrics, costs = make_metrics(), make_costs()
    return dict(claims=decide(CLAIMS, metrics, costs=costs), metrics=metrics, costs=costs, curves=make_curves())


def arguments():
    """The keyword arguments of `build_report`, without the template; the frames are the caller's own."""
    return {name: frame.copy() for name, frame in _frames().items()} | {"manifest": MANIFEST}
