"""Segmentation experiments: every arm is trained alike, from the same weights where layers are shared, on the same batches.

For STM-UNet (Shi et al., GLOBECOM 2023) and its rivals. Three sets of images: `train`, `dev` for the choice of an epoch,
`test` only for the result; UNeXt's code, whose protocol this is, chooses on the set that it reports (`selection: best_test`).

An experiment (`run`) trains its arms one after the other and keeps each finished one in `state_dir`, so that a killed job goes
on where it was. Arms are names of `reclaim.vision.baselines.build_model`, or mappings with `name`, `model`, what they change of
it, and `masks: shuffled` (a null control: each image has another one's mask).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reclaim.data import load_info
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json
from reclaim.metrics.segmentation import Overlap, dice, iou, overlap, summary
from reclaim.provenance import fingerprint
from reclaim.seeding import derive
from reclaim.train import Recipe
from reclaim.vision.baselines import build_model
from reclaim.vision.images import ImageSet, encode_png, load_images, otsu_masks
from reclaim.vision.segmenter import Augmentation, complexity, fit, initialize, predict, score
from reclaim.vision.stm_unet import grid_size

PANEL_CELL = 128  # most pixels of an image's side in the panel
SELECTIONS = ("last", "best_dev", "best_test")
# What an arm's weights do not depend on.
AFTER_TRAINING = ("arms", "seeds", "pictures", "complexity", "test", "evaluate_at")


@dataclass
class Outcome:
    """Rows of a job, by table."""

    metrics: list[dict] = field(default_factory=list)
    items: list[dict] = field(default_factory=list)
    curves: list[dict] = field(default_factory=list)
    costs: list[dict] = field(default_factory=list)

    def scores(self, variant: dict, counts: Overlap, ids: Sequence[str], batch_size: int) -> None:
        """Add the figures of a set of test images, and each image's IoU and Dice."""
        for name, value in summary(counts, batch_size).items():
            self.metrics.append(_metric(variant, name, value, len(ids), "fraction"))
        for name, values in (("iou", iou(counts)), ("dice", dice(counts))):
            self.items += [
                {"variant": variant, "metric": name, "item": item, "value": float(value)}
                for item, value in zip(ids, values, strict=True)
            ]


def _metric(variant: dict, metric: str, value: float, n: int, unit: str) -> dict:
    return {"variant": variant, "metric": metric, "value": float(value), "n": n, "unit": unit}


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: torch.device | str,
    state_dir: str | Path,
    progress: Callable[[range], Any] = iter,
) -> dict[str, Any]:
    """Run the arms of a segmentation experiment at one seed: rows of metrics, items, curves and costs, and pictures.

    spec: `data` (the set that has train and, if needed, dev), `test` (the sets whose test images are scored; default: the
    same one), `image_size` or none, `arms`, `network` (sizes by family), `recipe` (of `reclaim.train`, with
    `num_train_epochs`), and optionally `train_size` (images drawn from train by the seed), `folds` (cross-validation over the
    images of train, instead of test), `crop_size`, `augmentation`, `selection` with `eval_epochs`, `evaluate_at` (`network`
    or `file`), `pictures` (how many test images are shown), `complexity` (`image_size` and `models`, counted at the papers'
    sizes), `unext_compat`.
    data: canonical folders by name. state_dir: where finished arms and the state of the running one are kept.

    Every arm has the same images, batches, turns and number of steps. Raises InputError where the spec does not fit the data.
    """
    outcome, pictures = Outcome(), {}
    parts = list(_parts(spec, seed, data))
    arms = [_arm(entry) for entry in spec["arms"]]
    first = parts[0]
    for arm in arms:
        counts: dict[str, list[Overlap]] = {name: [] for name in first.tests}
        for part in parts:
            model = _trained(spec, arm, part, seed, data, device, Path(state_dir), progress, outcome)
            for name, test in part.tests.items():
                p = predict(model, test.images, unext_compat=spec.get("unext_compat", False))[:, 0]
                counts[name].append(score(p, test))
                if part is first and name == next(iter(first.tests)):
                    pictures[arm["name"]] = p[: spec.get("pictures", 0)] > 0.5
        for name, found in counts.items():
            variant = {"model": arm["name"], "data": spec["data"], "test": name}
            ids = [item for part in parts for item in part.tests[name].ids]
            outcome.scores(variant, _joined(found), ids, _batch_size(spec))
        size = spec.get("crop_size") or spec.get("image_size") or first.train.masks.shape[1:]
        for name, value in complexity(model, size).items():
            variant = {"model": arm["name"], "data": spec["data"], "image_size": grid_size(size)[0]}
            outcome.metrics.append(_metric(variant, name, value, 1, "count"))
    _floors(spec, parts, outcome)
    _membership(spec, parts, outcome)
    _paper_sizes(spec, outcome)
    shown = next(iter(first.tests.values())).subset(np.arange(len(next(iter(pictures.values())))))
    return {**vars(outcome), "pictures": _pictures(shown, pictures) if len(shown) else {}}


@dataclass(frozen=True)
class _Part:
    """What is trained and scored together: a split, or one fold of a cross-validation."""

    name: str
    train: ImageSet
    dev: ImageSet | None
    tests: dict[str, ImageSet]


def _parts(spec: Mapping[str, Any], seed: int, data: Mapping[str, Path]) -> Iterator[_Part]:
    """Read the images of an experiment; no image is in two of train, dev and test of one part."""
    size, at_file = spec.get("image_size"), spec.get("evaluate_at", "network") == "file"
    selection = spec.get("selection", "last")
    if selection not in SELECTIONS:
        raise InputError("selection", repr(selection), f"one of {', '.join(SELECTIONS)}")
    train_set = load_images(data[spec["data"]], "train", size, keep_full=at_file and "folds" in spec)
    rng = np.random.default_rng(derive(seed, "training images"))
    if "folds" in spec:
        if not 2 <= spec["folds"] <= len(train_set):
            raise InputError("folds", str(spec["folds"]), f"from 2 to {len(train_set)}, the images of {spec['data']}")
        if selection != "last" or "test" in spec or "train_size" in spec:
            raise InputError("folds", "selection, test or train_size beside it", "none of them: all images are used")
        for fold, rows in enumerate(np.array_split(rng.permutation(len(train_set)), spec["folds"])):
            rows = np.sort(rows)
            kept = train_set.subset(np.setdiff1d(np.arange(len(train_set)), rows))
            yield _Part(f"fold{fold}", kept, None, {spec["data"]: train_set.subset(rows)})
        return
    wanted = spec.get("train_size", len(train_set))
    if wanted > len(train_set):
        raise InputError("train_size", str(wanted), f"at most {len(train_set)}, the training images of {spec['data']}")
    if wanted < len(train_set):
        train_set = train_set.subset(np.sort(rng.choice(len(train_set), wanted, replace=False)))
    tests = {name: load_images(data[name], "test", size, at_file) for name in spec.get("test", [spec["data"]])}
    dev = load_images(data[spec["data"]], "dev", size) if selection == "best_dev" else None
    yield _Part("all", train_set, next(iter(tests.values())) if selection == "best_test" else dev, tests)


def _arm(entry: str | Mapping[str, Any]) -> dict[str, Any]:
    arm = {"model": entry} if isinstance(entry, str) else dict(entry)
    arm = {"name": arm["model"], "masks": "true", **arm}
    if arm["masks"] not in ("true", "shuffled"):
        raise InputError(f"arm {arm['name']}: masks", repr(arm["masks"]), "true or shuffled")
    return arm


def _batch_size(spec: Mapping[str, Any]) -> int:
    return spec["recipe"].get("per_device_train_batch_size", Recipe.per_device_train_batch_size)


def _recipe(spec: Mapping[str, Any], images: int) -> tuple[Recipe, int]:
    """Give the recipe in steps, and how many steps an epoch has (UNeXt drops an epoch's last, smaller batch)."""
    values = dict(spec["recipe"])
    rows = _batch_size(spec) * values.get("gradient_accumulation_steps", 1)
    per_epoch = max(1, images // rows)
    if "num_train_epochs" in values:
        values["num_train_steps"] = values.pop("num_train_epochs") * per_epoch
    if values.pop("lr_interval", "step") == "epoch":
        values["schedule_interval_steps"] = per_epoch
    return Recipe.from_config(values), per_epoch


def _trained(
    spec: Mapping[str, Any],
    arm: dict[str, Any],
    part: _Part,
    seed: int,
    data: Mapping[str, Path],
    device: torch.device | str,
    state_dir: Path,
    progress: Callable[[range], Any],
    outcome: Outcome,
) -> nn.Module:
    """Train an arm on a part, or load it if `state_dir` has it from an interrupted run; adds its curves and cost."""
    size = spec.get("crop_size") or spec.get("image_size") or part.train.masks.shape[1:]
    changes = {key: value for key, value in arm.items() if key not in ("name", "model", "masks")}
    model = build_model(arm["model"], size, spec.get("network", {}), **changes)
    initialize(model, seed)
    model.to(device)
    recipe, per_epoch = _recipe(spec, len(part.train))
    settings = {key: value for key, value in spec.items() if key not in AFTER_TRAINING}
    sources = load_info(data[spec["data"]])["sha256"]
    code = fingerprint("reclaim.vision.segmentation")
    identity = json.dumps([settings, arm, part.name, seed, sources, code], sort_keys=True, default=str)
    identity = hashlib.sha256(identity.encode()).hexdigest()
    folder = state_dir / f"{arm['name']}.{part.name}"
    record_path, weights_path = folder / "record.json", folder / "weights.safetensors"
    record = read_json(record_path) if record_path.exists() else {}
    if record.get("identity") == identity:
        model.load_state_dict(load_file(weights_path))
        model.to(memory_format=torch.channels_last)
    else:
        train_set = part.train
        if arm["masks"] == "shuffled":
            order = np.random.default_rng(derive(seed, "shuffled masks")).permutation(len(train_set))
            train_set = ImageSet(train_set.ids, train_set.images, train_set.masks[order])
        choice = EpochChoice(model, part.dev, folder, identity, spec, per_epoch * spec.get("eval_epochs", 1))
        started, steps = time.process_time(), 0

        def after_step(step: int) -> None:
            nonlocal steps
            steps += 1
            choice.after(step, recipe.num_train_steps)

        history = fit(
            model,
            train_set,
            recipe,
            seed=seed,
            augmentation=Augmentation(**spec["augmentation"]) if spec.get("augmentation") else None,
            crop_size=spec.get("crop_size"),
            unext_compat=spec.get("unext_compat", False),
            device=device,
            state_path=folder / "state.pt",
            run=identity,
            after_step=after_step,
            progress=progress,
        )
        seconds = (time.process_time() - started) / max(1, steps)
        choice.restore()
        with atomic_path(weights_path) as temporary:
            save_file(_weights(model), temporary)
        losses = [history.loss[start : start + per_epoch] for start in range(0, len(history.loss), per_epoch)]
        record = {"identity": identity, "losses": [float(np.mean(epoch)) for epoch in losses]}
        record |= {"dev": choice.scores, "step_cpu_s": seconds}
        write_json(record, record_path)
    variant = {"model": arm["name"], "data": spec["data"], "part": part.name}
    epochs = ((per_epoch * (epoch + 1), loss) for epoch, loss in enumerate(record["losses"]))
    scores = ((int(step), value) for step, value in record["dev"].items())
    for measure, unit, points in (("train_loss", "1", epochs), ("dev_iou", "fraction", scores)):
        rows = [{"variant": variant, "step": step, "measure": measure, "value": v, "unit": unit} for step, v in points]
        outcome.curves += rows
    cost = {"measure": "step_cpu_s", "value": record["step_cpu_s"], "unit": "s"}
    outcome.costs.append({"variant": variant, "stage": "segmentation", "job": f"{arm['name']}.s{seed}", **cost})
    return model


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu().contiguous() for name, value in model.state_dict().items()}


class EpochChoice:
    """The epoch with the best mean IoU on the images of the choice; without such images the last one.

    Its weights and the scores so far are kept on disk: an interrupted run still has them, and since a resumed run repeats
    the same steps, a score that is met again is the same.
    """

    def __init__(self, model, dev: ImageSet | None, folder: Path, identity: str, spec: Mapping, every: int):
        self.model, self.dev, self.every, self.identity = model, dev, every, identity
        self.compat = spec.get("unext_compat", False)
        self.log, self.best = folder / "dev.json", folder / "best.safetensors"
        found = read_json(self.log) if self.log.exists() else {}
        self.scores: dict[str, float] = found["scores"] if found.get("identity") == identity else {}

    def after(self, step: int, last: int) -> None:
        """Score the model after `step` updates if it is due."""
        if self.dev is None or (step % self.every and step != last):
            return
        p = predict(self.model, self.dev.images, unext_compat=self.compat)[:, 0]
        value = float(iou(overlap(p > 0.5, self.dev.masks)).mean())
        before = [score for at, score in self.scores.items() if int(at) < step]
        if not before or value > max(before):
            with atomic_path(self.best) as temporary:
                save_file(_weights(self.model), temporary)
        self.scores[str(step)] = value
        write_json({"identity": self.identity, "scores": self.scores}, self.log)

    def restore(self) -> None:
        """Load the best weights."""
        if self.scores:
            self.model.load_state_dict(load_file(self.best))


def _floors(spec: Mapping[str, Any], parts: Sequence[_Part], outcome: Outcome) -> None:
    """Score what looks at no network: Otsu's threshold, its largest part, and where the training masks usually lie."""
    controls: dict[str, Callable[[_Part, ImageSet], np.ndarray]] = {
        "otsu": lambda part, test: otsu_masks(test.images, largest_only=False),
        "otsu_largest": lambda part, test: otsu_masks(test.images, largest_only=True),
        "position": lambda part, test: np.broadcast_to(usual_mask(part.train.masks), test.masks.shape),
    }
    for control, predicted in controls.items():
        for name in parts[0].tests:
            counts = [overlap(predicted(part, part.tests[name]), part.tests[name].masks) for part in parts]
            ids = [item for part in parts for item in part.tests[name].ids]
            variant = {"control": control, "data": spec["data"], "test": name}
            outcome.scores(variant, _joined(counts), ids, _batch_size(spec))


def usual_mask(masks: np.ndarray) -> np.ndarray:
    """Give the one mask [height, width] that fits bool masks [n, height, width] best: their mean above some level."""
    mean = masks.mean(axis=0)
    candidates = [mean > level for level in np.linspace(0.05, 0.95, 19)]
    return max(candidates, key=lambda mask: iou(overlap(np.broadcast_to(mask, masks.shape), masks)).mean())


def _joined(counts: Sequence[Overlap]) -> Overlap:
    return Overlap(*(np.concatenate(side) for side in zip(*counts, strict=True)))


def _membership(spec: Mapping[str, Any], parts: Sequence[_Part], outcome: Outcome) -> None:
    """Record which images each part was trained and chosen on; those that it was tested on have their scores."""
    for part in parts:
        for split, images in (("train", part.train), ("dev", part.dev)):
            variant = {"data": spec["data"], "part": part.name, "split": split}
            ids = images.ids if images else []
            outcome.items += [{"variant": variant, "metric": "member", "item": item, "value": 1.0} for item in ids]


def _paper_sizes(spec: Mapping[str, Any], outcome: Outcome) -> None:
    """Count parameters and multiply-adds of models at the papers' sizes; nothing is computed with them."""
    wanted = spec.get("complexity", {})
    for name in wanted.get("models", []):
        with torch.device("meta"):
            model = build_model(name, wanted["image_size"], {})
            counted = complexity(model, wanted["image_size"])
        variant = {"model": name, "sizes": "paper", "image_size": wanted["image_size"]}
        outcome.metrics += [_metric(variant, metric, value, 1, "count") for metric, value in counted.items()]


def _pictures(data: ImageSet, predicted: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Each predicted mask as a PNG, and `panel.png`: a row an image with its photograph, mask and predictions by arm.

    The panel's `columns` (a text in the file) name its columns; large images are thinned out in it.
    """
    files = {
        re.sub(r"[^A-Za-z0-9._-]", "_", f"{arm}-{item}") + ".png": encode_png(255 * mask.astype(np.uint8))
        for arm, masks in predicted.items()
        for item, mask in zip(data.ids, masks, strict=True)
    }
    step = -(-max(data.masks.shape[1:]) // PANEL_CELL)
    columns = {"image": data.images, "mask": data.masks, **predicted}
    rows = []
    for row in range(len(data)):
        cells = []
        for column in columns.values():
            cell = column[row, ::step, ::step]
            if cell.ndim == 2:
                cell = np.repeat(255 * cell[..., None].astype(np.uint8), 3, axis=2)
            cells.append(np.pad(cell, ((1, 1), (1, 1), (0, 0)), constant_values=128))
        rows.append(np.concatenate(cells, axis=1))
    return {**files, "panel.png": encode_png(np.concatenate(rows), columns=json.dumps(list(columns)))}
