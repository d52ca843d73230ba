"""The experiment: train readers, put them to every protocol and to a live user, and compare the rankings, from one seed.

Source: EvalConvQA (Li et al. 2022). Readers are trained here (small ones, of several families and snapshots each) or are
models that the chain has (`bert`); all answer through one interface. Everything is paired by the seed: readers of one
seed see the same dialogs, and the live user of a passage is the same for all.

Difference from the paper: an oracle user stands for people (`reclaim.convqa.live`), and the statistics that the paper
gives once for four readers are given per seed for all readers of the families.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from reclaim.convqa.coreference import CachedResolver
from reclaim.convqa.data import load_dialogs
from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.history import COREF_WINDOW
from reclaim.convqa.live import converse
from reclaim.convqa.protocols import Validity, run_protocol
from reclaim.convqa.rankings import ranking_rows
from reclaim.convqa.readers import AlwaysUnanswerable, BatchReader
from reclaim.convqa.resolvers import Seq2SeqRewriter, build_resolver, build_rewriter
from reclaim.convqa.results import reader_rows, shown_conversations, shown_rows
from reclaim.convqa.small_reader import SmallAnswerer
from reclaim.convqa.training import Family, train_family
from reclaim.convqa.words import make_vocabulary
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json
from reclaim.seeding import derive
from reclaim.state import begin_state
from reclaim.train import Recipe

BASELINE = "always_unanswerable"


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: torch.device | str = "cpu",
    state_dir: Path,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
    iteration: int = 0,
    previous: Path | None = None,
    into: Path | None = None,
) -> dict[str, Any]:
    """Run the experiment at one seed; gives the frames `metrics`, `items`, `curves`, `costs` and `predictions`.

    `spec`: `dialogs` (name of a data set of conversations with train, dev and test), `families` (name -> keys of `Family`,
    or `architecture: bert` with the keys of `convqa.bert_reader`), `recipe`, `snapshots` (steps), `protocols` (name ->
    keys of `Validity`, `protocol` for another name than its own), `validity` (resolver and the official options), `live`
    (conversations, num_turns; absent without an oracle). The trained readers are saved under `into`, for the chat.
    All but `costs` depends on spec, data, seed and code only; readers that are finished stay in `state_dir`.
    """
    state_dir = Path(state_dir)
    begin_state(state_dir, spec, seed, data, __name__)
    folder = Path(data[spec["dialogs"]])
    splits = {split: load_dialogs(folder, split) for split in ("train", "test")}
    # Only a separate head needs dialogs to set its threshold on.
    splits["dev"] = load_dialogs(folder, "dev") if (folder / "dev.parquet").exists() else []
    curves: list[dict] = []
    costs: list[dict] = []
    readers: dict[str, dict[str, Any]] = {}
    for name, entry in spec["families"].items():
        started = time.process_time()
        folder = state_dir / "readers" / name
        if not (folder / "record.json").exists():
            with atomic_path(folder, directory=True) as temporary:
                write_json(_train(name, entry, spec, splits, seed, data, device, state_dir, temporary, progress),
                           temporary / "record.json")  # fmt: skip
        record = read_json(folder / "record.json")
        for step, value in enumerate(record["loss"], 1):
            if step % 10 == 0:
                own = {
                    "variant": {"family": name},
                    "step": step,
                    "measure": "train_loss",
                    "value": value,
                    "unit": "nats",
                }
                curves.append(own)
        seconds = {"measure": "train_s", "value": time.process_time() - started, "unit": "s"}
        costs.append({"variant": {"family": name}, **seconds})
        for snapshot in record["snapshots"]:
            variant = {"reader": f"{name}-{snapshot}", "family": name, "snapshot": snapshot, **record["variant"]}
            readers[variant["reader"]] = {"variant": variant, "folder": folder / str(snapshot)}
    baseline = {"reader": BASELINE, "family": BASELINE, "snapshot": 0, "history": False}
    readers[BASELINE] = {"variant": baseline, "folder": None}
    runs: dict[str, dict[str, Any]] = {}
    protocols, resolvers = _protocols(spec, data, device)
    for name in progress(list(readers)):
        started = time.process_time()
        reader = load_reader(readers[name]["folder"], device)
        runs[name] = {
            label: run_protocol(splits["test"], reader, protocol, validity)
            for label, (protocol, validity) in protocols.items()
        }
        if spec.get("live"):
            runs[name]["live"] = converse(splits["test"], reader, name, derive(seed, "live"), **spec["live"])
        seconds = {"measure": "evaluate_s", "value": time.process_time() - started, "unit": "s"}
        costs.append({"variant": readers[name]["variant"], **seconds})
    variants = {name: entry["variant"] for name, entry in readers.items()}
    metrics, items = reader_rows(splits["test"], variants, runs)
    compared = [name for name in readers if name != BASELINE]
    if spec.get("live") and len(compared) > 1:
        rows, more = ranking_rows(splits["test"], {name: runs[name] for name in compared})
        metrics, items = metrics + rows, items + more
    resolved = sum(resolver.calls for resolver in resolvers)
    counts = {"texts_resolved": resolved, "questions": sum(len(dialog.turns) for dialog in splits["test"])}
    costs += [{"variant": {}, "measure": key, "value": float(n), "unit": "count"} for key, n in counts.items()]
    shown = shown_conversations(splits["test"], runs)
    first = next(iter(spec["families"]))
    last = [name for name, entry in readers.items() if entry["variant"]["family"] == first][-1]
    metrics += shown_rows(shown, last)
    if into is not None:
        _keep(readers, Path(into))
    return {
        "metrics": metrics,
        "items": items,
        "curves": pd.DataFrame(curves, columns=["variant", "step", "measure", "value", "unit"]),
        "costs": pd.DataFrame(costs),
        "predictions": shown,
    }


def load_reader(folder: Path | None, device: torch.device | str = "cpu") -> BatchReader:
    """A reader from the folder where the experiment saved it; None is the one that never answers."""
    if folder is None:
        return AlwaysUnanswerable()
    if not (Path(folder) / "config.json").exists():
        raise InputError(str(folder), "no config.json", "the folder of a reader that the experiment saved")
    if "bert" in read_json(Path(folder) / "config.json").get("model_type", ""):
        from reclaim.convqa.bert_reader import BertAnswerer

        return BertAnswerer.load(folder, device)
    return SmallAnswerer.load(folder, device)


def _train(name, entry, spec, splits, seed, data, device, state_dir, folder, progress) -> dict[str, Any]:
    """Train a family and save its snapshots as `folder/STEP`; gives its record."""
    own = dict(entry)
    recipe = Recipe.from_config({**spec["recipe"], **own.pop("recipe", {})}, f"families.{name}.recipe")
    if own.pop("architecture", "small") == "bert":
        from reclaim.convqa.bert_reader import train_bert

        return train_bert(own, splits, recipe, seed, data, device, state_dir / f"{name}.train", folder, progress)
    family = Family(**own)
    snapshots = spec["snapshots"]
    # Every family of a seed begins with the same weights as far as they have the same shape, and sees the same batches.
    readers, history = train_family(
        family, vocabulary_of(splits["train"]), splits["train"], splits["dev"], recipe, snapshots, seed,
        device=device, sizes=spec.get("sizes"), progress=progress,
    )  # fmt: skip
    for snapshot, reader in readers.items():
        reader.save_pretrained(folder / str(snapshot))
    variant = {"history": family.history_turns > 0}
    return {"loss": history.loss, "snapshots": list(readers), "variant": variant}


def vocabulary_of(dialogs: Sequence[Dialog]) -> list[str]:
    """Word classes of the training passages and questions, self-contained ones too."""
    passages = [dialog.context for dialog in dialogs]
    asked = [text for dialog in dialogs for turn in dialog.turns for text in (turn.question, turn.rewrite) if text]
    return make_vocabulary([*passages, *asked])


def _protocols(
    spec: Mapping[str, Any], data: Mapping[str, Path], device: torch.device | str
) -> tuple[dict[str, tuple[str, Validity]], list[CachedResolver]]:
    """Protocol and rules of each entry of `protocols`, and the resolvers behind them: equal ones share what they resolved."""
    resolvers: dict[str, CachedResolver] = {}
    rewriters: dict[str | None, Seq2SeqRewriter | None] = {}
    protocols = {}
    for label, changes in spec["protocols"].items():
        options = {"window": COREF_WINDOW, **spec["validity"], **(changes or {})}
        protocol, chosen = options.pop("protocol", label), options.pop("resolver", "rules")
        rewriter = options.pop("rewriter", None)
        if str(chosen) not in resolvers:
            resolvers[str(chosen)] = CachedResolver(build_resolver(chosen, data, device))
        if rewriter not in rewriters:
            rewriters[rewriter] = build_rewriter(rewriter, data, device)
        options["window"] = None if options["window"] == "all" else options["window"]
        protocols[label] = protocol, Validity(resolvers[str(chosen)], rewriter=rewriters[rewriter], **options)
    return protocols, list(resolvers.values())


def _keep(readers: Mapping[str, Mapping[str, Any]], into: Path) -> None:
    for name, entry in readers.items():
        if entry["folder"] is not None:
            shutil.copytree(entry["folder"], into / name)
