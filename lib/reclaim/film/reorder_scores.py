"""The score of the official reordering for many candidates at once: gradient norm of one LayerNorm weight, perplexity.

Gupta et al. 2022, section 4.3; official `get_grad_gpt2` and `calculatePerplexity`, which run one candidate at a time, forward
and backward through every parameter. The gradient of a LayerNorm weight for one candidate is the sum over its positions of
(gradient of the output) x (normalised input): one forward and one backward pass from that layer on give it for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.errors import InputError

PAD_LENGTH = 20
"""`config.max_length` in the transformers of the official code: what the gradient sees is cut and padded to it."""


@dataclass(frozen=True)
class Scores:
    """Of each candidate, float64: the gradient norm (0 where it was not asked for), the perplexity, the score."""

    grad_norm: np.ndarray
    perplexity: np.ndarray
    total: np.ndarray


def reorder_scores(
    model,
    tokenizer,
    candidates: Sequence[Sequence[str]],
    *,
    block: int | None = None,
    alpha: float = 1.0,
    gradient: bool = True,
    pad_length: int = PAD_LENGTH,
    batch_size: int = 256,
) -> Scores:
    """Score candidates, each a list of pieces of text; one whose first piece has no two tokens of the model's scores infinity.

    Norm: of the gradient of the second LayerNorm weight of `block` under the mean token loss of all pieces, each cut at
    `pad_length` and padded to it with end tokens, which count as labels and are not masked. Perplexity: of the first piece,
    whole. Raises InputError for a model that is not of GPT-2's form.
    """
    norms, losses = [], []
    for first in range(0, len(candidates), batch_size):
        part = candidates[first : first + batch_size]
        found = _score(model, tokenizer, part, _layer_norm(model, block) if gradient else None, pad_length)
        norms.append(found[0])
        losses.append(found[1])
    norm, perplexity = np.concatenate(norms), np.exp(np.concatenate(losses))
    return Scores(norm, perplexity, np.where(np.isfinite(perplexity), norm + alpha * perplexity, np.inf))


def _layer_norm(model, block: int | None):
    blocks = getattr(model.base_model, "h", None)
    if blocks is None or not hasattr(blocks[0], "ln_2"):
        raise InputError("film reordering", type(model).__name__, "a model of GPT-2's form (transformer.h.N.ln_2)")
    return blocks[(len(blocks) - 1) // 2 if block is None else block].ln_2


def _score(model, tokenizer, candidates, layer, pad_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient norms and mean token losses (infinite for no target) of candidates."""
    owner = torch.tensor([number for number, pieces in enumerate(candidates) for _ in pieces])
    flat = tokenizer([piece for pieces in candidates for piece in pieces], add_special_tokens=False)["input_ids"]
    # Words run together may be read as pieces that a vocabulary of whole words has no row for.
    readable = [all(token < model.config.vocab_size for token in piece) for piece in flat]
    flat = [piece if fits else [] for piece, fits in zip(flat, readable, strict=True)]
    starts = np.cumsum([0, *(len(pieces) for pieces in candidates)])[:-1]
    width = max(pad_length, max((len(flat[start]) for start in starts), default=0))
    ids = torch.full((len(flat), width), tokenizer.eos_token_id, dtype=torch.long)
    for row, piece in enumerate(flat):
        ids[row, : len(piece)] = torch.tensor(piece[:width], dtype=torch.long)
    ids = ids.to(model.device)
    captured: dict[str, torch.Tensor] = {}

    def capture(module, inputs, output):
        captured["normalised"] = F.layer_norm(inputs[0].detach(), module.normalized_shape, eps=module.eps)
        # The graph begins here: nothing before this layer has a part in its gradient.
        captured["output"] = output.detach().requires_grad_()
        return captured["output"]

    handle = layer.register_forward_hook(capture) if layer is not None else None
    try:
        with torch.set_grad_enabled(layer is not None):
            logits = model(input_ids=ids).logits[:, :-1].float()
            token_loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    finally:
        if handle is not None:
            handle.remove()
    norms = torch.zeros(len(candidates), dtype=torch.double)
    if layer is not None:
        loss = token_loss[:, : pad_length - 1].mean(1)
        (backward,) = torch.autograd.grad(loss.sum(), captured["output"])
        weight = (backward * captured["normalised"]).sum(1).double().cpu()
        pieces = torch.bincount(owner, minlength=len(candidates))
        summed = torch.zeros(len(candidates), weight.shape[1], dtype=torch.double).index_add_(0, owner, weight)
        norms = (summed / pieces[:, None]).norm(dim=1)
    targets = torch.tensor([len(flat[start]) - 1 for start in starts])
    first = token_loss.detach()[torch.from_numpy(starts).to(ids.device)].double().cpu()
    real = torch.arange(width - 1) < targets[:, None]
    losses = torch.where(targets > 0, (first * real).sum(1) / targets.clamp(min=1), torch.inf)
    return norms.numpy(), losses.numpy()
