"""The judge of an experiment: trained here on pairs of a world, or taken from a model folder, and its check against truth.

Source: Gao et al. 2023 (ALCE) take a published NLI model and report its agreement with people (accuracy 85.1 %, kappa 0.698);
here the exact judge of the world stands for people. Pairs for training come from worlds of their own, with other values than
the worlds that answers are judged in: the judge knows the language and none of the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from reclaim.alce.judge import CachedJudge, agreement, load_judge
from reclaim.alce.nli import build_entailment, train_entailment
from reclaim.io import atomic_path
from reclaim.seeding import derive
from reclaim.train import Recipe
from reclaim.world.passages import FACT_WORDS, draw_world
from reclaim.world.support import draw_pairs
from reclaim.world.tables import stream


def prepare_judge(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: torch.device | str = "cpu",
    state_dir: Path,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> tuple[CachedJudge, list[dict[str, Any]]]:
    """The judge of `spec`, remembering its answers in `state_dir`, and metric rows of its validation.

    `source: scratch`: trained on `pairs` pairs of each of `tasks` from each of `worlds` drawn worlds of `num_names` names and
    `num_types` types, by `training` (keys of `Recipe`); `config` has the sizes of the model. It is kept in `state_dir`, and
    checked on `validation_pairs` pairs of each task from a world of its own: rows `judge_accuracy`, `judge_kappa`,
    `judge_insufficient_recall`, `judge_insufficient_precision` with the variant key `task`.
    Other sources: `model` names a folder in `data` (a T5, or one that was trained here), `dtype` and `over` as in `load_judge`.
    `batch_size` is how many pairs are judged at once.
    """
    scratch = spec["source"] == "scratch"
    folder = state_dir / "judge" if scratch else data[spec["model"]]
    if scratch and not folder.exists():
        _train(spec, seed, folder, device, progress)
    judge = load_judge(folder, device, spec.get("dtype", "float32"), spec.get("over", "pair"))
    cached = CachedJudge(judge, state_dir / "judgements.txt", spec.get("batch_size", 256), progress)
    return cached, _validate(spec, seed, cached) if scratch else []


def world_pairs(
    spec: Mapping[str, Any], seed: int, part: str, worlds: int, count: int, tasks: Sequence[str]
) -> tuple[list[tuple[str, str]], list[bool]]:
    """`count` labelled pairs of each task from each of `worlds` worlds, which `seed` and `part` decide."""
    pairs, labels = [], []
    for number in range(worlds):
        rng = stream(seed, "judge pairs", part, number)
        world = draw_world(rng, spec["num_names"], spec["num_types"])
        for task in tasks:
            found, truth = draw_pairs(world, count, rng, task)
            pairs += found
            labels += truth
    return pairs, labels


def _train(spec: Mapping[str, Any], seed: int, folder: Path, device, progress) -> None:
    seed = derive(seed, "judge")
    pairs, labels = world_pairs(spec, seed, "train", spec["worlds"], spec["pairs"], spec["tasks"])
    model, tokenizer = build_entailment(FACT_WORDS, seed, **spec["config"])
    recipe = Recipe.from_config(dict(spec["training"]), "judge.training")
    state = folder.with_name("judge.train.pt")
    options = {"seed": seed, "state_path": state, "run": f"judge {spec} {seed}", "progress": progress}
    train_entailment(model.to(device), tokenizer, pairs, labels, recipe, **options)
    with atomic_path(folder, directory=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _validate(spec: Mapping[str, Any], seed: int, judge: CachedJudge) -> list[dict[str, Any]]:
    rows = []
    for task in spec["tasks"]:
        pairs, truth = world_pairs(spec, derive(seed, "judge"), "validation", 1, spec["validation_pairs"], [task])
        for name, value in agreement(judge(pairs), truth).items():
            row = {"metric": f"judge_{name}", "value": value, "n": len(pairs), "unit": "fraction"}
            rows.append({"variant": {"task": task}, **row})
    return rows
