"""Methods of dimensionality reduction under one interface: Transformer-DR and what it is compared with.

Every method is a scikit-learn transformer of flat image rows in [0, 1]; `METHODS` says by name how it is built and what
it can do. What a method cannot do is stated here and left blank in the results: t-SNE has no map for new rows, and
neither LDA, LPP, NPE, Isomap, LLE, t-SNE nor UMAP rebuilds images (UMAP can at very low dimensions, by triangulating its
codes, which took 50 ms an image in 2 dimensions when tried).

The autoencoders that matter are those of equal size: their widths are searched so that their number of parameters is
nearest to that of the Transformer-DR they stand beside. They share its training (`autoencoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from reclaim.vision.autoencoder import AutoencoderNetwork, ImageAutoencoder, Shape, count_parameters
from reclaim.vision.transformer_dr import TransformerDR


@dataclass(frozen=True)
class Method:
    """A method: `build(n_components, seed, options)`, `options` being the experiment's for trained methods.

    trained: by gradient steps, with a learning rate to choose. supervised: `fit` reads labels. inverse: rebuilds
    images. new_rows: maps rows that it was not fitted on. max_components: what bounds d, given the numbers of classes
    and of rows. max_rows: most rows that it is fitted on.
    """

    label: str
    build: Callable[[int, int, Mapping[str, Any]], BaseEstimator]
    trained: bool = False
    supervised: bool = False
    inverse: bool = False
    new_rows: bool = True
    max_components: Callable[[int, int], int] = lambda classes, rows: rows - 1
    max_rows: int = 2**31


# ---------------------------------------- autoencoders of equal size


class SizedAutoencoder(ImageAutoencoder):
    """Parameters of the autoencoders whose width is chosen by `target_parameters`; the others as in `TransformerDR`."""

    def __init__(
        self,
        n_components: int = 2,
        *,
        image_shape: tuple[int, ...] | None = None,
        target_parameters: int = 40_000,
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
        self.target_parameters = target_parameters
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


class PlainAutoencoder(SizedAutoencoder):
    """Fully connected: p -> h -> h/2 -> d -> h/2 -> h -> p with GELU between, h even."""

    def build_network(self, image_shape: Shape) -> AutoencoderNetwork:
        """The network whose width comes nearest to `target_parameters`."""
        pixels, d = int(np.prod(image_shape)), self.n_components

        def size(half: int) -> int:
            h = 2 * half
            return 2 * (pixels * h + h * half + half * d) + 2 * h + 2 * half + d + pixels

        half = 1
        while size(half + 1) <= self.target_parameters:
            half += 1
        nearest = min((half, half + 1), key=lambda each: abs(size(each) - self.target_parameters))
        return PlainNetwork(image_shape, d, 2 * nearest)


class PlainNetwork(AutoencoderNetwork):
    """The fully connected network; `width` is h."""

    def __init__(self, image_shape: Shape, n_components: int, width: int):
        super().__init__()
        self.image_shape, pixels = image_shape, int(np.prod(image_shape))
        self.encoder = _stack(nn.Linear, (pixels, width, width // 2, n_components))
        self.decoder = _stack(nn.Linear, (n_components, width // 2, width, pixels))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, H, W, C) to codes (B, d)."""
        return self.encoder(images.flatten(1))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, d) to images (B, H, W, C)."""
        return self.decoder(codes).view(-1, *self.image_shape)

    def forward(self, images: Tensor) -> Tensor:
        """Rebuild images (B, H, W, C)."""
        return self.decode(self.encode(images))


class ConvAutoencoder(SizedAutoencoder):
    """Three 3 x 3 convolutions of stride 2 (a, 2a and about 4a channels, GELU), a linear code, and their mirror."""

    def build_network(self, image_shape: Shape) -> AutoencoderNetwork:
        """The network whose channels come nearest to `target_parameters`."""
        candidates: list[tuple[float, int, tuple[int, int, int]]] = []
        for a in range(1, 1024):
            # The number of parameters is linear in the last width.
            with torch.device("meta"):
                three, five = (
                    count_parameters(ConvNetwork(image_shape, self.n_components, (a, 2 * a, last)))
                    for last in (3 * a, 5 * a)
                )
            if three > 1.1 * self.target_parameters and candidates:
                break
            slope = (five - three) / (2 * a)
            last = int(np.clip(round(3 * a + (self.target_parameters - three) / slope), 3 * a, 5 * a))
            size = three + slope * (last - 3 * a)
            candidates.append((abs(size - self.target_parameters), abs(last - 4 * a), (a, 2 * a, last)))
        return ConvNetwork(image_shape, self.n_components, min(candidates)[2])


class ConvNetwork(AutoencoderNetwork):
    """The convolutional network; `channels` are those behind each convolution."""

    def __init__(self, image_shape: Shape, n_components: int, channels: tuple[int, int, int]):
        super().__init__()
        height, width, depth = image_shape
        sizes = [(height, width)]
        for _ in channels:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        self.grid = (channels[-1], *sizes[-1])
        self.encoder = _stack(_down, (depth, *channels))
        self.to_code = nn.Linear(int(np.prod(self.grid)), n_components)
        self.from_code = nn.Linear(n_components, int(np.prod(self.grid)))
        ups = [_up(sizes[place], sizes[place - 1]) for place in (3, 2, 1)]
        self.decoder = _stack(lambda *pair: ups.pop(0)(*pair), (*channels[::-1], depth))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, H, W, C) to codes (B, d)."""
        return self.to_code(nn.functional.gelu(self.encoder(images.permute(0, 3, 1, 2))).flatten(1))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, d) to images (B, H, W, C)."""
        grid = nn.functional.gelu(self.from_code(codes)).view(-1, *self.grid)
        return self.decoder(grid).permute(0, 2, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Rebuild images (B, H, W, C)."""
        return self.decode(self.encode(images))


def _stack(layer: Callable[[int, int], nn.Module], widths: tuple[int, ...]) -> nn.Sequential:
    """Layers from each width to the next with GELU between them."""
    layers = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [layer(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _down(before: int, after: int) -> nn.Module:
    return nn.Conv2d(before, after, 3, stride=2, padding=1)


def _up(small: tuple[int, int], large: tuple[int, int]) -> Callable[[int, int], nn.Module]:
    """A transposed convolution from one grid to exactly the other."""
    padding = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
    return lambda before, after: nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=padding)


# ---------------------------------------- the methods


def _pca(d, seed, options):
    from sklearn.decomposition import PCA

    return PCA(d, svd_solver="full")


def _kernel_pca(d, seed, options):
    from sklearn.decomposition import KernelPCA

    return KernelPCA(d, kernel="rbf", fit_inverse_transform=True, random_state=seed)


def _lda(d, seed, options):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=d)


def _lpp(d, seed, options):
    from reclaim.vision.locality import LPP

    return LPP(d)


def _npe(d, seed, options):
    from reclaim.vision.locality import NPE

    return NPE(d)


def _isomap(d, seed, options):
    from sklearn.manifold import Isomap

    return Isomap(n_neighbors=10, n_components=d, eigen_solver="dense")


def _lle(d, seed, options):
    from sklearn.manifold import LocallyLinearEmbedding

    return LocallyLinearEmbedding(n_neighbors=10, n_components=d, eigen_solver="dense", random_state=seed)


def _tsne(d, seed, options):
    from sklearn.manifold import TSNE

    return TSNE(d, perplexity=30, init="pca", learning_rate="auto", random_state=seed)


def _umap(d, seed, options):
    from umap import UMAP

    return UMAP(n_neighbors=15, min_dist=0.1, n_components=d, random_state=seed, n_jobs=1)


def _random_projection(d, seed, options):
    from sklearn.random_projection import GaussianRandomProjection

    return GaussianRandomProjection(d, compute_inverse_components=True, random_state=seed)


def _transformer_dr(d, seed, options):
    settings = {name: value for name, value in options.items() if name != "target_parameters"}
    return TransformerDR(d, random_state=seed, **settings)


def _sized(kind):
    def build(d, seed, options):
        names = SizedAutoencoder().get_params().keys()
        return kind(d, random_state=seed, **{name: value for name, value in options.items() if name in names})

    return build


def unbounded(classes: int, rows: int) -> int:
    """No bound on d."""
    return 2**31


METHODS: dict[str, Method] = {
    "transformer_dr": Method("Transformer-DR", _transformer_dr, trained=True, inverse=True, max_components=unbounded),
    "plain_ae": Method(
        "plain autoencoder", _sized(PlainAutoencoder), trained=True, inverse=True, max_components=unbounded
    ),
    "conv_ae": Method(
        "conv. autoencoder", _sized(ConvAutoencoder), trained=True, inverse=True, max_components=unbounded
    ),
    "pca": Method("PCA", _pca, inverse=True),
    "kernel_pca": Method("kernel PCA", _kernel_pca, inverse=True, max_rows=5000),
    "lda": Method("LDA (reads labels)", _lda, supervised=True, max_components=lambda classes, rows: classes - 1),
    "lpp": Method("LPP", _lpp, max_rows=5000),
    "npe": Method("NPE", _npe, max_rows=5000),
    "isomap": Method("Isomap", _isomap, max_rows=3000),
    "lle": Method("LLE", _lle, max_rows=3000),
    "tsne": Method("t-SNE", _tsne, new_rows=False, max_components=lambda classes, rows: 3, max_rows=5000),
    "umap": Method("UMAP", _umap),
    "random_projection": Method("random projection", _random_projection, inverse=True, max_components=unbounded),
}


def transformer_parameters(n_components: int, image_shape: Shape, options: Mapping[str, Any]) -> int:
    """Number of parameters of Transformer-DR under `options`, without making its weights."""
    with torch.device("meta"):
        return count_parameters(TransformerDR(n_components, **options).build_network(image_shape))
