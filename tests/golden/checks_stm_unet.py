"""Checks of the STM-UNet vectors: UNeXt's official outputs, and the project's reference of what the abstract leaves open."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from harness import companion
from reclaim.metrics.segmentation import batch_pooled, dice, iou, overlap, pooled, soft_dice, thresholded
from reclaim.schedules import schedule
from reclaim.vision.baselines import UNet, unext
from reclaim.vision.segmenter import bce_dice_loss
from reclaim.vision.stm_unet import PCASMLP, ShiftBlock, axial_shift, stm_unet

# The official classes whose parameters are counted without their names.
WIDTHS = {"UNext": (16, 32, 128, 160, 256), "UNext_S": (8, 16, 32, 64, 128)}


def close(found, expected, tolerance: float, what: str, relative: bool = False) -> None:
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, f"{what}: shape {found.shape} is not {expected.shape}"
    allowed = tolerance * (np.abs(expected) if relative else 1)
    difference = np.abs(found - expected)
    assert (difference <= allowed).all(), f"{what}: differs by {difference.max()}"


def inputs_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_inputs.npz")


def masks_of(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities = torch.from_numpy(logits).sigmoid().numpy()
    return probabilities > 0.5, targets > 0.5


# ---------------------------------------------------------------------- loss and metrics


def check_metrics(path: Path) -> int:
    arrays, count = np.load(inputs_of(path)), 0
    for name, expected in json.loads(path.read_text()).items():
        x, t = arrays[f"x_{name}"], arrays[f"t_{name}"]
        logits = torch.from_numpy(x).requires_grad_()
        loss = bce_dice_loss(logits, torch.from_numpy(t))
        loss.backward()
        counts = overlap(*masks_of(x, t))
        close(loss.item(), expected["bce_dice_loss"], 1e-6, f"{name}: loss", relative=True)
        close(logits.grad, arrays[f"grad_{name}"], 1e-6, f"{name}: gradient")
        close(batch_pooled(counts, len(x)), expected["iou_score"], 1e-6, f"{name}: iou_score", relative=True)
        soft = soft_dice(torch.from_numpy(x).sigmoid().numpy(), t)
        close(soft, expected["dice_coef_soft"], 1e-6, f"{name}: soft dice", relative=True)
        close(iou(counts), expected["per_image_iou"], 1e-6, f"{name}: per-image IoU", relative=True)
        close(dice(counts), expected["per_image_dice"], 1e-6, f"{name}: per-image Dice", relative=True)
        count += 1
    return count


def check_aggregation(path: Path) -> int:
    arrays, count = np.load(inputs_of(path)), 0
    counts = overlap(*masks_of(arrays["x"], arrays["t"]))
    for name, expected in json.loads(path.read_text()).items():
        if name.startswith("batch_"):
            found = batch_pooled(counts, int(name.removeprefix("batch_")))
        else:
            found = {
                "per_image_mean": lambda: (iou(counts).mean(), dice(counts).mean()),
                "micro_iou": lambda: iou(pooled(counts))[0],
                "isic2018_thresholded": lambda: thresholded(iou(counts)).mean(),
            }[name]()
        close(found, expected, 1e-6, name)
        count += 1
    return count


# ---------------------------------------------------------------------- shift and blocks


def check_shift(path: Path) -> int:
    """Exact, on [B, C, H, W]; also the table of distances, by an image whose rows are their own numbers."""
    arrays, count = np.load(path.with_suffix(".npz")), 0
    for key, expected in json.loads(path.read_text()).items():
        channels, height, _, groups = (int(number) for number in re.findall(r"\d+", key))
        x = torch.from_numpy(arrays[f"{key}_x"]).permute(0, 2, 3, 1)
        rows = axial_shift(x, 1, groups)
        for name, found in (
            ("rows", rows),
            ("rows_then_cols", axial_shift(rows, 2, groups)),
            ("cols", axial_shift(x, 2, groups)),
        ):
            assert np.array_equal(found.permute(0, 3, 1, 2).numpy(), arrays[f"{key}_{name}"]), f"{key}: {name}"
            count += 1
        tall = max(height, 2 * groups)
        numbers = torch.arange(1.0, tall + 1)[None, :, None, None].expand(1, tall, 1, channels)
        moved = axial_shift(numbers, 1, groups)[0, :, 0]
        distances = (numbers[0, tall // 2, 0] - moved[tall // 2]).int().tolist()
        assert distances == expected["shifts_per_channel"], f"{key}: distances {distances}"
        assert -(-channels // groups) == expected["chunk_size"], f"{key}: chunk size"
        count += 1
    return count


def check_shift_block(path: Path) -> int:
    arrays = np.load(path)
    tokens, (height, width) = torch.from_numpy(arrays["x"]), arrays["hw"].tolist()
    block = ShiftBlock(tokens.shape[-1])
    block.load_state_dict({name[2:]: torch.from_numpy(arrays[name]) for name in arrays.files if name[:2] == "p_"})
    with torch.no_grad():
        found = block(tokens.view(len(tokens), height, width, -1)).flatten(1, 2)
    close(found, arrays["y"], 1e-5, "shifted block")
    return 1


# Names of the reference's weights: ours.
PCAS = {
    "in": "fc_in",
    "h": "fc_width",
    "w": "fc_height",
    "out": "fc_out",
    "mlp1": "mlp.fc1",
    "mlp2": "mlp.fc2",
    "mlpdw": "mlp.dwconv.dwconv",
    **{f"ln{number}": f"norm{number}" for number in range(1, 5)},
}
PCAS_VARIANTS = {
    "full": {},
    "conv_only": {"axial_shift": False},
    "shift_only": {"parallel_kernels": (), "depthwise": False},
    "plain_mlp": {"axial_shift": False, "parallel_kernels": (), "depthwise": False},
}


def check_pcas(path: Path) -> int:
    arrays, count = np.load(path), 0
    x = torch.from_numpy(arrays["x"]).permute(0, 2, 3, 1)
    weights = {}
    for name in arrays.files:
        if name.startswith("p_"):
            part, kind = name[2:].rsplit("_", 1)
            ours = PCAS.get(part) or f"parallel.{part.removeprefix('dw')}.dwconv"
            weights[f"{ours}.{'weight' if kind == 'w' else 'bias'}"] = torch.from_numpy(arrays[name])
    for variant, settings in PCAS_VARIANTS.items():
        if variant not in arrays.files:
            continue
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            block = PCASMLP(x.shape[-1], **settings).to(dtype)
            block.load_state_dict({name: weights[name] for name in block.state_dict()})
            with torch.no_grad():
                found = block(x.to(dtype)).permute(0, 3, 1, 2)
            close(found, arrays[variant], tolerance, f"{variant} in {dtype}")
            count += 1
    return count


# ---------------------------------------------------------------------- whole networks


def rule_weights(name: str, shape: list[int]) -> torch.Tensor:
    """The README's rule: every weight is a function of its official name."""
    size = int(np.prod(shape))
    values = np.sin(zlib.crc32(name.encode()) % 1000 + 0.37 * np.arange(size))
    if len(shape) > 1:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 1 + 0.1 * values if name.endswith("weight") else 0.05 * values
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def check_forward(path: Path) -> int:
    """Loads the official names strictly: a checkpoint of UNeXt loads as it is."""
    arrays, count = np.load(path), 0
    for name in (name for name in arrays.files if not name.endswith("_train_mode")):
        names = json.loads(path.with_name(f"names_{name}.json").read_text())
        side = arrays[name].shape[-1]
        layers = ("encoder1.bias", "encoder2.bias", "encoder3.bias", "norm3.bias", "norm4.bias")
        widths, classes = [names[layer][0] for layer in layers], names["final.bias"][0]
        model = unext(image_size=side, num_classes=classes, widths=widths)
        state = {key: rule_weights(key, shape) for key, shape in names.items()}
        buffers = {key: value for key, value in model.state_dict().items() if key not in state}
        assert set(buffers) == {key for key, _ in model.named_buffers()}, f"{name}: other parameters"
        model.load_state_dict({**state, **buffers})
        x = np.sin(0.017 * np.arange(3 * side * side)).reshape(1, 3, side, side).astype(np.float32)
        x = torch.from_numpy(x)
        with torch.no_grad():
            close(model.eval()(x), arrays[name], 1e-4, name)
            count += 1
            trained = arrays.get(f"{name}_train_mode")
            if trained is not None:
                step = side // trained.shape[-1]
                close(model.train()(torch.cat([x, -x]))[..., ::step, ::step], trained, 1e-4, f"{name} in train mode")
                count += 1
    return count


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def check_official_counts(path: Path) -> int:
    count = 0
    for name, expected in json.loads(path.read_text()).items():
        if not isinstance(expected, int):
            continue
        with torch.device("meta"):
            if name.startswith("UNet_"):
                channels, classes, bilinear = re.match(r"UNet_(\d+)ch_(\d+)class_bilinear_(True|False)", name).groups()
                bilinear = bilinear == "True"
                model = UNet(in_channels=int(channels), num_classes=int(classes), bilinear=bilinear, bias=True)
            else:
                base, _, classes = name.partition("_k")
                model = unext(num_classes=int(classes or 1), widths=WIDTHS[base])
        found = parameters(model)
        assert found == expected, f"{name}: {found} parameters, not {expected}"
        count += 1
    return count


def check_variant_counts(path: Path) -> int:
    count = 0
    for variant, expected in json.loads(path.read_text()).items():
        if isinstance(expected, int):
            found = parameters(stm_unet(variant))
            assert found == expected, f"{variant}: {found} parameters, not {expected}"
            count += 1
    return count


def check_schedule(path: Path) -> int:
    """The rate of every step of an epoch is that of CosineAnnealingLR stepped once an epoch."""
    count = 0
    for key, expected in json.loads(path.read_text()).items():
        rate, epochs, least = re.match(r"lr(.+)_T(\d+)_min(.+)", key).groups()
        epochs, per_epoch = int(epochs), 7
        rate_at = schedule(
            "cosine", float(rate), epochs * per_epoch, end_learning_rate=float(least), interval=per_epoch
        )
        for epoch, value in enumerate(expected):
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
                close(rate_at(step), value, 1e-12, f"{key}, epoch {epoch}")
            count += 1
    return count


CHECKS = [
    ("metrics*.json", check_metrics),
    ("aggregation*.json", check_aggregation),
    ("shift*.json", check_shift),
    ("shift_block*.npz", check_shift_block),
    ("pcas*.npz", check_pcas),
    ("unext_forward*.npz", check_forward),
    ("param_counts*.json", check_official_counts),
    ("stm_param_counts*.json", check_variant_counts),
    ("schedule*.json", check_schedule),
    ("*_inputs.npz", companion),
    ("shift*.npz", companion),
    ("names_*.json", companion),
]
