"""Where an attack begins or ceases to work: the span test at N = width, averaging of scalars at K, a choice among candidates.

The cross-paper questions of this project: FILM (Gupta et al. 2022) against clients that freeze their word embeddings, train
by LoRA or by MeZO. Each function gives metric rows of one seed, with the place on its axis in the variant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.errors import InputError
from reclaim.film.attackers import Knowledge, eavesdrop, residuals, true_bag
from reclaim.film.bag import largest_rows
from reclaim.film.defences import Defence, sent_gradients
from reclaim.film.gradients import client_gradient, client_loss, embedding_names, padded
from reclaim.film.scalars import (
    average_scalars,
    candidate_scalars,
    direction,
    draw_average,
    pick_candidate,
    scalars_needed,
    send_scalars,
)
from reclaim.film.span import CUTS, span_sentence
from reclaim.metrics.recovery import bag_scores
from reclaim.seeding import derive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LoadClient = Callable[[Defence], "PreTrainedModel"]
Rows = list[dict[str, Any]]


def mean_row(
    variant: Mapping[str, Any], metric: str, values: Sequence[float] | np.ndarray, unit: str = "fraction"
) -> dict[str, Any]:
    """A metric row with the mean of some values (n,)."""
    return {"variant": dict(variant), "metric": metric, "value": float(np.mean(values)), "n": len(values), "unit": unit}


# --------------------------------------------------------------------------------------------------------------- span test


def span_rows(spec: Mapping[str, Any], load: LoadClient, known: Knowledge, texts: Sequence[str], seed: int) -> Rows:
    """Bags from the span test at numbers N of inputs around the width of the span, and sentences read in one piece.

    `spec`: `defences` (freeze, or lora with its r), `ratios` of N to the width (d, or r), `batches` for each, `sentences` to
    read alone. `load` gives the protected client. Metrics: `bag_f1`, `bag_precision`, `bag_recall` by `input_ratio`, those
    of the whole vocabulary beside them; `exact_match` of single sentences.
    """
    tokens = known.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    inputs = [set(enumerate(row[:-1])) for row in tokens]
    rows: Rows = []
    for defence in spec["defences"]:
        client = load(defence)
        width = int(defence.strength) if defence.name == "lora" else known.model.config.n_embd
        for ratio in spec["ratios"]:
            rng = np.random.default_rng(derive(seed, "span", defence.name, defence.strength, ratio))
            scores: dict[str, list[dict[str, float]]] = {"strongest": [], "whole_vocabulary": []}
            for _ in range(spec["batches"]):
                batch = [texts[place] for place in batch_with_inputs(inputs, round(ratio * width), rng)]
                bags = eavesdrop(client, defence, batch, known, seed=seed)
                truth = true_bag(known.model, known.tokenizer, batch)
                scores["strongest"].append(bag_scores(truth, bags["strongest"]))
                scores["whole_vocabulary"].append(bag_scores(truth, known.vocabulary))
            for attacker, found in scores.items():
                variant = {"defence": defence.name, "strength": defence.strength, "width": width}
                variant |= {"input_ratio": ratio, "attacker": attacker}
                rows += [mean_row(variant, metric, [score[metric] for score in found]) for metric in found[0]]
        if defence.name == "freeze":
            exact = [_reads_exactly(client, defence, text, known) for text in texts[: spec["sentences"]]]
            variant = {"defence": "freeze", "strength": defence.strength, "attacker": "strongest", "batch_size": 1}
            rows.append(mean_row({**variant, "search": "none"}, "exact_match", exact))
    return rows


def batch_with_inputs(
    inputs: Sequence[set[tuple[int, int]]], total: int, rng: np.random.Generator, tries: int = 1000
) -> list[int]:
    """Places of texts, drawn at random, that have `total` different inputs together; `inputs` are those of each text.

    An input is a (position, word) with a target: equal ones have equal vectors, and count once in the width of a span.
    Raises InputError where no draw hits the number.
    """
    least = min(map(len, inputs))
    for _ in range(tries):
        chosen: list[int] = []
        found: set[tuple[int, int]] = set()
        for place in rng.permutation(len(inputs)).tolist():
            rest = total - len(found | inputs[place])
            if rest == 0:
                return [*chosen, place]
            if rest >= least:
                chosen.append(place)
                found |= inputs[place]
    raise InputError("span test", f"no texts with {total} different inputs together", "texts of enough lengths")


def _reads_exactly(client, defence: Defence, text: str, known: Knowledge) -> bool:
    """Whether the span test alone, without a language model, gives a sentence back word by word."""
    ids, mask = padded(client, known.tokenizer, [text])
    sent = sent_gradients(client, ids, mask, defence, torch.Generator())
    words = span_sentence(residuals(client, sent, known), CUTS[torch.float32])
    return [*words, *known.ends[:1]] == ids[0].tolist()


# ----------------------------------------------------------------------------------------------------------------- scalars


def average_rows(spec: Mapping[str, Any], known: Knowledge, batches: Sequence[Sequence[str]], seed: int) -> Rows:
    """Bags from the mean of many scalars of one batch at fixed weights, the size of the bag given.

    `spec`: `messages` (numbers of scalars that a client really sends), `law` (numbers for which the mean is drawn from its
    distribution, see `draw_average`), `ratios` (the same, as multiples of the rule of thumb `scalars_needed`). Metrics:
    `bag_f1`; `scalars_needed`; `scalar_gap`, the root mean square difference of the messages from the derivative along
    their directions, as a share of the gradient's norm; `bag_f1` of a random bag.
    """
    model, gaps, needed = known.model, [], []
    found: dict[Any, list[float]] = {}
    words, size = embedding_names(model)[0], len(batches[0])
    base = {"defence": "mezo", "strength": 1, "batch_size": size}
    for number, batch in enumerate(batches):
        ids, mask = padded(model, known.tokenizer, batch)
        truth = true_bag(model, known.tokenizer, batch)
        gradients = client_gradient(model, ids, mask).gradients
        needed.append(scalars_needed(gradients, words, sorted(truth)))
        generator = torch.Generator().manual_seed(derive(seed, "law", number))

        def note(place: tuple, estimate: torch.Tensor, truth=truth) -> None:
            bag = largest_rows(estimate.norm(dim=1), len(truth))
            found.setdefault(place, []).append(bag_scores(truth, bag)["bag_f1"])

        most = max(spec["messages"], default=0)
        if most:
            loss = lambda ids=ids, mask=mask: client_loss(model, ids, mask)[0]  # noqa: E731
            messages = send_scalars(model, loss, most, seed=derive(seed, "messages", number))
            gaps += [_gap(model, message, gradients) for message in messages[:8]]
            for count in spec["messages"]:
                note(("messages", count), average_scalars(model, messages[:count], words))
        for count in spec["law"]:
            note(("law", count), draw_average(gradients, words, count, generator))
        for ratio in spec["ratios"]:
            count = max(1, round(ratio * needed[-1]))
            note(("ratio", ratio), draw_average(gradients, words, count, generator))
        random = torch.randperm(model.config.vocab_size, generator=generator)[: len(truth)].tolist()
        found.setdefault("random", []).append(bag_scores(truth, random)["bag_f1"])
    rows = [mean_row({**base, "attacker": "random_bag"}, "bag_f1", found.pop("random"))]
    for (source, place), values in found.items():
        keys = {"scalar_ratio": place} if source == "ratio" else {"num_scalars": place, "source": source}
        rows.append(mean_row({**base, "attacker": "average", **keys}, "bag_f1", values))
    rows.append(mean_row({**base, "attacker": "average"}, "scalars_needed", needed, "count"))
    if gaps:
        rows.append(mean_row({**base, "attacker": "average"}, "scalar_gap", [math.sqrt(np.mean(np.square(gaps)))]))
    return rows


def _gap(model, message, gradients: Mapping[str, torch.Tensor]) -> float:
    along = sum(float((z * gradients[name]).sum()) for name, z in direction(model, message.seed))
    norm = math.sqrt(sum(float(part.square().sum()) for part in gradients.values()))
    return (message.projected_grad - along) / norm


def candidate_rows(spec: Mapping[str, Any], known: Knowledge, texts: Sequence[str], seed: int) -> Rows:
    """How often one scalar of one sentence picks it among candidates.

    `spec`: `candidates` (how many), `trials`. Kinds of candidates: `sentences` (others of its kind) and `one_word` (the
    sentence itself with another word at one place). Metrics: `picked`, and `chance` of a blind choice.
    """
    rng = np.random.default_rng(derive(seed, "candidates"))
    picked: dict[str, list[bool]] = {"sentences": [], "one_word": []}
    for trial in range(spec["trials"]):
        places = rng.permutation(len(texts))[: spec["candidates"]]
        ids, mask = padded(known.model, known.tokenizer, [texts[place] for place in places])
        picked["sentences"].append(_picks(known.model, ids, mask, derive(seed, "picked", trial)))
        length = int(mask[0].sum())
        ids = ids[:1, :length].repeat(spec["candidates"], 1)
        others = np.setdiff1d(known.vocabulary, ids[0].tolist())
        ids[1:, rng.integers(1, length - 1)] = torch.from_numpy(rng.choice(others, len(ids) - 1, replace=False))
        picked["one_word"].append(_picks(known.model, ids, torch.ones_like(ids), derive(seed, "picked", trial)))
    rows: Rows = []
    for kind, each in picked.items():
        variant = {"defence": "mezo", "strength": 1, "attacker": "candidates", "candidates": kind, "batch_size": 1}
        rows.append(mean_row(variant, "picked", each))
        rows.append(mean_row(variant, "chance", [1 / spec["candidates"]]))
    return rows


def _picks(model, ids: torch.Tensor, mask: torch.Tensor, seed: int) -> bool:
    """Whether the scalar that a client with the first candidate sends leads to it."""
    length = int(mask[0].sum())
    own = ids[:1, :length], mask[:1, :length]
    (message,) = send_scalars(model, lambda: client_loss(model, *own)[0], 1, seed=seed)
    scalars = candidate_scalars(model, lambda exact: sentence_losses(exact, ids, mask), message.seed)
    return pick_candidate(message, scalars) == 0


@torch.no_grad()
def sentence_losses(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss (nats) of each sentence in the model's own precision, (sentences,)."""
    logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
    real = mask[:, 1:].to(logits.dtype)
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * real).sum(1) / real.sum(1)
