"""What follows the estimate: SGD, momentum or Adam with the estimate in the gradient's place, a chunk of weights at a time.

Malladi et al. (2023) state Algorithm 1 for SGD and note in the appendix that other first-order rules take the same
estimate. Momentum is that of torch's SGD, m <- momentum m + g; Adam is AdamW of transformers 4.28, with the bias
correction in the step size. Weight decay is decoupled: before the step, in Adam after it.

Difference from the official code: the sums and moments of half-precision weights are float32, and the new weight is
rounded once, by default stochastically, because rounding to nearest loses every update below half a unit in the last
place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from reclaim.optim.slots import Slot, compute_dtype
from reclaim.optim.streams import Scratch
from reclaim.seeding import derive

MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}


@dataclass
class UpdateRule:
    """The rule `optimizer` over some slots, with its moments: `MOMENTS` tensors of each slot's size. The other arguments are
    those of `MeZO`."""

    slots: Sequence[Slot]
    scratch: Scratch
    optimizer: str
    weight_decay: float
    momentum: float
    betas: tuple[float, float]
    adam_eps: float
    rounding: str
    seed: int
    moments: list[tuple[torch.Tensor, ...]] = field(init=False)

    def __post_init__(self) -> None:
        count = MOMENTS[self.optimizer]
        self.moments = [
            tuple(torch.zeros_like(slot.flat(), dtype=compute_dtype(slot.parameter.dtype)) for _ in range(count))
            for slot in self.slots
        ]

    def of(self, index: int, step: int, learning_rate: float) -> Callable[[int, int, torch.Tensor], None]:
        """The update of one slot at a step: a function of a chunk's bounds and its estimate (which it overwrites), to be
        called for each chunk once and in order."""
        slot = self.slots[index]
        weights, rounding = slot.flat(), self._rounding_generator(slot, step)

        def descend(start: int, stop: int, grad: torch.Tensor) -> None:
            w, moments = weights[start:stop], [moment[start:stop] for moment in self.moments[index]]
            if w.dtype == grad.dtype:
                self._descend(w, grad, moments, slot.decayed, step, learning_rate)
            else:
                work = self.scratch.take("work", stop - start, grad.dtype, grad.device).copy_(w)
                self._descend(work, grad, moments, slot.decayed, step, learning_rate)
                round_to(work, w, rounding, self.scratch)

        return descend

    def _descend(
        self,
        w: torch.Tensor,
        grad: torch.Tensor,
        moments: list[torch.Tensor],
        decayed: bool,
        step: int,
        learning_rate: float,
    ) -> None:
        decay = learning_rate * self.weight_decay if decayed else 0.0
        if self.optimizer == "adam":
            (mean, square), (beta1, beta2) = moments, self.betas
            mean.mul_(beta1).add_(grad, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            root = torch.sqrt(square, out=grad).add_(self.adam_eps)
            w.addcdiv_(mean, root, value=-learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step))
        elif self.optimizer == "momentum":
            grad = moments[0].mul_(self.momentum).add_(grad)
        if decay:
            w.add_(w, alpha=-decay)
        if self.optimizer != "adam":
            w.add_(grad, alpha=-learning_rate)

    def _rounding_generator(self, slot: Slot, step: int) -> torch.Generator | None:
        """The stream by which updates of a half-precision tensor are rounded, or None: to nearest."""
        if self.rounding == "nearest" or compute_dtype(slot.parameter.dtype) == slot.parameter.dtype:
            return None
        generator = torch.Generator(slot.parameter.device)
        return generator.manual_seed(derive(self.seed, "rounding", step, slot.name))


def round_to(work: torch.Tensor, target: torch.Tensor, generator: torch.Generator | None, scratch: Scratch) -> None:
    """Write `work` (float32) into `target` (bfloat16 or float16), both of one dimension.

    With a generator, rounding is stochastic: to one of the two neighbours with the probability that makes the
    expectation exact. An update smaller than half a unit in the last place, which rounding to nearest always loses,
    then counts on average. A value that `target` can hold is kept exactly in either way.
    """
    target.copy_(work)
    if generator is None:
        return
    nearest = scratch.take("nearest", work.numel(), work.dtype, work.device).copy_(target)
    residual = work.sub_(nearest)
    bits = target.view(torch.int16)
    # Sign and magnitude: one more is the neighbour away from zero, one less the neighbour towards it; the neighbours
    # of zero are the smallest number of either sign (0x0001 and 0x8001).
    neighbour = torch.where((residual < 0) == (nearest < 0), bits + 1, bits - 1)
    neighbour = torch.where(nearest == 0, torch.where(residual < 0, -0x7FFF, 1).to(torch.int16), neighbour)
    gap = neighbour.view(target.dtype).to(work.dtype).sub_(nearest)
    chance = scratch.take("chance", work.numel(), work.dtype, work.device).uniform_(generator=generator)
    bits.copy_(torch.where(residual.div_(gap) > chance, neighbour, bits))
