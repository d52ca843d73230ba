"""The experiment of the attack: batch sizes, memorisation, iteration, reordering, on models with and without a tied head.

Gupta et al. 2022 (FILM), sections 5 and 6, and the small protocol of this project. At each seed private sentences are drawn
from a pool, the public model is pre-trained and the client fine-tunes it on them; batches are attacked before, during and
after. A seed's sentences, batches and decoys are the same for all models and stages, so that everything is paired by it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from reclaim.film.attack import OFFICIAL, TARGET_ERRORS, Attacker, Observed, observe, recovery_scores, rule_label
from reclaim.film.clients import client_models, client_tokenizer, public_loss, public_model, sentence_losses
from reclaim.film.gradients import is_tied
from reclaim.film.reorder import ReorderOptions, reorder
from reclaim.film.search import SearchOptions
from reclaim.film.texts import Batch, ClientTexts, client_texts, draw_batches
from reclaim.io import write_parquet
from reclaim.metrics import recovery
from reclaim.models import load, load_tokenizer
from reclaim.outcome import stretches
from reclaim.seeding import derive
from reclaim.state import begin_state
from reclaim.tables import variant_json

UNITS = {"candidates": "count", "bag_size": "count", "epochs": "count", "private_loss": "nats", "held_out_loss": "nats"}
OWN_TEXT = 64  # public sentences on which the attacker measures the norm of hidden states
ITEM = "-"  # of a value that belongs to a model and not to a batch


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: torch.device | str = "cpu",
    state_dir: Path,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Run the experiment at one seed; gives `metrics`, `items` (per batch), `curves`, `costs` and `predictions`.

    `spec`: `public` and `private` (their `data`, how many `rows`; see `client_texts`), `models` (name -> `source`; `config`
    and `recipe` of one from scratch; `bags`, the first of which is attacked with; `stages`, `batches` and `arms` in place of
    the spec's), `client` (recipe), `stages` (name -> epoch), `batches` (batch_size, number), `search` (SearchOptions),
    `arms` (bag, search), and, each optional, `iteration` and `reordering`. `data` has the folder of each data set, and of
    each model that is not made here, by its name. Finished stages stay in `state_dir`, from which a run that was stopped
    goes on. All but `costs` depends on spec, data, seed and code only.

    Raises InputError for data that does not fit the spec.
    """
    state_dir = Path(state_dir)
    begin_state(state_dir, spec, seed, data, __name__, device=device)
    texts = client_texts(
        data[spec["public"]["data"]],
        data[spec["private"]["data"]],
        seed,
        private_rows=spec["private"]["rows"],
        held_out_rows=spec["private"]["held_out_rows"],
        public_rows=spec["public"].get("rows"),
        public_split=spec["public"].get("split", "train"),
        max_words=spec["private"].get("max_words"),
    )
    entities = entity_tagger(spec, texts)
    rows: list[pd.DataFrame] = []
    predictions: list[pd.DataFrame] = []
    curves: list[dict] = []
    costs: list[dict] = []
    for name, entry in spec["models"].items():
        started = time.perf_counter()
        tokenizer, folders = _models(name, entry, spec, texts, seed, data, state_dir, device, progress)
        costs.append(
            {"variant": {"model": name}, "measure": "train_s", "value": time.perf_counter() - started, "unit": "s"}
        )
        keys = {"model": name, "data": spec["private"]["data"]}
        curves += _curve(keys, public_loss(next(iter(folders.values()))))
        for stage, folder in folders.items():
            started = time.perf_counter()
            paths = [state_dir / f"{name}.{stage}.{kind}.parquet" for kind in ("predictions", "rows")]
            if not paths[1].exists():
                model = load(folder, "causal").to(device)
                for frame, path in zip(
                    _attack_stage(spec, name, entry, stage, model, tokenizer, texts, entities, seed, progress),
                    paths,
                    strict=True,
                ):
                    write_parquet(frame, path)
            predictions.append(pd.read_parquet(paths[0]))
            rows.append(pd.read_parquet(paths[1]))
            variant = {"model": name, "stage": stage}
            costs.append(
                {"variant": variant, "measure": "attack_s", "value": time.perf_counter() - started, "unit": "s"}
            )
    items = pd.concat(rows, ignore_index=True)
    return {
        "metrics": metric_rows(items),
        "items": items[items["item"] != ITEM],
        "curves": pd.DataFrame(curves, columns=["variant", "step", "measure", "value", "unit"]),
        "costs": pd.DataFrame(costs),
        "predictions": pd.concat(predictions, ignore_index=True),
    }


def entity_tagger(spec: Mapping[str, Any], texts: ClientTexts) -> Callable[[str], list[str]] | None:
    """An entity ruler over the data's names, or spaCy's model that `entities` names; None where there is neither."""
    if model := spec.get("entities"):
        return recovery.spacy_entities(model)
    return recovery.EntityRuler(texts.names) if texts.names else None


def metric_rows(items: pd.DataFrame) -> pd.DataFrame:
    """Means over batches of each variant and metric, with the number of batches."""
    grouped = items.groupby(["variant", "metric"], sort=True)["value"]
    table = grouped.agg(value="mean", n="size").reset_index()
    return table.assign(unit=[UNITS.get(metric, "fraction") for metric in table["metric"]])


def _models(name, entry, spec, texts, seed, data, state_dir, device, progress):
    """Tokenizer, and the folder of the model at each stage."""
    folder = state_dir / name
    options = {"seed": seed, "device": device, "progress": progress}
    if entry["source"] == "scratch":
        tokenizer, start = client_tokenizer(texts.every), folder / "public"
        public_model(entry, tokenizer, texts.public, folder=start, **options)
    else:
        tokenizer, start = load_tokenizer(data[name]), data[name]
    stages = entry.get("stages", spec["stages"])
    recipe = entry.get("client", spec["client"])
    made = client_models(
        start, recipe, sorted(set(stages.values())), tokenizer, texts.private, folder=folder / "client", **options
    )
    return tokenizer, {stage: made[epoch] for stage, epoch in stages.items()}


def _curve(keys: dict[str, str], loss: Sequence[float]) -> Iterator[dict]:
    for step, value in stretches(loss):
        yield {"variant": keys, "step": step, "measure": "pretrain_loss", "value": value, "unit": "nats"}


# ------------------------------------------------------------------------------------------------------------- one stage


class _Record:
    """Collects the rows of a stage (variant, metric, item, value) and the texts that were found."""

    def __init__(self, **keys: Any):
        self.keys = keys
        self.rows: list[Any] = []
        self.texts: list[Any] = []

    def add(self, variant: Mapping[str, Any], item: str, values: Mapping[str, float]) -> None:
        text = variant_json({**self.keys, **variant})
        self.rows += [{"variant": text, "metric": metric, "item": item, "value": v} for metric, v in values.items()]

    def add_recovery(self, variant, batch: Batch, candidates: Sequence[str], entities, example: bool = False) -> None:
        scores, (true, found, value) = recovery_scores(batch, candidates, entities)
        for pick, values in scores.items():
            self.add({**variant, "pick": pick}, batch.item, values)
        if example:
            # The words are part of the row's name: the report shows them side by side.
            self.add({**variant, "true": true, "recovered": found}, ITEM, {"example": value})
        self.texts.append(
            {
                "variant": variant_json({**self.keys, **variant}),
                "item": batch.item,
                "sentences": json.dumps(batch.sentences, ensure_ascii=False),
                "candidates": json.dumps(list(candidates), ensure_ascii=False),
            }
        )

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return pd.DataFrame(self.texts), pd.DataFrame(self.rows)


def _attack_stage(spec, name, entry, stage, model, tokenizer, texts, entities, seed, progress):
    """Every attack on one model: the frames of predictions and of rows."""
    attacker = Attacker.of(model, tokenizer, SearchOptions(**spec["search"]), texts.public[:OWN_TEXT])
    record = _Record(model=name, tied=is_tied(model), data=spec["private"]["data"], stage=stage)
    losses = {"private_loss": texts.private, "held_out_loss": texts.held_out}
    for metric, sentences in losses.items():
        record.add({}, ITEM, {metric: float(sentence_losses(model, tokenizer, sentences).mean())})
    record.add({}, ITEM, {"epochs": float(entry.get("stages", spec["stages"])[stage])})
    # The prior alone writes the same sentences whatever was sent; the official search makes copies of start tokens where they
    # are fewer than the batch's sentences.
    vocabulary = list(range(model.config.vocab_size))
    prior: dict[tuple[str, int], list[str]] = {}
    batches = [
        batch
        for each in entry.get("batches", spec["batches"])
        for batch in draw_batches(texts, each["batch_size"], each["number"], seed)
    ]
    for batch in progress(batches):
        observed = observe(model, tokenizer, batch.sentences)
        keys = {"batch_size": len(batch.sentences)}
        _bags(record, observed, entry["bags"], attacker, keys, batch.item)
        bag = observed.bag(entry["bags"][0], attacker)
        rng = np.random.default_rng(derive(seed, "film", "random", batch.item))
        done: dict[tuple, list[str]] = {}
        for arm in entry.get("arms", spec["arms"]):
            if arm["bag"] == "vocabulary":
                key = arm["search"], len(batch.sentences)
                if key not in prior:
                    prior[key] = _search(attacker, arm["search"], vocabulary, batch, observed, rng)
                candidates = prior[key]
            else:
                words = tuple(bag if arm["bag"] == "recovered" else sorted(observed.truth))
                if (arm["search"], words) not in done:
                    done[arm["search"], words] = _search(attacker, arm["search"], list(words), batch, observed, rng)
                candidates = done[arm["search"], words]
            example = arm["bag"] == "recovered" and batch.item.endswith("-0")
            record.add_recovery({**keys, **arm}, batch, candidates, entities, example)
    if stage in spec.get("iteration", {}).get("stages", ()):
        _iterate(record, spec["iteration"], entry, attacker, texts, entities, seed, progress)
    if stage in spec.get("reordering", {}).get("stages", ()):
        _reorder(record, spec["reordering"], entry, attacker, texts, entities, seed, progress)
    return record.frames()


def _search(
    attacker: Attacker, search: str, bag: list[int], batch: Batch, observed, rng: np.random.Generator
) -> list[str]:
    if search in OFFICIAL:
        # Counts, where they are known, are the true ones of the words in the bag.
        counts = {token: observed.truth.get(token, 1) for token in bag} if search == "official_counts" else None
        return attacker.with_options(**OFFICIAL[search]).official(bag, len(batch.sentences), counts)
    if search == "per_start":
        return attacker.per_start(bag)
    if search == "random_words":
        return attacker.random_words(bag, rng)
    if search == "random_sentence":
        return attacker.random_sentence(bag, rng)
    return [attacker.random_order(batch.sentences, rng)]


def _bags(record: _Record, observed: Observed, rules, attacker: Attacker, keys, item: str) -> None:
    """How well each rule reads the bag; the kH/N rule also with a wrong number of targets."""
    for rule in rules:
        for targets in TARGET_ERRORS if rule["rule"] == "scaled" else (1.0,):
            bag = observed.bag(rule, attacker, targets)
            values = {**recovery.bag_scores(observed.truth, bag), "bag_size": float(len(bag))}
            record.add({**keys, "rule": rule_label(rule), "targets": targets}, item, values)


def _iterate(record: _Record, spec, entry, attacker: Attacker, texts, entities, seed: int, progress) -> None:
    """Repetitions of the official search with the n-grams of those before banned: how many sentences of a batch come out."""
    for batch_size in spec["batch_sizes"]:
        for batch in progress(list(draw_batches(texts, batch_size, spec["number"], seed))):
            bag = observe(attacker.model, attacker.tokenizer, batch.sentences).bag(entry["bags"][0], attacker)
            for repetitions in spec["repetitions"]:
                found = attacker.with_options(repetitions=repetitions).official(bag, batch_size)
                keys = {"batch_size": batch_size, "bag": "recovered", "search": "iterated", "repetitions": repetitions}
                record.add_recovery(keys, batch, found, entities)


def _reorder(record: _Record, spec, entry, attacker: Attacker, texts, entities, seed: int, progress) -> None:
    """The official reordering of what the search found, and of a true sentence in random order."""
    settings = {name: value for name, value in spec.items() if name not in ("stages", "batch_size", "number")}
    for batch in progress(list(draw_batches(texts, spec["batch_size"], spec["number"], seed))):
        bag = observe(attacker.model, attacker.tokenizer, batch.sentences).bag(entry["bags"][0], attacker)
        rng = np.random.default_rng(derive(seed, "film", "reorder", batch.item))
        starts = {
            "beam": (attacker.official(bag, len(batch.sentences)) or [""])[0],
            "random_order": attacker.random_order(batch.sentences[:1], rng),
        }
        for start, text in starts.items():
            for how in ("off", "perplexity", "gradient"):
                if how != "off":
                    options = ReorderOptions(gradient=how == "gradient", **settings)
                    # One stream for both scores, so that they see the same proposals while they agree.
                    rng = np.random.default_rng(derive(seed, "film", "moves", batch.item, start))
                    found = reorder(attacker.model, attacker.tokenizer, text, options, rng).text
                keys = {"batch_size": spec["batch_size"], "start": start, "reorder": how}
                candidate = text if how == "off" else found
                record.add_recovery({**keys, "bag": "recovered", "search": "reordered"}, batch, [candidate], entities)
