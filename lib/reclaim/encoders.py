"""Texts to vectors by any encoder of transformers: what dense indexes and search within documents are made of.

Pooling `mean` (over real tokens), `cls` (the first token) or `last` (the last one, for causal models); a `2_Dense` layer of
sentence-transformers, where the folder has one in safetensors (GTR's projection), comes behind it; then the vector is
normalised, where asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.data_local import sha256
from reclaim.errors import InputError
from reclaim.models import load_tokenizer
from reclaim.scoring import pad_right

POOLINGS = ("mean", "cls", "last")


class TextEncoder:
    """Callable: texts -> float32 (texts, width). `max_length`: tokens that a text is cut to; `prefix`: put before each text."""

    def __init__(
        self,
        model,
        tokenizer,
        pooling: str = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        batch_size: int = 256,
        projection: torch.Tensor | None = None,
        prefix: str = "",
    ):
        if pooling not in POOLINGS:
            raise InputError("encoder: pooling", repr(pooling), f"one of {', '.join(POOLINGS)}")
        self.model, self.tokenizer, self.pooling, self.normalize = model.eval(), tokenizer, pooling, normalize
        self.max_length, self.batch_size, self.projection, self.prefix = max_length, batch_size, projection, prefix

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        limit = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        ids = self.tokenizer([self.prefix + text for text in texts], **limit)["input_ids"]
        # Texts of one length stand together, so that little padding is computed.
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        parts = []
        for start in range(0, len(order), self.batch_size):
            parts.append(self._vectors([ids[row] for row in order[start : start + self.batch_size]]))
        vectors = torch.cat(parts).float().cpu().numpy()
        found = np.empty_like(vectors)
        found[order] = vectors
        return found

    def _vectors(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        input_ids, mask = pad_right(ids, self.tokenizer.pad_token_id or 0, self.model.device)
        hidden = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1).clamp(min=1) - 1]
        else:
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        if self.projection is not None:
            pooled = pooled @ self.projection.T.to(pooled)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def load_encoder(folder: str | Path, device: torch.device | str = "cpu", dtype=torch.float32, **options) -> TextEncoder:
    """Load an encoder from a `save_pretrained` folder; `options` go to `TextEncoder`.

    Of encoder-decoder models (T5) the encoder is taken. Raises InputError for a folder without a model.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    settings = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(str(folder), **settings)
        # An encoder that was saved by itself does not say any more that it has a decoder.
        alone = any(name.endswith("EncoderModel") for name in config.architectures or ())
        kind = AutoModelForTextEncoding if config.is_encoder_decoder or alone else AutoModel
        model = kind.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(folder), str(error).strip().splitlines()[0], "an encoder in safetensors") from error
    projection = Path(folder) / "2_Dense" / "model.safetensors"
    if projection.exists():
        from safetensors.torch import load_file

        options["projection"] = load_file(projection)["linear.weight"].to(device)
    return TextEncoder(model.to(device), load_tokenizer(folder), **options)


def index_encoder(spec: Mapping[str, Any], folder: str | Path, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder of a dense index, by the keys of its spec (`pooling`, `normalize`, `dtype`, `max_length`)."""
    options = {key: spec[key] for key in ("pooling", "normalize", "max_length") if key in spec}
    return load_encoder(folder, device, getattr(torch, spec.get("dtype", "float32")), **options)


def model_digest(folder: str | Path) -> str:
    """A checksum of an encoder's files, which says whether vectors were made by it."""
    found = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())
    return found.hexdigest()
