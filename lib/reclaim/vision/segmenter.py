"""Training of segmentation networks: loss, initial weights, augmentation, batches, prediction, complexity.

Loss and protocol are UNeXt's (Valanarasu and Patel, MICCAI 2022), on which STM-UNet builds: 0.5 BCE + Dice, Adam, a cosine
schedule, random quarter turns and flips. What differs from its code:

- A master's weights: each layer is drawn from a stream of its name and the seed, so that layers which two models share start
  equal. In the code, models that draw in another order start from different weights throughout.
- Images are RGB and normalised once; the code normalises BGR images by RGB statistics and divides by 255 again
  (`unext_compat`).
- The mask is p > 0.5 everywhere; the code writes pictures with p >= 0.5 and scores with p > 0.5.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reclaim.batches import epoch_batches
from reclaim.errors import InputError
from reclaim.metrics.segmentation import Overlap, overlap
from reclaim.seeding import derive
from reclaim.train import History, Recipe, train
from reclaim.vision.images import ImageSet
from reclaim.vision.stm_unet import STMUNet, grid_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, RGB
SMOOTH = 1e-5


def bce_dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """0.5 BCE (mean over all elements) + the mean over images of 1 - soft Dice over all classes and pixels of an image.

    logits, targets: [batch, classes, height, width]; targets may be soft. Source: UNeXt's `BCEDiceLoss`.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets)
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    overlaps = (2 * (p * t).sum(1) + SMOOTH) / (p.sum(1) + t.sum(1) + SMOOTH)
    return 0.5 * bce + (1 - overlaps).mean()


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Draw the initial weights of every layer from the stream of its name: equal layers of two models start equal.

    Linear layers, position embeddings and position biases: normal, cut off, std 0.02. Depthwise and strided convolutions:
    normal, std sqrt(2 / (k * k * out / groups)). Other convolutions: torch's default. Biases 0, in those of torch's default
    uniform as there. Normalisation layers: 1 and 0. These are UNeXt's and Swin's rules.
    """
    for name, module in model.named_modules():
        generator = torch.Generator().manual_seed(derive(seed, "initial weights", name))
        if isinstance(module, nn.Linear):
            _normal(module.weight, 0.02, generator)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            tokens = isinstance(module, nn.Conv2d) and (module.groups > 1 or module.stride[0] > 1)
            if tokens:
                spread = math.sqrt(2 * module.groups / (math.prod(module.kernel_size) * module.out_channels))
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * spread)
            else:
                bound = 1 / math.sqrt(math.prod(module.kernel_size) * module.weight.shape[1])
                for parameter in (module.weight, module.bias):
                    if parameter is not None:
                        parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
                continue
        else:
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm):
                nn.init.ones_(module.weight)
            else:
                for own, parameter in module.named_parameters(recurse=False):
                    if own in ("relative_position_bias_table", "pos_embed"):
                        _normal(parameter, 0.02, generator)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)


def _normal(parameter: Tensor, spread: float, generator: torch.Generator) -> None:
    values = torch.empty(parameter.shape)
    nn.init.trunc_normal_(values, std=spread, generator=generator)
    parameter.copy_(values)


def complexity(model: nn.Module, image_size: int | Sequence[int], in_channels: int = 3) -> dict[str, int]:
    """Trainable parameters, and multiply-adds of one image's forward pass (convolutions, matrix products, attention).

    Counted by `torch.utils.flop_counter`, whose operations are halved, on a copy without data: the counter does not see the
    fused attention of a CPU.
    """
    hollow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hollow(torch.zeros(1, in_channels, *grid_size(image_size), device="meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}


def normalize(images: Tensor, unext_compat: bool = False) -> Tensor:
    """uint8 [n, height, width, 3] -> float32 [n, 3, height, width] in the channels-last memory format."""
    x = images.permute(0, 3, 1, 2).float()
    if unext_compat:
        x = x.flip(1)
    mean, std = (255 * torch.tensor(values, device=x.device).view(3, 1, 1) for values in (MEAN, STD))
    x = (x - mean) / std
    return x / 255 if unext_compat else x


@dataclass
class Augmentation:
    """Random quarter turns and flips (torch's own), each with its probability; a flip is along the height, the width or both.

    The augmentation libraries draw from global streams; here a turn is a function of the seed and the step.
    """

    rotate90: float = 0.5
    flip: float = 0.5

    def __call__(self, images: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """images [n, height, width, 3], masks [n, height, width] -> the same, turned together.

        Raises InputError for quarter turns of oblong images.
        """
        height, width = masks.shape[1:]
        if self.rotate90 and height != width:
            raise InputError(
                "augmentation.rotate90",
                f"images of {height} x {width} pixels",
                "square ones",
                "Give an image_size or a crop_size, or set rotate90 to 0.",
            )
        pairs = []
        for image, mask in zip(images, masks, strict=True):
            turns = int(rng.integers(4)) if rng.random() < self.rotate90 else 0
            axes = ((0,), (1,), (0, 1))[int(rng.integers(3))] if rng.random() < self.flip else ()
            pairs.append([torch.rot90(side, turns, (0, 1)).flip(axes) for side in (image, mask)])
        turned_images, turned_masks = zip(*pairs, strict=True)
        return torch.stack(turned_images), torch.stack(turned_masks)


def fit(
    model: nn.Module,
    data: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    augmentation: Augmentation | None = None,
    crop_size: int | None = None,
    unext_compat: bool = False,
    device: torch.device | str = "cpu",
    **options: Any,
) -> History:
    """Train a model in place; batches, crops and turns are a function of the seed and the step, not of the model.

    crop_size: cut a random square of this side from each image. options: further arguments of `reclaim.train.train`.
    """
    images, masks = torch.from_numpy(data.images), torch.from_numpy(data.masks)
    size, parts = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    take = epoch_batches(len(data), size * parts, derive(seed, "batches"))
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stub

    def batches(step: int) -> list[tuple[Tensor, Tensor]]:
        rows = torch.from_numpy(take(step)[1])
        rng = np.random.default_rng(derive(seed, "augmentation", step))
        x, t = images[rows], masks[rows]
        if crop_size:
            x, t = _crop(x, t, crop_size, rng)
        if augmentation:
            x, t = augmentation(x, t, rng)
        x, t = normalize(x.to(device), unext_compat), t[:, None].to(device).float()
        return list(zip(x.split(size), t.split(size), strict=True))

    def loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, t = batch
        return bce_dice_loss(model(x).float(), t) * len(x), len(x)

    return train(model, batches, loss, recipe, seed=seed, **options)


def _crop(images: Tensor, masks: Tensor, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    height, width = masks.shape[1:]
    if side > min(height, width):
        raise InputError("crop_size", str(side), f"at most the images' {min(height, width)} pixels")
    corners = [(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))) for _ in images]
    cut = [[part[y : y + side, x : x + side] for (y, x), part in zip(corners, t, strict=True)] for t in (images, masks)]
    return torch.stack(cut[0]), torch.stack(cut[1])


@torch.inference_mode()
def predict(model: nn.Module, images: np.ndarray, *, batch_size: int = 32, unext_compat: bool = False) -> np.ndarray:
    """Give the probabilities of the foreground: uint8 [n, height, width, 3] -> float32 [n, classes, height, width].

    Images of any size: they are padded at the right and below to what the model's strides divide, and the result is cut back.
    Swin skips are fitted to another size in a copy, since a window that grows and shrinks back does not come back with the same
    position biases. The model is left in eval mode.
    """
    model.eval()
    device, divisor = next(model.parameters()).device, model.divisor
    height, width = images.shape[1:3]
    size = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    if isinstance(model, STMUNet) and model.image_size != size:
        model = copy.deepcopy(model)
        model.set_input_size(size)
    found = []
    for start in range(0, len(images), batch_size):
        x = normalize(torch.from_numpy(images[start : start + batch_size]).to(device), unext_compat)
        x = F.pad(x, (0, size[1] - width, 0, size[0] - height), mode="replicate")
        found.append(model(x).float().sigmoid()[..., :height, :width].cpu().numpy())
    return np.concatenate(found)


def score(probabilities: np.ndarray, data: ImageSet) -> Overlap:
    """Count overlaps of the masks p > 0.5 [n, height, width], at the size of the files where `data` has `full_masks`."""
    if data.full_masks is None:
        return overlap(probabilities > 0.5, data.masks)
    counts = []
    for p, target in zip(probabilities, data.full_masks, strict=True):
        resized = Image.fromarray(p, mode="F").resize(target.shape[::-1], Image.Resampling.BILINEAR)
        counts.append(overlap(np.asarray(resized)[None] > 0.5, target[None]))
    return Overlap(*(np.concatenate(side) for side in zip(*counts, strict=True)))
