"""Figures of the in-context study (Pan et al., "What In-Context Learning 'Learns' In-Context", Findings of ACL 2023).

The paper's tables were not at hand, so nothing of the paper is drawn beside ours. Task recognition (TR) is accuracy with
RANDOM labels above chance, task learning (TL) that with ABSTRACT labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from reclaim.report.accuracy import HOW, arms_exhibit, mean_text
from reclaim.report.figures import Curve, Exhibit, Panel, Series, curve_plot, fixed, line_plot, mean_interval
from reclaim.report.system import Record, System, SystemTables, by_seed, group, seeds_text, where

KEY = "icl"
# Those of the paper overlay too; `copies` hold the data sets that are downloaded by hand.
EXPERIMENTS = ("settings", "opt", "llama", "pythia", "largest", "opt_copies", "llama_copies", "pythia_copies")
SETTINGS = {"gold": "GOLD", "random": "RANDOM (TR)", "abstract": "ABSTRACT (TL)"}
CONTROLS = {
    "permuted": "RANDOM, permuted",
    "wrong": "RANDOM, wrong only",
    "flipped": "GOLD, swapped",
    "abstract_shuffled": "ABSTRACT, shuffled",
}
SCORERS = {
    "word": "whole word",
    "word_mean": "mean of its tokens",
    "word_calibrated": "calibrated",
    "official_last": "last token",
}
SPACES = {"number": "numbers", "letter": "letters", "symbol": "symbols"}
# The template that a setting has in the study; a cell with the other one is a control.
USUAL_TEMPLATE = {"gold": "natural", "random": "natural", "abstract": "minimal"}


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    above = _records(tables, "above_chance")
    if not above:
        return [Exhibit("curves", "Accuracy against demonstrations", missing="no experiment of this study was chosen")]
    return [
        _curves(_usual(above)),
        _label_spaces(_usual(above)),
        *_data_sets(_usual(_records(tables, "normalised_accuracy"))),
        *_scorers(tables),
        _controls(_records(tables, "accuracy")),
        _models(tables),
        _pretraining(tables.curve("pretrain_loss", "settings")),
        _cells(tables),
    ]


def _records(tables: SystemTables, metric: str, scorer: str = "word") -> list[Record]:
    return [record for record in _all_records(tables, metric) if record.keys.get("scorer", scorer) == scorer]


def _all_records(tables: SystemTables, metric: str) -> list[Record]:
    return [record for experiment in EXPERIMENTS for record in tables.metric(experiment, metric)]


def _usual(records: Iterable[Record]) -> list[Record]:
    """The cells of the study itself, without controls."""
    return [
        record
        for record in where(records, draws="paired", fixed_map=False)
        if USUAL_TEMPLATE.get(record.keys["setting"]) == record.keys["template_kind"]
        and "control" not in record.keys["family"]
    ]


def _models_in_order(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Group by model, family by family, the smallest of a family first and the largest last."""
    places = {"smallest": 0, "largest": 2}
    groups = group(records, lambda record: (record.keys["family"], record.keys["model"], record.keys["size"]))
    ordered = sorted(groups, key=lambda key: (key[0], places.get(key[2], 1)))
    return {model: groups[family, model, size] for family, model, size in ordered}


def _line(label: str, records: Sequence[Record]) -> Series:
    by_number = group(records, lambda record: float(record.keys["num_demonstrations"]))
    return Series(label, {x: by_seed(by_number[x], 100) for x in sorted(by_number)})


def _lines(key: str, title: str, panels: Sequence[Panel], caption: str) -> Exhibit:
    rows = [
        (panel.title, line.label, f"{x:g}", mean_text(values.values()), str(len(values)))
        for panel in panels
        for line in panel.series
        for x, values in line.values.items()
    ]
    numbers = sorted({x for panel in panels for line in panel.series for x in line.values})
    return Exhibit(
        key=key,
        title=title,
        caption=f"{HOW} {caption}",
        svg=line_plot(f"{KEY}-{key}", panels, "demonstrations", xticks=numbers),
        alt="Points above chance: "
        + "; ".join(f"{row[0]}, {row[1]}, {row[2]} demonstrations: {row[3]}" for row in rows)
        + ".",
        columns=("model", "labels", "demonstrations", "points above chance [95 % interval]", "seeds"),
        rows=rows,
    )


def _curves(records: Sequence[Record]) -> Exhibit:
    """Accuracy above chance against demonstrations: a panel for each model, a line for each setting."""
    panels = []
    for model, found in _models_in_order(records).items():
        lines = [_line(label, where(found, setting=setting)) for setting, label in SETTINGS.items()]
        panels.append(Panel(model, "points above chance", [line for line in lines if line.values], [("chance", 0.0)]))
    return _lines(
        "curves",
        "Task recognition and task learning against demonstrations",
        panels,
        "RANDOM labels leave only recognition of the task, ABSTRACT ones only learning; numbers, letters and symbols are "
        "averaged. The paper states that RANDOM is flat in both directions, and that ABSTRACT rises with demonstrations in "
        "large models.",
    )


def _label_spaces(records: Sequence[Record]) -> Exhibit:
    """ABSTRACT by kind of made-up label."""
    panels = []
    for model, found in _models_in_order(where(records, setting="abstract")).items():
        lines = [_line(label, where(found, label_space=space)) for space, label in SPACES.items()]
        panels.append(Panel(model, "points above chance", [line for line in lines if line.values], [("chance", 0.0)]))
    return _lines(
        "label-spaces",
        "Task learning by kind of made-up label",
        panels,
        "Every space is shown, so that none is chosen for its figures.",
    )


def _data_sets(records: Sequence[Record]) -> list[Exhibit]:
    """Every data set by itself at the most demonstrations, where there are several, and how far they lie apart."""
    if len({record.keys["data_set"] for record in records}) < 2:
        return []
    most = max(record.keys["num_demonstrations"] for record in records)
    rows = []
    for model, found in _models_in_order(where(records, num_demonstrations=most)).items():
        for name, own in sorted(group(found, lambda record: record.keys["data_set"]).items()):
            cells = (_mean(where(own, setting=setting), 1, 100) for setting in SETTINGS)
            rows.append((model, name, own[0].keys["group"], *cells))
        spreads = (_spread(where(found, setting=setting)) for setting in SETTINGS)
        rows.append((model, "standard deviation over data sets and templates", "", *spreads))
    return [
        Exhibit(
            key="data-sets",
            title=f"Data sets apart, at {most} demonstrations",
            caption="Normalised accuracy in per cent (0 is chance), means over templates, kinds of made-up labels and seeds. "
            "Intervals of curves and claims are over seeds alone; how far data sets and templates lie apart is said here.",
            columns=("model", "data set", "type", "GOLD", "RANDOM", "ABSTRACT"),
            rows=rows,
        )
    ]


def _spread(records: Sequence[Record]) -> str:
    """Standard deviation in per cent over data sets x templates, each the mean of its records."""
    cells = group(records, lambda record: (record.keys["data_set"], record.keys["template"])).values()
    values = [fmean(100 * record.value for record in cell) for cell in cells]
    return fixed(stdev(values), 1) if len(values) > 1 else "–"


def _scorers(tables: SystemTables) -> list[Exhibit]:
    """Accuracy under each way to score a label word, where there are several."""
    records = _usual(_all_records(tables, "accuracy"))
    scorers = sorted({record.keys["scorer"] for record in records}, key=[*SCORERS].index)
    if len(scorers) < 2:
        return []
    most = max(record.keys["num_demonstrations"] for record in records)
    rows = [
        (model, label.partition(" ")[0], *(_mean(where(own, scorer=scorer), 1, 100) for scorer in scorers))
        for model, found in _models_in_order(where(records, num_demonstrations=most)).items()
        for setting, label in SETTINGS.items()
        if (own := where(found, setting=setting))
    ]
    return [
        Exhibit(
            key="scorers",
            title=f"Ways to score a label word, at {most} demonstrations",
            caption="Accuracy in per cent. A word's score is the log-probability of all its tokens, also divided by their "
            "number, or less what it is where the query says nothing (contextual calibration); the original looks at the "
            "last token alone. With words of one token the first two and the last are the same.",
            columns=("model", "setting", *(SCORERS[scorer] for scorer in scorers)),
            rows=rows,
        )
    ]


def _controls(records: Sequence[Record]) -> Exhibit:
    """What has to come out null, and the settings with the other kind of template, at the most demonstrations."""
    most = max(record.keys["num_demonstrations"] for record in records)
    arms: dict[str, list[Record]] = {}
    for model, found in _models_in_order(where(records, num_demonstrations=most)).items():
        for record in sorted(found, key=_control_place):
            if label := _control(record):
                arms.setdefault(f"{model}: {label}", []).append(record)
    if not arms:
        return Exhibit("controls", "Controls", missing="no control was chosen")
    return arms_exhibit(
        KEY,
        "controls",
        f"Controls at {most} demonstrations",
        arms,
        "Shuffled made-up labels, and made-up labels for a model that never saw an episode, have to be at chance. Permuted: "
        "the demonstrations' own labels in random order; wrong only: never the right one; swapped: each class has the "
        "other's label, and the right answer is still its own; independent: other demonstrations than in the other cells; "
        "raw: demonstrations whatever their classes; reordered: the same ones in another order; "
        "one map: the same made-up labels for all rows. Settings and templates are confounded in the study: GOLD and RANDOM "
        "name the task in their template, ABSTRACT does not; here each stands with the other's template.",
        colour=lambda record: {"abstract": 2, "abstract_shuffled": 2}.get(record.keys["setting"], 1),
    )


def _control_place(record: Record) -> tuple:
    keys = record.keys
    return [*SETTINGS, *CONTROLS].index(keys["setting"]), keys["template_kind"], keys["draws"], keys["fixed_map"]


def _control(record: Record) -> str:
    """Name of a control, empty for the study's own cells (of models that are none)."""
    keys = record.keys
    if keys["setting"] in CONTROLS:
        return CONTROLS[keys["setting"]]
    label = SETTINGS[keys["setting"]].partition(" ")[0]
    if keys["template_kind"] != USUAL_TEMPLATE[keys["setting"]]:
        return f"{label}, {keys['template_kind']} template"
    if keys["draws"] != "paired":
        return f"{label}, {keys['draws']}"
    if keys["fixed_map"]:
        return f"{label}, one map"
    return label if "control" in keys["family"] else ""


def _models(tables: SystemTables) -> Exhibit:
    """Size, losses and knowledge of the labels of each model."""
    heldout = tables.metric("settings", "heldout_loss")
    rows = []
    for model, found in _models_in_order(_records(tables, "num_parameters")).items():
        losses = [where(heldout, model=model, document=kind) for kind in ("natural", "episode")]
        said = where(_records(tables, "valid_output"), model=model)
        pairing = where(_records(tables, "paired_variance_ratio"), model=model)
        rows.append(
            (
                model,
                f"{found[0].value:,.0f}",
                *(_mean(loss, 3) for loss in losses),
                _mean(said, 1, 100),
                _mean(pairing, 2),
                seeds_text(found),
            )
        )
    return Exhibit(
        key="models",
        title="The models",
        caption=(
            "A small model that was simply not trained would show no task learning either: its loss on natural documents has "
            "to be that of the large one. The fourth column says how often an unconstrained answer to a prompt with made-up "
            "labels is one of those shown. The last figure is the variance of RANDOM − GOLD with the same demonstrations "
            "over that with independent ones: below 1, pairing saves rows."
        ),
        columns=(
            "model",
            "parameters",
            "loss on natural documents (nats)",
            "on episodes",
            "answers among the labels (%)",
            "variance ratio of pairing",
            "seeds",
        ),
        rows=rows,
    )


def _mean(records: Sequence[Record], places: int, scale: float = 1.0) -> str:
    return fixed(mean_interval(by_seed(records, scale).values())[0], places) if records else "–"


def _pretraining(points: Sequence[Record]) -> Exhibit:
    """Pre-training loss of the models that are made here."""
    title = "Pre-training loss"
    curves = []
    for model, found in group(points, lambda record: record.keys["model"]).items():
        for run in group(found, lambda record: record.seed).values():
            steps = sorted((record.step, record.value) for record in run)
            curves.append(Curve(model, *zip(*steps, strict=True)))
    if not curves:
        return Exhibit("pretraining", title, missing="no model was pre-trained in this run")
    ends = {label: [curve.values[-1] for curve in curves if curve.label == label] for label in _labels(curves)}
    return Exhibit(
        key="pretraining",
        title=title,
        caption=(
            "Nats for each label, natural documents and episodes together. The fall of the two-layer model in the first half "
            "is where it finds how to learn a task from its demonstrations; the step up in the middle is where noise begins."
        ),
        svg=curve_plot(f"{KEY}-pretraining", curves, "step", "loss (nats a label)"),
        alt="Mean loss at the end: " + "; ".join(f"{label} {mean_text(v, 2)}" for label, v in ends.items()) + ".",
        columns=("model", "loss at the end (nats) [95 % interval]", "runs"),
        rows=[(label, mean_text(values, 2), str(len(values))) for label, values in ends.items()],
    )


def _labels(curves: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.label for curve in curves))


def _cells(tables: SystemTables) -> Exhibit:
    """Every cell, with what accuracy alone does not say."""
    metrics = ("accuracy", "normalised_accuracy", "macro_f1", "majority_rate", "degenerate")
    keys = ("model", "setting", "label_space", "template_kind", "draws", "fixed_map", "num_demonstrations")
    found: Mapping[str, dict] = {
        metric: group(_records(tables, metric), lambda record: tuple(record.keys[key] for key in keys))
        for metric in metrics
    }
    rows = []
    for cell in found["accuracy"]:
        values = dict(zip(keys, cell, strict=True))
        draws = values["draws"] + (", one map" if values["fixed_map"] else "")
        chosen = [_mean(found[metric].get(cell, []), 1, 100) for metric in metrics]
        names = (values["model"], values["setting"], values["label_space"], values["template_kind"], draws)
        rows.append((*names, str(values["num_demonstrations"]), *chosen))
    return Exhibit(
        key="cells",
        title="All cells",
        caption=(
            "Means over seeds (and over data sets and templates, where there are several), in per cent. Normalised accuracy "
            "is 0 at chance and 100 where every row is right. A degenerate row has two equal labels, fewer demonstrations than "
            "asked for, or a class without any."
        ),
        columns=(
            "model",
            "setting",
            "labels",
            "template",
            "draws",
            "demonstrations",
            "accuracy",
            "normalised",
            "macro-F1",
            "majority class",
            "degenerate rows",
        ),
        rows=sorted(rows, key=lambda row: (row[:5], int(row[5]))),
    )


SYSTEM = System(
    key=KEY,
    title="What in-context learning learns: task recognition and task learning",
    citation="Pan, Gao, Chen, Chen: What In-Context Learning “Learns” In-Context: Disentangling Task Recognition and Task "
    "Learning. Findings of ACL 2023.",
    url="https://arxiv.org/abs/2305.09731",
    about=(
        "The same demonstrations are shown with their own labels (GOLD), with labels drawn at random (RANDOM: only a task "
        "that pre-training knows can be recognised) and with made-up labels (ABSTRACT: only the demonstrations say what they "
        "mean). The small models are pre-trained on documents of natural tasks and on episodes of tasks made up on the spot; "
        "the pairs of classes that are tested never met in an episode. Seeds are those of pre-training, demonstrations and "
        "test rows, and all settings and sizes are compared within a seed."
    ),
    limits=(
        "GOLD equals RANDOM and swapped labels change nothing, because the labels of natural tasks are reliable in the small "
        "language: that task learning adds to GOLD, or that a large model overrides its prior, cannot be seen.",
        "ABSTRACT has another template than GOLD and RANDOM, as in the original; with the templates exchanged all three are "
        "lower (see the controls), because the template is the main cue for a natural task.",
        "The made-up labels are those of the pre-training episodes, only what they stand for is new: nothing is said about "
        "labels that were never labels before.",
        "The size is depth, two layers of attention against one, with a start that favours copying: an existence proof of the "
        "split, not a scaling law. With a fixed number of steps the order need not be monotone in depth.",
        "GPT-3, whose models were never released.",
    ),
    exhibits=exhibits,
)
