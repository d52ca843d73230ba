"""Figures of Transformer-DR (Ran, Gao, Zhang, arXiv 2210.08288, 2022).

Only the abstract and the beginning of the paper were at hand, which state no figure: nothing of the paper's own is drawn
beside ours.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence

from reclaim.report.accuracy import HOW, mean_text
from reclaim.report.figures import Exhibit, Panel, Row, Series, fixed, line_plot, mean_interval, row_plot
from reclaim.report.figures_transformer_dr_codes import (
    KEY,
    SHORT,
    Measured,
    by_method,
    cell,
    code_exhibits,
    measured_sets,
    method_colour,
    method_name,
)
from reclaim.report.system import Record, System, SystemTables, by_seed, group, where

ABLATIONS = {
    "none": "Transformer-DR",
    "no_attention": "without attention",
    "no_positions": "without positions",
    "mean_pool": "tokens averaged",
    "token_pool": "each token reduced alone",
    "linear_decoder": "linear decoder",
    "shallow": "depth 1",
    "middling": "depth 2",
    "deep": "depth 4",
    "small_patches": "smaller patches",
    "large_patches": "larger patches",
    "largest_patches": "largest patches",
}
# Methods whose curve over the dimensions is drawn; the others stand in the table.
IN_PLOT = ("transformer_dr", "plain_ae", "conv_ae", "pca", "lpp", "npe", "lda")


def exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what the section shows, in order."""
    return [*code_exhibits(tables), *_recognition(tables), *_ablations(tables), *_pictures(tables.pictures)]


# ---------------------------------------- recognition


def _recognition(tables: SystemTables) -> list[Exhibit]:
    shown = []
    for measured in measured_sets(tables, "centroid"):
        by_count = group(measured.metric("knn1"), lambda record: record.keys["training_images"])
        shown += [_recognised(measured, count, records) for count, records in by_count.items()]
    missing = "it needs a folder of faces, which this run has not"
    return shown or [Exhibit("recognition", "Face recognition", missing=missing)]


def _recognised(measured: Measured, count: int, records: Sequence[Record]) -> Exhibit:
    """Accuracy over the dimensions of the code, or by method where there is one dimension only."""
    centroids, taken = (measured.metric(name, training_images=count) for name in ("centroid", "dimension"))
    dimensions = sorted({r.keys["dimension"] for r in records if isinstance(r.keys["dimension"], int)})
    lines, bars, table = [], [], []
    for method, found in by_method(records).items():
        by_dimension = group(found, lambda record: record.keys["dimension"])
        curve = {float(d): by_seed(by_dimension[d], 100) for d in dimensions if d in by_dimension}
        if curve and method in IN_PLOT:
            lines.append(Series(SHORT[method], curve))
        for d in [*dimensions, *(("chosen", "oracle") if len(dimensions) > 1 else ()), "pixels"]:
            if d not in by_dimension:
                continue
            values, label = by_seed(by_dimension[d], 100), str(d)
            if d in ("chosen", "oracle"):
                numbers = by_seed(where(taken, method=method, dimension=d)).values()
                label = f"{d}: {fixed(min(numbers), 0)} to {fixed(max(numbers), 0)}"
            else:
                interval = mean_interval(values.values())
                bars.append(
                    Row(method_name(method), *interval, points=list(values.values()), colour=method_colour(found[0]))
                )
            centroid = where(centroids, method=method, dimension=d)
            table.append((method_name(method), label, mean_text(values.values()), _cell100(centroid), str(len(values))))
    raw = list(by_seed(where(records, method="raw"), 100).values())
    subjects = measured.metric("subjects")
    many = f"{subjects[0].value:.0f} subjects" if subjects else "number of subjects unknown"
    key = f"recognition-{measured.key}-{count}"
    if len(dimensions) > 1:
        panel = Panel(
            f"{measured.name}, {many}", "accuracy (%)", lines, [("raw pixels", mean_interval(raw)[0])] if raw else []
        )
        svg = line_plot(f"{KEY}-{key}", [panel], "dimensions of the code")
    else:
        svg = row_plot(f"{KEY}-{key}", bars, "accuracy (%)", texts=[line[2] for line in table])
    return Exhibit(
        key=key,
        title=f"Recognition by 1-NN, {count} training images a subject ({measured.name}, {many})",
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
    shown = []
    for measured in measured_sets(tables, "mse", ablations=True):
        by_dimension = group(measured.metric("mse"), lambda record: record.keys["dimension"])
        shown += [_parts(measured, dimension, records) for dimension, records in by_dimension.items()]
    return shown or [Exhibit("ablations", "What each part does", missing="the experiment `ablations` was not chosen")]


def _parts(measured: Measured, dimension: int, records: Sequence[Record]) -> Exhibit:
    """Error of the variants of the network."""
    rows, table = [], []
    groups = group(records, lambda record: str(record.keys["ablation"]))
    for name in sorted(groups, key=lambda name: list(ABLATIONS).index(name) if name in ABLATIONS else 99):
        values = list(by_seed(groups[name]).values())
        label, here = ABLATIONS.get(name, name), {"dimension": dimension, "ablation": name}
        rows.append(Row(label, *mean_interval(values), points=values, colour=0 if name == "none" else 2))
        size = mean_interval(by_seed(measured.metric("parameters", **here)).values())[0]
        accuracy = _cell100(measured.metric("knn1", **here))
        table.append((label, cell(groups[name], 4), accuracy, f"{size:,.0f}", str(len(values))))
    key = f"ablations-{measured.key}-{dimension}"
    return Exhibit(
        key=key,
        title=f"What each part does, {dimension} dimensions ({measured.name})",
        caption=(
            f"{HOW} Mean squared error of test images; lower is better. Each variant has the same search of the "
            "learning rate. Without attention tokens meet in the layer before the code only. Variants differ in size: "
            "see the table."
        ),
        svg=row_plot(f"{KEY}-{key}", rows, "test MSE", texts=[line[1] for line in table]),
        alt="Mean test MSE: " + "; ".join(f"{line[0]}: {line[1]}" for line in table) + ".",
        columns=("variant", "test MSE [95 % interval]", "1-NN (%)", "parameters", "seeds"),
        rows=table,
    )


def _pictures(pictures: Mapping[str, bytes]) -> list[Exhibit]:
    """The pictures of the first seed: scatter plots and rebuilt images."""
    first: dict[str, bytes] = {}
    for path in sorted(
        pictures, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
    ):
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
