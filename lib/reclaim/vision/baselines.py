"""Rivals of STM-UNet, at the papers' sizes by default and at any other by their arguments.

`UNet` (Ronneberger, Fischer and Brox, MICCAI 2015) as it is compared with today: "same" padding and batch normalisation.
`unext` (Valanarasu and Patel, MICCAI 2022): two settings of `STMUNet`, which is built on it. `TransUNet` (Chen et al., 2021):
a ResNet whose deepest map goes through a ViT, then a decoder with the ResNet's maps as skips. `SwinUNet` (Cao et al.,
ECCVW 2022): Swin blocks on both sides, patch merging down, patch expanding up.

Encoders and blocks of the last two are timm's; the rest follows the papers. Their own results start from ImageNet weights;
here every model starts from random ones, so that all stand on equal terms. segmentation-models-pytorch has other networks:
its U-Net has a classification encoder (and other parameter counts), and the other three are not in it.

Every `forward` takes images [B, in_channels, H, W] to logits [B, num_classes, H, W] and raises InputError for a size that
the strides do not divide, or for another than that of the position embeddings or masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import reclaim.torchvision_shim  # noqa: F401
import torch
from timm.layers import GroupNormAct, StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from reclaim.errors import InputError
from reclaim.vision.stm_unet import VARIANTS, check_divisible, grid_size, stm_unet


def double_conv(in_channels: int, channels: int, middle: int | None = None, bias: bool = False) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch normalisation and ReLU."""
    middle = middle or channels
    return nn.Sequential(
        nn.Conv2d(in_channels, middle, 3, padding=1, bias=bias),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, channels, 3, padding=1, bias=bias),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def resize(x: Tensor, scale: int = 2) -> Tensor:
    """[B, C, H, W] to [B, C, sH, sW], bilinear with aligned corners, as in the official U-Net variants and TransUNet."""
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=True)


class UNet(nn.Module):
    """U-Net with transposed convolutions, or with bilinear upsampling and half as many channels in the decoder.

    bias: of the 3 x 3 convolutions, which batch normalisation makes superfluous.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 256,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        bilinear: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.divisor = 2 ** (len(widths) - 1)
        check_divisible("UNet(image_size=...)", grid_size(image_size), self.divisor)
        half = 2 if bilinear else 1
        down = [*widths[:-1], widths[-1] // half]
        self.down = nn.ModuleList(
            double_conv(before, after, bias=bias) for before, after in zip([in_channels, *down[:-1]], down, strict=True)
        )
        self.expand, self.up = nn.ModuleList(), nn.ModuleList()
        for deep, skip in zip(widths[:0:-1], widths[-2::-1], strict=True):
            out = skip if skip == widths[0] else skip // half
            self.expand.append(nn.Identity() if bilinear else nn.ConvTranspose2d(deep, skip, 2, stride=2))
            self.up.append(double_conv(deep if bilinear else 2 * skip, out, deep // 2 if bilinear else None, bias))
        self.bilinear = bilinear
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, num_classes, H, W]."""
        check_divisible("UNet", tuple(x.shape[-2:]), self.divisor)
        skips = []
        for index, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if index else x)
            skips.append(x)
        skips.pop()
        for expand, block in zip(self.expand, self.up, strict=True):
            x = resize(x) if self.bilinear else expand(x)
            x = block(torch.cat([skips.pop(), x], dim=1))
        return self.head(x)


class TransUNet(nn.Module):
    """TransUNet; the defaults are R50-ViT-B/16.

    layers, channels, stem_channels, num_groups: of the ResNet (stages at strides 4, 8, 16). embed_dim, depth, num_heads: of
    the transformer on the map of stride 16. decoder_channels: at strides 8, 4, 2 and 1.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 256,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        layers: Sequence[int] = (3, 4, 9),
        channels: Sequence[int] = (256, 512, 1024),
        stem_channels: int = 64,
        num_groups: int = 32,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        bridge_channels: int = 512,
        decoder_channels: Sequence[int] = (256, 128, 64, 16),
    ):
        super().__init__()
        self.image_size, self.divisor = grid_size(image_size), 16
        check_divisible("TransUNet(image_size=...)", self.image_size, self.divisor)
        self.encoder = ResNetV2(
            layers=list(layers),
            channels=tuple(channels),
            num_classes=0,
            global_pool="",
            in_chans=in_channels,
            stem_chs=stem_channels,
            stem_type="same",
            preact=False,
            norm_layer=partial(GroupNormAct, num_groups=num_groups),
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
        self.embed = nn.Conv2d(channels[-1], embed_dim, 1)
        height, width = (side // 16 for side in self.image_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, height * width, embed_dim))
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm calls it and asks for a class
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        )
        self.norm = norm(embed_dim)
        self.bridge = nn.Sequential(
            nn.Conv2d(embed_dim, bridge_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(bridge_channels),
            nn.ReLU(inplace=True),
        )
        before = [bridge_channels, *decoder_channels[:-1]]
        skips = [channels[1], channels[0], stem_channels, 0]
        self.up = nn.ModuleList(
            double_conv(deep + skip, out) for deep, skip, out in zip(before, skips, decoder_channels, strict=True)
        )
        self.head = nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, num_classes, H, W]."""
        _check_built("TransUNet", x, self.image_size, "the position embeddings are")
        stem = self.encoder.stem[: self.encoder.stem_feat_idx + 1](x)
        x = self.encoder.stem[self.encoder.stem_feat_idx + 1 :](stem)
        maps = [stem]
        for stage in self.encoder.stages:
            x = stage(x)
            maps.append(x)
        x = self.embed(x)
        tokens = self.norm(self.blocks(x.flatten(2).transpose(1, 2) + self.pos_embed))
        x = self.bridge(tokens.transpose(1, 2).unflatten(2, x.shape[-2:]))
        for block, skip in zip(self.up, (maps[2], maps[1], maps[0], None), strict=True):
            x = resize(x)
            x = block(x if skip is None else torch.cat([x, skip], dim=1))
        return self.head(x)


class PatchExpand(nn.Module):
    """Linear layer whose channels are laid out as scale x scale pixels, then LN: [B, H, W, C] -> [B, sH, sW, C']."""

    def __init__(self, channels: int, out_channels: int, scale: int = 2):
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(channels, scale * scale * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, sH, sW, C']."""
        batch, height, width, _ = x.shape
        x = self.expand(x).view(batch, height, width, self.scale, self.scale, -1)
        return self.norm(x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height * self.scale, width * self.scale, -1))


class SwinUNet(nn.Module):
    """Swin-Unet; the defaults are those of its Swin-T, with a window of 8 as 256 pixels need (224 take 7).

    depths, num_heads: of the stages from the finest to the deepest, the same on the way up.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 256,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 8,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.image_size, self.divisor = grid_size(image_size), patch_size * 2 ** (len(depths) - 1)
        check_divisible("SwinUNet(image_size=...)", self.image_size, self.divisor)
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.proj_norm = nn.LayerNorm(embed_dim)
        widths = [embed_dim * 2**level for level in range(len(depths))]

        def stage(level: int) -> nn.Sequential:
            resolution = tuple(side // patch_size // 2**level for side in self.image_size)
            return nn.Sequential(
                *(
                    SwinTransformerBlock(
                        widths[level],
                        resolution,
                        num_heads[level],
                        window_size=window_size,
                        shift_size=(index % 2) * (window_size // 2),
                        mlp_ratio=mlp_ratio,
                    )
                    for index in range(depths[level])
                )
            )

        levels = range(len(depths))
        self.down = nn.ModuleList(stage(level) for level in levels)
        self.merge = nn.ModuleList(PatchMerging(width) for width in widths[:-1])
        self.norm = nn.LayerNorm(widths[-1])
        self.expand = nn.ModuleList(PatchExpand(width, width // 2) for width in widths[:0:-1])
        self.join = nn.ModuleList(nn.Linear(2 * width, width) for width in widths[-2::-1])
        self.up = nn.ModuleList(stage(level) for level in levels[-2::-1])
        self.norm_up = nn.LayerNorm(embed_dim)
        self.final_expand = PatchExpand(embed_dim, embed_dim, patch_size)
        self.head = nn.Conv2d(embed_dim, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, num_classes, H, W]."""
        _check_built("SwinUNet", x, self.image_size, "the attention masks are")
        x = self.proj_norm(self.proj(x).permute(0, 2, 3, 1))
        skips = []
        for index, stage in enumerate(self.down):
            x = stage(x)
            if index < len(self.merge):
                skips.append(x)
                x = self.merge[index](x)
        x = self.norm(x)
        for expand, join, stage in zip(self.expand, self.join, self.up, strict=True):
            x = stage(join(torch.cat([expand(x), skips.pop()], dim=-1)))
        return self.head(self.final_expand(self.norm_up(x)).permute(0, 3, 1, 2))


def unext(**settings: Any) -> nn.Module:
    """UNeXt; `widths` (8, 16, 32, 64, 128) make UNeXt-S."""
    return stm_unet("unext", **settings)


def _check_built(place: str, x: Tensor, image_size: tuple[int, int], what: str) -> None:
    if tuple(x.shape[-2:]) != image_size:
        raise InputError(
            place,
            f"images of {x.shape[-2]} x {x.shape[-1]}",
            f"{image_size[0]} x {image_size[1]}, for which {what} built",
            "Resize them, or build the model for this size.",
        )


BASELINES: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "transunet": TransUNet, "swin_unet": SwinUNet}


def build_model(name: str, image_size: int | Sequence[int], settings: dict[str, dict[str, Any]], **more: Any):
    """Build a model by the name of an arm: a variant of STM-UNet (`unext` is one) or a rival.

    settings: the sizes by family: `stm_unet` for all its variants, and `unet`, `transunet`, `swin_unet`. more: further
    arguments (num_classes, in_channels, or what an arm changes). Raises InputError for an unknown name or setting.
    """
    if name not in VARIANTS and name not in BASELINES:
        raise InputError("segmentation model", repr(name), f"one of {', '.join([*VARIANTS, *BASELINES])}")
    family = "stm_unet" if name in VARIANTS else name
    arguments = {"image_size": image_size, **settings.get(family, {}), **more}
    # Construction draws initial weights from the global stream, which stays as it was.
    with torch.random.fork_rng(devices=[]):
        try:
            return stm_unet(name, **arguments) if name in VARIANTS else BASELINES[name](**arguments)
        except TypeError as error:
            raise InputError(f"network.{family}", str(error), f"the settings of {family}") from None
