"""Experiments on Transformer-DR and its rivals: codes that are looked at, images that are rebuilt, faces that are known.

Two protocols, by which one seed makes one split of the images:

    holdout      train, validation and test parts. Visualisation: neighbours, trustworthiness, continuity and silhouette
                 of the codes; reconstruction: MSE, PSNR, SSIM on test images
    per_subject  so many training images of every subject, all others for the test (the usual one for faces). Recognition
                 by the nearest training code and by the nearest mean of a subject, over dimensions and numbers of images

Every trained method gets the same learning rates, and the one with the least error of reconstruction on a validation
part is kept, never on the test part. Under `holdout` the validation part is set apart for all methods; under
`per_subject`, where images are few, it is the last training image of every subject, and the method is then fitted anew
on all of them. Nothing is ever fitted on test images, except t-SNE, which has no other way to place them: it has no
accuracy from training to test codes and is judged by leave-one-out inside the test part, as all methods are, too.
Figures inside the test part (leave-one-out, trustworthiness, continuity, silhouette) are those of its first 2,000
images for every method, since a neighbour is the easier to find the more there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclaim.errors import InputError
from reclaim.io import read_json, write_json
from reclaim.metrics import embedding, image
from reclaim.seeding import derive
from reclaim.state import begin_state
from reclaim.vision.reducers import METHODS, Method, transformer_parameters
from reclaim.vision.reduction_pictures import codes_picture, rebuilt_picture
from reclaim.vision.reduction_splits import Split, all_images, holdout_split, per_subject_split

NEIGHBOURS = 5
WITHIN = ("knn1_leave_one_out", "trustworthiness", "continuity", "silhouette")  # figures inside the test part
MOST_RANKED = 2000  # test images that are compared with each other: n * n ranks must fit into memory
SHOWN = 10  # test images in a picture of reconstructions


@dataclass(frozen=True)
class Arm:
    """One method at one dimension (and number of training images) on one set; `changes` are an ablation's."""

    data: str
    method: str
    dimension: int
    training_images: int | None
    changes: Mapping[str, Any]

    @property
    def variant(self) -> dict[str, Any]:
        """The keys that name the arm in the tables."""
        variant = {"data": self.data, "method": self.method, "dimension": self.dimension}
        if self.training_images is not None:
            variant["training_images"] = self.training_images
        return variant | ({"ablation": self.changes["ablation"]} if "ablation" in self.changes else {})


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: Any,
    state_dir: str | Path,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> dict[str, Any]:
    """Run all arms of a reduction experiment at one seed: rows of metrics, curves and costs, and pictures.

    spec: `protocol`, `data` (a name or names), `dimensions`, `methods` (names of `reducers.METHODS`, or mappings with
    `method`, `ablation` and what it changes of `model`), `model` and `training` (parameters of `TransformerDR`),
    `learning_rates`; for holdout `sizes` {train, validation, test}, for per_subject `training_images`. data: the
    canonical folder of each set. Finished arms stay in `state_dir`, from which a run that was stopped goes on.

    Raises InputError for methods, sets and sizes that do not exist or do not fit.
    """
    names = [spec["data"]] if isinstance(spec["data"], str) else list(spec["data"])
    splits: dict[tuple[str, int | None], Split] = {}
    arms: list[Arm] = []
    for name in names:
        images = all_images(data[name])
        for count in spec["training_images"] if spec["protocol"] == "per_subject" else [None]:
            splits[name, count] = (
                holdout_split(data[name], images, spec["sizes"], seed)
                if count is None
                else per_subject_split(images, count, seed)
            )
            arms += _arms(spec, name, count, splits[name, count])
    state_dir = Path(state_dir)
    begin_state(state_dir, spec, seed, data, __name__, device=device)
    results = []
    for place, arm in enumerate(progress(arms)):
        path = state_dir / f"arm-{place}.json"
        if not path.exists():
            write_json(_run_arm(arm, splits[arm.data, arm.training_images], spec, seed, str(device)), path)
        results.append(read_json(path))
    outcome: dict[str, Any] = {
        kind: [row for result in results for row in result[kind]] for kind in ("metrics", "curves", "costs")
    }
    if spec["protocol"] == "per_subject":
        for (name, count), split in splits.items():
            outcome["metrics"] += _raw_rows(name, count, split)
        outcome["metrics"] += _chosen_dimensions(outcome["metrics"])
    outcome["pictures"] = _pictures(arms, results, splits)
    return outcome


# ---------------------------------------- arms


def _arms(spec: Mapping[str, Any], data: str, training_images: int | None, split: Split) -> Iterator[Arm]:
    """Every method at every dimension that it can have."""
    classes = len(split.images.label_names)
    if training_images is not None and training_images < 2:
        raise InputError("training_images", str(training_images), "at least 2: one of them is the validation part")
    for dimension in spec["dimensions"]:
        for entry in spec["methods"]:
            changes = {} if isinstance(entry, str) else dict(entry)
            name = entry if isinstance(entry, str) else changes.pop("method")
            if name not in METHODS:
                raise InputError("methods", repr(name), f"names among {', '.join(METHODS)}")
            method = METHODS[name]
            if training_images is not None and not method.new_rows:
                continue  # nothing to recognise by
            if dimension <= min(method.max_components(classes, len(split.train)), split.images.X.shape[1]):
                arm = Arm(data, name, dimension, training_images, changes)
                if method.trained:
                    _size(arm, spec, split)  # a network that cannot be built ends the job before its first arm
                yield arm


def _size(arm: Arm, spec: Mapping[str, Any], split: Split) -> tuple[dict[str, Any], int]:
    """Settings of the network of an arm, and the parameters that Transformer-DR has with them."""
    changes = {key: value for key, value in arm.changes.items() if key != "ablation"}
    model = {**spec["model"], **changes, "image_shape": split.images.image_shape}
    return model, transformer_parameters(arm.dimension, split.images.image_shape, model)


def _run_arm(arm: Arm, split: Split, spec: Mapping[str, Any], seed: int, device: str) -> dict[str, Any]:
    """Fit and measure: rows by table, and what the pictures need."""
    method = METHODS[arm.method]
    started, cpu = time.perf_counter(), time.process_time()
    if not method.new_rows:
        estimator = method.build(arm.dimension, _random_state(seed, arm), {})
        shown = slice(method.max_rows)
        codes, rate, losses = estimator.fit_transform(split.rows("test")[shown]), None, []
    else:
        estimator, rate, losses = _fitted(arm, method, split, spec, seed, device)
        shown, codes = slice(None), estimator.transform(split.rows("test"))
    seconds = {"fit_wall_s": time.perf_counter() - started, "fit_cpu_s": time.process_time() - cpu}
    values = _recognition(arm, estimator, split, codes) if arm.training_images else {}
    if not arm.training_images:
        values = _code_values(
            method, estimator, split, codes, split.labels("test")[shown], split.rows("test")[shown], seed
        )
    rebuilt = None
    if method.inverse:
        rebuilt = estimator.inverse_transform(codes).astype(np.float32)
        values |= _image_values(estimator, split, rebuilt)
    if rate is not None:
        values |= {"learning_rate": (rate, "1"), "parameters": (estimator.n_parameters_, "count")}
    rows: dict[str, Any] = {
        "metrics": [
            {"variant": arm.variant, "metric": name, "value": float(value), "n": _count(name, len(codes)), "unit": unit}
            for name, (value, unit) in values.items()
        ],
        "curves": [
            {"variant": arm.variant, "step": epoch + 1, "measure": "train_loss", "value": loss, "unit": "squared error"}
            for epoch, loss in enumerate(losses)
        ],
        "costs": [
            {"variant": arm.variant, "measure": name, "value": value, "unit": "s"} for name, value in seconds.items()
        ],
    }
    rows["codes"] = np.round(codes, 4).tolist() if arm.dimension == 2 and not arm.training_images else None
    rows["rebuilt"] = np.round(rebuilt[:SHOWN], 3).tolist() if rebuilt is not None else None
    return rows


def _fitted(arm: Arm, method: Method, split: Split, spec: Mapping[str, Any], seed: int, device: str):
    """Fit an arm on training rows: the estimator, its learning rate and its losses (None and none if not trained)."""
    rows, labels = split.rows("train"), split.labels("train")
    if len(rows) > method.max_rows:  # evenly spread, since the rows of per-subject parts go from subject to subject
        chosen = np.linspace(0, len(rows), method.max_rows, endpoint=False).astype(int)
        rows, labels = rows[chosen], labels[chosen]
    random_state = _random_state(seed, arm)
    if not method.trained:
        return method.build(arm.dimension, random_state, {}).fit(rows, labels if method.supervised else None), None, []
    model, size = _size(arm, spec, split)
    options = {**model, **spec["training"], "device": device, "target_parameters": size}
    fit_rows = rows
    if arm.training_images:
        fit_rows = split.images.X[np.setdiff1d(split.train, split.validation)]
    tried = {}
    for rate in spec["learning_rates"]:
        estimator = method.build(arm.dimension, random_state, {**options, "lr": rate}).fit(fit_rows)
        tried[rate] = (-estimator.score(split.rows("validation")), estimator)
    rate = min(tried, key=lambda rate: tried[rate][0])
    estimator = tried[rate][1]
    if arm.training_images:
        estimator = method.build(arm.dimension, random_state, {**options, "lr": rate}).fit(rows)
    return estimator, rate, estimator.loss_curve_


def _random_state(seed: int, arm: Arm) -> int:
    """The same for all methods at a dimension; scikit-learn takes 32 bits."""
    return derive(seed, "reduction", arm.data, arm.dimension) % 2**31


# ---------------------------------------- what is measured: value and unit by metric


def _count(metric: str, tested: int) -> int:
    """How many images a figure is of, of those that were tested."""
    return min(tested, MOST_RANKED) if metric in WITHIN else tested


def _code_values(method, estimator, split: Split, codes, labels, rows, seed: int) -> dict[str, tuple[float, str]]:
    """Figures of the codes of the test rows."""
    values = {}
    if method.new_rows:
        train_codes, train_labels = estimator.transform(split.rows("train")), split.labels("train")
        shuffled = np.random.default_rng(derive(seed, "shuffled labels")).permutation(train_labels)
        values["knn1"] = embedding.knn_accuracy(train_codes, train_labels, codes, labels)
        values["knn5"] = embedding.knn_accuracy(train_codes, train_labels, codes, labels, k=5)
        values["knn1_shuffled_labels"] = embedding.knn_accuracy(train_codes, shuffled, codes, labels)
    rows, codes, labels = rows[:MOST_RANKED], codes[:MOST_RANKED], labels[:MOST_RANKED]
    values["knn1_leave_one_out"] = embedding.leave_one_out_accuracy(codes, labels)
    values["trustworthiness"] = embedding.trustworthiness(rows, codes, NEIGHBOURS)
    values["continuity"] = embedding.continuity(rows, codes, NEIGHBOURS)
    shares = {name: (value, "fraction") for name, value in values.items()}
    return shares | {"silhouette": (embedding.silhouette(codes, labels), "1")}


def _image_values(estimator, split: Split, rebuilt: np.ndarray) -> dict[str, tuple[float, str]]:
    """Figures of the rebuilt test images, and the error on training images."""
    height, width, channels = split.images.image_shape
    shape = (-1, height, width) if channels == 1 else (-1, height, width, channels)
    train = split.rows("train")
    train_rebuilt = estimator.inverse_transform(estimator.transform(train))
    originals, shown = split.rows("test").reshape(shape), rebuilt.reshape(shape)
    values = {
        "mse": (image.mse(originals, shown), "squared error"),
        "train_mse": (image.mse(train.reshape(shape), train_rebuilt.reshape(shape)), "squared error"),
        "outside_unit_interval": (float(np.mean((rebuilt < 0) | (rebuilt > 1))), "fraction"),
    }
    psnr = image.mean_psnr(originals, shown)
    if psnr.infinite < len(originals):
        values["psnr"] = (psnr.value, "dB")
    values["exact_images"] = (psnr.infinite, "count")
    if min(height, width) >= 7:
        values["ssim"] = (float(image.ssim(originals, shown).mean()), "1")
    return values


def _recognition(arm: Arm, estimator, split: Split, codes: np.ndarray) -> dict[str, tuple[float, str]]:
    """Accuracy on the test images of the subjects, and by leave-one-out on training codes, to choose d without them."""
    gallery, names, wanted = estimator.transform(split.rows("train")), split.labels("train"), split.labels("test")
    return {
        "knn1": (embedding.knn_accuracy(gallery, names, codes, wanted), "fraction"),
        "centroid": (embedding.centroid_accuracy(gallery, names, codes, wanted), "fraction"),
        "knn1_train_leave_one_out": (embedding.leave_one_out_accuracy(gallery, names), "fraction"),
        "subjects": (len(split.images.label_names), "count"),
    }


def _raw_rows(data: str, training_images: int | None, split: Split) -> Iterator[dict[str, Any]]:
    """Recognition by the pixels themselves."""
    sides = split.rows("train"), split.labels("train"), split.rows("test"), split.labels("test")
    variant = {"data": data, "method": "raw", "dimension": "pixels", "training_images": training_images}
    for metric, function in (("knn1", embedding.knn_accuracy), ("centroid", embedding.centroid_accuracy)):
        value = function(*sides)
        yield {"variant": variant, "metric": metric, "value": value, "n": len(split.test), "unit": "fraction"}


def _chosen_dimensions(metrics: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Recognition at the d with the best leave-one-out accuracy on training codes ("chosen"), and at the best on the
    test images ("oracle": an optimistic figure, usual in this literature). The lowest d of equal ones.
    """
    curves: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for row in metrics:
        if isinstance(row["variant"]["dimension"], int) and row["metric"] in ("knn1", "knn1_train_leave_one_out"):
            key = json.dumps({k: v for k, v in row["variant"].items() if k != "dimension"}, sort_keys=True)
            curves.setdefault(key, {}).setdefault(row["metric"], {})[row["variant"]["dimension"]] = row
    for key, found in curves.items():
        for name, criterion in (("chosen", "knn1_train_leave_one_out"), ("oracle", "knn1")):
            best = max(sorted(found[criterion]), key=lambda d: found[criterion][d]["value"])
            variant = json.loads(key) | {"dimension": name}
            yield {**found["knn1"][best], "variant": variant}
            yield {
                **found["knn1"][best],
                "variant": variant,
                "metric": "dimension",
                "value": float(best),
                "unit": "count",
            }


# ---------------------------------------- pictures


def _pictures(arms: Sequence[Arm], results: Sequence[Mapping[str, Any]], splits: Mapping) -> dict[str, bytes]:
    """PNG files: the 2-D codes of the test images by method, and some test images with their reconstructions."""
    pictures = {}
    for (data, count), split in splits.items():
        mine = [
            (arm, result)
            for arm, result in zip(arms, results, strict=True)
            if arm.data == data and arm.training_images == count and "ablation" not in arm.changes
        ]
        end = "" if count is None else f"-{count}-images"
        codes = {METHODS[arm.method].label: np.array(result["codes"]) for arm, result in mine if result["codes"]}
        if codes:
            pictures[f"codes-{data}.png"] = codes_picture(codes, split.labels("test"), split.images.label_names)
        for dimension in dict.fromkeys(arm.dimension for arm, _ in mine):
            rows = {
                METHODS[arm.method].label: np.array(result["rebuilt"])
                for arm, result in mine
                if result["rebuilt"] and arm.dimension == dimension and arm.method != "random_projection"
            }
            if rows:
                rows = {"original": split.rows("test")[:SHOWN], **rows}
                pictures[f"rebuilt-{data}-d{dimension}{end}.png"] = rebuilt_picture(rows, split.images.image_shape)
    return pictures
