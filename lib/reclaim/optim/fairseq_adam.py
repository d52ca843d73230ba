"""Adam as fairseq computes it, for exact comparison with the study's recipe.

Source: fairseq's Adam, used by Wettig et al. (EACL 2023). It differs from `torch.optim.AdamW` in one place: eps is
added to sqrt(v) before the bias correction, so that the effective eps is eps / sqrt(1 - beta2^t), seven times larger at
the first step with beta2 = 0.98. Weight decay is decoupled and acts on every parameter given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from reclaim.errors import InputError


class FairseqAdam(torch.optim.Optimizer):
    """Adam with fairseq's eps; moments have the parameters' dtype, so keep these in float32 and compute under autocast.

    Raises InputError for a learning rate, eps or weight decay below 0 and for betas outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        if min(lr, eps, weight_decay) < 0:
            raise InputError("FairseqAdam", f"lr {lr}, eps {eps}, weight_decay {weight_decay}", "values of at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError("FairseqAdam betas", str(tuple(betas)), "two values from 0 to below 1")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch declares two overloads, with float where its own optimizers give a tensor
        self, closure: Callable[[], torch.Tensor] | None = None
    ) -> torch.Tensor | None:
        """One update of all parameters that have a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                gradient, mean, square = parameter.grad, state["exp_avg"], state["exp_avg_sq"]
                mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-group["lr"] * correction)
        return loss
