"""MeZO: fine-tuning by two forward passes a step, without a backward pass and without storing the direction.

Malladi et al., "Fine-Tuning Language Models with Just Forward Passes" (NeurIPS 2023), Algorithm 1: zeroth-order SGD on
the SPSA estimate. For one direction z ~ N(0, I), regenerated from a seed,

    g = (L(w + eps z) - L(w - eps z)) / (2 eps),        w <- w - learning_rate * (g z + weight_decay * w).

Also here: n-SPSA (the mean or sum of g z over n directions), momentum and Adam on the estimate, and the block-wise
variance- and expectation-modified SPSA, in which a block is perturbed by z / c and updated by c z or by z. How z is drawn
is in `streams.py`, what the update does with the estimate in `update.py`, the log of a run in `trajectory.py`.

Differences from the official code (princeton-nlp/MeZO)
* Three sweeps over the weights instead of four: the restoring sweep and the update are one.
* z is drawn in chunks into one buffer and added in place; the official code holds several full-size tensors at once.
* n > 1 needs no gradient buffer: the update draws the n directions side by side.
* Private generators. The official step reseeds torch's global stream four times and takes its seeds from numpy's.
* Half-precision weights are never written by a perturbation (`just_in_time.py`); there the update is the only sweep.
* g is rounded to float32 (float64 weights: float64) before the update, so that the trajectory log holds exactly what
  was applied. Weight decay is decoupled for every optimiser; for SGD that is the official formula.
* In the official efficient mode block scales reach the update but not the perturbation; here they reach both.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reclaim.errors import InputError
from reclaim.optim.arguments import number, one_of, whole
from reclaim.optim.just_in_time import JustInTime, needs_just_in_time
from reclaim.optim.slots import compute_dtype, set_factors, trainable_slots
from reclaim.optim.streams import Direction, Scratch, direction_factory, directions_at
from reclaim.optim.update import UpdateRule
from reclaim.seeding import derive

Closure = Callable[[], torch.Tensor | float]
NamedParameters = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step. `loss` is L(w + eps z), the mean over the directions, as the official code reports it."""

    step: int
    learning_rate: float
    seeds: tuple[int, ...]
    losses_plus: tuple[float, ...]
    losses_minus: tuple[float, ...]
    projected_grads: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean of L(w + eps z) over the directions, in the units of the closure."""
        return sum(self.losses_plus) / len(self.losses_plus)

    @property
    def projected_grad(self) -> float:
        """g of the only direction, or the mean of n."""
        return sum(self.projected_grads) / len(self.projected_grads)


class MeZO:
    """Zeroth-order optimiser over the trainable parameters of a module.

    module: a `torch.nn.Module`, or `(name, parameter)` pairs in the order in which a sequential stream visits them.
        Only parameters with `requires_grad` are perturbed and trained, shared ones once. A module is put in eval mode
        while the closure runs, so that dropout does not differ between the two losses.
    learning_rate: a float, or a function of the number of completed steps.
    eps: size of the perturbation.
    weight_decay, decay_filter: decoupled decay of the tensors that the filter selects: "no_bias_or_norm", "all", or a
        function of the name.
    num_directions, direction_schedule, direction_reduction: n of n-SPSA; "constant", or "linear", which takes max(1,
        int(step / num_train_steps * n)) directions after `step` completed steps; "mean" of the n estimates or "sum".
    optimizer: "sgd", "momentum" (`momentum`, moments of 1x the weights) or "adam" (`betas`, `adam_eps`; 2x). Adam
        follows AdamW of transformers 4.28: bias correction in the step size, decay after the step.
    momentum_horizon: recompute the momentum from the scalars and seeds of the last so many steps instead of storing
        it. Each of them is drawn again at every update.
    block_scales, scale_estimate: c per block (`reclaim.optim.blocks.measure_block_scales`); "variance" (update by c z,
        same expectation) or "expectation" (update by z: a gradient normalised per block).
    rng: "sequential" (one stream through all tensors, as the official code) or "per_tensor" (by seed and name).
    seed: master seed; the direction of a step is `derive(seed, "direction", step, i)`.
    direction_seeds: explicit seeds instead, one per direction, for comparison with other implementations.
    in_place: perturb the stored weights. None: yes, unless one is of half precision.
    rounding: how updates of half-precision weights are rounded: "stochastic" or "nearest".
    join: of several processes that step together, each with the same weights and a part of the batch: makes of a process's
        own projected gradients those of the whole batch, the same in every process.
    num_threads: how many threads share the sweeps, a tensor at a time; above 1 only with rng="per_tensor". The result
        does not depend on it.

    Raises InputError for every argument that cannot be used.
    """

    def __init__(
        self,
        module: nn.Module | NamedParameters,
        learning_rate: float | Callable[[int], float],
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        decay_filter: str | Callable[[str], bool] = "no_bias_or_norm",
        *,
        num_directions: int = 1,
        direction_schedule: str = "constant",
        num_train_steps: int | None = None,
        direction_reduction: str = "mean",
        optimizer: str = "sgd",
        momentum: float = 0.9,
        momentum_horizon: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        block_scales: Mapping[str, float] | None = None,
        scale_estimate: str = "variance",
        rng: str = "sequential",
        seed: int = 0,
        direction_seeds: Iterable[int] | None = None,
        in_place: bool | None = None,
        rounding: str = "stochastic",
        join: Callable[[list[float]], list[float]] | None = None,
        num_threads: int = 1,
    ):
        if not callable(learning_rate):
            learning_rate = number(
                "learning_rate", learning_rate, lambda x: x >= 0, "a number >= 0 or a function of the step"
            )
        self.learning_rate = learning_rate
        self.eps = number("eps", eps, lambda x: x > 0, "a positive number")
        self.weight_decay = number("weight_decay", weight_decay, lambda x: x >= 0, "a number >= 0")
        self.num_directions = whole("num_directions", num_directions, 1)
        self.direction_schedule = one_of("direction_schedule", direction_schedule, "constant", "linear")
        if direction_schedule == "linear" or num_train_steps is not None:
            num_train_steps = whole("num_train_steps", num_train_steps, 1)
        self.num_train_steps = num_train_steps
        self.direction_reduction = one_of("direction_reduction", direction_reduction, "mean", "sum")
        self.optimizer = one_of("optimizer", optimizer, "sgd", "momentum", "adam")
        self.momentum = number("momentum", momentum, lambda x: 0 <= x < 1, "a number in [0, 1)")
        if momentum_horizon is not None:
            momentum_horizon = whole("momentum_horizon", momentum_horizon, 1)
            if optimizer != "momentum":
                raise InputError("MeZO(momentum_horizon=...)", f"optimizer={optimizer!r}", "optimizer='momentum'")
        self.momentum_horizon = momentum_horizon
        if len(betas) != 2:
            raise InputError("MeZO(betas=...)", repr(betas), "two numbers in [0, 1)")
        beta1, beta2 = (number("betas", beta, lambda x: 0 <= x < 1, "two numbers in [0, 1)") for beta in betas)
        self.betas = beta1, beta2
        self.adam_eps = number("adam_eps", adam_eps, lambda x: x > 0, "a positive number")
        self.block_scales = {
            block: number(f"block_scales[{block!r}]", scale, lambda x: x > 0, "a positive number")
            for block, scale in (block_scales or {}).items()
        }
        self.scale_estimate = one_of("scale_estimate", scale_estimate, "variance", "expectation")
        self.rng = rng
        self.seed = whole("seed", seed, 0)
        self.rounding = one_of("rounding", rounding, "stochastic", "nearest")
        if whole("num_threads", num_threads, 1) > 1 and rng != "per_tensor":
            raise InputError("MeZO(num_threads=...)", f"{num_threads} with rng={rng!r}", "1, or rng='per_tensor'")
        self.direction_seeds = None if direction_seeds is None else iter(direction_seeds)
        self.join = join

        self.module = module if isinstance(module, nn.Module) else None
        self.slots = trainable_slots(module.named_parameters() if isinstance(module, nn.Module) else module)
        set_factors(self.slots, decay_filter, self.block_scales, scale_estimate)
        self.in_place = not needs_just_in_time(self.slots) if in_place is None else bool(in_place)
        self.scratch = Scratch()
        self._just_in_time = None if self.in_place else JustInTime(self.module, self.slots, self.scratch)
        self.open_direction = direction_factory(rng, self.slots, self.scratch, random_access=not self.in_place)
        # A momentum that is recomputed comes as directions, and stores nothing.
        rule = "sgd" if momentum_horizon is not None else self.optimizer
        self.rule = UpdateRule(
            self.slots, self.scratch, rule, self.weight_decay, self.momentum, self.betas, self.adam_eps, self.rounding,
            self.seed,
        )  # fmt: skip
        self._past: deque[list[tuple[int, float]]] = deque(maxlen=max(0, (momentum_horizon or 1) - 1))
        self._threads = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

        self.num_steps = 0
        self.recorder: Callable[[Sequence[float]], None] | None = None  # called with each step's projected gradients
        self._interrupted = False
        double = any(slot.parameter.dtype == torch.float64 for slot in self.slots)
        self.scalar_dtype = np.dtype("<f8" if double else "<f4")

    # ------------------------------------------------------------------ the step

    def step(self, closure: Closure) -> StepResult:
        """Estimate the gradient along this step's directions and update the weights.

        closure: gives the loss of the current weights on one batch, as a tensor of one element or a float; it need not
            be differentiable. It is called twice per direction and must use the same batch each time.

        Raises InputError if a loss is not finite. If the closure raises, the weights are restored (up to rounding,
        where the perturbation is in place) and the error is passed on.
        """
        if self._interrupted:
            raise InputError(
                "MeZO.step",
                "weights that an earlier, failed step left between two states",
                "weights as a completed step leaves them",
                "Load the base weights again; with a trajectory log, resume from it.",
            )
        step, learning_rate = self.num_steps + 1, self._learning_rate()
        seeds = self._direction_seeds(step)
        directions = [self.open_direction(seed) for seed in seeds]
        self._interrupted = True  # until the step ends, or a failed closure's weights are restored
        plus, minus = [], []
        with torch.no_grad(), self._eval_mode():
            for i, direction in enumerate(directions):
                probe = self._probe_in_place if self.in_place else self._probe_just_in_time
                loss_plus, loss_minus = probe(direction, closure, restore=i + 1 < len(directions))
                plus.append(loss_plus)
                minus.append(loss_minus)
            own = [(p - m) / (2 * self.eps) for p, m in zip(plus, minus, strict=True)]
            grads = self._round(self.join(own) if self.join else own)
            if self.recorder is not None:
                self.recorder(grads)
            self._update(directions, grads, learning_rate, replaying=False)
        self._interrupted = False
        return StepResult(step, learning_rate, seeds, tuple(plus), tuple(minus), grads)

    def replay(self, projected_grads: Sequence[float]) -> None:
        """Repeat one recorded step, without a loss, with the same arithmetic: the weights come out bit for bit equal.

        The sweeps of the step are done together, chunk by chunk, so that each direction is drawn once.
        """
        seeds = self._direction_seeds(self.num_steps + 1)
        if len(projected_grads) != len(seeds):
            raise InputError("MeZO.replay", f"{len(projected_grads)} values", f"{len(seeds)} projected gradients")
        with torch.no_grad():
            directions = [self.open_direction(seed) for seed in seeds]
            self._update(directions, self._round(projected_grads), self._learning_rate(), replaying=True)

    def _probe_in_place(self, direction: Direction, closure: Closure, restore: bool) -> tuple[float, float]:
        """L(w + eps z) and L(w - eps z). Without `restore` the weights stay at w - eps z, for the update to restore."""
        self._perturb(direction, self.eps)
        plus = self._loss_or_restore(closure, direction, -self.eps)
        self._perturb(direction, -2 * self.eps)
        minus = self._loss_or_restore(closure, direction, self.eps)
        if restore:
            self._perturb(direction, self.eps)
        return plus, minus

    def _loss_or_restore(self, closure: Closure, direction: Direction, scale: float) -> float:
        """The loss; if there is none, the sweep that restores w (up to rounding), and the error."""
        try:
            return self._loss(closure)
        except BaseException:
            self._perturb(direction, scale)
            self._interrupted = self.recorder is not None
            raise

    def _probe_just_in_time(self, direction: Direction, closure: Closure, restore: bool) -> tuple[float, float]:
        """The same two losses; no stored weight is written, so there is nothing to restore."""
        just_in_time = self._just_in_time
        assert just_in_time is not None  # or the other probe is taken
        try:
            with just_in_time.perturbed(direction, self.eps):
                plus = self._loss(closure)
            with just_in_time.perturbed(direction, -self.eps):
                return plus, self._loss(closure)
        except BaseException:
            self._interrupted = False
            raise

    def _perturb(self, direction: Direction, scale: float) -> None:
        """One sweep: w <- w + scale z."""

        def visit(index: int) -> None:
            slot = self.slots[index]
            weights, alpha = slot.flat(), scale * slot.perturb_scale
            for start, stop, z in direction.chunks(index):
                weights[start:stop].add_(z, alpha=alpha)

        self._sweep(visit)

    def _update(
        self, directions: Sequence[Direction], grads: Sequence[float], learning_rate: float, replaying: bool
    ) -> None:
        """The last sweep: restore w (in place), and step along sum_i g_i z_i.

        Replaying, the perturbing sweeps are repeated as well, on each chunk in the order in which the step does them.
        """
        share = len(directions) if self.direction_reduction == "mean" else 1
        terms = [(direction, g / share) for direction, g in zip(directions, grads, strict=True)]
        past = []
        if self.momentum_horizon is not None:
            for age, earlier in enumerate(reversed(self._past), start=1):
                past += [(self.open_direction(seed), self.momentum**age * g) for seed, g in earlier]
            self._past.append([(direction.seed, g) for direction, g in terms])
        step = self.num_steps + 1

        if self.in_place and self.optimizer == "sgd" and len(terms) == 1:
            (direction, g), *_ = terms
            self._sweep(lambda index: self._restore_and_descend(index, direction, g, learning_rate, replaying))
            self.num_steps = step
            return

        def visit(index: int) -> None:
            slot = self.slots[index]
            weights, a = slot.flat(), self.eps * slot.perturb_scale
            descend = self.rule.of(index, step, learning_rate)
            streams = [(direction.chunks(index), g * slot.update_scale) for direction, g in past + terms]
            for start, stop in slot.bounds():
                w = weights[start:stop]
                grad = self.scratch.take("grad", stop - start, compute_dtype(w.dtype), w.device)
                for k, (chunks, g) in enumerate(streams):
                    _, _, z = next(chunks)
                    if self.in_place and k >= len(past):
                        if replaying:
                            w.add_(z, alpha=a)
                            w.add_(z, alpha=-2 * a)
                        if replaying or k + 1 == len(streams):
                            w.add_(z, alpha=a)
                    if k == 0:
                        torch.mul(z, g, out=grad)
                    else:
                        grad.add_(z, alpha=g)
                descend(start, stop, grad)

        self._sweep(visit)
        self.num_steps = step

    def _restore_and_descend(
        self, index: int, direction: Direction, g: float, learning_rate: float, replaying: bool
    ) -> None:
        """SGD on one direction: w <- (1 - lr wd) w_minus + (eps (1 - lr wd) - lr g) z, with w_minus = w - eps z."""
        slot = self.slots[index]
        weights, a = slot.flat(), self.eps * slot.perturb_scale
        decay = learning_rate * self.weight_decay if slot.decayed else 0.0
        alpha = a * (1 - decay) - learning_rate * g * slot.update_scale
        for start, stop, z in direction.chunks(index):
            w = weights[start:stop]
            if replaying:
                w.add_(z, alpha=a)
                w.add_(z, alpha=-2 * a)
            if decay:
                w.add_(w, alpha=-decay)  # 1 - decay as a float32 factor would lose the last digits of a small decay
            w.add_(z, alpha=alpha)

    def _sweep(self, visit: Callable[[int], None]) -> None:
        """Visit every slot once, in order, or by several threads with the largest first."""
        if self._threads is None:
            for index in range(len(self.slots)):
                visit(index)
            return
        by_size = sorted(range(len(self.slots)), key=lambda index: -self.slots[index].parameter.numel())
        for _ in self._threads.map(visit, by_size):
            pass

    # ------------------------------------------------------------------ what a step is made of

    def _direction_seeds(self, step: int) -> tuple[int, ...]:
        count = directions_at(step, self.num_directions, self.direction_schedule, self.num_train_steps)
        if self.direction_seeds is None:
            return tuple(derive(self.seed, "direction", step, i) for i in range(count))
        seeds = tuple(itertools.islice(self.direction_seeds, count))
        if len(seeds) < count:
            raise InputError("MeZO(direction_seeds=...)", f"no seed left at step {step}", "one seed per direction")
        return seeds

    def _learning_rate(self) -> float:
        if not callable(self.learning_rate):
            return self.learning_rate
        value = self.learning_rate(self.num_steps)
        return number("learning_rate", value, lambda x: x >= 0, f"a number >= 0 after {self.num_steps} steps")

    def _loss(self, closure: Closure) -> float:
        loss = closure()
        if isinstance(loss, torch.Tensor) and loss.numel() != 1:
            raise InputError("MeZO.step(closure)", f"a tensor of shape {tuple(loss.shape)}", "one number")
        loss = float(loss)
        if not math.isfinite(loss):
            raise InputError(
                "MeZO.step(closure)",
                f"a loss of {loss} at step {self.num_steps + 1}",
                "a finite number",
                "Lower learning_rate or eps, or keep the loss in float32.",
            )
        return loss

    def _round(self, values: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(value) for value in np.asarray(values, dtype=self.scalar_dtype))

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        training = [part for part in self.module.modules() if part.training] if self.module is not None else []
        try:
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True
