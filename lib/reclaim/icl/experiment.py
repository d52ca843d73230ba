"""The experiment of the in-context study: every setting, on models of several sizes, from one seed.

Source: Pan et al. 2023. A spec names data sets, models and settings. Models are pre-trained here (`source: scratch`) or
lie in a folder that `from_pretrained` reads; from there on all go the same way. Everything is paired by the seed: the
same test rows, demonstrations and maps for all settings, numbers of demonstrations and models.

Difference from the paper: test rows and the pool of demonstrations are a sample that changes with the seed, so that an
interval over seeds covers them as well as the pre-training.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from reclaim.data import load_split
from reclaim.errors import InputError
from reclaim.icl.draws import LABEL_SPACES, space_labels
from reclaim.icl.metrics import CELL_KEYS, cell_metrics, correct, paired_variance_ratio, valid_output
from reclaim.icl.predict import free_answers, prompt_limit, score
from reclaim.icl.prepare import Cell, Prepared, prepare
from reclaim.icl.pretrain import load_decoder, word_tokenizer
from reclaim.icl.prompts import TEMPLATE_KINDS, IclSet, load_sets
from reclaim.io import write_parquet
from reclaim.models import load, load_tokenizer
from reclaim.outcome import stretches
from reclaim.seeding import derive
from reclaim.state import begin_state

LAST_STEPS = 20
MODEL_KEYS = ("model", "family", "size")
SET_KEYS = ("data_set", "group")


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: torch.device | str = "cpu",
    state_dir: Path,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, pd.DataFrame]:
    """Run the experiment at one seed; gives the frames `metrics`, `curves`, `costs` and `predictions`.

    `spec`: `data_sets` (name in the template files -> `data`, and how many `rows` and `pool_rows` to sample), `models` (name ->
    `source`, `family`, `size`, and `config` and `documents` of those from scratch or `dtype` of others), `pretraining` (see
    `icl.pretrain`), `settings` (keys of `Cell`, lists for several; `models` for some models only), `scorers` (the first one
    predicts), `free_rows` (prompts of a data set and label space that are also answered freely), `degenerate`, `batch_tokens`.
    `data` has the folder of each data set by its name, and of each model that is not made here by the model's. Finished
    models and tables stay in `state_dir`, from which a run that was stopped goes on. All but `costs` (seconds) depends on
    spec, data, seed and code only. `predictions` is the table of `reclaim.icl.predict` with the model's name: any metric
    can be made from it.

    Raises `InputError` for what `prepare` stops at, and for data that does not fit the spec.
    """
    state_dir = Path(state_dir)
    begin_state(state_dir, spec, seed, data, __name__)
    cells = {name: _cells(spec["settings"], name) for name in spec["models"]}
    sets = [part for name, entry in spec["data_sets"].items() for part in _sample_sets(name, entry, data, seed)]
    scratch = any(entry["source"] == "scratch" for entry in spec["models"].values())
    made = word_tokenizer(spec["pretraining"], data, _words(spec, data)) if scratch else None
    metrics: list[dict] = []
    curves: list[dict] = []
    costs: list[dict] = []
    tables: list[pd.DataFrame] = []
    prompts: dict[tuple, Prepared] = {}
    for name, entry in spec["models"].items():
        variant = {"model": name, "family": entry["family"], "size": entry["size"]}
        started = time.perf_counter()
        if entry["source"] == "scratch":
            model, record = load_decoder(
                name, entry, spec["pretraining"], made, seed, data, state_dir, device, progress=progress
            )
            tokenizer = made
            metrics += _pretraining_metrics(variant, record)
            curves += _pretraining_curve(variant, record["loss"])
            costs.append({"variant": variant, "measure": "tokens", "value": float(record["tokens"]), "unit": "count"})
        else:
            model = load(data[name], "causal", dtype=getattr(torch, entry.get("dtype", "float32"))).to(device)
            tokenizer = load_tokenizer(data[name])
        costs.append({"variant": variant, "measure": "model_s", "value": time.perf_counter() - started, "unit": "s"})
        size = {"metric": "num_parameters", "value": float(model.num_parameters()), "n": 1, "unit": "count"}
        metrics.append({"variant": variant, **size})
        started = time.perf_counter()
        for dataset in sets:
            path = state_dir / f"{name}.{dataset.name.replace('/', '.')}.parquet"
            if not path.exists():
                # The small models share their prompts; those of large ones would fill the memory.
                prepared = prompts.get((dataset.name, cells[name])) if tokenizer is made else None
                prepared = prepared or _prepare(spec, model, tokenizer, dataset, cells[name], seed)
                if tokenizer is made:
                    prompts[dataset.name, cells[name]] = prepared
                write_parquet(_predict(spec, model, tokenizer, prepared, progress), path)
            tables.append(pd.read_parquet(path).assign(**variant, group=dataset.group))
        costs.append({"variant": variant, "measure": "evaluate_s", "value": time.perf_counter() - started, "unit": "s"})
        del model
    predictions = pd.concat(tables, ignore_index=True)
    metrics += _metrics(predictions, spec["scorers"])
    return {
        "metrics": pd.DataFrame(metrics),
        "curves": pd.DataFrame(curves, columns=["variant", "step", "measure", "value", "unit"]),
        "costs": pd.DataFrame(costs),
        "predictions": predictions,
    }


# ------------------------------------------------------------------------------------------------------ data, cells


def _sample_sets(name: str, entry: Mapping[str, Any], data: Mapping[str, Path], seed: int) -> Iterator[IclSet]:
    """The data sets of a name, with the pool (from train) and the test rows of this seed."""
    folder = data[entry["data"]]
    for dataset in load_sets(name, load_split(folder, "train"), load_split(folder, "test"), str(folder)):
        kept = {}
        for part, limit in (("pool", entry.get("pool_rows")), ("test", entry.get("rows"))):
            rows = getattr(dataset, part)
            if limit is not None and limit < len(rows):
                rng = np.random.default_rng(derive(seed, "icl", dataset.name, part))
                rows = [rows[i] for i in np.sort(rng.choice(len(rows), limit, replace=False))]
            kept[part] = rows
        yield replace(dataset, **kept)


def _words(spec: Mapping[str, Any], data: Mapping[str, Path]) -> Iterator[str]:
    """Texts with every word that prompts use: those of all rows under both kinds of template, and all labels."""
    for name, entry in spec["data_sets"].items():
        pool, test = (load_split(data[entry["data"]], split) for split in ("train", "test"))
        for dataset in load_sets(name, pool, test, str(data[entry["data"]])):
            for kind in TEMPLATE_KINDS:
                for template in getattr(dataset, kind):
                    yield from (template.fill(row) for row in (*dataset.pool, *dataset.test))
            yield from (*dataset.label_words, dataset.content_free)
            for space in LABEL_SPACES:
                yield from space_labels(space, len(dataset.label_words), dataset.made_up.get(space))


def _cells(settings: Sequence[Mapping[str, Any]], model: str) -> tuple[Cell, ...]:
    """The cells of a model: each entry of the settings with every combination of its listed values."""
    cells: list[Cell] = []
    for entry in settings:
        listed = {key: value if isinstance(value, list) else [value] for key, value in entry.items()}
        if model in listed.pop("models", [model]):
            cells += [Cell(**dict(zip(listed, values, strict=True))) for values in itertools.product(*listed.values())]
    if not cells:
        raise InputError("settings of the in-context study", f"none for the model {model}", "at least one")
    return tuple(dict.fromkeys(cells))


# ----------------------------------------------------------------------------------------------------------- predictions


def _prepare(spec, model, tokenizer, dataset: IclSet, cells: Sequence[Cell], seed: int) -> Prepared:
    options = {"scorer": spec["scorers"][0], "degenerate": spec.get("degenerate", "stop")}
    options["content_free"] = "word_calibrated" in spec["scorers"]
    return prepare(tokenizer, dataset, cells, seed, max_length=prompt_limit(model), **options)


def _predict(spec, model, tokenizer, prepared: Prepared, progress) -> pd.DataFrame:
    """The table of a model on prepared prompts, with unconstrained answers in some rows."""
    table = score(model, prepared, scorer=spec["scorers"][0], batch_tokens=spec.get("batch_tokens"), progress=progress)
    return table.assign(free_answer=_free_answers(model, tokenizer, prepared, spec["free_rows"]))


def _free_answers(model, tokenizer, prepared: Prepared, rows: int) -> list[str | None]:
    """Unconstrained answers to the first `rows` prompts of each label space with made-up labels, at most demonstrations.

    They tell a model that does not know the labels from one that does not know which is which.
    """
    table = prepared.table
    chosen = table[(table["setting"] == "abstract") & (table["template_kind"] == "minimal")]
    chosen = chosen[chosen["num_demonstrations"] == chosen["num_demonstrations"].max()]
    places = chosen.groupby("label_space", sort=True).head(rows).index
    longest = max((max(table["label_pieces"][place]) for place in places), default=1)
    found = free_answers(model, tokenizer, [prepared.contexts[place] for place in places], max_new_tokens=longest)
    answers = dict(zip(places, found, strict=True))
    return [answers.get(place) for place in table.index]


# --------------------------------------------------------------------------------------------------------------- metrics


def _metrics(predictions: pd.DataFrame, scorers: Sequence[str]) -> Iterator[dict]:
    """Metric rows of every model, data set and cell, under each scorer. The parts of a data set count alike."""
    predictions = predictions.rename(columns={"data_set": "part"})
    predictions = predictions.assign(data_set=predictions["part"].str.partition("/")[0])
    keys = [*MODEL_KEYS, *SET_KEYS, *CELL_KEYS]
    for scorer in scorers:
        for values, cell in predictions.groupby(keys, sort=True):
            variant = _variant(keys, values, scorer)
            for row in cell_metrics(cell, scorer):
                yield {"variant": variant, **row}
            said = cell[cell["free_answer"].notna()]
            if len(said):
                share = valid_output(said["free_answer"], said["label_words"].map(list))
                yield {"variant": variant, "metric": "valid_output", "value": share, "n": len(said), "unit": "fraction"}
    yield from _pairing(predictions, scorers[0])


def _pairing(predictions: pd.DataFrame, scorer: str) -> Iterator[dict]:
    """How much pairing narrows RANDOM - GOLD, where RANDOM was also run with demonstrations of its own."""
    needed = [("gold", "paired"), ("random", "paired"), ("random", "independent")]
    found = predictions[predictions["template_kind"] == "natural"]
    found = found.assign(right=correct(found["target"], found["prediction"]).astype(float))
    keys = [*MODEL_KEYS, *SET_KEYS, "template_kind", "template", "num_demonstrations"]
    for values, rows in found.groupby(keys, sort=True):
        sides = {name: part.set_index(["part", "row"])["right"] for name, part in rows.groupby(["setting", "draws"])}
        if all(name in sides for name in needed):
            order = sides[needed[0]].index
            ratio = paired_variance_ratio(*(sides[name].loc[order].to_numpy() for name in needed))
            if np.isfinite(ratio):
                row = {"metric": "paired_variance_ratio", "value": ratio, "n": len(order), "unit": "1"}
                yield {"variant": _variant(keys, values, scorer), **row}


def _variant(keys: Sequence[str], values: tuple, scorer: str) -> dict[str, Any]:
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    return dict(zip(keys, plain, strict=True)) | {"scorer": scorer}


def _pretraining_metrics(variant: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[dict]:
    """Loss of the last steps, and on documents of each kind that were not trained on, in nats a label."""
    loss = float(np.mean(record["loss"][-LAST_STEPS:]))
    yield {"variant": variant, "metric": "pretrain_loss", "value": loss, "n": len(record["loss"]), "unit": "nats"}
    for kind, value in sorted(record["heldout"].items()):
        row = {"metric": "heldout_loss", "value": value, "n": 1, "unit": "nats"}
        yield {"variant": {**variant, "document": kind}, **row}


def _pretraining_curve(variant: Mapping[str, Any], loss: Sequence[float]) -> Iterator[dict]:
    for step, value in stretches(loss):
        yield {"variant": variant, "step": step, "measure": "pretrain_loss", "value": value, "unit": "nats"}
