"""Pre-train the small decoder on natural documents and episodes, and load it back as any model is loaded.

Source: the small protocol in the place of the models of Pan et al. 2023, which are OPT, LLaMA and GPT-3. A document is a
run of examples of equal length, each ending in its label; the loss is on the labels only, from the first example (which
has nothing before it) to the last. A step has a fixed number of documents of each kind. Corpora come in phases, without
noise first, because the two steps that task learning needs are not found in noise.

Differences from that protocol as it was first tried: the default configuration has half as many steps again and a higher
rate, which falls linearly after the warm-up (there: constant, then linear over the last fifth).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from reclaim import data, models
from reclaim.errors import InputError
from reclaim.icl.decoder import build_decoder
from reclaim.io import atomic_path, read_json, write_json
from reclaim.seeding import derive
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe, train

SPLITS = ("train", "test")
"""Of a corpus: what is trained on, and what the loss is measured on afterwards."""

Corpus = dict[str, torch.Tensor]
"""Token ids of the documents of each kind, int64 (documents, tokens)."""


def word_tokenizer(spec: Mapping[str, Any], folders: Mapping[str, Path], texts: Iterable[str]):
    """A tokenizer with one token for each word of the corpora and of `texts`, those that prompts are made of."""
    corpora = [data.load_split(folders[phase["data"]], split)["text"] for phase in spec["phases"] for split in SPLITS]
    return train_tokenizer("gpt2", itertools.chain(texts, *corpora))


def load_decoder(
    name: str,
    model_spec: Mapping[str, Any],
    spec: Mapping[str, Any],
    tokenizer,
    seed: int,
    folders: Mapping[str, Path],
    state_dir: Path,
    device: torch.device | str,
    **options: Any,
):
    """Pre-train a decoder, or find it finished in `state_dir`; gives it as `from_pretrained` loads it, and its record.

    `model_spec` has `config` (sizes) and `documents` (how many of each kind a step has); `spec` has `phases` (data,
    num_train_steps), `example_length` and `recipe`. `options` go to `reclaim.train.train`. One seed fixes weights and
    documents; models of one seed that have the same `documents` read the same ones in the same order.

    The record: loss of each step (nats a label), tokens, and `heldout`, the loss on documents of each kind that were not
    trained on.
    """
    folder = state_dir / name
    if not (folder / "record.json").exists():
        model, record = _pretrain(name, model_spec, spec, tokenizer, seed, folders, state_dir, device, options)
        with atomic_path(folder, directory=True) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_json(record, temporary / "record.json")
    return models.load(folder, "causal").to(device), read_json(folder / "record.json")


def _pretrain(name, model_spec, spec, tokenizer, seed, folders, state_dir, device, options) -> tuple[Any, dict]:
    documents, length = model_spec["documents"], spec["example_length"]
    recipe = Recipe.from_config(
        {**spec["recipe"], "num_train_steps": sum(phase["num_train_steps"] for phase in spec["phases"])},
        "icl pretraining recipe",
    )
    phases = []
    for phase in spec["phases"]:
        corpus = _encode(folders[phase["data"]], "train", tokenizer, length)
        rng = np.random.default_rng(derive(seed, "documents", phase["data"]))
        order = {kind: torch.from_numpy(rng.permutation(len(rows))) for kind, rows in sorted(corpus.items())}
        for kind, count in documents.items():
            if count * phase["num_train_steps"] > len(corpus.get(kind, ())):
                found = f"{len(corpus.get(kind, ()))} documents of the kind {kind!r}"
                expected = f"{count * phase['num_train_steps']}, {count} for each of {phase['num_train_steps']} steps"
                raise InputError(f"data.{phase['data']}", found, expected, "Make `splits.train` larger.")
        phases.append((phase["num_train_steps"], corpus, order))
    model = build_decoder(tokenizer, seed, **model_spec["config"]).to(device)

    def batches(step: int) -> Iterator[torch.Tensor]:
        for steps, corpus, order in phases:
            if step < steps:
                chosen = [
                    corpus[kind][order[kind][step * count : (step + 1) * count]] for kind, count in documents.items()
                ]
                yield torch.cat(chosen).to(device)
                return
            step -= steps

    tokens = sum(
        steps * count * corpus[kind].shape[1] for steps, corpus, _ in phases for kind, count in documents.items()
    )
    history = train(
        model, batches, lambda ids: _label_loss(model, ids, length), recipe, seed=seed,
        state_path=state_dir / f"{name}.train", **options,
    )  # fmt: skip
    heldout = {}
    with torch.no_grad():
        for kind, rows in _encode(folders[spec["phases"][-1]["data"]], "test", tokenizer, length).items():
            loss, count = _label_loss(model, rows.to(device), length)
            heldout[kind] = float(loss) / count
    return model, {"loss": history.loss, "tokens": tokens, "heldout": heldout}


def _label_loss(model, ids: torch.Tensor, length: int) -> tuple[torch.Tensor, int]:
    """Summed cross entropy of the labels, which stand at the end of each `length` tokens, and their number."""
    hidden = model.hidden_states(ids)[:, length - 2 :: length]
    labels = ids[:, length - 1 :: length]
    logits = F.linear(hidden, model.get_input_embeddings().weight)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), labels.numel()


def _encode(folder: Path, split: str, tokenizer, length: int) -> Corpus:
    """The documents of a split by kind, all of one number of tokens.

    Raises `InputError` for documents of different lengths or that are no whole number of examples.
    """
    frame = data.load_split(folder, split)
    words = [text.split() for text in frame["text"]]
    known = sorted({word for document in words for word in document})
    ids = dict(
        zip(known, tokenizer([f" {word}" for word in known], add_special_tokens=False)["input_ids"], strict=True)
    )
    encoded = [[token for word in document for token in ids[word]] for document in words]
    lengths = set(map(len, encoded))
    if len(lengths) != 1 or min(lengths) % length:
        place = f"{folder}, split {split}"
        raise InputError(place, f"documents of {sorted(lengths)[:5]} tokens", f"one length, a multiple of {length}")
    tokens = torch.tensor(encoded)
    kinds = frame["document"].to_numpy()
    return {str(kind): tokens[torch.from_numpy(kinds == kind)] for kind in pd.unique(frame["document"])}
