"""Figures of FILM's defences and of the cross-paper questions; `figures_film` shows them behind those of the attack.

The paper's own tables of defences were not at hand; its plot has gradient matching as a line, which is drawn beside ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from reclaim.report.accuracy import HOW, mean_text
from reclaim.report.figures import Exhibit, Panel, Row, Series, fixed, line_plot, mean_interval, number, row_plot
from reclaim.report.system import Record, SystemTables, by_seed, group, where

# The world's client, and GPT-2 on the paper's texts in the paper overlay.
EXPERIMENTS = {"defences": "", "wikitext_defences": ", GPT-2 on WikiText-103", "enron_defences": ", GPT-2 on Enron"}
# Names of the defences, and of what their strength is.
DEFENCES = {
    "none": ("none", ""),
    "prune": ("pruning", "p"),
    "dp": ("DP-SGD", "σ"),
    "freeze": ("frozen embeddings", ""),
    "lora": ("LoRA", "r"),
    "mezo": ("MeZO", "scalars"),
}
ATTACKERS = {"film": "FILM as published", "strongest": "the reading made for the defence"}
RIVALS = {"film": "FILM", "strongest": "FILM, better search", "lamp": "LAMP", "tag": "TAG", "dlg": "DLG"}
# ROUGE-L at one sentence from the plot of the authors' repository (WikiText-103), gradient matching as one line for all.
PAPER_ROUGE_L = {"film": 54.0, "dlg": 15.0}


def defence_exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows of the defences, in order."""
    chosen = [name for name in EXPERIMENTS if tables.metric(name, "gain_kept")]
    if not chosen:
        return [Exhibit("defences", "Attack against utility", missing="the experiment `defences` was not chosen")]
    shown = [figure(tables, name) for name in chosen for figure in FIGURES]
    return [exhibit for exhibit in shown if exhibit is not None]


def _key(experiment: str, figure: str) -> str:
    return figure if experiment == "defences" else f"{figure}-{experiment}"


def _name(keys: dict) -> str:
    """A defence with its strength, as `pruning, p 0.99`."""
    name, unit = DEFENCES[keys["defence"]]
    return f"{name}, {unit} {keys['strength']:g}" if unit else name


def _arm(record: Record) -> tuple:
    return record.keys["defence"], record.keys["strength"]


# ------------------------------------------------------------------------------------------------------ attack and utility


def _attack_against_utility(tables: SystemTables, experiment: str) -> Exhibit:
    """Every strength of every defence: what is still read against what is still learned."""
    found = group(tables.metric(experiment, "gain_kept"), _arm)
    order = sorted(found, key=lambda arm: (list(DEFENCES).index(arm[0]), arm[1]))
    gains = {arm: by_seed(found[arm], 100) for arm in order}
    metrics = {
        metric: [
            record
            for record in tables.metric(experiment, metric)
            if record.keys["attacker"] in ATTACKERS
            and "input_ratio" not in record.keys
            and "comparison" not in record.keys
        ]
        for metric in ("excess_rouge_L", "rouge_L", "bag_f1")
    }
    panels = []
    for attacker, title in ATTACKERS.items():
        read = where(metrics["excess_rouge_L"], attacker=attacker)
        series = []
        for defence in dict.fromkeys(name for name, _ in gains):
            arms = group(where(read, defence=defence), _arm)
            points = {mean_interval(gains[arm].values())[0]: by_seed(arms[arm], 100) for arm in arms}
            series.append(Series(DEFENCES[defence][0], {x: points[x] for x in sorted(points)}))
        panels.append(Panel(title, "points beyond a decoy", series, [("nothing read", 0.0)]))
    rows = []
    for arm, gain in gains.items():
        keys = {"defence": arm[0], "strength": arm[1]}
        cells = [
            mean_text(by_seed(where(metrics[metric], attacker=attacker, **keys), 100).values())
            for attacker in ATTACKERS
            for metric in ("bag_f1", "rouge_L", "excess_rouge_L")
        ]
        spent = by_seed(where(tables.metric(experiment, "epsilon"), **keys))
        perplexity = by_seed(where(tables.metric(experiment, "perplexity"), **keys))
        last = (mean_text(perplexity.values()), number(mean_interval(spent.values())[0]), str(len(gain)))
        rows.append((_name(keys), mean_text(gain.values()), *cells, *last))
    return Exhibit(
        key=_key(experiment, "defences"),
        title="Attack against utility, for each defence and strength" + EXPERIMENTS[experiment],
        caption=(
            f"{HOW} To the right: what of the fall of the held-out loss, under no defence, a client keeps that trains under "
            "the defence on text of another kind. Upwards: ROUGE-L of the sentence written, beyond that against as many "
            "sentences that were trained on too, but not in the batch. A line joins the strengths of one defence. Above, "
            "FILM reads the gradient of the word embeddings with its threshold, or has the whole vocabulary where none is "
            "sent; below, the attacker knows the size of the bag, or uses the span test, or averages scalars, and searches "
            "better. Four sentences a batch. DP-SGD: norm clipped to 1; its epsilon is at delta = 1 / sentences."
        ),
        svg=line_plot(f"film-{_key(experiment, 'defences')}", panels, "gain of training kept (%)"),
        alt="Gain kept, then ROUGE-L beyond a decoy of FILM and of the strongest attacker, in per cent: "
        + "; ".join(f"{row[0]}: {row[1]}, {row[4]}, {row[7]}" for row in rows)
        + ".",
        columns=(
            "defence",
            "gain kept (%) [95 % interval]",
            "FILM: F1 of the bag (%)",
            "ROUGE-L (%)",
            "beyond a decoy",
            "strongest: F1 of the bag (%)",
            "ROUGE-L (%)",
            "beyond a decoy",
            "perplexity, held out",
            "epsilon",
            "seeds",
        ),
        rows=rows,
    )


# ------------------------------------------------------------------------------------------------------------ switch-over


def _span(tables: SystemTables, experiment: str) -> Exhibit | None:
    """The span test around N = width, and what the whole vocabulary scores."""
    records = [record for record in tables.metric(experiment, "bag_f1") if "input_ratio" in record.keys]
    if not records:
        return None
    lines = []
    for (defence, strength), found in group(records, _arm).items():
        label = f"LoRA, r = {strength:g}" if defence == "lora" else f"frozen, d = {found[0].keys['width']}"
        for attacker, suffix in (("strongest", ""), ("whole_vocabulary", ": whole vocabulary")):
            by_ratio = group(where(found, attacker=attacker), lambda record: float(record.keys["input_ratio"]))
            lines.append(Series(label + suffix, {x: by_seed(by_ratio[x], 100) for x in sorted(by_ratio)}))
    return _lines(
        experiment,
        "span",
        "Words read without embeddings, around N = width",
        lines,
        "different inputs N / width of the span",
        "The span test on the gradient of the first attention layer. N counts different (word, position) pairs with a "
        "target; the width is that of the model, or LoRA's r. Below it the test can be exact; where the span fills the "
        "space, every word passes. Of single sentences with frozen embeddings, "
        f"{_exact(tables, experiment)} % came out word by word.",
    )


def _exact(tables: SystemTables, experiment: str) -> str:
    found = [
        record
        for record in tables.metric(experiment, "exact_match")
        if record.keys["defence"] == "freeze" and record.keys.get("search") == "none"
    ]
    return mean_text(by_seed(found, 100).values(), 0)


def _scalars(tables: SystemTables, experiment: str) -> Exhibit | None:
    """The mean of K scalars: bags by K and size of the batch."""
    records = [record for record in tables.metric(experiment, "bag_f1") if "num_scalars" in record.keys]
    if not records:
        return None
    needed = group(tables.metric(experiment, "scalars_needed"), lambda record: record.keys["batch_size"])
    lines, rules = [], []
    for size, found in group(records, lambda record: record.keys["batch_size"]).items():
        drawn = group(where(found, source="law"), lambda record: math.log10(record.keys["num_scalars"]))
        lines.append(Series(f"{size} a batch", {x: by_seed(drawn[x], 100) for x in sorted(drawn)}))
        sent = group(where(found, source="messages"), lambda record: math.log10(record.keys["num_scalars"]))
        lines.append(Series(f"{size} a batch, really sent", {x: by_seed(sent[x], 100) for x in sorted(sent)}))
        rules.append(f"{number(mean_interval(by_seed(needed[size]).values())[0])} for {size} a batch")
    return _lines(
        experiment,
        "scalars",
        "Words read from many scalars of one batch",
        lines,
        "log10 of the number of scalars K",
        "F1 of the bag (its size given) from the mean of K scalars of a MeZO client at fixed weights. Large K are drawn from "
        "the distribution of that mean, small ones sent as well. The rule of thumb d (gradient norm / row norm)^2 is "
        f"{' and '.join(rules)}.",
    )


def _lines(experiment: str, key: str, title: str, lines: Sequence[Series], xlabel: str, caption: str) -> Exhibit:
    rows = [
        (line.label, f"{x:.3g}", mean_text(values.values()), str(len(values)))
        for line in lines
        for x, values in line.values.items()
    ]
    return Exhibit(
        key=_key(experiment, key),
        title=title + EXPERIMENTS[experiment],
        caption=f"{HOW} {caption}",
        svg=line_plot(f"film-{_key(experiment, key)}", [Panel("", "F1 of the bag (%)", lines)], xlabel),
        alt="F1 of the bag in per cent: " + "; ".join(f"{row[0]} at {row[1]}: {row[2]}" for row in rows) + ".",
        columns=("attack", xlabel, "F1 of the bag (%) [95 % interval]", "seeds"),
        rows=rows,
    )


def _candidates(tables: SystemTables, experiment: str) -> Exhibit | None:
    """How often one scalar picks the true sentence."""
    picked = group(tables.metric(experiment, "picked"), lambda record: record.keys["candidates"])
    chance = group(tables.metric(experiment, "chance"), lambda record: record.keys["candidates"])
    if not picked:
        return None
    names = {"sentences": "other sentences of its kind", "one_word": "the sentence with another word at one place"}
    rows = [
        (
            names[kind],
            mean_text(by_seed(found, 100).values(), 0),
            fixed(mean_interval(by_seed(chance[kind], 100).values())[0], 1),
            str(len(by_seed(found))),
        )
        for kind, found in picked.items()
    ]
    return Exhibit(
        key=_key(experiment, "candidates"),
        title="A choice among candidates by one scalar" + EXPERIMENTS[experiment],
        caption=(
            "A MeZO client sends one scalar for a batch of one sentence; whoever has a list of candidates computes the scalar "
            "of each under the same seed. What hides from reconstruction does not hide from guessing."
        ),
        columns=("candidates beside the true sentence", "picked (%) [95 % interval]", "by chance (%)", "seeds"),
        rows=rows,
    )


def _rivals(tables: SystemTables, experiment: str) -> Exhibit | None:
    """FILM and gradient matching on the same single sentences."""
    found = group(
        where(tables.metric(experiment, "rouge_L"), comparison="rivals"), lambda record: record.keys["attacker"]
    )
    if not found:
        return None
    rows, table = [], []
    for attacker in (name for name in RIVALS if name in found):
        points = list(by_seed(found[attacker], 100).values())
        paper = PAPER_ROUGE_L.get(attacker, math.nan)
        rows.append(Row(RIVALS[attacker], *mean_interval(points), points=points, paper=paper))
        table.append((RIVALS[attacker], mean_text(points), str(len(points)), fixed(paper, 0)))
    return Exhibit(
        key=_key(experiment, "rivals"),
        title="FILM and gradient matching from one sentence" + EXPERIMENTS[experiment],
        caption=(
            f"{HOW} The paper's figures are read off its repository's plot (WikiText-103, GPT-2; gradient matching is one "
            "line there). Gradient matching has fewer steps here than in its papers."
        ),
        svg=row_plot(
            f"film-{_key(experiment, 'rivals')}",
            rows,
            "ROUGE-L (%)",
            texts=[line[1] for line in table],
            paper_label="read off the paper's plot",
        ),
        alt="Mean ROUGE-L in per cent: " + "; ".join(f"{line[0]}: {line[1]}" for line in table) + ".",
        columns=("attack", "ROUGE-L (%) [95 % interval]", "seeds", "the paper (%)"),
        rows=table,
    )


FIGURES = (_attack_against_utility, _span, _scalars, _candidates, _rivals)
