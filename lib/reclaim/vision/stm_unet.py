"""STM-UNet: Swin blocks in the skips, a multi-scale axial-shift MLP in the bottleneck, on UNeXt's U-shaped network.

Shi, Gao, Zhang and Zhang, "STM-UNet: An Efficient U-shaped Architecture Based on Swin Transformer and Multi-scale MLP
for Medical Image Segmentation" (GLOBECOM 2023, arXiv 2304.12615). The authors published no code. From the abstract:
Swin Transformer blocks stand in the skip connections as a residual branch, and the bottleneck is a "PCAS-MLP" (parallel
convolution, axial shift, multi-scale). What the abstract leaves open is a decision of this project and not the
paper's: two blocks in each of the four skips, their heads, window and ratio, and the formula of `PCASMLP`.

The network around them is UNeXt (Valanarasu and Patel, MICCAI 2022), exactly: its parameters carry the names of the
official code, so that a checkpoint of UNeXt loads into the variant `unext`. The axial shift is AS-MLP's (Lian et al.,
ICLR 2022), the blocks in the skips are timm's `SwinTransformerBlock`.

Differences from UNeXt's code: any number of input channels and any square or oblong size that the strides divide;
the shift is two copies instead of a padding, five rolls and two cuts; token blocks work on [batch, height, width,
channels] and need no transposition when the model is in the channels-last memory format. With `first_pool` off, the
first pooling and the last upsampling are left out, for images of 64 pixels, whose bottleneck would be 2 x 2 otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import reclaim.torchvision_shim  # noqa: F401
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from reclaim.errors import InputError

# What each variant changes of the full model (spec card, section 3.2 and the tiny protocol).
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_swin": {"swin_levels": ()},
    "conv_only": {"axial_shift": False},
    "shift_only": {"parallel_kernels": (), "depthwise": False},
    "plain_mlp": {"axial_shift": False, "parallel_kernels": (), "depthwise": False},
    "unext_bottleneck": {"bottleneck": "shift"},
    "swin_deep": {"swin_levels": (3, 4)},
    "swin_ratio4": {"mlp_ratio": 4.0},
    "unext": {"swin_levels": (), "bottleneck": "shift"},
    # Each parallel branch off, other ways to join them, and other windows.
    "no_conv3": {"parallel_kernels": (5, 7)},
    "no_conv5": {"parallel_kernels": (3, 7)},
    "no_conv7": {"parallel_kernels": (3, 5)},
    "conv3_only": {"parallel_kernels": (3,)},
    "no_width_branch": {"axial_branches": ("height",)},
    "no_height_branch": {"axial_branches": ("width",)},
    "concat": {"fusion": "concat"},
    "skip_replaced": {"skip_residual": False},
    "no_swin_plain_mlp": {"swin_levels": (), "axial_shift": False, "parallel_kernels": (), "depthwise": False},
}
GROUPS = 5


def axial_shift(x: Tensor, dim: int, groups: int = GROUPS) -> Tensor:
    """Move each group of channels along one axis by its own distance and fill with zeros: [B, H, W, C], the same.

    dim: 1 (along the height) or 2 (along the width). The channels are cut as `torch.chunk` cuts them: pieces of
    ceil(C / groups), the last one shorter. Piece g moves by g - groups // 2, a positive distance to larger indices; where
    C makes fewer pieces than `groups`, the first distances are used.
    """
    reach = groups // 2
    pad = (0, 0, reach, reach) if dim == 2 else (0, 0, 0, 0, reach, reach)
    pieces = F.pad(x, pad).chunk(groups, dim=-1)
    moved = [piece.narrow(dim, 2 * reach - place, x.shape[dim]) for place, piece in enumerate(pieces)]
    return torch.cat(moved, dim=-1)


class DWConv(nn.Module):
    """Depthwise convolution with "same" zero padding on [B, H, W, C]."""

    def __init__(self, channels: int, kernel_size: int = 3):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C], the same."""
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ShiftMLP(nn.Module):
    """UNeXt's tokenised MLP: shift along H, linear, depthwise 3 x 3, GELU, shift along W, linear; [B, H, W, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels)
        self.dwconv = DWConv(channels)
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C], the same."""
        x = self.fc1(axial_shift(x, dim=1))
        x = F.gelu(self.dwconv(x))
        return self.fc2(axial_shift(x, dim=2))


class ShiftBlock(nn.Module):
    """x + ShiftMLP(LN(x)) on [B, H, W, C]."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = ShiftMLP(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C], the same."""
        return x + self.mlp(self.norm2(x))


class ChannelMLP(nn.Module):
    """Linear, depthwise 3 x 3 (unless `depthwise` is off), GELU, linear, all at one width; [B, H, W, C]."""

    def __init__(self, channels: int, depthwise: bool = True):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels)
        self.dwconv = DWConv(channels) if depthwise else nn.Identity()
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C], the same."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class PCASMLP(nn.Module):
    """Parallel convolutions, then axial shifts in parallel branches, then a channel MLP; [B, H, W, C].

        u = LN(x)                       p = u + sum over k of DWConv_k(u)
        v = GELU(LN(W_in p))            h = W_h shift(v, along W)       w = W_w shift(v, along H)
        y = x + W_out LN(GELU(h) + GELU(w))
        z = y + W_2 GELU(DWConv_3(W_1 LN(y)))

    Every LN is over channels (AS-MLP normalises over channels, height and width together).

    parallel_kernels: the k; none leaves p = u. axial_shift: off, the shifts are identities. axial_branches: which of the
    two branches there are, named by the axis that they shift along. depthwise: the convolution of the channel MLP.
    fusion: "sum" as above, or "concat": p = W_p [u, DWConv_k(u), ...].
    """

    def __init__(
        self,
        channels: int,
        parallel_kernels: Sequence[int] = (3, 5, 7),
        axial_shift: bool = True,
        axial_branches: Sequence[str] = ("width", "height"),
        depthwise: bool = True,
        fusion: str = "sum",
    ):
        super().__init__()
        if fusion not in ("sum", "concat"):
            raise InputError("PCASMLP(fusion=...)", repr(fusion), "sum or concat")
        if not axial_branches or not set(axial_branches) <= {"width", "height"}:
            raise InputError("PCASMLP(axial_branches=...)", repr(axial_branches), "width, height or both")
        if any(kernel % 2 == 0 for kernel in parallel_kernels):
            raise InputError("PCASMLP(parallel_kernels=...)", repr(parallel_kernels), "odd kernel sizes")
        self.axial_shift = axial_shift
        self.norm1 = nn.LayerNorm(channels)
        self.parallel = nn.ModuleDict({str(kernel): DWConv(channels, kernel) for kernel in parallel_kernels})
        self.fuse = None
        if fusion == "concat":
            self.fuse = nn.Linear((1 + len(parallel_kernels)) * channels, channels)
        self.fc_in = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.fc_width = nn.Linear(channels, channels) if "width" in axial_branches else None
        self.fc_height = nn.Linear(channels, channels) if "height" in axial_branches else None
        self.norm3 = nn.LayerNorm(channels)
        self.fc_out = nn.Linear(channels, channels)
        self.norm4 = nn.LayerNorm(channels)
        self.mlp = ChannelMLP(channels, depthwise)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C], the same."""
        v = F.gelu(self.norm2(self.fc_in(self.multi_scale(self.norm1(x)))))
        branches = []
        for linear, dim in ((self.fc_width, 2), (self.fc_height, 1)):
            if linear is not None:
                branches.append(F.gelu(linear(axial_shift(v, dim) if self.axial_shift else v)))
        y = x + self.fc_out(self.norm3(sum(branches[1:], branches[0])))
        return y + self.mlp(self.norm4(y))

    def multi_scale(self, u: Tensor) -> Tensor:
        """Give p, the input [B, H, W, C] with its parallel convolutions."""
        parts = [u, *(convolution(u) for convolution in self.parallel.values())]
        return sum(parts[1:], u) if self.fuse is None else self.fuse(torch.cat(parts, dim=-1))


class SwinPair(nn.Sequential):
    """A window-attention block and a shifted-window block at one resolution; [B, H, W, C].

    The window shrinks to the map, and a map that is not larger than the window is not shifted (timm's rules). Maps that
    the window does not divide are padded with zeros after the normalisation.
    """

    def __init__(self, channels: int, resolution: tuple[int, int], num_heads: int, window_size: int, mlp_ratio: float):
        self.window_size = window_size
        super().__init__(
            *(
                SwinTransformerBlock(
                    channels, resolution, num_heads, window_size=window_size, shift_size=shift, mlp_ratio=mlp_ratio
                )
                for shift in (0, window_size // 2)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C], the same."""
        for block in self:
            assert isinstance(block, SwinTransformerBlock)
            # Torch's fused attention, which timm leaves off, is faster without gradients (and not with them).
            block.attn.fused_attn = not torch.is_grad_enabled()  # type: ignore[misc]  # final for TorchScript only
            x = block(x)
        return x

    def set_input_size(self, resolution: tuple[int, int]) -> None:
        """Fit the blocks to maps of another size; only a window that shrinks or grows with the map changes weights."""
        for block in self:
            assert isinstance(block, SwinTransformerBlock)
            block.set_input_size(resolution, (self.window_size, self.window_size))


class PatchEmbed(nn.Module):
    """3 x 3 convolution of stride 2 and LN: [B, C, H, W] -> [B, H / 2, W / 2, C']."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, H / 2, W / 2, C']."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


def conv3(in_channels: int, channels: int) -> nn.Conv2d:
    """3 x 3 convolution of stride 1, the size kept."""
    return nn.Conv2d(in_channels, channels, 3, padding=1)


def grid_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Give (height, width) of a size that may be one number."""
    return (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))


def check_divisible(place: str, size: Sequence[int], divisor: int) -> None:
    """Raise InputError unless the strides of a network divide height and width."""
    if size[0] % divisor or size[1] % divisor or min(size) < divisor:
        raise InputError(
            place,
            f"images of {size[0]} x {size[1]}",
            f"a height and a width that are multiples of {divisor}",
            "Resize them, or use reclaim.vision.segmentation.predict, which pads and crops.",
        )


class STMUNet(nn.Module):
    """The network; the variants of the paper's parts are settings (see `VARIANTS`), the defaults are the full model.

    image_size: (height, width) or one number; Swin blocks hold attention masks for it (`set_input_size` changes it).
    widths: channels of the five stages. num_heads, window_size, mlp_ratio: of the Swin pairs. swin_levels: the skips
    (1 to 4) that have one. skip_residual: s = t + SwinPair(t), else s = SwinPair(t). bottleneck: "pcas" or "shift"
    (UNeXt's). parallel_kernels, axial_shift, axial_branches, depthwise, fusion: see `PCASMLP`.

    `forward`: images [B, in_channels, H, W] -> logits [B, num_classes, H, W]. Raises InputError for a size that the strides
    do not divide, and for another size than the one that the Swin blocks are built for.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 256,
        in_channels: int = 3,
        num_classes: int = 1,
        *,
        widths: Sequence[int] = (16, 32, 128, 160, 256),
        num_heads: Sequence[int] = (1, 2, 4, 5),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        swin_levels: Sequence[int] = (1, 2, 3, 4),
        skip_residual: bool = True,
        bottleneck: str = "pcas",
        parallel_kernels: Sequence[int] = (3, 5, 7),
        axial_shift: bool = True,
        axial_branches: Sequence[str] = ("width", "height"),
        depthwise: bool = True,
        fusion: str = "sum",
        first_pool: bool = True,
    ):
        super().__init__()
        if bottleneck not in ("pcas", "shift"):
            raise InputError("STMUNet(bottleneck=...)", repr(bottleneck), "pcas or shift")
        if not set(swin_levels) <= {1, 2, 3, 4}:
            raise InputError("STMUNet(swin_levels=...)", repr(swin_levels), "levels from 1 to 4")
        if len(widths) != 5 or len(num_heads) != 4:
            found = f"{len(widths)} widths and {len(num_heads)} num_heads"
            raise InputError("STMUNet", found, "5 widths and 4 num_heads")
        self.stem_stride = 2 if first_pool else 1
        self.divisor = 16 * self.stem_stride
        self.image_size = grid_size(image_size)
        check_divisible("STMUNet(image_size=...)", self.image_size, self.divisor)
        self.skip_residual = skip_residual
        a, b, c, d, e = widths
        self.encoder1, self.ebn1 = conv3(in_channels, a), nn.BatchNorm2d(a)
        self.encoder2, self.ebn2 = conv3(a, b), nn.BatchNorm2d(b)
        self.encoder3, self.ebn3 = conv3(b, c), nn.BatchNorm2d(c)
        self.patch_embed3, self.block1, self.norm3 = PatchEmbed(c, d), nn.Sequential(ShiftBlock(d)), nn.LayerNorm(d)
        if bottleneck == "shift":
            block: nn.Module = ShiftBlock(e)
        else:
            block = PCASMLP(e, parallel_kernels, axial_shift, axial_branches, depthwise, fusion)
        self.patch_embed4, self.block2, self.norm4 = PatchEmbed(d, e), nn.Sequential(block), nn.LayerNorm(e)
        self.skips = nn.ModuleDict(
            {
                str(level): SwinPair(
                    widths[level - 1], self._resolution(level), num_heads[level - 1], window_size, mlp_ratio
                )
                for level in swin_levels
            }
        )
        self.decoder1, self.dbn1 = conv3(e, d), nn.BatchNorm2d(d)
        self.dblock1, self.dnorm3 = nn.Sequential(ShiftBlock(d)), nn.LayerNorm(d)
        self.decoder2, self.dbn2 = conv3(d, c), nn.BatchNorm2d(c)
        self.dblock2, self.dnorm4 = nn.Sequential(ShiftBlock(c)), nn.LayerNorm(c)
        self.decoder3, self.dbn3 = conv3(c, b), nn.BatchNorm2d(b)
        self.decoder4, self.dbn4 = conv3(b, a), nn.BatchNorm2d(a)
        self.decoder5 = conv3(a, a)
        self.final = nn.Conv2d(a, num_classes, 1)

    def set_input_size(self, image_size: int | Sequence[int]) -> None:
        """Fit the Swin blocks to another size of images; raises InputError for a size that the strides do not divide."""
        size = grid_size(image_size)
        check_divisible("STMUNet.set_input_size", size, self.divisor)
        self.image_size = size
        for level, pair in self.skips.items():
            assert isinstance(pair, SwinPair)
            pair.set_input_size(self._resolution(int(level)))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] to logits [B, num_classes, H, W]."""
        size = tuple(x.shape[-2:])
        check_divisible("STMUNet", size, self.divisor)
        if self.skips and size != self.image_size:
            raise InputError(
                "STMUNet",
                f"images of {size[0]} x {size[1]}",
                f"{self.image_size[0]} x {self.image_size[1]}, for which the Swin blocks are built",
                "Call set_input_size first.",
            )
        t1 = F.relu(self._pool(self.ebn1(self.encoder1(x)), self.stem_stride))
        t2 = F.relu(self._pool(self.ebn2(self.encoder2(t1))))
        t3 = F.relu(self._pool(self.ebn3(self.encoder3(t2))))
        t4 = self.norm3(self.block1(self.patch_embed3(t3))).permute(0, 3, 1, 2)
        z = self.norm4(self.block2(self.patch_embed4(t4))).permute(0, 3, 1, 2)

        z = F.relu(self._up(self.dbn1(self.decoder1(z)))) + self._skip(t4, 4)
        z = self.dnorm3(self.dblock1(z.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        z = F.relu(self._up(self.dbn2(self.decoder2(z)))) + self._skip(t3, 3)
        z = self.dnorm4(self.dblock2(z.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        z = F.relu(self._up(self.dbn3(self.decoder3(z)))) + self._skip(t2, 2)
        z = F.relu(self._up(self.dbn4(self.decoder4(z)))) + self._skip(t1, 1)
        z = F.relu(self._up(self.decoder5(z), self.stem_stride))
        return self.final(z)

    def _skip(self, t: Tensor, level: int) -> Tensor:
        """Give s, what a level's decoder step adds: t itself, or with its Swin pair."""
        if str(level) not in self.skips:
            return t
        s = self.skips[str(level)](t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return t + s if self.skip_residual else s

    def _resolution(self, level: int) -> tuple[int, int]:
        stride = self.stem_stride * 2 ** (level - 1)
        return self.image_size[0] // stride, self.image_size[1] // stride

    @staticmethod
    def _pool(x: Tensor, stride: int = 2) -> Tensor:
        return F.max_pool2d(x, stride) if stride > 1 else x

    @staticmethod
    def _up(x: Tensor, stride: int = 2) -> Tensor:
        if stride == 1:
            return x
        return F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)


def stm_unet(variant: str = "full", **settings: Any) -> STMUNet:
    """Build a variant; `settings` (sizes) are those of `STMUNet`, and yield to what the variant changes."""
    if variant not in VARIANTS:
        raise InputError("STM-UNet variant", repr(variant), f"one of {', '.join(VARIANTS)}")
    return STMUNet(**{**settings, **VARIANTS[variant]})
