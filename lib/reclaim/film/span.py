"""The span test: words read from gradients of the first attention layer, without any gradient of an embedding.

The defence of FILM's abstract (Gupta et al., NeurIPS 2022) is to freeze the word embeddings, so that no gradient of theirs
is sent. But the first attention layer multiplies its inputs x_t by a weight W, whose gradient is the sum over positions of
(gradient of the output) x_t^T. Its rows therefore lie in the span of the x_t, one for each target of the batch, and an
attacker who holds the weights can compute the x that any word would have at any position and test whether it lies in that
span (DAGER, Petrov et al. 2024, reads whole batches in this way). With fewer targets than dimensions the span is a proper
subspace, which a wrong word misses; from N = d targets on it is everything, and the test says nothing.

LoRA (Hu et al. 2022) sends gradients of A (r x d) and B only. At the first step B is zero, and so is the gradient of A; that
of B has its rows in the span of the A x_t: the same test in r dimensions.

Only GPT-2's form of decoder is known here: word plus position embedding, a LayerNorm, then the joint projection `c_attn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from reclaim.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "transformer.h.0.attn.c_attn"
# A residual is 0 for a word of the batch, up to the rounding of the gradient, and of the order of sqrt(1 - rank / width) for
# others. In float32 a cut of 1e-2 lets in wrong words from 9 inputs in 10 dimensions on; 1e-3 loses no right ones (measured).
CUTS = {torch.float64: 1e-5, torch.float32: 1e-3}
# Singular values that rounding makes were measured at up to half the precision of the gradient, relative to the largest one.
# The usual floor (times the size of the matrix) drops words of which the model is almost sure.
ROUNDING = 4


def first_layer_gradient(gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The gradient of the first attention projection with its inputs last: (outputs, d) or, from LoRA's B, (outputs, r).

    `gradients` are those that a client sends, by parameter name. Raises InputError where neither is among them.
    """
    for name, gradient in gradients.items():
        if name.startswith(f"{ATTENTION}.lora_B."):
            return gradient
    if f"{ATTENTION}.weight" in gradients:
        return gradients[f"{ATTENTION}.weight"].T  # GPT-2 keeps this weight as (inputs, outputs)
    raise InputError("span test", f"gradients of {', '.join(sorted(gradients)) or 'nothing'}", f"one of {ATTENTION}")


def span_basis(gradient: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows that span the rows of a gradient (outputs, inputs): (rank, inputs), float64.

    A direction counts if its singular value is above the rounding of the gradient's own precision.
    """
    _, values, directions = torch.linalg.svd(gradient.double(), full_matrices=False)
    floor = values.max() * ROUNDING * torch.finfo(gradient.dtype).eps
    return directions[values > floor]


@torch.no_grad()
def span_residuals(
    model: PreTrainedModel,
    basis: torch.Tensor,
    num_positions: int,
    adapter: torch.Tensor | None = None,
    chunk: int = 2048,
) -> torch.Tensor:
    """How far the input of every (word, position) is from the span, relative to its length: (V, num_positions), float64.

    `model` is the decoder that the attacker holds, in any precision, `basis` what `span_basis` gives, `adapter` LoRA's A
    (r, d), for a basis in r dimensions. `chunk` words are tested at a time.

    Raises InputError if `num_positions` is more than the model has.
    """
    body = model.transformer
    words, places, norm = body.wte.weight.double(), body.wpe.weight.double(), body.h[0].ln_1
    if not 1 <= num_positions <= len(places):
        raise InputError("span_residuals(num_positions=...)", str(num_positions), f"1 to {len(places)}")
    residuals = torch.empty(len(words), num_positions, dtype=torch.float64)
    for start in range(0, len(words), chunk):
        inputs = words[start : start + chunk, None] + places[:num_positions]
        inputs = nn.functional.layer_norm(
            inputs, norm.normalized_shape, norm.weight.double(), norm.bias.double(), norm.eps
        )
        if adapter is not None:
            inputs = inputs @ adapter.double().T
        outside = inputs - (inputs @ basis.T) @ basis
        residuals[start : start + chunk] = outside.norm(dim=-1) / inputs.norm(dim=-1)
    return residuals


def span_bag(residuals: torch.Tensor, cut: float) -> set[int]:
    """The words that lie in the span at some position: `span_residuals` of (V, positions) below `cut`."""
    return set(torch.nonzero(residuals.amin(dim=1) < cut).flatten().tolist())


def span_sentence(residuals: torch.Tensor, cut: float) -> list[int]:
    """The words of one sentence in their order, from residuals (V, positions): the best of each, up to the first above `cut`.

    The last word of a sentence has no target and leaves no trace; the caller adds the sentence's end. No language model is
    used: where the test works, it gives the order away as well.
    """
    smallest, words = residuals.min(dim=0)
    found = smallest < cut
    length = len(found) if found.all() else int((~found).nonzero()[0])
    return words[:length].tolist()
