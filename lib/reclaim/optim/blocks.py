"""Blocks of a transformer, and the scale c of each for block-wise modified SPSA (Malladi et al. 2023, appendix).

A block is perturbed by z / c and updated by c z (variance-modified: same expectation) or by z (expectation-modified:
the gradient normalised per block). c is measured once, on the first batch, or again by whoever calls this.

Difference from the official code: it measures the norm of an `lm_head` block that a tied model does not have, and
fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from reclaim.errors import InputError
from reclaim.optim.mezo import MeZO
from reclaim.optim.slots import block_of, trainable_slots
from reclaim.seeding import derive


def measure_block_scales(
    module: nn.Module,
    kind: str,
    closure: Callable[[], torch.Tensor] | None = None,
    eps: float = 1e-3,
    seed: int = 0,
    rng: str = "sequential",
) -> dict[str, float]:
    """c of each block of the trainable parameters.

    kind: "param_norm", the L2 norm of the block's weights; "grad_norm", that of its back-propagated gradient of
        `closure` (the one place where MeZO may use a backward pass, for debugging); "zo_grad_norm", |g| of one
        zeroth-order probe that perturbs only this block, proportional in expectation to the gradient's norm.

    Raises InputError for an unknown kind, a missing closure, or a block whose scale is zero.
    """
    blocks: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for slot in trainable_slots(module.named_parameters()):
        block = block_of(slot.name)
        if block is not None:
            blocks.setdefault(block, []).append((slot.name, slot.parameter))
    if kind not in ("param_norm", "grad_norm", "zo_grad_norm"):
        raise InputError("block scales", repr(kind), "'param_norm', 'grad_norm' or 'zo_grad_norm'")

    if kind == "param_norm":
        scales = {block: _norm([p.detach() for _, p in members]) for block, members in blocks.items()}
    elif closure is None:
        raise InputError("block scales", f"{kind} without a closure", "a closure that gives the loss of one batch")
    elif kind == "grad_norm":
        parameters = [(block, p) for block, members in blocks.items() for _, p in members]
        with torch.enable_grad():
            grads = torch.autograd.grad(closure(), [p for _, p in parameters], allow_unused=True)
        scales = {
            block: _norm([g for (b, _), g in zip(parameters, grads, strict=True) if b == block and g is not None])
            for block in blocks
        }
    else:
        scales = {}
        for block, members in blocks.items():
            probe = MeZO(members, 0.0, eps, rng=rng, seed=derive(seed, "block", block))
            scales[block] = abs(probe.step(closure).projected_grad)
    zero = [block for block, scale in scales.items() if scale == 0]
    if zero:
        raise InputError("block scales", f"{kind} of zero in {', '.join(zero)}", "a positive scale per block")
    return scales


def _norm(tensors: list[torch.Tensor]) -> float:
    wide = (tensor.double() if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors)
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in wide))
