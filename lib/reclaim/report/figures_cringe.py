"""Figures of the CRINGE loss (Adolphs et al., "The CRINGE Loss: Learning what language not to model", ACL 2023).

The paper's figures are second hand, from a public reading note, and stand in a table of their own: its shares are a
classifier's on replies of models of 400 million parameters and more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from reclaim.report.accuracy import HOW, mean_text
from reclaim.report.figures import (
    COLOURS,
    MARKERS,
    STYLE,
    WIDTH,
    Exhibit,
    Row,
    fixed,
    mean_interval,
    row_plot,
    to_svg,
)
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

KEY = "cringe"
TASKS = {
    "safety": "Safe generation",
    "contradiction": "Contradiction avoidance",
    "opendomain": "Open-domain dialogue",
    "variants": "Safe generation, variants",
    "wikitoxic": "Safe generation on real text",
    "wikitoxic_large": "Safe generation on real text, 3B",
    "decode": "Contradiction avoidance on real text",
    "fits": "Open-domain dialogue with real feedback",
}
FEEDBACK = ("opendomain", "fits")
"""Tasks whose F1 is that of replies to provoking prompts."""
PAPER = (
    ("safe generation", "baseline", "59.4", "15.9"),
    ("safe generation", "unlikelihood", "86.7", "16.5"),
    ("safe generation", "DIRECTOR", "95.2", "16.4"),
    ("safe generation", "CRINGE, one iteration", "94.5", "16.5"),
    ("safe generation", "CRINGE, two iterations", "99.9", "16.6"),
    ("contradiction avoidance", "baseline", "79.3", "18.0"),
    ("contradiction avoidance", "unlikelihood", "92.3", "18.0"),
    ("contradiction avoidance", "DIRECTOR", "94.7", "17.4"),
    ("contradiction avoidance", "CRINGE, one iteration", "95.3", "18.4"),
    ("contradiction avoidance", "CRINGE, two iterations", "96.5", "18.4"),
    ("open-domain dialogue", "baseline", "–", "14.9"),
    ("open-domain dialogue", "unlikelihood", "–", "17.5"),
    ("open-domain dialogue", "CRINGE, one iteration", "–", "17.8"),
    ("open-domain dialogue", "CRINGE, two iterations", "–", "17.8"),
)
"""Task, method, accepted share (%) and F1 of the paper, second hand."""
ITERATION = ("iteration", "arm")
GUARDS = {
    "well_formed": ("well-formed (%)", 100, 1),
    "classifier_accuracy": ("accepted by the evaluating judge (%)", 100, 1),
    "evaluator_agreement": ("its agreement with the rule (%)", 100, 1),
    "labeller_agreement": ("the labelling judge's (%)", 100, 1),
    "empty_share": ("empty (%)", 100, 1),
    "reply_length": ("words", 1, 1),
    "distinct_2": ("distinct pairs (%)", 100, 1),
    "reply_ppl": ("perplexity of replies (first model)", 1, 2),
    "token_accuracy_negative": ("bad tokens guessed, held out (%)", 100, 1),
    "benign_ppl": ("perplexity, benign", 1, 2),
    "provoking_ppl": ("perplexity, provoking", 1, 2),
}


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    found: list[Exhibit] = []
    for task, title in TASKS.items():
        if tables.metric(task, "bad_share"):
            found.append(_trade_off(tables, task, title))
            found.append(_bad_mass(tables, task, title))
            found.append(_iterating(tables, task, title))
            found.append(_guards(tables, task, title))
            found.append(_examples(tables.metric(task, "example"), task, title))
    if not found:
        return [Exhibit("trade-off", "Unwanted replies against F1", missing="no experiment of this study was chosen")]
    return [*found, _paper()]


def _label(key: tuple[int, str]) -> str:
    iteration, arm = key
    return arm if iteration == 0 else f"{arm}, iteration {iteration + 1}"


def _arms(records: Sequence[Record]) -> Mapping[tuple[int, str], list[Record]]:
    """Records by iteration and arm, in the order of iterations, and of arms in the spec."""
    groups = group(records, lambda record: tuple(record.keys[key] for key in ITERATION))
    places = {arm: i for i, arm in enumerate(dict.fromkeys(arm for _, arm in groups))}
    usual = ("plain", "positives", "unlikelihood", "director", "cringe")
    order = {arm: next((i for i, name in enumerate(usual) if arm.startswith(name)), len(usual)) for arm in places}
    return {key: groups[key] for key in sorted(groups, key=lambda key: (key[0], order[key[1]], places[key[1]]))}


def _trade_off(tables: SystemTables, task: str, title: str) -> Exhibit:
    """Share of unwanted replies against F1, one mark for each arm and iteration."""
    score = "f1_provoking" if task in FEEDBACK else "f1"
    shares, scores = _arms(tables.metric(task, "bad_share")), _arms(tables.metric(task, score))
    marks, rows = [], []
    for key in shares:
        if key not in scores:
            continue
        values = [list(by_seed(records[key], 100).values()) for records in (shares, scores)]
        marks.append((_label(key), *values, key))
        rows.append((key[1], str(key[0] + 1), *map(mean_text, values), str(len(values[0]))))
    what = "replies to provoking prompts" if task in FEEDBACK else "replies to benign prompts"
    return Exhibit(
        key=f"trade-off-{task}",
        title=f"{title}: unwanted replies against F1",
        caption=(
            f"Lower and to the right is better. Sampled replies to provoking prompts that the exact rule (on real text: the "
            f"evaluating judge) calls unwanted, against F1 of greedy {what} with the wanted ones. Bars are 95 % t intervals "
            "over seeds. A mark is a method; filled marks are of the first iteration, open ones of later ones."
        ),
        svg=_scatter(f"{KEY}-trade-off-{task}", marks),
        alt="Unwanted replies and F1 in per cent: "
        + "; ".join(f"{row[0]} in iteration {row[1]}: {row[2]} and {row[3]}" for row in rows)
        + ".",
        columns=("arm", "iteration", "unwanted replies (%) [95 % interval]", "F1 (%) [95 % interval]", "seeds"),
        rows=rows,
    )


def _scatter(key: str, marks: Sequence[tuple]) -> str:
    """Means with intervals in both directions; labels in the legend."""
    with matplotlib.rc_context(STYLE):
        arms = list(dict.fromkeys(mark[3][1] for mark in marks))
        figure = Figure(figsize=(WIDTH / 72, (260 + 8 * len(marks)) / 72), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for label, shares, scores, (iteration, arm) in marks:
            place = arms.index(arm)
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
            (x, left, right), (y, low, high) = mean_interval(scores), mean_interval(shares)
            if left < right < float("inf"):
                axes.plot([left, right], [y, y], color=colour, linewidth=1, alpha=0.6)
            if low < high < float("inf"):
                axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=0.6)
            face = colour if iteration == 0 else "white"
            axes.plot(
                x, y, marker, color=colour, markerfacecolor=face, markersize=8, mew=1.4, linestyle="none", label=label
            )
        axes.set_xlabel("F1 (%)")
        axes.set_ylabel("unwanted replies (%)")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
        return to_svg(figure, key)


def _bad_mass(tables: SystemTables, task: str, title: str) -> Exhibit:
    """Bad mass of every arm, and by group."""
    records = _arms(tables.metric(task, "bad_mass"))
    name = f"{title}: probability of unwanted words"
    if not records:
        return Exhibit(f"bad-mass-{task}", name, missing="no exact rule for real text")
    groups = [_arms(tables.metric(task, f"bad_mass_{letter}")) for letter in "ab"]
    rows, table = [], []
    for key, found in records.items():
        points = list(by_seed(found, 100).values())
        rows.append(Row(_label(key), *mean_interval(points), points=points, colour=min(key[0], 2)))
        parts = [mean_text(by_seed(part[key], 100).values()) if key in part else "–" for part in groups]
        table.append((key[1], str(key[0] + 1), mean_text(points), *parts, str(len(points))))
    return Exhibit(
        key=f"bad-mass-{task}",
        title=name,
        caption=(
            f"{HOW} The mean probability of all unwanted words where one could stand in clean replies. Labelled negatives are "
            "of group A only: what happens to group B has come by generated replies, or by itself. Colours are iterations."
        ),
        svg=row_plot(f"{KEY}-bad-mass-{task}", rows, "bad mass (%)", texts=[line[2] for line in table]),
        alt="Bad mass in per cent: " + "; ".join(f"{line[0]}, iteration {line[1]}: {line[2]}" for line in table) + ".",
        columns=("arm", "iteration", "bad mass (%) [95 % interval]", "group A", "group B", "seeds"),
        rows=table,
    )


def _iterating(tables: SystemTables, task: str, title: str) -> Exhibit:
    """What the second iteration brings, and how much of that filtered self-training brings alone."""
    name = f"{title}: what iterating brings"
    records = tables.metric(task, "bad_mass")
    base = by_seed(where(records, arm="more-steps", iteration=1), 100)
    labels = {
        "cringe": "good and bad generated replies",
        "self-training": "good ones alone, no contrast (self-training)",
        "new-positives": "good ones, contrast with old negatives",
    }
    gains = {}
    for arm in labels:
        found = by_seed(where(records, arm=arm, iteration=1), 100)
        if base and found.keys() == base.keys():
            gains[arm] = [base[seed] - found[seed] for seed in base]
    if "cringe" not in gains:
        return Exhibit(f"iterating-{task}", name, missing="its arms are not in this run")
    rows = [Row(labels[arm], *mean_interval(points), points=points) for arm, points in gains.items()]
    table = [(labels[arm], mean_text(points, 2), str(len(points))) for arm, points in gains.items()]
    share = ""
    whole = mean_interval(gains["cringe"])[0]
    if "self-training" in gains and whole > 0:
        explained = mean_interval(gains["self-training"])[0] / whole
        share = f" Filtered self-training alone explains {fixed(100 * explained, 0)} % of the gain (ratio of means)."
    return Exhibit(
        key=f"iterating-{task}",
        title=name,
        caption=f"{HOW} Points of bad mass below that of as many further steps without new data, paired by seed.{share}",
        svg=row_plot(
            f"{KEY}-iterating-{task}", rows, "points of bad mass gained", texts=[line[1] for line in table], zero=0.0
        ),
        alt="Points of bad mass gained: " + "; ".join(f"{line[0]}: {line[1]}" for line in table) + f".{share}",
        columns=("generated replies", "points gained [95 % interval]", "seeds"),
        rows=table,
    )


def _guards(tables: SystemTables, task: str, title: str) -> Exhibit:
    """What a low share of unwanted replies must not be bought with, and how far the judges can be trusted."""
    found = {metric: _arms(tables.metric(task, metric)) for metric in GUARDS}
    kept = {metric: arms for metric, arms in found.items() if arms}
    rows = []
    for key in _arms(tables.metric(task, "bad_share")):
        cells = []
        for metric, arms in kept.items():
            _, scale, places = GUARDS[metric]
            values = by_seed(arms[key], scale).values() if key in arms else []
            cells.append(fixed(mean_interval(values)[0], places) if values else "–")
        rows.append((key[1], str(key[0] + 1), *cells))
    return Exhibit(
        key=f"guards-{task}",
        title=f"{title}: fluency and judges",
        caption=(
            "Means over seeds. Replies to provoking prompts, but for the perplexities of clean replies and the share of tokens "
            "of labelled bad replies that are the model's likeliest. Fewer unwanted replies mean little where these fall or "
            "rise with them. The judge that labels generated replies and the one that "
            "evaluates have learnt from different rows."
        ),
        columns=("arm", "iteration", *(GUARDS[metric][0] for metric in kept)),
        rows=rows,
    )


def _examples(records: Sequence[Record], task: str, title: str) -> Exhibit:
    """Replies of every arm to the same prompts, of the first seed."""
    name = f"{title}: replies"
    if not records:
        return Exhibit(f"examples-{task}", name, missing="not in this run")
    seed = min(record.seed for record in records)
    rows = [
        (record.keys["prompt"], _label(key), record.keys["reply"] or "–", "unwanted" if record.value else "")
        for key, found in _arms([record for record in records if record.seed == seed]).items()
        for record in sorted(found, key=lambda record: record.keys["number"])
    ]
    prompts = list(dict.fromkeys(row[0] for row in rows))
    return Exhibit(
        key=f"examples-{task}",
        title=name,
        caption="Sampled replies to the first test prompts, by the same draws for all arms, at the first seed.",
        columns=("prompt", "arm", "reply", "by the rule (real text: the judge)"),
        rows=sorted(rows, key=lambda row: prompts.index(row[0])),
    )


def _paper() -> Exhibit:
    return Exhibit(
        key="paper",
        title="The paper's own figures (second hand)",
        caption=(
            "Accepted share (CA) by a safety or contradiction classifier, and F1 on ConvAI2, in per cent, as a public reading "
            "note quotes them; open-domain dialogue is FITS, a weighted mean over its splits. Other data, models and judges "
            "than ours: the directions can be compared, the numbers can not."
        ),
        columns=("task", "method", "accepted (%)", "F1 (%)"),
        rows=PAPER,
    )


SYSTEM = System(
    key=KEY,
    title="The CRINGE loss: learning what language not to model",
    citation="Adolphs, Gao, Xu, Shuster, Sukhbaatar, Weston: The CRINGE Loss: Learning what language not to model. ACL 2023.",
    url="https://arxiv.org/abs/2211.05826",
    about=(
        "A language model is trained on text that itself has unwanted replies, on replies labelled as good, and on replies "
        "labelled as bad: each token of those is contrasted with a token drawn from the model's own likeliest ones. Then it "
        "generates, a judge labels, and it trains on. All arms of a seed start from one model and see the same rows; the rule "
        "of the small language judges exactly, and bad mass is what it says without the noise of sampling."
    ),
    limits=(
        "A language of some 170 words and models of 0.1 million parameters: an existence proof of each effect under the stated "
        "conditions (unlabelled text that has the fault, labels for half of it), not the size of it in real dialogue.",
        "Contradiction avoidance and open-domain dialogue are tasks of our design after DECODE and FITS, not those data.",
        "Greedy replies share a tenth of their words with a reference here; F1 can show damage, hardly gains.",
        "By DIRECTOR's default only its head learns the labelled good replies, of which CRINGE's language model learns, too: "
        "what CRINGE has over the arm `director` comes with that. C4_positives is without the difference.",
        "The best of several samples by the same judge removes unwanted replies at the cost of several times the decoding; it "
        "is a baseline in the variants, not part of the paper.",
    ),
    exhibits=exhibits,
)
