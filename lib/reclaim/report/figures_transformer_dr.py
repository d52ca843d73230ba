"""Figures of Transformer-DR (Ran, Gao, Zhang, arXiv 2210.08288, 2022).

Only the abstract and the beginning of the paper were at hand, which state no figure: nothing of the paper's own is drawn
beside ours.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence

from reclaim.report.accuracy import HOW, arms_exhibit, mean_text
from reclaim.report.figures import (
    Curve,
    Exhibit,
    Panel,
    Row,
    Series,
    curve_plot,
    fixed,
    line_plot,
    mean_interval,
    number,
    row_plot,
)
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

KEY = "transformer_dr"
# Methods in the order of the plots, with the kind that gives the colour: ours, of equal size, others, reads labels.
NAMES = {
    "transformer_dr": ("Transformer-DR", 0),
    "plain_ae": ("plain autoencoder, equal size", 1),
    "conv_ae": ("conv. autoencoder, equal size", 1),
    "pca": ("PCA", 2),
    "kernel_pca": ("kernel PCA", 2),
    "lpp": ("LPP", 2),
    "npe": ("NPE", 2),
    "isomap": ("Isomap", 2),
    "lle": ("LLE", 2),
    "tsne": ("t-SNE", 2),
    "umap": ("UMAP", 2),
    "lda": ("LDA (reads labels)", 3),
    "random_projection": ("random projection", 4),
    "raw": ("raw pixels", 4),
}
SHORT = {name: label.removesuffix(", equal size") for name, (label, _) in NAMES.items()}
ABLATIONS = {
    "none": "Transformer-DR",
    "no_attention": "without attention",
    "no_positions": "without positions",
    "mean_pool": "tokens averaged",
    "token_pool": "each token reduced alone",
    "linear_decoder": "linear decoder",
    "shallow": "half the depth",
    "deep": "twice the depth",
    "large_patches": "larger patches",
}
# Methods whose curve over the dimensions is drawn; the others stand in the table.
IN_PLOT = ("transformer_dr", "plain_ae", "conv_ae", "pca", "lpp", "npe", "lda")
# Metric: what a table calls it, places, and whether higher is better.
CODES: dict[str, tuple[str, int, bool]] = {
    "knn1": ("1-NN, train to test", 3, True),
    "knn5": ("5-NN, train to test", 3, True),
    "knn1_leave_one_out": ("1-NN, leave-one-out", 3, True),
    "trustworthiness": ("trustworthiness", 3, True),
    "continuity": ("continuity", 3, True),
    "silhouette": ("silhouette", 3, True),
}
IMAGES: dict[str, tuple[str, int, bool]] = {
    "mse": ("MSE", 4, False),
    "train_mse": ("MSE, training images", 4, False),
    "psnr": ("PSNR (dB)", 2, True),
    "ssim": ("SSIM", 3, True),
}
SETTINGS: dict[str, tuple[str, int]] = {
    "outside_unit_interval": ("pixels outside [0, 1]", 3),
    "parameters": ("parameters", 0),
    "learning_rate": ("learning rate", 4),
}


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    shown: list[Exhibit] = []
    for data in group(tables.metric("codes", "trustworthiness"), _data):
        shown += [_accuracy(tables, data), _neighbours(tables, data), *_reconstruction(tables, data)]
        shown += [_ranking(tables, data), _learning(tables, data)]
    if not shown:
        shown.append(Exhibit("codes", "Codes and reconstructions", missing="the experiment `codes` was not chosen"))
    return [*shown, *_recognition(tables), *_ablations(tables), *_pictures(tables.pictures)]


def _data(record: Record) -> str:
    return str(record.keys.get("data", "?"))


def _methods(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group by method, in the order of NAMES."""
    found = group(records, lambda record: str(record.keys.get("method", "?")))
    order = list(NAMES)
    return {name: found[name] for name in sorted(found, key=lambda name: order.index(name) if name in order else 99)}


def _name(method: str) -> str:
    return NAMES.get(method, (method, 4))[0]


def _colour(record: Record) -> int:
    return NAMES.get(str(record.keys.get("method")), ("", 4))[1]


def _cell(records: Sequence[Record], places: int) -> str:
    """Mean with its interval; a dash where the method has no such figure."""
    return mean_text(by_seed(records).values(), places) if records else "–"


# ---------------------------------------- visualisation


def _accuracy(tables: SystemTables, data: str) -> Exhibit:
    records = where(tables.metric("codes", "knn1"), data=data, dimension=2)
    return arms_exhibit(
        KEY,
        f"accuracy-{data}",
        f"Visualisation: 1-NN accuracy from 2-D codes ({data})",
        {_name(method): found for method, found in _methods(records).items()},
        (
            "Each test image is named after the nearest training code. t-SNE is absent, because it has no map for new "
            "images: its leave-one-out accuracy is in the next table and not comparable with these. LDA reads the "
            "labels and is no rival. The paper states no figure that we know."
        ),
        colour=_colour,
    )


def _neighbours(tables: SystemTables, data: str) -> Exhibit:
    """Trustworthiness as a plot, all figures of 2-D codes as a table."""
    trust = _methods(where(tables.metric("codes", "trustworthiness"), data=data, dimension=2))
    rows = []
    for method, found in trust.items():
        values = list(by_seed(found).values())
        rows.append(Row(_name(method), *mean_interval(values), points=values, colour=_colour(found[0])))
    measured = {metric: where(tables.metric("codes", metric), data=data, dimension=2) for metric in CODES}
    table = [
        (_name(method), *(_cell(where(measured[metric], method=method), CODES[metric][1]) for metric in CODES))
        for method in trust
    ]
    return Exhibit(
        key=f"neighbours-{data}",
        title=f"Visualisation: trustworthiness of 2-D codes ({data})",
        caption=(
            f"{HOW} How far the 5 nearest neighbours in the plane are neighbours among the images; 1 is best. t-SNE "
            "and UMAP optimise neighbourhoods and can be expected to win against any autoencoder, but they rebuild no "
            "image, and t-SNE places no new one."
        ),
        svg=row_plot(f"{KEY}-neighbours-{data}", rows, "trustworthiness", texts=[line[4] for line in table]),
        alt="Mean trustworthiness: " + "; ".join(f"{line[0]}: {line[4]}" for line in table) + ".",
        columns=("method", *(name for name, _, _ in CODES.values())),
        rows=table,
    )


# ---------------------------------------- reconstruction


def _reconstruction(tables: SystemTables, data: str) -> list[Exhibit]:
    """Error of rebuilt test images, one exhibit a dimension."""
    shown = []
    every = where(tables.metric("codes", "mse"), data=data)
    for dimension, records in sorted(group(every, lambda record: record.keys["dimension"]).items()):
        methods = {name: found for name, found in _methods(records).items() if name != "random_projection"}
        rows, texts = [], []
        for method, found in methods.items():
            values = list(by_seed(found).values())
            rows.append(Row(_name(method), *mean_interval(values), points=values, colour=_colour(found[0])))
            texts.append(_cell(found, 4))
        shown_metrics = {metric: entry[:2] for metric, entry in IMAGES.items()} | SETTINGS
        places = {metric: digits for metric, (_, digits) in shown_metrics.items()}
        columns = {metric: where(tables.metric("codes", metric), data=data, dimension=dimension) for metric in places}
        table = [
            (_name(method), *(_cell(where(columns[metric], method=method), places[metric]) for metric in places))
            for method in _methods(records)
        ]
        shown.append(
            Exhibit(
                key=f"reconstruction-{data}-{dimension}",
                title=f"Reconstruction from {dimension} numbers ({data})",
                caption=(
                    f"{HOW} Mean squared error of test images, not clipped; lower is better. PCA is the best linear "
                    "map there is, so a lead over it shows that the map is not linear and says nothing of attention: "
                    "for that look at the autoencoders of equal size. The error on training images beside that on "
                    "test images shows how much is overfitting. A random projection is left out of the plot."
                ),
                svg=row_plot(f"{KEY}-reconstruction-{data}-{dimension}", rows, "test MSE", texts=texts),
                alt="Mean test MSE: "
                + "; ".join(f"{row.label}: {text}" for row, text in zip(rows, texts, strict=True))
                + ".",
                columns=("method", *(name for name, _ in shown_metrics.values())),
                rows=table,
            )
        )
    return shown


def _ranking(tables: SystemTables, data: str) -> Exhibit:
    """Order of the methods in every metric at every dimension: the paper's "effective" as a table of this data set."""
    rows = []
    for metric, (name, _, higher) in {**CODES, **IMAGES}.items():
        if metric == "train_mse":
            continue
        records = where(tables.metric("codes", metric), data=data)
        for dimension, found in sorted(group(records, lambda record: record.keys["dimension"]).items()):
            means = {method: mean_interval(by_seed(same).values())[0] for method, same in _methods(found).items()}
            means.pop("lda", None)
            order = sorted(means, key=means.__getitem__, reverse=higher)
            place = f"{order.index(KEY) + 1} of {len(order)}" if KEY in order else "–"
            rows.append((f"{name}, d = {dimension}", place, ", ".join(SHORT.get(m, m) for m in order)))
    return Exhibit(
        key=f"ranking-{data}",
        title=f"Order of the methods in every metric ({data})",
        caption=(
            "By the mean over seeds, best first; methods without such a figure are absent. LDA is left out, because it "
            "reads the labels. An order says nothing of the distances."
        ),
        columns=("metric", "place of Transformer-DR", "best to worst"),
        rows=rows,
    )


def _learning(tables: SystemTables, data: str) -> Exhibit:
    title = f"Training loss ({data})"
    points = where(tables.curve("train_loss", "codes"), data=data)
    curves, rows = [], []
    for method, found in _methods(points).items():
        for dimension, same in sorted(group(found, lambda record: record.keys["dimension"]).items()):
            ends = []
            for run in group(same, lambda record: record.seed).values():
                steps = sorted((record.step, record.value) for record in run)
                curves.append(Curve(f"{_name(method)}, d = {dimension}", *zip(*steps, strict=True)))
                ends.append(steps[-1][1])
            rows.append((curves[-1].label, mean_text(ends, 4), str(len(ends))))
    if not curves:
        return Exhibit(f"learning-{data}", title, missing="no method of this run was trained by gradient steps")
    return Exhibit(
        key=f"learning-{data}",
        title=title,
        caption=(
            "Mean squared error over an epoch at the learning rate that was chosen on the validation part. Thin lines "
            "are single runs, thick lines the mean over seeds."
        ),
        svg=curve_plot(f"{KEY}-learning-{data}", curves, "epoch", "training MSE"),
        alt="Mean loss of the last epoch: " + "; ".join(f"{row[0]}: {row[1]}" for row in rows) + ".",
        columns=("method", "loss of the last epoch [95 % interval]", "runs"),
        rows=rows,
    )


# ---------------------------------------- recognition


def _recognition(tables: SystemTables) -> list[Exhibit]:
    accuracy = tables.metric("recognition", "knn1")
    if not accuracy:
        return [
            Exhibit("recognition", "Face recognition", missing="it needs a folder of faces, which this run has not")
        ]
    groups = group(accuracy, lambda record: (_data(record), record.keys.get("training_images")))
    return [_recognised(tables, data, count, records) for (data, count), records in groups.items()]


def _recognised(tables: SystemTables, data: str, count: int, records: Sequence[Record]) -> Exhibit:
    """Accuracy over the dimensions of the code, or by method where there is one dimension only."""
    here = {"data": data, "training_images": count}
    centroids, taken = tables.metric("recognition", "centroid"), tables.metric("recognition", "dimension")
    dimensions = sorted({r.keys["dimension"] for r in records if isinstance(r.keys["dimension"], int)})
    lines, bars, table = [], [], []
    for method, found in _methods(records).items():
        by_dimension = group(found, lambda record: record.keys["dimension"])
        curve = {float(d): by_seed(by_dimension[d], 100) for d in dimensions if d in by_dimension}
        if curve and method in IN_PLOT:
            lines.append(Series(SHORT[method], curve))
        for d in [*dimensions, *(("chosen", "oracle") if len(dimensions) > 1 else ()), "pixels"]:
            if d not in by_dimension:
                continue
            values, label = by_seed(by_dimension[d], 100), str(d)
            if d in ("chosen", "oracle"):
                numbers = by_seed(where(taken, **here, method=method, dimension=d)).values()
                label = f"{d}: {fixed(min(numbers), 0)} to {fixed(max(numbers), 0)}"
            else:
                interval = mean_interval(values.values())
                bars.append(Row(_name(method), *interval, points=list(values.values()), colour=_colour(found[0])))
            centroid = where(centroids, **here, method=method, dimension=d)
            table.append((_name(method), label, mean_text(values.values()), _cell100(centroid), str(len(values))))
    raw = list(by_seed(where(records, method="raw"), 100).values())
    subjects = where(tables.metric("recognition", "subjects"), data=data)
    many = f"{subjects[0].value:.0f} subjects" if subjects else "number of subjects unknown"
    key = f"{KEY}-recognition-{data}-{count}"
    if len(dimensions) > 1:
        panel = Panel(f"{data}, {many}", "accuracy (%)", lines, [("raw pixels", mean_interval(raw)[0])] if raw else [])
        svg = line_plot(key, [panel], "dimensions of the code")
    else:
        svg = row_plot(key, bars, "accuracy (%)", texts=[line[2] for line in table])
    return Exhibit(
        key=f"recognition-{data}-{count}",
        title=f"Recognition by 1-NN, {count} training images a subject ({data}, {many})",
        caption=(
            f"{HOW} Methods are fitted on the training images only; a seed is a split. What a code must beat to be of "
            "use are the raw pixels. 'Chosen' is the number of dimensions with the best leave-one-out accuracy on "
            "training codes; 'oracle' is the best on the test images, usual in this literature and too good to be "
            "expected. LDA reads the labels."
        ),
        svg=svg,
        alt="Mean accuracy in per cent: " + "; ".join(f"{line[0]}, {line[1]}: {line[2]}" for line in table) + ".",
        columns=("method", "dimensions", "1-NN (%) [95 % interval]", "nearest centroid (%)", "splits"),
        rows=table,
    )


def _cell100(records: Sequence[Record]) -> str:
    return mean_text(by_seed(records, 100).values()) if records else "–"


# ---------------------------------------- ablations and pictures


def _ablations(tables: SystemTables) -> list[Exhibit]:
    every = [record for record in tables.metric("ablations", "mse") if "ablation" in record.keys]
    if not every:
        return [Exhibit("ablations", "What each part does", missing="the experiment `ablations` was not chosen")]
    shown = []
    sizes, nearest = tables.metric("ablations", "parameters"), tables.metric("ablations", "knn1")
    for (data, dimension), records in group(every, lambda r: (_data(r), r.keys["dimension"])).items():
        rows, table = [], []
        groups = group(records, lambda record: str(record.keys["ablation"]))
        for name in sorted(groups, key=lambda name: list(ABLATIONS).index(name) if name in ABLATIONS else 99):
            found = groups[name]
            values = list(by_seed(found).values())
            label, here = ABLATIONS.get(name, name), {"data": data, "dimension": dimension, "ablation": name}
            rows.append(Row(label, *mean_interval(values), points=values, colour=0 if name == "none" else 2))
            size = mean_interval(by_seed(where(sizes, **here)).values())[0]
            accuracy = _cell100(where(nearest, **here))
            table.append((label, _cell(found, 4), accuracy, f"{size:,.0f}", str(len(values))))
        shown.append(
            Exhibit(
                key=f"ablations-{data}-{dimension}",
                title=f"What each part does, {dimension} dimensions ({data})",
                caption=(
                    f"{HOW} Mean squared error of test images; lower is better. Each variant has the same search of "
                    "the learning rate. Without attention tokens meet in the layer before the code only. Variants "
                    "differ in size: see the table."
                ),
                svg=row_plot(f"{KEY}-ablations-{data}-{dimension}", rows, "test MSE", texts=[r[1] for r in table]),
                alt="Mean test MSE: " + "; ".join(f"{r[0]}: {r[1]}" for r in table) + ".",
                columns=("variant", "test MSE [95 % interval]", "1-NN (%)", "parameters", "seeds"),
                rows=table,
            )
        )
    return shown


def _pictures(pictures: Mapping[str, bytes]) -> list[Exhibit]:
    """The pictures of the first seed: scatter plots and rebuilt images."""
    first: dict[str, bytes] = {}
    for path in sorted(pictures):
        name = path.rsplit("/", 1)[-1]
        if name.startswith(("codes-", "rebuilt-")):
            first.setdefault(name, pictures[path])
    shown = []
    for name, data in first.items():
        what, _, rest = name.removesuffix(".png").partition("-")
        words = re.sub(r"-d(\d+)", r", d = \1", rest)
        words = re.sub(r"-(\d+)-images$", r", \1 training images a subject", words)
        title = f"{'2-D codes of test images' if what == 'codes' else 'Test images and reconstructions'} ({words})"
        caption = "Colours are classes, which no method but LDA has seen; each plot has a scale of its own. "
        if what == "rebuilt":
            caption = "The first test images in the order of the split, not chosen by their error; clipped to [0, 1]. "
        shown.append(
            Exhibit(
                key=name.removesuffix(".png"),
                title=title,
                caption=f"{caption}First seed of the run.",
                svg=picture_svg(data),
                alt=f"{title}, one panel or line a method.",
                columns=("picture", "size (KiB)"),
                rows=[(name, number(len(data) / 1024))],
            )
        )
    return shown


def picture_svg(data: bytes) -> str:
    """Put a PNG into an SVG element of its proportions, as the page shows plots."""
    width, height = struct.unpack(">II", data[16:24])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="plot"><image width="{width}" '
        f'height="{height}" href="data:image/png;base64,{base64.b64encode(data).decode()}"/></svg>'
    )


SYSTEM = System(
    key=KEY,
    title="Transformer-DR: dimensionality reduction by a transformer autoencoder",
    citation="Ran, Gao, Zhang: Transformer-based dimensionality reduction. arXiv 2210.08288, 2022.",
    url="https://arxiv.org/abs/2210.08288",
    about=(
        "A Vision Transformer maps an image to a few numbers, and another one rebuilds the image from them, trained by "
        "the error of reconstruction without labels. The paper judges such codes by how they look in two dimensions, "
        "by what can be rebuilt from them, and by how well they tell faces apart. It has no public code, and only its "
        "abstract was at hand: sizes, the layer that makes the code, and the training are this project's. Every "
        "trained method gets the same learning rates, and the one that does best on validation images is kept."
    ),
    limits=(
        "The data sets of the paper and its figures, which were not at hand.",
        "Whether a larger model or longer training would turn the comparison with an autoencoder of equal size.",
        "Recognition of faces, where no folder of faces is given.",
    ),
    exhibits=exhibits,
)
