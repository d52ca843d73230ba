"""Training of the world's small models: the pointer on episodes drawn on the spot, the closed-book model on a world's facts.

Episodes are questions with a few passages of worlds of their own: a name, the passages that a search for it might find, the
facts that answer. So a generator with documents sees no fact of a test world. The closed-book model is trained on the very
facts of the test world, because it has nowhere else to have them from, each as often as its name is popular (Zipf's law); it
sees no question of the test as text. Both are trained through `reclaim.train`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.alce.closed_book import ClosedBookForCausalLM
from reclaim.alce.pointer import PointerForCausalLM
from reclaim.seeding import derive
from reclaim.train import Recipe, train
from reclaim.world.lexicon import FACT_ATTRIBUTES, FACT_NAMES, FACT_TYPES, FACT_VALUES
from reclaim.world.passages import PASSAGE_FACTS, FactWorld

SYNONYMS = len(FACT_ATTRIBUTES[0])
# Numbers of the first words of each class, in the order in which `make_language` counts them.
FIRST_ATTRIBUTE = 1
FIRST_NAME = FIRST_ATTRIBUTE + SYNONYMS * len(FACT_ATTRIBUTES)
FIRST_TYPE = FIRST_NAME + len(FACT_NAMES)
FIRST_VALUE = FIRST_TYPE + len(FACT_TYPES)


def draw_episodes(
    rng: np.random.Generator,
    task: str,
    count: int,
    *,
    num_names: int,
    num_types: int,
    documents: int = 5,
    other_name: float = 0.15,
    forced: float = 0.35,
) -> dict[str, torch.Tensor]:
    """Draw questions with passages.

    asked (episodes, 3), facts (episodes, facts, 4), places (episodes, facts): as in `reclaim.alce.writer.Page`; gold (episodes,
    facts): facts that answer. A passage is of another name with probability `other_name`, and has the attribute asked for with
    at least `forced`; no fact stands in two passages.
    """
    size = (count, documents)
    name = rng.integers(num_names, size=(count, 1))
    others = (name + rng.integers(1, num_names, size=size)) % num_names
    is_other = rng.random(size) < other_name
    names = np.where(is_other, others, name)
    types = rng.integers(num_types, size=size)
    asked = rng.integers(len(FACT_ATTRIBUTES), size=(count, 1))
    order = rng.random((*size, len(FACT_ATTRIBUTES))).argsort(axis=2)[..., :PASSAGE_FACTS]
    has = (order == asked[..., None]).any(axis=2)
    put = (rng.random(size) < forced) & ~has & ~is_other
    order[..., 0] = np.where(put, asked, order[..., 0])
    asked_type = rng.integers(num_types, size=(count, 1)) if task == "eli5" else np.zeros((count, 1), dtype=int)
    attributes = order.reshape(count, -1)
    repeat = lambda values: np.repeat(values, PASSAGE_FACTS, axis=1)  # noqa: E731
    thing = (repeat(names) * num_types + repeat(types)) * len(FACT_ATTRIBUTES) + attributes
    first = np.array([np.isin(np.arange(len(row)), np.unique(row, return_index=True)[1]) for row in thing])
    words = FIRST_ATTRIBUTE + SYNONYMS * attributes + rng.integers(SYNONYMS, size=attributes.shape)
    values = FIRST_VALUE + rng.integers(len(FACT_VALUES), size=attributes.shape)
    facts = np.stack([words, FIRST_NAME + repeat(names), FIRST_TYPE + repeat(types), values], axis=2)
    facts[~first] = 0
    if task == "eli5":
        gold = (repeat(names) == name) & (repeat(types) == asked_type)
        question = np.concatenate([np.zeros_like(name), FIRST_NAME + name, FIRST_TYPE + asked_type], axis=1)
    else:
        gold = (repeat(names) == name) & (attributes == asked)
        synonym = FIRST_ATTRIBUTE + SYNONYMS * asked + rng.integers(SYNONYMS, size=asked.shape)
        question = np.concatenate([synonym, FIRST_NAME + name, np.zeros_like(name)], axis=1)
    places = np.broadcast_to(np.repeat(np.arange(1, documents + 1), PASSAGE_FACTS), attributes.shape).copy()
    arrays = {"asked": question, "facts": facts, "places": places, "gold": gold & first}
    return {key: torch.from_numpy(values) for key, values in arrays.items()}


def pointer_loss(model: PointerForCausalLM, batch: Mapping[str, torch.Tensor], task: str, steps: int) -> torch.Tensor:
    """Mean negative log-probability of right decisions, gold facts one after the other in random order.

    batch: of `draw_episodes`, with `order` (episodes, facts), a random number for each. Of the next fact any one that is left
    is right; behind the last one, stopping.
    """
    asked, facts, places, gold = (batch[key] for key in ("asked", "facts", "places", "gold"))
    most = int(places.max()) + 1
    rank = batch["order"].masked_fill(~gold, 2.0).argsort(dim=1).argsort(dim=1)
    number = gold.sum(dim=1)
    used, losses = torch.zeros_like(gold), []
    for step in range(steps):
        going = number >= step
        left = gold & ~used
        decided = model.next_facts(asked, facts, used)
        right = torch.cat([left, ~left.any(dim=1, keepdim=True)], dim=1)
        losses.append(-decided.masked_fill(~right, -1e4).logsumexp(dim=1)[going])
        writing = number > step
        if not writing.any():
            break
        chosen = (rank == step) & gold
        fact = (facts * chosen[..., None]).sum(dim=1)
        place = (places * chosen).sum(dim=1)
        known = torch.cat([asked, torch.zeros_like(asked[:, :1])], dim=1)
        rows = writing.nonzero()[:, 0]
        fields = {"asqa": (2, 3), "qampari": (3,), "eli5": (0, 3)}[task]
        for field in fields:
            scores = model.word_scores(known, facts, used, field)
            losses.append(-scores[rows, fact[rows, field]])
            known = known.clone()
            known[:, field] = fact[:, field]
        losses.append(-model.document_scores(known, facts, places, most)[rows, place[rows]])
        used = used | chosen
    return torch.cat(losses).mean()


def train_pointer(
    model: PointerForCausalLM, task: str, spec: Mapping[str, Any], seed: int, state_path: str | Path, **options: Any
):
    """Train in place by `spec`: `recipe` (keys of `Recipe`), `episodes` a step, and settings of `draw_episodes`."""
    recipe = Recipe.from_config(dict(spec["recipe"]), "generator.recipe")
    drawn = {key: value for key, value in spec.items() if key not in ("recipe", "episodes")}
    steps = 4 if task != "eli5" else 6

    def batches(step: int):
        rng = np.random.default_rng(derive(seed, "episodes", step))
        batch = draw_episodes(rng, task, spec["episodes"], **drawn)
        batch["order"] = torch.from_numpy(rng.random(batch["gold"].shape))
        return [{key: values.to(model.device) for key, values in batch.items()}]

    def loss(batch) -> tuple[torch.Tensor, int]:
        count = len(batch["asked"])
        return pointer_loss(model, batch, task, steps) * count, count

    return train(model, batches, loss, recipe, seed=seed, state_path=state_path, **options)


def train_closed_book(
    model: ClosedBookForCausalLM,
    world: FactWorld,
    spec: Mapping[str, Any],
    seed: int,
    state_path: str | Path,
    **options: Any,
):
    """Train in place on a world's facts by `spec`: `recipe`, `facts` a step, `popularity` (exponent of Zipf's law)."""
    recipe = Recipe.from_config(dict(spec["recipe"]), "closed_book.recipe")
    names, types, attributes = world.values.shape
    weights = (
        1.0
        / np.random.default_rng(derive(seed, "popularity")).permutation(np.arange(1, names + 1)) ** spec["popularity"]
    )
    weights = weights / weights.sum()

    def batches(step: int):
        rng = np.random.default_rng(derive(seed, "facts", step))
        count = spec["facts"]
        name, kind = rng.choice(names, count, p=weights), rng.integers(types, size=count)
        attribute = rng.integers(attributes, size=count)
        word = FIRST_ATTRIBUTE + SYNONYMS * attribute + rng.integers(SYNONYMS, size=count)
        rows = [word, FIRST_NAME + name, kind, FIRST_TYPE + kind, FIRST_VALUE + world.values[name, kind, attribute]]
        return [torch.from_numpy(np.stack(rows, axis=1)).to(model.device)]

    def loss(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        kinds, values = model.facts(rows[:, 0], rows[:, 1], rows[:, 2])
        total = F.cross_entropy(kinds, rows[:, 3], reduction="sum") + F.cross_entropy(
            values, rows[:, 4], reduction="sum"
        )
        return total, len(rows)

    return train(model, batches, loss, recipe, seed=seed, state_path=state_path, **options)
