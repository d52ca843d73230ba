"""Codes and reconstructions of Transformer-DR and its rivals: visualisation, error, order in every metric, training loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reclaim.report.accuracy import HOW, arms_exhibit, mean_text
from reclaim.report.figures import Curve, Exhibit, Row, curve_plot, fixed, mean_interval, row_plot
from reclaim.report.system import Record, SystemTables, by_seed, group, where

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


@dataclass(frozen=True)
class Measured:
    """What one experiment has measured on one set of images."""

    tables: SystemTables
    experiment: str
    data: str

    @property
    def name(self) -> str:
        """The set, and the experiment where a reader cannot know it."""
        usual = self.experiment in ("codes", "recognition", "ablations")
        return self.data if usual else f"{self.data}, {self.experiment}"

    @property
    def key(self) -> str:
        """The name as part of an exhibit's key."""
        return self.name.replace(", ", "-")

    def metric(self, metric: str, **keys: object) -> list[Record]:
        """Give the rows of a metric whose variant has all these values."""
        return where(self.tables.metric(self.experiment, metric), data=self.data, **keys)


def measured_sets(tables: SystemTables, metric: str, ablations: bool = False) -> list[Measured]:
    """Give the sets of images of every experiment that has rows of a metric, of ablations or of whole methods."""
    found = []
    for experiment in tables.metrics["experiment"].unique():
        records = [r for r in tables.metric(experiment, metric) if ("ablation" in r.keys) == ablations]
        found += [Measured(tables, experiment, data) for data in group(records, lambda record: record.keys["data"])]
    return found


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group by method, in the order of NAMES."""
    found = group(records, lambda record: str(record.keys.get("method", "?")))
    order = list(NAMES)
    return {name: found[name] for name in sorted(found, key=lambda name: order.index(name) if name in order else 99)}


def method_name(method: str) -> str:
    """Give the name of a method for a reader."""
    return NAMES.get(method, (method, 4))[0]


def method_colour(record: Record) -> int:
    """Give the colour of the kind of a record's method."""
    return NAMES.get(str(record.keys.get("method")), ("", 4))[1]


def cell(records: Sequence[Record], places: int) -> str:
    """Mean with its interval; a dash where the method has no such figure."""
    return mean_text(by_seed(records).values(), places) if records else "–"


def code_exhibits(tables: SystemTables) -> list[Exhibit]:
    """Give what is shown of codes and reconstructions, set by set."""
    shown: list[Exhibit] = []
    for measured in measured_sets(tables, "trustworthiness"):
        if measured.metric("trustworthiness", dimension=2):
            shown += [_accuracy(measured), _neighbours(measured)]
        shown += [*_reconstruction(measured), _ranking(measured), _learning(measured)]
    return shown or [Exhibit("codes", "Codes and reconstructions", missing="the experiment `codes` was not chosen")]


# ---------------------------------------- visualisation


def _accuracy(measured: Measured) -> Exhibit:
    records = measured.metric("knn1", dimension=2)
    return arms_exhibit(
        KEY,
        f"accuracy-{measured.key}",
        f"Visualisation: 1-NN accuracy from 2-D codes ({measured.name})",
        {method_name(method): found for method, found in by_method(records).items()},
        (
            "Each test image is named after the nearest training code. t-SNE is absent, because it has no map for new "
            "images: its leave-one-out accuracy is in the next table and not comparable with these. LDA reads the "
            "labels and is no rival. The paper states no figure that we know."
        ),
        colour=method_colour,
    )


def _neighbours(measured: Measured) -> Exhibit:
    """Trustworthiness as a plot, all figures of 2-D codes as a table."""
    trust = by_method(measured.metric("trustworthiness", dimension=2))
    rows = []
    for method, found in trust.items():
        values = list(by_seed(found).values())
        rows.append(Row(method_name(method), *mean_interval(values), points=values, colour=method_colour(found[0])))
    figures = {metric: measured.metric(metric, dimension=2) for metric in CODES}
    table = [
        (method_name(method), *(cell(where(figures[metric], method=method), CODES[metric][1]) for metric in CODES))
        for method in trust
    ]
    return Exhibit(
        key=f"neighbours-{measured.key}",
        title=f"Visualisation: trustworthiness of 2-D codes ({measured.name})",
        caption=(
            f"{HOW} How far the 5 nearest neighbours in the plane are neighbours among the images; 1 is best. t-SNE "
            "and UMAP optimise neighbourhoods and can be expected to win against any autoencoder, but they rebuild no "
            "image, and t-SNE places no new one."
        ),
        svg=row_plot(f"{KEY}-neighbours-{measured.key}", rows, "trustworthiness", texts=[line[4] for line in table]),
        alt="Mean trustworthiness: " + "; ".join(f"{line[0]}: {line[4]}" for line in table) + ".",
        columns=("method", *(name for name, _, _ in CODES.values())),
        rows=table,
    )


# ---------------------------------------- reconstruction


def _reconstruction(measured: Measured) -> list[Exhibit]:
    """Error of rebuilt test images, one exhibit a dimension."""
    shown = []
    every = measured.metric("mse")
    for dimension, records in sorted(group(every, lambda record: record.keys["dimension"]).items()):
        methods = {name: found for name, found in by_method(records).items() if name != "random_projection"}
        rows, texts = [], []
        for method, found in methods.items():
            values = list(by_seed(found).values())
            rows.append(Row(method_name(method), *mean_interval(values), points=values, colour=method_colour(found[0])))
            texts.append(cell(found, 4))
        shown_metrics = {metric: entry[:2] for metric, entry in IMAGES.items()} | SETTINGS
        places = {metric: digits for metric, (_, digits) in shown_metrics.items()}
        columns = {metric: measured.metric(metric, dimension=dimension) for metric in places}
        table = [
            (method_name(method), *(cell(where(columns[metric], method=method), places[metric]) for metric in places))
            for method in by_method(records)
        ]
        shown.append(
            Exhibit(
                key=f"reconstruction-{measured.key}-{dimension}",
                title=f"Reconstruction from {dimension} numbers ({measured.name})",
                caption=(
                    f"{HOW} Mean squared error of test images, not clipped; lower is better. PCA is the best linear "
                    "map there is, so a lead over it shows that the map is not linear and says nothing of attention: "
                    "for that look at the autoencoders of equal size. The error on training images beside that on "
                    "test images shows how much is overfitting. A random projection is left out of the plot."
                ),
                svg=row_plot(f"{KEY}-reconstruction-{measured.key}-{dimension}", rows, "test MSE", texts=texts),
                alt="Mean test MSE: "
                + "; ".join(f"{row.label}: {text}" for row, text in zip(rows, texts, strict=True))
                + ".",
                columns=("method", *(name for name, _ in shown_metrics.values())),
                rows=table,
            )
        )
    return shown


def _ranking(measured: Measured) -> Exhibit:
    """Places of the methods in every metric at every dimension: the paper's "effective" on this data set."""
    table: list[tuple[str, str, str]] = []
    places: dict[str, list[float]] = {
        method: [] for method in by_method(measured.metric("trustworthiness")) if method != "lda"
    }
    for metric, (name, _, higher) in {**CODES, **IMAGES}.items():
        if metric == "train_mse":
            continue
        by_dimension = group(measured.metric(metric), lambda record: record.keys["dimension"])
        for dimension, found in sorted(by_dimension.items()):
            means = {method: mean_interval(by_seed(same).values())[0] for method, same in by_method(found).items()}
            order = sorted(means.keys() & places, key=means.__getitem__, reverse=higher)
            for place, method in enumerate(order, 1):
                places[method].append(float(place))
            ours = f"{order.index(KEY) + 1} of {len(order)}" if KEY in order else "–"
            table.append((f"{name}, d = {dimension}", ours, ", ".join(SHORT.get(m, m) for m in order)))
    rows = [
        Row(method_name(method), sum(found) / len(found), points=found, colour=NAMES.get(method, ("", 4))[1])
        for method, found in places.items()
    ]
    texts = [f"{fixed(row.estimate, 1)} in {len(row.points)} metrics" for row in rows]
    return Exhibit(
        key=f"ranking-{measured.key}",
        title=f"Places of the methods in every metric ({measured.name})",
        caption=(
            "Small faint marks are places (1 is best) by the mean over seeds in single metrics and dimensions, the large "
            "mark is their mean. Methods without a metric have no place in it. LDA is left out, because it reads the "
            "labels. A place says nothing of the distances, and the metrics are not independent."
        ),
        svg=row_plot(f"{KEY}-ranking-{measured.key}", rows, "place", texts=texts),
        alt="Mean place: " + "; ".join(f"{row.label}: {text}" for row, text in zip(rows, texts, strict=True)) + ".",
        columns=("metric", "place of Transformer-DR", "best to worst"),
        rows=table,
    )


def _learning(measured: Measured) -> Exhibit:
    title = f"Training loss ({measured.name})"
    points = where(measured.tables.curve("train_loss", measured.experiment), data=measured.data)
    curves, rows = [], []
    for method, found in by_method(points).items():
        for dimension, same in sorted(group(found, lambda record: record.keys["dimension"]).items()):
            ends = []
            for run in group(same, lambda record: record.seed).values():
                steps = sorted((record.step, record.value) for record in run)
                curves.append(Curve(f"{method_name(method)}, d = {dimension}", *zip(*steps, strict=True)))
                ends.append(steps[-1][1])
            chosen = measured.metric("learning_rate", method=method, dimension=dimension)
            rates = Counter(record.value for record in chosen)
            text = ", ".join(f"{rate:g} ({rates[rate]})" for rate in sorted(rates))
            rows.append((curves[-1].label, mean_text(ends, 4), text, str(len(ends))))
    if not curves:
        return Exhibit(f"learning-{measured.key}", title, missing="no method of this run was trained by gradient steps")
    return Exhibit(
        key=f"learning-{measured.key}",
        title=title,
        caption=(
            "Mean squared error over an epoch at the learning rate that was chosen on the validation part. Thin lines "
            "are single runs, thick lines the mean over seeds."
        ),
        svg=curve_plot(f"{KEY}-learning-{measured.key}", curves, "epoch", "training MSE"),
        alt="Mean loss of the last epoch: " + "; ".join(f"{row[0]}: {row[1]}" for row in rows) + ".",
        columns=("method", "loss of the last epoch [95 % interval]", "learning rates chosen (runs)", "runs"),
        rows=rows,
    )
