"""Fine-tune a problem by MeZO: two forward passes a step, no gradient. The trajectory log is the checkpoint.

On several devices (`reclaim.parallel`) each has all the weights and a part of the batch's rows. The weights stay the same in
all of them, since each draws the direction from the seed; what they tell each other is their part of the projected gradient,
one float a direction, whatever the model's size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reclaim import parallel
from reclaim.batches import epoch_batches
from reclaim.errors import InputError
from reclaim.finetune import Watch
from reclaim.optim import MeZO
from reclaim.optim.blocks import measure_block_scales
from reclaim.optim.trajectory import record
from reclaim.problems import Problem
from reclaim.seeding import derive

log = logging.getLogger(__name__)

OPTIONS = {key: key for key in ("eps", "weight_decay", "optimizer", "num_directions")}
OPTIONS |= {"adam_betas": "betas", "adam_epsilon": "adam_eps"}
"""Keys of a recipe that `MeZO` takes as they are, and its names for them."""

OTHERS = ("num_train_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "estimator")
"""The other keys that a recipe may have."""


@torch.inference_mode()
def finetune_mezo(
    problem: Problem,
    train_rows: list,
    recipe: dict,
    watch: Watch,
    *,
    seed: int,
    state_dir: Path,
    progress: Callable[..., Any],
) -> None:
    """Train the problem's model in place on its objective; leaves the sealed trajectory log `run.mezo` in `state_dir`.

    Of several processes each writes a log, of the same bytes; that of rank 0 is the one that is kept and resumed from.

    The learning rate is constant, as in the paper. An interrupted run is replayed from its log and goes on. The modified
    estimators scale by the blocks' parameter norms, measured once, before the first step.

    Raises `InputError` for a key of the recipe that it would not follow, such as a warm-up.
    """
    if unread := sorted(set(recipe) - set(OPTIONS) - set(OTHERS)):
        raise InputError(
            f"recipes.*.{unread[0]}", "a key that MeZO does not read", f"among {', '.join((*OPTIONS, *OTHERS))}"
        )
    if recipe.get("lr_scheduler_type", "constant") != "constant":
        raise InputError("recipes.*.lr_scheduler_type", repr(recipe["lr_scheduler_type"]), "constant, for MeZO")
    estimator = recipe.get("estimator", "spsa")
    modified = {}
    if estimator != "spsa":
        scales = measure_block_scales(problem.model, "param_norm")
        modified = {"block_scales": scales, "scale_estimate": estimator}
    num_train_steps = recipe["num_train_steps"]
    # A model that is spread over several devices has no one stream of random numbers.
    spread = len({parameter.device for parameter in problem.model.parameters()}) > 1
    part = 1.0  # of the batch, that this process's rows are

    def joined(estimates: list[float]) -> list[float]:
        return parallel.sums([part * estimate for estimate in estimates], problem.device)

    optimizer = MeZO(
        problem.model,
        recipe["learning_rate"],
        seed=derive(seed, "directions"),
        rng="per_tensor" if spread else "sequential",
        join=joined if parallel.world_size() > 1 else None,
        **{name: recipe[key] for key, name in OPTIONS.items() if key in recipe},
        **modified,
    )
    take = epoch_batches(len(train_rows), recipe["per_device_train_batch_size"], derive(seed, "batches"))
    with record(optimizer, parallel.own_copy(state_dir / "run.mezo")) as done:
        if done:
            log.info("resumed at step %d from %s", done, state_dir / "run.mezo")
        if done and watch.due(done) and done not in watch.scores:
            watch.after(problem, done)
        for step in progress(range(done, num_train_steps)):
            rows = [train_rows[row] for row in take(step)[1]]
            batch = parallel.share(rows, "recipes.*: the rows of a batch")
            part = problem.size(batch) / problem.size(rows)
            optimizer.step(partial(problem.objective, batch))
            if watch.due(step + 1):
                watch.after(problem, step + 1)
