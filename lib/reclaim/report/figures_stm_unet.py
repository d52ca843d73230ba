"""Figures of STM-UNet (Shi, Gao, Zhang and Zhang, GLOBECOM 2023).

Only the paper's abstract was at hand, which has no figure: nothing of the paper's own is drawn beside ours.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence

from reclaim.report.accuracy import HOW, mean_text
from reclaim.report.figures import (
    Curve,
    Exhibit,
    Row,
    curve_plot,
    fixed,
    interval_text,
    mean_interval,
    number,
    row_plot,
)
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

KEY = "stm_unet"
# Experiments on the same images, which are shown together: key, title. An experiment of the user's own is shown by its name.
GROUPS: dict[tuple[str, ...], tuple[str, str]] = {
    ("lesions", "variants"): ("lesions", "lesion-like images"),
    ("isic",): ("isic-2018", "ISIC 2018"),
    ("isic_older",): ("isic-2016", "ISIC 2016"),
    ("isic_large",): ("isic-2018-large", "ISIC 2018, 512 pixels"),
    ("isic_ablations",): ("isic-2018-ablations", "ISIC 2018, further ablations"),
}
NAMES = {
    "full": "STM-UNet",
    "no_swin": "without Swin skips",
    "unext": "UNeXt",
    "unet": "U-Net",
    "transunet": "TransUNet",
    "swin_unet": "Swin-Unet",
    "unext_bottleneck": "UNeXt's bottleneck, with Swin",
    "plain_mlp": "plain bottleneck (no shift, no convolution)",
    "conv_only": "no axial shift",
    "shift_only": "no parallel convolution",
    "no_swin_plain_mlp": "without Swin, plain bottleneck",
    "swin_deep": "Swin in the two deep skips",
    "swin_shallow": "Swin in the two shallow skips",
    "swin_ratio4": "Swin with MLP ratio 4",
    "window_2": "windows of 2",
    "window_4": "windows of 4",
    "window_8": "windows of 8",
    "window_16": "windows of 16",
    "skip_replaced": "skips replaced, not residual",
    "no_conv3": "convolutions of 5 and 7",
    "no_conv5": "convolutions of 3 and 7",
    "no_conv7": "convolutions of 3 and 5",
    "conv3_only": "the convolution of 3 alone",
    "concat": "convolutions joined, not summed",
    "no_width_branch": "shifts along the height alone",
    "no_height_branch": "shifts along the width alone",
    "unext_shuffled": "UNeXt on shuffled masks",
}
CONTROLS = {
    "otsu": "Otsu's threshold",
    "otsu_largest": "Otsu's threshold, largest part",
    "position": "the usual place",
}
RIVALS = ("unext", "unet", "transunet", "swin_unet")


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    shown = []
    for experiments, (key, title) in _groups(tables).items():
        scores = _of_first_test(tables, experiments, "iou")
        if scores:
            shown += [_scores(tables, experiments, key, title, scores), _differences(key, title, scores)]
    if not shown:
        shown.append(Exhibit("iou", "Test IoU by model", missing="no experiment of this system was chosen"))
    return [*shown, _distractors(tables), _complexity(tables), _learning(tables), _pictures(tables)]


def _groups(tables: SystemTables) -> dict[tuple[str, ...], tuple[str, str]]:
    known = {name for names in GROUPS for name in names}
    return GROUPS | {(name,): (name, name) for name in tables.metrics["experiment"].unique() if name not in known}


def _of_first_test(tables: SystemTables, experiments: Sequence[str], metric: str) -> list[Record]:
    """Give the scores on the test images of the set that was trained on."""
    records = [record for experiment in experiments for record in tables.metric(experiment, metric)]
    return [record for record in records if record.keys.get("test") == record.keys.get("data")]


def _label(record: Record) -> str:
    keys = record.keys
    if "control" in keys:
        return CONTROLS.get(keys["control"], str(keys["control"]))
    return NAMES.get(keys["model"], str(keys["model"]))


def _colour(record: Record) -> int:
    if "control" in record.keys:
        return 6
    return 0 if record.keys["model"] == "full" else 1 if record.keys["model"] in RIVALS else 2


def _by_arm(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group by arm: STM-UNet, rivals, ablations, then what needs no training."""

    def place(label: str) -> tuple:
        first = arms[label][0]
        order = [NAMES[key] for key in ("full", *RIVALS)]
        return "control" in first.keys, order.index(label) if label in order else len(order)

    arms = group(records, _label)
    return {label: arms[label] for label in sorted(arms, key=place)}


def _scores(
    tables: SystemTables, experiments: Sequence[str], key: str, title: str, scores: Sequence[Record]
) -> Exhibit:
    """Mean per-image IoU of every arm, with the other figures in the table."""
    others = {
        name: group(_of_first_test(tables, experiments, name), _label)
        for name in ("dice", "iou_pooled", "iou_thresholded")
    }
    rows, table = [], []
    for label, records in _by_arm(scores).items():
        values = list(by_seed(records, 100).values())
        rows.append(Row(label, *mean_interval(values), points=values, colour=_colour(records[0])))
        table.append(
            (
                label,
                interval_text(*mean_interval(values)),
                *(mean_text(by_seed(found.get(label, []), 100).values()) for found in others.values()),
                str(len(values)),
            )
        )
    return Exhibit(
        key=f"iou-{key}",
        title=f"Test IoU by model ({title})",
        caption=(
            f"{HOW} IoU is the mean over test images of each image's own; both masks empty counts 1, one of them 0. Grey "
            "rows need no training: a network that is not far above them has learned nothing."
        ),
        svg=row_plot(f"{KEY}-iou-{key}", rows, "IoU (%)", texts=[line[1] for line in table]),
        alt="Mean test IoU in per cent: " + "; ".join(f"{line[0]}: {line[1]}" for line in table) + ".",
        columns=("model", "IoU (%) [95 % interval]", "Dice (%)", "pooled IoU (%)", "IoU, 0 below 0.65 (%)", "seeds"),
        rows=table,
    )


def _differences(group_key: str, title: str, scores: Sequence[Record]) -> Exhibit:
    """STM-UNet minus every other network, seed by seed."""
    key, heading = f"differences-{group_key}", f"What STM-UNet gains over each model ({title})"
    arms = group([record for record in scores if "control" not in record.keys], lambda record: record.keys["model"])
    full = by_seed(arms.pop("full", []), 100)
    arms.pop("unext_shuffled", None)
    rows, table = [], []
    for model, records in arms.items():
        other = by_seed(records, 100)
        values = [full[seed] - other[seed] for seed in full if seed in other]
        if values:
            label = NAMES.get(model, model)
            rows.append(Row(label, *mean_interval(values), points=values, colour=_colour(records[0])))
            text = interval_text(*mean_interval(values), places=2, sign=True)
            positive = f"{sum(value > 0 for value in values)} of {len(values)}"
            table.append((label, text, positive, ", ".join(fixed(value, 2, sign=True) for value in values)))
    if not rows:
        return Exhibit(key, heading, missing="the run has no model to compare the full one with")
    return Exhibit(
        key=key,
        title=heading,
        caption=(
            f"{HOW} Each point is the difference of two models that had the same training images, the same initial weights "
            "in the layers that they share, and the same batches. An interval that crosses 0 decides nothing."
        ),
        svg=row_plot(f"{KEY}-{key}", rows, "difference in IoU (points)", texts=[line[1] for line in table], zero=0.0),
        alt="STM-UNet minus each model, IoU points: " + "; ".join(f"{line[0]}: {line[1]}" for line in table) + ".",
        columns=("compared with", "difference (points) [95 % interval]", "positive seeds", "by seed (points)"),
        rows=table,
    )


def _distractors(tables: SystemTables) -> Exhibit:
    """What the Swin skips gain on the same images with and without distractors."""
    title = "What the Swin skips gain with and without distractors"
    tests = group(tables.metric("lesions", "iou"), lambda record: record.keys.get("test"))
    rows, table = [], []
    for test, label in (("lesions", "with distractors"), ("lesions-plain", "without distractors")):
        full, without = (by_seed(where(tests.get(test, []), model=model), 100) for model in ("full", "no_swin"))
        values = [full[seed] - without[seed] for seed in full if seed in without]
        if values:
            rows.append(Row(label, *mean_interval(values), points=values))
            table.append((label, interval_text(*mean_interval(values), places=2, sign=True), str(len(values))))
    if len(rows) < 2:
        return Exhibit("distractors", title, missing="the run did not score both kinds of test images")
    return Exhibit(
        key="distractors",
        title=title,
        caption=(
            f"{HOW} The two sets of test images differ in the distractors only: small spots of the lesion's colour that are "
            "background, and that only their size gives away. If the skips help by context, they gain more where there are "
            "some."
        ),
        svg=row_plot(f"{KEY}-distractors", rows, "gain in IoU (points)", texts=[line[1] for line in table], zero=0.0),
        alt="Gain of the Swin skips in IoU points: " + "; ".join(f"{line[0]}: {line[1]}" for line in table) + ".",
        columns=("test images", "gain (points) [95 % interval]", "seeds"),
        rows=table,
    )


def _complexity(tables: SystemTables) -> Exhibit:
    """Parameters and multiply-adds at the papers' sizes and as trained, with the time of a step."""
    title = "Parameters and multiply-adds"
    paper: dict[str, dict[str, float]] = {}
    trained: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for experiment in (name for names in _groups(tables) for name in names):  # the first that has a model counts
        for metric in ("parameters", "macs"):
            for record in tables.metric(experiment, metric):
                target = paper if record.keys.get("sizes") == "paper" else trained
                target.setdefault(record.keys["model"], {}).setdefault(metric, record.value)
        scores = [record for record in _of_first_test(tables, (experiment,), "iou") if "control" not in record.keys]
        for model, records in group(scores, lambda r: r.keys["model"]).items():
            trained.setdefault(model, {}).setdefault("iou", mean_interval(by_seed(records, 100).values())[0])
        for model, records in group(tables.cost(experiment, "step_cpu_s"), lambda r: r.keys["model"]).items():
            seconds.setdefault(model, mean_interval(by_seed(records).values())[0])
    if not paper and not trained:
        return Exhibit("complexity", title, missing="the run counted no model")

    def place(model: str) -> int:
        return [*NAMES, model].index(model)

    sizes = {name: counts for name, counts in (("papers' size", paper), ("trained", trained)) if counts}
    counted = {"parameters": "parameters", "macs": "multiply-adds"}
    table = [
        (
            NAMES.get(model, model),
            *(_count(counts.get(model, {}), metric) for counts in sizes.values() for metric in counted),
            fixed(trained.get(model, {}).get("iou", math.nan), 1),
            number(seconds.get(model, math.nan)),
        )
        for model in sorted({**paper, **trained}, key=place)
    ]
    rows = [
        Row(NAMES.get(model, model), counts["parameters"] / 1e6, colour=0 if model == "full" else 1)
        for model, counts in sorted(paper.items(), key=lambda item: place(item[0]))
        if "parameters" in counts
    ]
    return Exhibit(
        key="complexity",
        title=title,
        caption=(
            "Trainable parameters, and multiply-adds of one image (torch's flop counter, halved; convolutions, matrix products "
            "and attention): at the papers' sizes for one class and 256 x 256 pixels, if the run counted them, and as trained "
            "here. Beside them stand the accuracy that they buy and the CPU time of one update."
        ),
        svg=row_plot(
            f"{KEY}-complexity",
            rows,
            "parameters (millions)",
            texts=[fixed(row.estimate, 2) for row in rows],
            bars=True,
        )
        if rows
        else "",
        alt="Parameters in millions: " + "; ".join(f"{row.label} {fixed(row.estimate, 2)}" for row in rows) + ".",
        columns=(
            "model",
            *(f"{name}, {size} (M)" for size in sizes for name in counted.values()),
            "test IoU (%)",
            "CPU seconds of an update",
        ),
        rows=table,
    )


def _count(counts: Mapping[str, float], metric: str) -> str:
    return number(counts.get(metric, math.nan) / 1e6)


def _learning(tables: SystemTables) -> Exhibit:
    """Loss on the training images."""
    title = "Loss during training"
    curves = []
    for experiment in (name for names in _groups(tables) for name in names):
        points = [r for r in tables.curve("train_loss", experiment) if r.keys["model"] in ("full", "no_swin", *RIVALS)]
        for (label, _, _), run in group(points, lambda r: (_label(r), r.seed, r.keys.get("part"))).items():
            steps = sorted((record.step, record.value) for record in run)
            curves.append(Curve(label, *zip(*steps, strict=True)))
        if curves:
            break
    if not curves:
        return Exhibit("learning", title, missing="no loss was recorded")
    last: dict[str, list[float]] = {}
    for curve in curves:
        last.setdefault(curve.label, []).append(curve.values[-1])
    rows = [(label, mean_text(values, places=3), str(len(values))) for label, values in last.items()]
    return Exhibit(
        key="learning",
        title=title,
        caption=(
            "Half the binary cross-entropy plus one minus soft Dice, averaged over an epoch. Thin lines are single runs, thick "
            "lines the mean over seeds. A model that fits the training images better need not be better on others."
        ),
        svg=curve_plot(f"{KEY}-learning", curves, "step", "training loss"),
        alt="Mean loss of the last epoch: " + "; ".join(f"{row[0]}: {row[1]}" for row in rows) + ".",
        columns=("model", "loss of the last epoch [95 % interval]", "runs"),
        rows=rows,
    )


def _pictures(tables: SystemTables) -> Exhibit:
    """The panel of the first seed: photographs, masks and predictions."""
    title = "Test images, masks and predictions"
    panels = [data for name, data in sorted(tables.pictures.items()) if name.endswith("panel.png")]
    if not panels:
        return Exhibit("pictures", title, missing="the run kept no pictures")
    svg, columns = panel_svg(panels[0])
    return Exhibit(
        key="pictures",
        title=title,
        caption=(
            "The first test images in their order, not chosen by their scores: image, mask, and what each model predicts "
            f"({', '.join(f'{letter}: {name}' for letter, name in columns)}). White is a probability above 0.5."
        ),
        svg=svg,
        alt="Photographs, true masks and predicted masks side by side.",
        columns=("column", "model"),
        rows=columns,
    )


def panel_svg(data: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Put a panel of `reclaim.vision.segmentation` into an SVG; gives it and the letters of its columns of predictions."""
    from PIL.PngImagePlugin import PngImageFile

    with PngImageFile(io.BytesIO(data)) as image:
        width, height = image.size
        columns = json.loads(image.text["columns"])
    letters = [(chr(ord("A") + place), NAMES.get(column, column)) for place, column in enumerate(columns[2:])]
    cell, size = width / len(columns), width / 28
    labels = "".join(
        f'<text x="{cell * (place + 0.5):.1f}" y="{1.1 * size:.1f}" font-size="{size:.1f}" text-anchor="middle">{name}</text>'
        for place, name in enumerate(["image", "mask", *(letter for letter, _ in letters)])
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 1.5 * size:.1f}" class="plot">{labels}'
        f'<image y="{1.5 * size:.1f}" width="{width}" height="{height}" style="image-rendering: pixelated" '
        f'href="data:image/png;base64,{base64.b64encode(data).decode()}"/></svg>'
    )
    return svg, letters


SYSTEM = System(
    key=KEY,
    title="STM-UNet: Swin blocks in the skips, a multi-scale axial-shift MLP in the bottleneck",
    citation="Shi, Gao, Zhang, Zhang: STM-UNet: An Efficient U-shaped Architecture Based on Swin Transformer and "
    "Multi-scale MLP for Medical Image Segmentation. GLOBECOM 2023.",
    url="https://arxiv.org/abs/2304.12615",
    about=(
        "A light U-shaped network (UNeXt) with two additions: window attention as a residual branch in the skip connections, "
        "and a bottleneck of parallel convolutions and axial shifts. The paper has no public code, and only its abstract was "
        "at hand: numbers of blocks, heads and the bottleneck's formula are this project's. All models are trained alike, "
        "from the same initial weights in shared layers and on the same batches, and compared within a seed."
    ),
    limits=(
        "The paper's own figures, which were not at hand. Its data sets, ISIC 2016 and 2018, are in config/paper.yaml.",
        "Rivals that start from ImageNet weights, as TransUNet and Swin-Unet do in their papers.",
    ),
    exhibits=exhibits,
)
