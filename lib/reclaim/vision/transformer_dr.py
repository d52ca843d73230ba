"""Transformer-DR: dimensionality reduction by an autoencoder of Vision Transformer blocks.

Ran, Gao, Zhang, "Transformer-based dimensionality reduction" (arXiv 2210.08288, 2022). No official code is public, and
only the abstract and the beginning of the introduction were at hand: that the encoder is a ViT, that a decoder rebuilds
the image from the code, and that training minimises the error of reconstruction without labels is the paper's. Every
size and detail below is a decision of this project, not the paper's:

    patches -> linear + position -> L pre-norm blocks -> LN -> flatten (N * D) -> linear -> code of d numbers
    code -> linear -> N * D + position -> L pre-norm blocks -> LN -> linear per token -> pixels (no sigmoid)

There is no class token, because a code that must rebuild the image needs all tokens. The tokens are flattened and not
averaged, because an average forgets where a feature is; `pool="mean"` and `pool="token"` (each token reduced to d / N
numbers) are there for the ablation, and so are `attention`, `positions` and `decoder_depth`.

Training, `fit`, `transform`, `inverse_transform`, `score`, `save` and `load` are those of `autoencoder`, which the plain
and the convolutional autoencoder of `reducers` share, so that the methods differ in their networks only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reclaim.errors import InputError
from reclaim.vision.autoencoder import AutoencoderNetwork, ImageAutoencoder, Shape

# Sizes and training of section 2 of this project's card; `n_components` is the user's.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_shape": (8, 8),
        "patch_size": 2,
        "embed_dim": 32,
        "depth": 2,
        "epochs": 40,
        "batch_size": 64,
        "lr": 6e-3,
        "max_grad_norm": 0.0,
    },
    "mnist": {"image_shape": (28, 28), "epochs": 50, "batch_size": 256},
    "face32": {"image_shape": (32, 32), "epochs": 300, "batch_size": 32},
    "coil": {"image_shape": (32, 32), "epochs": 300, "batch_size": 32},
}

# ---------------------------------------- the network


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, H, W, C) into tokens (B, N, P * P * C): patches row by row, in a patch (row, column, channel)."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    tokens = images.reshape(batch, rows, patch_size, columns, patch_size, channels).transpose(2, 3)
    return tokens.reshape(batch, rows * columns, patch_size * patch_size * channels)


def unpatchify(tokens: Tensor, patch_size: int, shape: Shape) -> Tensor:
    """Put tokens (B, N, P * P * C) back together into images (B, H, W, C); the inverse of `patchify`."""
    height, width, channels = shape
    rows, columns = height // patch_size, width // patch_size
    tokens = tokens.reshape(-1, rows, columns, patch_size, patch_size, channels).transpose(2, 3)
    return tokens.reshape(-1, height, width, channels)


class Block(nn.Module):
    """Pre-norm transformer block: z + MHSA(LN z), then z + MLP(LN z) with exact GELU; no dropout.

    Without `attention` only the second half is left, which treats every token alone.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int, attention: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        if attention:
            self.norm1 = nn.LayerNorm(embed_dim)
            self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
            self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, mlp_ratio * embed_dim)
        self.fc2 = nn.Linear(mlp_ratio * embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D), the same."""
        if self.attention:
            tokens = tokens + self._attend(self.norm1(tokens))
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.num_heads, width // self.num_heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class TransformerAutoencoder(AutoencoderNetwork):
    """Images (B, H, W, C) -> codes (B, d) -> images (B, H, W, C).

    An image that the patch size does not divide is padded with zeros on the right and at the bottom, and cropped after
    decoding. `decoder_depth=0` leaves a decoder that is linear in the code.
    """

    def __init__(
        self,
        image_shape: Shape,
        n_components: int,
        *,
        patch_size: int = 4,
        embed_dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: int = 2,
        pool: str = "flatten",
        attention: bool = True,
        positions: bool = True,
        decoder_depth: int | None = None,
    ):
        super().__init__()
        height, width, channels = image_shape
        self.image_shape, self.patch_size, self.pool = image_shape, patch_size, pool
        self.padded = (-(-height // patch_size) * patch_size, -(-width // patch_size) * patch_size, channels)
        self.num_tokens = self.padded[0] * self.padded[1] // patch_size**2
        patch = patch_size**2 * channels
        decoder_depth = depth if decoder_depth is None else decoder_depth

        def blocks(count: int) -> nn.Sequential:
            stack = [Block(embed_dim, num_heads, mlp_ratio, attention) for _ in range(count)]
            return nn.Sequential(*stack, nn.LayerNorm(embed_dim))

        def position() -> nn.Parameter | None:
            return nn.Parameter(0.02 * torch.randn(self.num_tokens, embed_dim)) if positions else None

        self.embed = nn.Linear(patch, embed_dim)
        self.encoder_positions = position()
        self.encoder = blocks(depth)
        pooled = {"flatten": self.num_tokens * embed_dim}.get(pool, embed_dim)
        self.to_code = nn.Linear(pooled, n_components // self.num_tokens if pool == "token" else n_components)
        self.linear_decoder = decoder_depth == 0
        if self.linear_decoder:
            self.from_code = nn.Linear(n_components, self.num_tokens * patch)
            return
        if pool == "token":
            self.from_code = nn.Linear(n_components // self.num_tokens, embed_dim)
        else:
            self.from_code = nn.Linear(n_components, self.num_tokens * embed_dim)
        self.decoder_positions = position()
        self.decoder = blocks(decoder_depth)
        self.to_pixels = nn.Linear(embed_dim, patch)

    def encoder_tokens(self, images: Tensor) -> Tensor:
        """Token outputs (B, N, D) of the encoder after its last norm, before they are pooled into the code."""
        bottom, right = (padded - size for padded, size in zip(self.padded[:2], self.image_shape[:2], strict=True))
        if bottom or right:
            images = F.pad(images, (0, 0, 0, right, 0, bottom))
        tokens = self.embed(patchify(images, self.patch_size))
        if self.encoder_positions is not None:
            tokens = tokens + self.encoder_positions
        return self.encoder(tokens)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, H, W, C) to codes (B, d)."""
        tokens = self.encoder_tokens(images)
        if self.pool == "mean":
            return self.to_code(tokens.mean(1))
        if self.pool == "token":
            return self.to_code(tokens).flatten(1)
        return self.to_code(tokens.flatten(1))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, d) to images (B, H, W, C)."""
        if self.pool == "token" and not self.linear_decoder:
            codes = codes.reshape(len(codes), self.num_tokens, -1)
        tokens = self.from_code(codes).reshape(len(codes), self.num_tokens, -1)
        if not self.linear_decoder:
            if self.decoder_positions is not None:
                tokens = tokens + self.decoder_positions
            tokens = self.to_pixels(self.decoder(tokens))
        height, width, _ = self.image_shape
        return unpatchify(tokens, self.patch_size, self.padded)[:, :height, :width]

    def forward(self, images: Tensor) -> Tensor:
        """Rebuild images (B, H, W, C)."""
        return self.decode(self.encode(images))


class TransformerDR(ImageAutoencoder):
    """Transformer-DR as a scikit-learn transformer of flat image rows.

    n_components: d, the length of the code. image_shape: (H, W) or (H, W, C) of a row, channels last; None takes a
        square if the number of features is one, else one row of pixels. pad: zero-pad images that `patch_size` does not
        divide, which is an error otherwise.
    embed_dim, depth, num_heads, mlp_ratio: D, L (on each side), h and r. pool: "flatten", "mean", or "token" (d must be
        a multiple of the number of tokens). attention, positions, decoder_depth (None: as deep as the encoder; 0: a
        linear decoder): ablations.
    epochs, batch_size, lr, warmup_steps, max_grad_norm (0: no clipping): Adam with betas 0.9 and 0.999, no weight
        decay. The last incomplete batch of an epoch is dropped. early_stopping: keep the weights of the epoch with the
        least error on `validation_fraction` of the rows. amp: bfloat16 autocast on a GPU.
    random_state: equal states give bit-equal codes on the CPU with one thread. device: "auto" is a GPU if there is one.

    `TransformerDR.preset("mnist", n_components=10)` gives the sizes that this project uses for a kind of image.

    scikit-learn's `check_estimator` passes with `image_shape=None` and `pad=True`, as its rows have 1 to 20 features. The one
    check that does not run is `check_array_api_input`, which scikit-learn skips unless SCIPY_ARRAY_API is set; there is no
    support for other arrays than NumPy's.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        image_shape: tuple[int, ...] | None = None,
        patch_size: int = 4,
        embed_dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: int = 2,
        pool: str = "flatten",
        attention: bool = True,
        positions: bool = True,
        decoder_depth: int | None = None,
        pad: bool = False,
        epochs: int = 50,
        batch_size: int = 256,
        lr: float = 1e-3,
        warmup_steps: int = 50,
        max_grad_norm: float = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        amp: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ):
        self.n_components = n_components
        self.image_shape = image_shape
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.pool = pool
        self.attention = attention
        self.positions = positions
        self.decoder_depth = decoder_depth
        self.pad = pad
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.max_grad_norm = max_grad_norm
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.amp = amp
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    @classmethod
    def preset(cls, name: str, n_components: int = 2, **changes: Any) -> TransformerDR:
        """Build the estimator with the sizes of PRESETS, some of them changed."""
        if name not in PRESETS:
            raise InputError("TransformerDR.preset", repr(name), f"one of {', '.join(PRESETS)}")
        return cls(n_components, **{**PRESETS[name], **changes})

    def build_network(self, image_shape: Shape) -> TransformerAutoencoder:
        """The network for images of a shape; raises InputError for parameters that do not fit each other or the shape."""
        height, width, _ = image_shape
        if self.pool not in ("flatten", "mean", "token"):
            raise InputError("TransformerDR(pool=...)", repr(self.pool), "flatten, mean or token")
        if self.embed_dim % self.num_heads:
            raise InputError(
                "TransformerDR(embed_dim=...)", str(self.embed_dim), f"a multiple of num_heads ({self.num_heads})"
            )
        if not self.pad and (height % self.patch_size or width % self.patch_size):
            raise InputError(
                "TransformerDR(patch_size=...)",
                f"{self.patch_size} for images of {height} x {width}",
                "a divisor of both sides",
                "pad=True adds zeros on the right and at the bottom.",
            )
        tokens = math.ceil(height / self.patch_size) * math.ceil(width / self.patch_size)
        if self.pool == "token" and self.n_components % tokens:
            raise InputError(
                "TransformerDR(n_components=...)", f"{self.n_components} with pool='token'", f"a multiple of {tokens}"
            )
        shape = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "pool")
        variants = ("attention", "positions", "decoder_depth")
        settings = {name: getattr(self, name) for name in (*shape, *variants)}
        return TransformerAutoencoder(image_shape, self.n_components, **settings)
