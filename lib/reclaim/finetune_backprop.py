"""Fine-tune a problem by backprop: the counterpart of MeZO in every comparison (full, LoRA, prefix, head)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reclaim import parallel
from reclaim.batches import epoch_batches
from reclaim.finetune import Watch
from reclaim.problems import Problem
from reclaim.seeding import derive
from reclaim.train import Recipe, train


def finetune_backprop(
    problem: Problem,
    train_rows: list,
    recipe: dict,
    watch: Watch,
    *,
    seed: int,
    state_dir: Path,
    progress: Callable[..., Any],
) -> None:
    """Train the problem's model in place with `reclaim.train.train`; evaluate where `watch` asks for it."""
    settings = Recipe.from_config(recipe, "recipes.*")
    rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    take = epoch_batches(len(train_rows), rows, derive(seed, "batches"))

    def batches(step: int):
        chosen = [train_rows[row] for row in take(step)[1]]
        size = settings.per_device_train_batch_size
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        return parallel.share(parts, "recipes.*: the micro-batches of an update")

    train(
        problem.model,
        batches,
        problem.loss,
        settings,
        seed=seed,
        state_path=state_dir / "state.pt",
        after_step=lambda step: watch.after(problem, step) if watch.due(step) else None,
        progress=progress,
    )
