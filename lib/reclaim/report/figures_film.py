"""Figures of FILM's attack (Gupta et al., "Recovering Private Text in Federated Learning of Language Models", NeurIPS 2022).

The paper's own figures were read off the plot in its repository's README (first version of the paper; within 0.01, 0.02 at
batch size 1): best sentence of a batch, F measure, mean of 20 batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from reclaim.report.accuracy import HOW, mean_text
from reclaim.report.figures import (
    Curve,
    Exhibit,
    Panel,
    Series,
    curve_plot,
    line_plot,
)
from reclaim.report.figures_film_defences import defence_exhibits
from reclaim.report.figures_film_examples import KEY, SEARCHES, STAGES, examples, stage_place
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

EXPERIMENTS = ("attack", "tied", "wikitext", "enron")
HEADS = ("untied", "tied")
PAPER = {
    "the paper, Enron": {1: 0.70, 2: 0.48, 4: 0.44, 8: 0.42, 16: 0.33, 32: 0.33, 64: 0.33, 128: 0.32},
    "the paper, WikiText-103": {1: 0.54, 2: 0.44, 4: 0.37, 8: 0.31, 16: 0.27, 32: 0.25, 64: 0.26, 128: 0.27},
}
ARMS = {
    ("recovered", "official"): "official search",
    ("recovered", "per_start"): "beam per start token",
    ("oracle", "official"): "official search, true bag",
    ("oracle", "per_start"): "beam per start token, true bag",
    ("recovered", "official_no_ban"): "official search, no n-gram ban",
    ("recovered", "official_trigrams"): "official search, trigrams banned",
    ("recovered", "official_one_group"): "official search, one group",
    ("recovered", "official_eight_groups"): "official search, eight groups",
    ("oracle", "official_counts"): "official search, true counts",
    ("vocabulary", "official"): "prior only",
    ("recovered", "random_words"): "random words of the bag",
    ("recovered", "random_sentence"): "random words, framed as a sentence",
    ("oracle", "random_order"): "true words, random order",
}
# In the plot; with a head of its own the bag that is read is the true one.
DRAWN = (("recovered", "official"), ("oracle", "official"), ("vocabulary", "official"), ("recovered", "random_words"))
LOG2 = "log₂ of the batch size (0: one sentence, 7: 128)"


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order: the attack, then the defences."""
    return [*_attack_exhibits(tables), *defence_exhibits(tables)]


def _attack_exhibits(tables: SystemTables) -> list[Exhibit]:
    scores = _records(tables, "rouge_L")
    if not scores:
        return [Exhibit("batch-sizes", "Recovery against batch size", missing="the attack was not chosen")]
    excess = _records(tables, "excess_rouge_L")
    return [
        examples(_records(tables, "example")),
        _batch_sizes(where(scores, pick="top1")),
        _excess(where(excess, pick="top1")),
        _epochs(where(excess, pick="top1"), _records(tables, "epochs")),
        _searches(tables),
        _iteration(tables),
        _reordering(where(scores, search="reordered", pick="top1")),
        _tied(_records(tables, "bag_f1")),
        _everything(tables),
        _losses(tables),
    ]


def _records(tables: SystemTables, metric: str) -> list[Record]:
    return [_named(record) for experiment in EXPERIMENTS for record in tables.metric(experiment, metric)]


def _named(record: Record) -> Record:
    """A model of the world goes by its head, another one by its name and the client's text."""
    name, data = record.keys["model"], record.keys["data"]
    return replace(record, keys={**record.keys, "model": f"{name} head" if name in HEADS else f"{name}, {data}"})


def _models(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by model, those with a head of their own first."""
    groups = group(records, lambda record: record.keys["model"])
    return dict(sorted(groups.items(), key=lambda item: item[1][0].keys["tied"]))


def _stages(records: Iterable[Record]) -> list[str]:
    found = {record.keys["stage"] for record in records}
    return [stage for stage in STAGES if stage in found] + sorted(found - set(STAGES))


def _line(label: str, records: Iterable[Record]) -> Series:
    sizes = group(records, lambda record: record.keys["batch_size"])
    return Series(label, {math.log2(size): by_seed(sizes[size]) for size in sorted(sizes)})


def _plot(key: str, title: str, panels: Sequence[Panel], xlabel: str, caption: str, name: str) -> Exhibit:
    panels = [panel for panel in panels if panel.series]
    if not panels:
        return Exhibit(key, title, missing="not in this run")
    sizes = xlabel == LOG2
    rows = [
        (panel.title, line.label, f"{2**x if sizes else x:g}", mean_text(values.values(), 2), str(len(values)))
        for panel in panels
        for line in panel.series
        for x, values in line.values.items()
    ]
    ticks = sorted({x for panel in panels for line in panel.series for x in line.values})
    return Exhibit(
        key=key,
        title=title,
        caption=f"{HOW} {caption}",
        svg=line_plot(f"{KEY}-{key}", panels, xlabel, xticks=ticks),
        alt=f"{title}: " + "; ".join(f"{row[0]}, {row[1]}, at {row[2]}: {row[3]}" for row in rows) + ".",
        columns=("panel", "line", "batch size" if sizes else xlabel, f"{name} [95 % interval]", "seeds"),
        rows=rows,
    )


# ------------------------------------------------------------------------------------------------------------- the figures


def _batch_sizes(records: Sequence[Record]) -> Exhibit:
    """Raw ROUGE-L of attack and controls, with the paper's own."""
    panels = []
    for model, found in _models(records).items():
        for stage in _stages(found):
            drawn = [arm for arm in DRAWN if arm[0] != "oracle" or found[0].keys["tied"]]
            lines = [_line(ARMS[arm], where(found, stage=stage, bag=arm[0], search=arm[1])) for arm in drawn]
            lines = [line for line in lines if line.values]
            if stage == "public":
                lines += [
                    Series(label, {math.log2(size): {0: value} for size, value in values.items()})
                    for label, values in PAPER.items()
                ]
            panels.append(Panel(f"{model}, {STAGES.get(stage, stage)}", "ROUGE-L", lines))
    return _plot(
        "batch-sizes",
        "Recovery against batch size",
        panels,
        LOG2,
        "The first answer of each search against the best-matching sentence of the batch. The maximum over a batch "
        "rises with its size whatever the text: compare with the prior alone, which never saw a gradient. The paper "
        "attacked GPT-2 after fine-tuning, on other text.",
        "ROUGE-L",
    )


def _excess(records: Sequence[Record]) -> Exhibit:
    panels = []
    for model, found in _models(where(records, bag="recovered")).items():
        for search, label in SEARCHES.items():
            lines = [
                _line(STAGES.get(stage, stage), where(found, search=search, stage=stage)) for stage in _stages(found)
            ]
            lines = [line for line in lines if line.values]
            panels.append(Panel(f"{model}, {label}", "excess ROUGE-L", lines, [("no leak", 0.0)] if lines else []))
    return _plot(
        "excess",
        "What is recovered beyond a decoy batch",
        panels,
        LOG2,
        "ROUGE-L against the true batch less that against as many sentences of the same client, trained on just as "
        "long.",
        "excess ROUGE-L",
    )


def _epochs(records: Sequence[Record], epochs: Sequence[Record]) -> Exhibit:
    panels = []
    for model, found in _models(where(records, bag="recovered", search="official")).items():
        at = {record.keys["stage"]: record.value for record in where(epochs, model=model)}
        lines = []
        for size, of_size in sorted(group(found, lambda record: record.keys["batch_size"]).items()):
            stages = group(of_size, lambda record: record.keys["stage"])
            values = {at[stage]: by_seed(stages[stage]) for stage in sorted(stages, key=at.__getitem__)}
            lines.append(Series(f"batches of {size}", values))
        panels.append(Panel(model, "excess ROUGE-L", lines, [("no leak", 0.0)]))
    return _plot(
        "epochs",
        "Recovery against the epochs of the client's training",
        panels,
        "epochs",
        "Official search. With a tied head the signal of a word shrinks as its prediction improves, so that text "
        "known by heart can leak less.",
        "excess ROUGE-L",
    )


def _searches(tables: SystemTables) -> Exhibit:
    """The two searches: first answer, and best of eight, which no attacker can choose."""
    columns = [("rouge_L", "top1"), ("rouge_L", "oracle8"), ("exact", "top1"), ("exact", "oracle8")]
    found = [where(_records(tables, metric), pick=pick, bag="recovered") for metric, pick in columns]
    keys = ("model", "stage", "batch_size", "search")
    cells = [group(records, lambda record: tuple(record.keys[key] for key in keys)) for records in found]
    rows = [
        (cell[0], cell[1], str(cell[2]), SEARCHES[cell[3]], *(mean_text(by_seed(c[cell]).values(), 2) for c in cells))
        for cell in sorted(cells[0], key=lambda cell: (cell[0], stage_place(cell[1]), cell[2], cell[3]))
        if cell[3] in SEARCHES
    ]
    return Exhibit(
        key="searches",
        title="The official search and a beam for each start token",
        caption=(
            "First answer and best of eight apart: which of eight is best only the truth can say. The official "
            "search gives as many answers as it has groups. Means over seeds with 95 % intervals."
        ),
        columns=("model", "stage", "batch size", "search", "ROUGE-L, first", "best of 8", "exact, first", "best of 8"),
        rows=rows,
    )


def _iteration(tables: SystemTables) -> Exhibit:
    panels = []
    for model, found in _models(where(_records(tables, "coverage"), search="iterated", pick="all")).items():
        decoys = where(_records(tables, "decoy_coverage"), search="iterated", pick="all", model=model)
        lines = []
        for records, name in ((found, ""), (decoys, ", decoys")):
            for size, of_size in sorted(group(records, lambda record: record.keys["batch_size"]).items()):
                counts = group(of_size, lambda record: float(record.keys["repetitions"]))
                lines.append(Series(f"batches of {size}{name}", {x: by_seed(counts[x]) for x in sorted(counts)}))
        panels.append(Panel(model, "share with ROUGE-L ≥ 0.6", lines))
    return _plot(
        "iteration",
        "Several sentences by repetition",
        panels,
        "repetitions",
        "Each repetition of the official search is forbidden the word pairs of the ones before.",
        "share of the batch's sentences",
    )


def _reordering(records: Sequence[Record]) -> Exhibit:
    names = {"off": "none", "perplexity": "perplexity", "gradient": "perplexity + gradient norm"}
    starts = {"beam": "what the search found", "random_order": "true words, random order"}
    cells = group(records, lambda record: tuple(record.keys[key] for key in ("model", "stage", "start", "reorder")))
    order = sorted(cells, key=lambda cell: (cell[0], stage_place(cell[1]), cell[2], list(names).index(cell[3])))
    rows = [
        (model, stage, starts[start], names[how], mean_text(by_seed(cells[model, stage, start, how]).values(), 2))
        for model, stage, start, how in order
    ]
    return Exhibit(
        key="reordering",
        title="Reordering",
        caption=(
            "Sentences before and after the official two-stage reordering, scored by perplexity with and without the "
            "gradient norm. Means over seeds with 95 % intervals."
        ),
        columns=("model", "stage", "from", "score", "ROUGE-L"),
        rows=rows,
        missing="" if rows else "reordering was not chosen",
    )


def _tied(records: Sequence[Record]) -> Exhibit:
    panels = []
    for model, found in _models(record for record in records if record.keys["tied"]).items():
        for stage in _stages(found):
            rules = group(where(found, stage=stage, targets=1.0), lambda record: record.keys["rule"])
            lines = [_line(rule, rules[rule]) for rule in sorted(rules)]
            panels.append(Panel(f"{model}, {STAGES.get(stage, stage)}", "F1", lines))
    return _plot(
        "tied",
        "Rules that read the bag of words under a tied head",
        panels,
        LOG2,
        "scaled-k: row norms above k H / N (H the mean norm of hidden states, N the number of targets); starts: also "
        "the start tokens that stand out among start tokens; gap: the largest gap of the sorted log-norms; "
        "log_norm-z: z standard deviations above the mean log-norm; size: the true size of the bag is given. A head "
        "of its own needs no rule: F1 is 1.",
        "F1 of the bag",
    )


def _everything(tables: SystemTables) -> Exhibit:
    metrics = (
        "rouge_1",
        "rouge_2",
        "rouge_L",
        "decoy_rouge_L",
        "excess_rouge_L",
        "entity_f1",
        "exact",
        "edit_distance",
    )
    keys = ("model", "stage", "batch_size", "bag", "search")
    found = [
        group(where(_records(tables, metric), pick="top1"), lambda record: tuple(record.keys[key] for key in keys))
        for metric in metrics
    ]
    cells = sorted(
        (cell for cell in found[2] if cell[3:] in ARMS),
        key=lambda cell: (cell[0], stage_place(cell[1]), cell[2], cell[3:]),
    )
    rows = [
        (*map(str, cell[:3]), ARMS[cell[3:]], *(mean_text(by_seed(part.get(cell, [])).values(), 2) for part in found))
        for cell in cells
    ]
    names = ("ROUGE-1", "ROUGE-2", "ROUGE-L", "decoys", "excess", "names (F1)", "exact", "edit distance")
    return Exhibit(
        key="everything",
        title="All scores of the first answer",
        caption=(
            "Best pair of a batch, mean over batches, then over seeds with 95 % intervals; names are found by a "
            "ruler over the data's places and weekdays; the edit distance is a share of the longer sentence."
        ),
        columns=("model", "stage", "batch size", "attack", *names),
        rows=rows,
    )


def _losses(tables: SystemTables) -> Exhibit:
    rows = []
    private, held_out = _records(tables, "private_loss"), _records(tables, "held_out_loss")
    for model, found in _models(private).items():
        for stage in _stages(found):
            others = where(held_out, model=model, stage=stage)
            texts = [mean_text(by_seed(part).values(), 2) for part in (where(found, stage=stage), others)]
            rows.append((model, STAGES.get(stage, stage), *texts))
    curves = []
    for experiment in EXPERIMENTS:
        points = [_named(record) for record in tables.curve("pretrain_loss", experiment)]
        for model, of_model in group(points, lambda record: record.keys["model"]).items():
            for run in group(of_model, lambda record: record.seed).values():
                steps = sorted((record.step, record.value) for record in run)
                curves.append(Curve(model, *zip(*steps, strict=True)))
    return Exhibit(
        key="losses",
        title="The models under attack",
        caption=(
            "Pre-training of the public model (nats a token), and its loss on the client's sentences and on others "
            "of their kind at each stage."
        ),
        svg=curve_plot(f"{KEY}-losses", curves, "step", "loss (nats a token)") if curves else "",
        alt="Loss on the client's sentences: " + "; ".join(f"{row[0]}, {row[1]}: {row[2]}" for row in rows) + ".",
        columns=("model", "stage", "client's sentences (nats)", "others of their kind (nats)"),
        rows=rows,
    )


SYSTEM = System(
    key=KEY,
    title="FILM: private text from the gradients of a client",
    citation=(
        "Gupta, Huang, Zhong, Gao, Li, Chen: Recovering Private Text in Federated Learning of Language Models. "
        "NeurIPS 2022."
    ),
    url="https://arxiv.org/abs/2205.08514",
    about=(
        "An eavesdropper holds the model and sees the gradient that a client sends for one step. Words are read from "
        "the rows of the word embeddings' gradient, a beam search under the same model makes a sentence of them, and "
        "repetition brings out more. Each seed draws the client's sentences, pre-trains the public model, which "
        "knows the words and none of the sentences, and fine-tunes it on them; batches are attacked before, early in "
        "and late in that training."
    ),
    limits=(
        "The paper's models and text: its GPT-2 was fine-tuned on WikiText-103 and Enron e-mails; here a model of "
        "two blocks knows some 1,200 coined words in four templates. Which effects there are can be compared, how "
        "large they are cannot.",
        "A head of its own makes the bag of words exact. GPT-2 has a tied one, where a threshold is needed that the "
        "paper does not name.",
        "Batches of 64 and 128 rest on two batches and one at each seed.",
    ),
    exhibits=exhibits,
)
