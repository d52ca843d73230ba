"""The one backprop loop: pre-training, fine-tuning and every baseline that needs a gradient go through `train`.

No framework: a batch function that can be asked for any step, a loss function, an optimiser, a schedule. Because batches are
a function of the step, and dropout is re-seeded at each step, a run that was interrupted and resumed from its last saved
state equals an uninterrupted run bit for bit on CPU.

The loss of an update is the sum over all its micro-batches divided by the total number of predictions (as in fairseq), not a
mean of means: gradient accumulation with unequal counts equals one large batch. So do several devices (`reclaim.parallel`),
which share the micro-batches of an update: counts are summed, and gradients during the last backward of the update, before
the step that each of them takes.

`precision` is that of autocast; weights, gradients and the optimiser's moments stay in float32. Where a gradient passes
through float16 the loss is scaled (torch's GradScaler, whose state is saved with the rest), and an update whose gradient
overflows is left out.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from reclaim import parallel
from reclaim.errors import InputError
from reclaim.io import atomic_path
from reclaim.optim.fairseq_adam import FairseqAdam
from reclaim.schedules import schedule
from reclaim.seeding import derive

log = logging.getLogger(__name__)

LossFunction = Callable[[Any], tuple[torch.Tensor, int]]
"""Micro-batch -> (sum of the loss over its predictions, number of predictions); a sum over none is 0 and has a gradient."""

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

INITIAL_SCALE, SMALLEST_SCALE = 2.0**7, 1e-4
"""Of a float16 loss. fairseq's, whose losses are sums over predictions too; torch's 2**16, for means, overflows at first."""


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run, under the names of `transformers.TrainingArguments` where it has them."""

    num_train_steps: int = 0
    per_device_train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    min_learning_rate: float = 0.0
    schedule_interval_steps: int = 1
    optimizer: str = "adamw"
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    precision: str = "float32"

    @classmethod
    def from_config(cls, values: dict, place: str = "recipe") -> Recipe:
        """Build a recipe from config values; unknown keys are refused."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise InputError(f"{place}.{key}", "an unknown key", f"one of {', '.join(sorted(known))}")
        values = dict(values)
        if "adam_betas" in values:
            values["adam_betas"] = tuple(values["adam_betas"])
        return cls(**values)

    @property
    def num_warmup_steps(self) -> int:
        """`warmup_steps` where it is given, else the share `warmup_ratio` of all steps, rounded down."""
        return int(self.warmup_ratio * self.num_train_steps) if self.warmup_steps is None else self.warmup_steps


@dataclass
class History:
    """What a run recorded: the mean loss (nats) and learning rate of each update, and the work done."""

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    predictions: int = 0
    forward_passes: int = 0


def build_optimizer(parameters: Sequence[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser a recipe names. Weight decay falls on all parameters, norms and biases too.

    It is decoupled, but in "adam", where it is part of the gradient (an L2 penalty).
    """
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "betas": recipe.adam_betas, "eps": recipe.adam_epsilon}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay, fused=True, **settings)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, weight_decay=recipe.weight_decay, fused=True, **settings)
    if recipe.optimizer == "fairseq_adam":
        return FairseqAdam(parameters, weight_decay=recipe.weight_decay, **settings)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    raise InputError("recipe.optimizer", repr(recipe.optimizer), "adamw, adam, fairseq_adam or sgd")


def train(
    model: torch.nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss_function: LossFunction,
    recipe: Recipe,
    *,
    seed: int,
    state_path: str | Path | None = None,
    run: str = "",
    save_seconds: float | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    progress: Callable[[range], Any] = iter,
) -> History:
    """Train the parameters of `model` that require a gradient, in place, for `recipe.num_train_steps` updates.

    `batches(step)` gives the micro-batches of an update (of them this process's, where there are several; dropout then
    differs between them), `loss_function(micro_batch)` its summed loss and count.
    `after_step(n)` is called after n updates (evaluation; the model is in train mode, and put back into it). With
    `state_path` the state is written there at most every `save_seconds` (default: $RECLAIM_SAVE_SECONDS, else 60), a state
    found there is resumed from if it names the same `run` (whatever identifies it: parameters, data, code), recipe and seed,
    and the file is removed at the end. `progress` wraps the range of steps (tqdm or the job's own).

    Raises `InputError` when the loss stops being finite, or in float16 its gradient at any scale (it names the step); for an
    unknown optimiser or precision; for trainable weights in float16.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameters, recipe)
    rate_at = schedule(
        recipe.lr_scheduler_type,
        recipe.learning_rate,
        recipe.num_train_steps,
        recipe.num_warmup_steps,
        end_learning_rate=recipe.min_learning_rate,
        interval=recipe.schedule_interval_steps,
    )
    history = History()
    state_path = Path(state_path) if state_path else None
    save_seconds = float(os.environ.get("RECLAIM_SAVE_SECONDS", 60)) if save_seconds is None else save_seconds
    identity = f"{run} {recipe} seed={seed}"
    device = parameters[0].device
    scaler = _scaler(model, recipe)
    start = _resume(state_path, model, optimizer, scaler, history, identity) if state_path else 0
    parallel.barrier()  # all have read the state before it is written again
    lower = PRECISIONS[recipe.precision]
    own = [parallel.rank()] if parallel.rank() else []
    several = parallel.world_size() > 1
    compute: Any = parallel.distributed(model, loss_function) if several else loss_function
    last_save = time.monotonic()
    with torch.random.fork_rng():
        for step in progress(range(start, recipe.num_train_steps)):
            model.train()
            torch.manual_seed(derive(seed, "dropout", step, *own))
            rate = rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total, count, passes = 0.0, 0, 0
            micro_batches = list(batches(step))
            for passes, micro_batch in enumerate(micro_batches, 1):
                # The processes exchange their gradients once an update, in the backward of its last micro-batch.
                with compute.no_sync() if several and passes < len(micro_batches) else nullcontext():
                    with torch.autocast(device.type, lower, enabled=lower is not None):
                        loss, predictions = compute(micro_batch)
                    if predictions or several:
                        scaler.scale(loss).backward()
                        total, count = total + loss.item(), count + predictions
            if several:
                total, *counts = parallel.sums([total, count, passes], device)
                count, passes = map(int, counts)
            history.forward_passes += passes
            if count:
                if not math.isfinite(total):
                    raise InputError(
                        f"training step {step}", f"a loss of {total}", "a finite loss", "Lower the learning rate."
                    )
                scaler.unscale_(optimizer)
                _scale_and_clip(parameters, parallel.world_size() / count, recipe.max_grad_norm)
                scaler.step(optimizer)  # not where a gradient overflowed: the scale is halved instead
                scaler.update()
                if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
                    raise InputError(
                        f"training step {step}",
                        "gradients that overflow float16 at any scale of the loss",
                        "finite ones",
                        "Lower the learning rate, or train in bfloat16 or float32.",
                    )
                optimizer.zero_grad(set_to_none=True)
            history.loss.append(total / count if count else 0.0)
            history.learning_rate.append(rate)
            history.predictions += count
            done = step + 1
            after_step(done)
            due = time.monotonic() - last_save >= save_seconds and done < recipe.num_train_steps
            if state_path and due and parallel.is_main():
                _save(state_path, model, optimizer, scaler, history, identity, done)
                last_save = time.monotonic()
    model.eval()
    if state_path and parallel.is_main():
        state_path.unlink(missing_ok=True)
    return history


def _scaler(model: torch.nn.Module, recipe: Recipe) -> torch.amp.GradScaler:
    """What scales the loss, so that small gradients are not lost, where a gradient passes through float16."""
    if recipe.precision not in PRECISIONS:
        raise InputError("recipe.precision", repr(recipe.precision), ", ".join(PRECISIONS))
    half = [parameter for parameter in model.parameters() if parameter.dtype == torch.float16]
    if any(parameter.requires_grad for parameter in half):
        raise InputError(
            "the weights to train",
            "float16",
            "float32",
            "Load the model in float32 (`dtype`) and set the recipe's `precision` to float16, or train an adapter.",
        )
    device = next(model.parameters()).device
    return torch.amp.GradScaler(device.type, INITIAL_SCALE, enabled=bool(half) or recipe.precision == "float16")


def _scale_and_clip(parameters: Sequence[torch.nn.Parameter], scale: float, max_norm: float) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, scale)
    if max_norm > 0:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def _save(path: Path, model, optimizer, scaler, history: History, identity: str, step: int) -> None:
    state = {
        "identity": identity,
        "step": step,
        "model": {name: value for name, value in model.named_parameters() if value.requires_grad},
        "buffers": dict(model.named_buffers()),  # running statistics of batch normalisation
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "history": vars(history),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, model, optimizer, scaler, history: History, identity: str) -> int:
    """Load a saved state into its places and give the number of steps done; the state of another run is passed over."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
    if state["identity"] != identity:
        log.info("%s holds the state of another run; starting anew", path)
        return 0
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state["model"].items():
            named[name].copy_(value)
        buffers = dict(model.named_buffers())
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    for name, value in state["history"].items():
        setattr(history, name, value)
    log.info("resumed at step %d from %s", state["step"], path)
    return state["step"]
