"""Autoencoders of images as scikit-learn transformers: training, codes and reconstructions, whatever the network.

Transformer-DR (`transformer_dr`) and its rivals of equal size (`reducers`) share everything here, so that a comparison is
one of networks: the loss (mean squared error, no labels), Adam, the schedule, the order of the batches, the checks.

The loop is not `reclaim.train.train`: an estimator may choose its epoch on a part of the rows that it is fitted on, its
rate follows half a cosine, and its runs are short, so that there is no state to resume from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json
from reclaim.seeding import derive

Shape = tuple[int, int, int]  # height, width, channels
INFERENCE_BATCH = 256  # rows; bounds the memory of transform whatever the number of images


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


class AutoencoderNetwork(nn.Module):
    """A module with `encode` (B, H, W, C) -> (B, d) and `decode` (B, d) -> (B, H, W, C)."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, H, W, C) to codes (B, d)."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, d) to images (B, H, W, C)."""
        raise NotImplementedError


class ImageAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What the autoencoders share: training, codes and reconstructions under scikit-learn's interface.

    A class below names its parameters (scikit-learn reads them off `__init__`) and builds its network in `build_network`.

    Fitted: `network_`, `image_shape_` (H, W, C), `n_features_in_`, `n_parameters_`, `loss_curve_` (mean loss of each
    epoch); with early stopping `validation_curve_` and `best_epoch_`. Codes of the training rows are not kept.
    """

    network_: AutoencoderNetwork

    def build_network(self, image_shape: Shape) -> AutoencoderNetwork:
        """The network for images of a shape; its weights are drawn from torch's global stream, which `fit` has seeded."""
        raise NotImplementedError

    def fit(self, X, y=None):
        """Train on images X (n, H * W * C), taken as they are; `y` is ignored.

        Raises InputError for parameters that do not fit each other or X, ValueError for NaN and infinite values.
        """
        X = validate_data(self, X, dtype=np.float32, order="C")
        self._check_training()
        self.image_shape_ = _image_shape(self.image_shape, X.shape[1], type(self).__name__)
        seed, device = _seed(self.random_state), _device(self.device)
        # Layers draw their initial weights from torch's global stream, which is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            self.network_ = self.build_network(self.image_shape_)
        self.network_.to(device)
        self.n_parameters_ = count_parameters(self.network_)
        self._train(torch.from_numpy(X).view(-1, *self.image_shape_), seed, device)
        return self

    def transform(self, X) -> np.ndarray:
        """Codes (n, n_components) of images, float32."""
        return np.concatenate(list(self._in_batches(self._rows(X), self._encode)))

    def inverse_transform(self, X) -> np.ndarray:
        """Images (n, H * W * C) rebuilt from codes (n, n_components) and nothing else, float32, not clipped."""
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float32)
        if codes.shape[1] != self.n_components:
            raise InputError("inverse_transform(X)", f"{codes.shape[1]} columns", f"codes of {self.n_components}")
        return np.concatenate(list(self._in_batches(codes, self._decode)))

    def score(self, X, y=None) -> float:
        """Minus the mean squared error over all images and pixels, without clipping; higher is better."""
        rows = self._rows(X)
        parts = self._in_batches(rows, lambda batch: self._decode(self._encode(batch)))
        total = sum(
            float(np.square(rebuilt - rows[start : start + len(rebuilt)], dtype=np.float64).sum())
            for start, rebuilt in zip(range(0, len(rows), INFERENCE_BATCH), parts, strict=True)
        )
        return -total / rows.size

    def save(self, path: str | Path) -> None:
        """Write weights (safetensors) and parameters (JSON) as one folder; `random_state` must be a number or None."""
        check_is_fitted(self)
        if isinstance(self.random_state, np.random.RandomState):
            raise InputError(f"{type(self).__name__}.save", "a RandomState as random_state", "a number or None")
        settings = {
            "class": type(self).__name__,
            "parameters": self.get_params(),
            "n_features_in": self.n_features_in_,
            "loss_curve": self.loss_curve_,
        }
        with atomic_path(path, directory=True) as folder:
            (folder / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
            weights = {name: value.cpu().contiguous() for name, value in self.network_.state_dict().items()}
            save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, path: str | Path, device: str = "auto"):
        """Read what `save` wrote; raises InputError if it is another estimator's."""
        settings = read_json(Path(path) / "config.json")
        if settings["class"] != cls.__name__:
            raise InputError(str(path), f"a saved {settings['class']}", f"a saved {cls.__name__}")
        parameters = {name: tuple(v) if isinstance(v, list) else v for name, v in settings["parameters"].items()}
        model = cls(**{**parameters, "device": device})
        model.n_features_in_, model.loss_curve_ = settings["n_features_in"], settings["loss_curve"]
        model.image_shape_ = _image_shape(model.image_shape, model.n_features_in_, cls.__name__)
        model.network_ = model.build_network(model.image_shape_)
        model.network_.load_state_dict(load_file(Path(path) / "model.safetensors"))
        model.network_.to(_device(device)).eval()
        model.n_parameters_ = count_parameters(model.network_)
        return model

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    # ------------------------------------ training

    def _train(self, images: Tensor, seed: int, device: torch.device) -> None:
        """Adam on the mean squared error; the rate is a linear warm-up times half a cosine over all steps."""
        rng = np.random.default_rng(derive(seed, "batches"))
        held_out = None
        if self.early_stopping:
            order = rng.permutation(len(images))
            count = max(1, round(self.validation_fraction * len(images)))
            if count >= len(images):
                raise InputError("fit(X)", f"{len(images)} rows", "at least 2 with early_stopping")
            held_out, images = images[order[:count]].to(device), images[order[count:]]
        images = images.to(device)
        size = min(self.batch_size, len(images))
        num_steps = self.epochs * (len(images) // size)
        optimizer = torch.optim.Adam(self.network_.parameters(), lr=self.lr, fused=True)
        self.loss_curve_, self.validation_curve_, best = [], [], None
        for epoch in range(self.epochs):
            self.network_.train()
            rows = torch.from_numpy(rng.permutation(len(images))).to(device)
            losses = []
            for step in range(len(images) // size):
                rate = self.lr * _rate(epoch * (len(images) // size) + step, num_steps, self.warmup_steps)
                losses.append(self._step(images[rows[step * size : (step + 1) * size]], optimizer, rate))
            self.loss_curve_.append(torch.stack(losses).mean().item())
            if not math.isfinite(self.loss_curve_[-1]):
                raise InputError(
                    f"{type(self).__name__}.fit, epoch {epoch + 1}",
                    f"a loss of {self.loss_curve_[-1]}",
                    "a finite loss",
                    "Lower the learning rate.",
                )
            if held_out is not None:
                self.network_.eval()
                with torch.inference_mode():
                    error = F.mse_loss(self.network_(held_out), held_out).item()
                self.validation_curve_.append(error)
                if error <= min(self.validation_curve_):
                    best = {name: value.clone() for name, value in self.network_.state_dict().items()}
                    self.best_epoch_ = epoch + 1
            if self.verbose:
                print(f"{type(self).__name__}: epoch {epoch + 1} of {self.epochs}, loss {self.loss_curve_[-1]:.5f}")
        if best is not None:
            self.network_.load_state_dict(best)
        self.network_.eval()

    def _step(self, batch: Tensor, optimizer: torch.optim.Optimizer, rate: float) -> Tensor:
        """One update; gives the loss, still on the device."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.amp and batch.device.type == "cuda"):
            rebuilt = self.network_(batch)
        loss = F.mse_loss(rebuilt.float(), batch)
        loss.backward()
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.network_.parameters(), self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _check_training(self) -> None:
        name = type(self).__name__
        for parameter in ("n_components", "epochs", "batch_size"):
            value = getattr(self, parameter)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name}({parameter}=...)", repr(value), "a whole number from 1")
        if not self.lr > 0:
            raise InputError(f"{name}(lr=...)", repr(self.lr), "a positive number")

    # ------------------------------------ inference

    def _rows(self, X) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float32, order="C", reset=False)

    def _encode(self, rows: Tensor) -> Tensor:
        return self.network_.encode(rows.view(-1, *self.image_shape_))

    def _decode(self, codes: Tensor) -> Tensor:
        return self.network_.decode(codes).flatten(1)

    def _in_batches(self, rows: np.ndarray, function) -> Iterator[np.ndarray]:
        device = next(self.network_.parameters()).device
        for start in range(0, len(rows), INFERENCE_BATCH):
            with torch.inference_mode():
                yield function(torch.from_numpy(rows[start : start + INFERENCE_BATCH]).to(device)).cpu().numpy()


def _rate(step: int, num_steps: int, warmup_steps: int) -> float:
    """The share of the peak rate at `step`, counted from 0."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _image_shape(given: tuple[int, ...] | None, num_features: int, name: str) -> Shape:
    if given is None:
        side = math.isqrt(num_features)
        return (side, side, 1) if side * side == num_features else (1, num_features, 1)
    shape = (*given, 1) if len(given) == 2 else tuple(given)
    if len(shape) != 3 or math.prod(shape) != num_features:
        raise InputError(
            f"{name}(image_shape=...)",
            f"{tuple(given)} for rows of {num_features} features",
            "(H, W) or (H, W, C) whose product is the number of features",
        )
    return shape


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(random_state.randint(2**31 - 1) if isinstance(random_state, np.random.RandomState) else random_state)


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
