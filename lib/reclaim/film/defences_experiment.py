"""The experiment of the defences: what each gives up in utility against what is still read, and where each attack sets in.

Gupta et al. 2022 (FILM), section 6, and this project's cross-paper question: what an eavesdropper reads when the client
trains by backprop, by LoRA, with frozen embeddings or by MeZO. At each seed one public model is made; a client fine-tunes
it on private sentences until they are partly memorised, and is attacked under every defence and strength with the same
batches. The utility is of another client, whose text is of a kind that the public model hardly knows though it knows the
words: what of the fall of the loss on held-out text, under no defence, is kept under each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from reclaim.errors import InputError
from reclaim.film.attackers import Knowledge, eavesdrop, true_bag, write_sentence
from reclaim.film.clients import client_models, client_tokenizer, public_model, sentence_losses, token_rows
from reclaim.film.defences import Defence, epsilon, train_client
from reclaim.film.gradients import client_gradient, padded
from reclaim.film.rivals import RIVALS, match_gradient
from reclaim.film.switch_over import average_rows, candidate_rows, mean_row, span_rows
from reclaim.film.texts import ClientTexts, client_texts, draw_batches
from reclaim.io import read_json, write_json
from reclaim.metrics import recovery
from reclaim.models import load, load_tokenizer
from reclaim.seeding import derive
from reclaim.state import begin_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN_TEXT = 64  # public sentences on which the attacker measures the norm of hidden states
Rows = list[dict[str, Any]]


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: torch.device | str = "cpu",
    state_dir: Path,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, pd.DataFrame]:
    """Run the experiment at one seed; gives `metrics`, `items` (per attacked batch) and `costs`.

    `spec`: `public` and `private` (data, rows; see `client_texts`), `domain` (data, rows, held_out_rows, and `known`: a few
    sentences of this kind that are public), `model` (`source: scratch` with config and recipe, or another with the name of a
    needed model), `client` (recipe, `num_train_epochs` until the attack), `defences` (defence, and a strength or several),
    `attack`, `training` (recipe, and what differs by defence), and, each optional, `span`, `average`, `candidates`, `rivals`.
    `data` has the folder of each data set, and of each model that is not made here, by its name. Finished parts stay in
    `state_dir`, from which a run that was stopped goes on. All but `costs` depends on spec, data, seed and code only.

    Raises InputError for data that does not fit the spec.
    """
    state_dir = Path(state_dir)
    begin_state(state_dir, spec, seed, data, __name__, device=device)
    job = _Job(spec, seed, data, device, state_dir)
    parts: dict[str, Callable[[], Rows]] = {}
    for defence in defences(spec["defences"]):
        parts[f"attack {defence.name} {defence.strength}"] = partial(job.attack, defence)
        parts[f"utility {defence.name} {defence.strength}"] = partial(job.utility, defence)
    optional = {"span": job.span, "average": job.average, "candidates": job.candidates, "rivals": job.rivals}
    parts |= {name: part for name, part in optional.items() if name in spec}
    rows, costs = job.untrained(), []
    for name in progress(list(parts)):
        path, started = state_dir / f"{name}.json", time.perf_counter()
        if not path.exists():
            write_json(parts[name](), path)
        rows += read_json(path)
        seconds = time.perf_counter() - started
        costs.append({"variant": {"part": name}, "measure": "part_s", "value": seconds, "unit": "s"})
    items = [row for row in rows if "item" in row]
    return {
        "metrics": pd.DataFrame([row for row in rows if "item" not in row] + list(gains(rows))),
        "items": pd.DataFrame(items, columns=["variant", "metric", "item", "value"]),
        "costs": pd.DataFrame(costs),
    }


def defences(entries: Sequence[Mapping[str, Any]]) -> list[Defence]:
    """The defences that a list of entries names, one for each strength."""
    found = []
    for entry in entries:
        strengths = entry.get("strength", 0)
        options = {"max_grad_norm": entry["max_grad_norm"]} if "max_grad_norm" in entry else {}
        for strength in strengths if isinstance(strengths, list) else [strengths]:
            found.append(Defence(entry["defence"], strength, **options))
    return found


def gains(rows: Rows) -> Iterable[dict[str, Any]]:
    """`gain_kept` of every defence: the fall of the held-out loss as a share of that without a defence."""
    losses = {
        (row["variant"]["defence"], row["variant"]["strength"]): row["value"]
        for row in rows
        if row["metric"] == "heldout_loss"
    }
    start, full = losses["untrained", 0], losses.get(("none", 0))
    for (name, strength), loss in losses.items():
        if name != "untrained" and full is not None and full < start:
            yield mean_row({"defence": name, "strength": strength}, "gain_kept", [(start - loss) / (start - full)])


class _Job:
    """The models and texts of a seed, made once, and one method for each part of the experiment."""

    def __init__(self, spec, seed: int, data: Mapping[str, Path], device, state_dir: Path):
        self.spec, self.seed, self.device, self.state_dir = spec, seed, device, state_dir
        self.texts, self.letters = self._texts(data)
        model, folder = spec["model"], state_dir / "model"
        options = {"seed": seed, "device": device}
        if model["source"] == "scratch":
            self.tokenizer = client_tokenizer(self.texts.every + self.letters.every)
            self.public = folder / "public"
            public_model(model, self.tokenizer, self.texts.public + self.letters.public, folder=self.public, **options)
        else:
            self.public = data[model["needs"]]
            self.tokenizer = load_tokenizer(self.public)
        recipe = dict(spec["client"])
        epochs = recipe.pop("num_train_epochs")
        made = client_models(
            self.public, recipe, [epochs], self.tokenizer, self.texts.private, folder=folder / "client", **options
        )
        self.attacked = made[epochs]
        self.known = Knowledge.of(
            load(self.attacked, "causal").to(device),
            self.tokenizer,
            self.texts.public[:OWN_TEXT],
            spec["attack"]["max_length"],
        )
        self.written: dict[tuple, str] = {}

    def _texts(self, data: Mapping[str, Path]) -> tuple[ClientTexts, ClientTexts]:
        """Sentences of the client that is attacked, and of the one whose utility is measured."""
        public, private, domain = (self.spec[name] for name in ("public", "private", "domain"))
        texts = client_texts(
            data[public["data"]],
            data[private["data"]],
            self.seed,
            private_rows=private["rows"],
            held_out_rows=private["held_out_rows"],
            public_rows=public.get("rows"),
            public_split=public.get("split", "train"),
            max_words=private.get("max_words"),
        )
        known = domain["known"]
        letters = client_texts(
            data[known["data"]],
            data[domain["data"]],
            derive(self.seed, "domain"),
            private_rows=domain["rows"],
            held_out_rows=domain["held_out_rows"],
            public_rows=known["rows"],
            public_split=known.get("split", "train"),
            max_words=private.get("max_words"),
        )
        if shared := set(texts.private).intersection(letters.public):
            found = f"{len(shared)} sentences of the attacked client ({min(shared)!r})"
            raise InputError(str(data[known["data"]]), found, "public text that holds none of the private sentences")
        return texts, letters

    def client(self, defence: Defence, folder: Path | None = None) -> PreTrainedModel:
        """The attacked model, or that of another folder, under a defence."""
        model = load(folder or self.attacked, "causal").to(self.device)
        return defence.protect(model, derive(self.seed, "protect"))

    # ------------------------------------------------------------------------------------------------- attack and utility

    def attack(self, defence: Defence) -> Rows:
        """What each attacker reads of each batch: a bag, and the first sentence that its search makes of it."""
        spec, client = self.spec["attack"], self.client(defence)
        base = {"defence": defence.name, "strength": defence.strength, "batch_size": spec["batch_size"]}
        items: Rows = []
        for batch in draw_batches(self.texts, spec["batch_size"], spec["batches"], self.seed):
            truth = true_bag(self.known.model, self.tokenizer, batch.sentences)
            bags = eavesdrop(client, defence, batch.sentences, self.known, seed=derive(self.seed, batch.item))
            for attacker, bag in bags.items():
                variant = {**base, "attacker": attacker}
                text = self.write(bag, len(batch.sentences), attacker)
                scores = _text_scores(batch.sentences, batch.decoys, text)
                items += _items(variant, batch.item, recovery.bag_scores(truth, bag) | scores)
        return items + _means(items)

    def write(self, bag: Sequence[int], batch_size: int, attacker: str) -> str:
        """`write_sentence`, once for each bag: those that have read nothing share theirs."""
        key = (tuple(bag), batch_size, attacker)
        if key not in self.written:
            num_beams = self.spec["attack"]["num_beams"]
            self.written[key] = write_sentence(self.known, bag, batch_size, attacker, num_beams)
        return self.written[key]

    def untrained(self) -> Rows:
        """The losses at the start, and of the attacked model on what it was trained on."""
        start = load(self.public, "causal").to(self.device)
        losses = sentence_losses(start, self.tokenizer, self.letters.held_out)
        private = sentence_losses(self.known.model, self.tokenizer, self.texts.private)
        variant = {"defence": "untrained", "strength": 0}
        return [
            mean_row(variant, "heldout_loss", losses, "nats"),
            mean_row(variant, "perplexity", [math.exp(losses.mean())], "1"),
            mean_row({"defence": "none", "strength": 0}, "private_loss", private, "nats"),
        ]

    def utility(self, defence: Defence) -> Rows:
        """Held-out loss of a client that trains under the defence, and the epsilon of its training."""
        model, spec = self.client(defence, self.public), self.spec["training"]
        recipe = {**spec["recipe"], **spec.get("differences", {}).get(defence.name, {})}
        rows = token_rows(self.tokenizer, self.letters.private)
        state = self.state_dir / "utility.train"
        used = train_client(model, rows, recipe, defence, seed=derive(self.seed, "utility"), state_path=state)
        losses = sentence_losses(model, self.tokenizer, self.letters.held_out)
        variant = {"defence": defence.name, "strength": defence.strength}
        found = [
            mean_row(variant, "heldout_loss", losses, "nats"),
            mean_row(variant, "perplexity", [math.exp(losses.mean())], "1"),
        ]
        if defence.name == "dp" and defence.strength:
            share = used.per_device_train_batch_size / len(rows)
            spent = epsilon(defence.strength, share, used.num_train_steps, 1 / len(rows))
            found.append(mean_row(variant, "epsilon", [spent], "1"))
        return found

    # ------------------------------------------------------------------------------------------------------- switch-over

    def span(self) -> Rows:
        spec = {**self.spec["span"], "defences": defences(self.spec["span"]["defences"])}
        return span_rows(spec, self.client, self.known, self.texts.private + self.texts.held_out, self.seed)

    def average(self) -> Rows:
        spec = self.spec["average"]
        rows: Rows = []
        for size in spec["batch_sizes"]:
            batches = [b.sentences for b in draw_batches(self.texts, size, spec["batches"], self.seed)]
            rows += average_rows(spec, self.known, batches, self.seed)
        return rows

    def candidates(self) -> Rows:
        texts = self.texts.private + self.texts.held_out
        return candidate_rows(self.spec["candidates"], self.known, texts, self.seed)

    def rivals(self) -> Rows:
        """Gradient matching and FILM on the same sentences, one a batch, without a defence."""
        spec, model, items = self.spec["rivals"], self.known.model, []
        base = {"defence": "none", "strength": 0, "batch_size": 1, "comparison": "rivals"}
        for batch in draw_batches(self.texts, 1, spec["sentences"], self.seed):
            ids, mask = padded(model, self.tokenizer, batch.sentences)
            gradients = client_gradient(model, ids, mask).gradients
            found = {}
            for name, settings in spec["methods"].items():
                generator = torch.Generator().manual_seed(derive(self.seed, "rival", batch.item))
                tokens = match_gradient(model, gradients, ids.shape[1], replace(RIVALS[name], **settings), generator)
                found[name] = recovery.cut(self.tokenizer.decode(tokens))
            bags = eavesdrop(model, Defence(), batch.sentences, self.known, seed=self.seed)
            found |= {attacker: self.write(bag, 1, attacker) for attacker, bag in bags.items()}
            for attacker, text in found.items():
                variant = {**base, "attacker": attacker}
                items += _items(variant, batch.item, _text_scores(batch.sentences, batch.decoys, text))
        return items + _means(items)


def _text_scores(sentences: Sequence[str], decoys: Sequence[str], text: str) -> dict[str, float]:
    """Best ROUGE of one text against the batch, that against the decoys taken off, and whether it is a sentence of it."""
    scores = recovery.rouge(sentences, [text])
    best = float(scores["rouge_L"]["fmeasure"].max())
    return {
        "rouge_1": float(scores["rouge_1"]["fmeasure"].max()),
        "rouge_L": best,
        "excess_rouge_L": best - float(recovery.rouge_l(decoys, [text]).max()),
        "exact_match": float(recovery.exact_matches(sentences, [text]).any()),
    }


def _items(variant: Mapping[str, Any], item: str, scores: Mapping[str, float]) -> Rows:
    return [
        {"variant": dict(variant), "metric": metric, "item": item, "value": value} for metric, value in scores.items()
    ]


def _means(items: Rows) -> Rows:
    """A metric row for each variant and metric of items, with their mean."""
    grouped: dict[tuple, list[float]] = {}
    for row in items:
        grouped.setdefault((tuple(row["variant"].items()), row["metric"]), []).append(row["value"])
    return [mean_row(dict(variant), metric, values) for (variant, metric), values in grouped.items()]
