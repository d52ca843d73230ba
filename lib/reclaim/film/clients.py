"""The client of the attack: a public causal model, and what it becomes while a client trains it on private sentences.

Gupta et al. 2022 (FILM), section 4: a pre-trained GPT-2 is fine-tuned on sentences that the eavesdropper never sees, and
attacked at some step. A sentence is its tokens and nothing else: the official code adds neither a start nor an end token,
and padding is no target. Models from scratch are small; those of the Hub or of a folder go the same way from `start` on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reclaim import models
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json
from reclaim.pretrain import TokenRows, pretrain_causal
from reclaim.seeding import derive
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe


def client_tokenizer(texts: Iterable[str]):
    """A GPT-2 tokenizer with one token for each word, and a second one, without a space, for a word that begins a text.

    As in GPT-2 itself, only tokens that begin a text have no space before them. Raises InputError for texts that cannot be
    read so: a first word in lower case may hold another one's beginning.
    """
    texts = list(texts)
    tokenizer = train_tokenizer("gpt2", texts, add_prefix_space=False)
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        if len(ids) != len(text.split()):
            raise InputError("texts of the tokenizer", repr(text), "texts that begin with a capital letter")
    return tokenizer


def token_rows(tokenizer, texts: Sequence[str]) -> TokenRows:
    """Token ids of sentences, one a row, as `reclaim.pretrain.pretrain_causal` takes them."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    tokens = np.fromiter((token for row in ids for token in row), dtype=np.int32, count=int(offsets[-1]))
    return TokenRows(tokens, offsets, tokenizer.eos_token_id)


def epoch_recipe(values: Mapping[str, Any], num_rows: int, place: str) -> Recipe:
    """A recipe whose length is given as `num_train_epochs` over `num_rows` sentences."""
    values = dict(values)
    epochs = values.pop("num_train_epochs")
    return Recipe.from_config({**values, "num_train_steps": epochs * steps_per_epoch(values, num_rows)}, place)


def steps_per_epoch(recipe: Mapping[str, Any], num_rows: int) -> int:
    """Updates of an epoch; sentences that do not fill a batch are left out of it (`reclaim.batches`)."""
    return max(1, num_rows // recipe.get("per_device_train_batch_size", Recipe.per_device_train_batch_size))


def public_model(
    spec: Mapping[str, Any],
    tokenizer,
    texts: Sequence[str],
    *,
    seed: int,
    folder: Path,
    device: torch.device | str = "cpu",
    **options: Any,
):
    """Build and pre-train the public model in `folder`, or find it finished there; gives it as `from_pretrained` loads it.

    `spec`: `config` (arguments of GPT2Config; `tie_word_embeddings: false` for a head of its own) and `recipe` (with
    `num_train_epochs`). `options` go to `reclaim.train.train`. The folder also holds the tokenizer and `record.json` with
    the loss of each update (nats).
    """
    if not (folder / "record.json").exists():
        model = models.build("gpt2", tokenizer, dict(spec["config"]), seed).to(device)
        recipe = epoch_recipe(spec["recipe"], len(texts), "film pretraining recipe")
        state = folder.with_name(f"{folder.name}.train")
        history = pretrain_causal(
            model, token_rows(tokenizer, texts), recipe, seed=derive(seed, "public"), state_path=state, **options
        )
        with atomic_path(folder, directory=True) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_json({"loss": history.loss}, temporary / "record.json")
    return models.load(folder, "causal").to(device)


def client_models(
    start: str | Path,
    recipe: Mapping[str, Any],
    epochs: Sequence[int],
    tokenizer,
    texts: Sequence[str],
    *,
    seed: int,
    folder: Path,
    device: torch.device | str = "cpu",
    **options: Any,
) -> dict[int, Path]:
    """Fine-tune the model in the folder `start` on private sentences and keep it after each of `epochs`.

    Epoch 0 is `start` itself. One run of `max(epochs)` epochs under one schedule, so that later models continue earlier
    ones; gives epoch -> `save_pretrained` folder, made under `folder` or found there finished. `options` go to
    `reclaim.train.train`. Raises InputError for epochs that are no distinct whole numbers from 0.
    """
    if list(epochs) != sorted(set(epochs)) or not epochs or epochs[0] < 0:
        raise InputError("film epochs", str(list(epochs)), "different whole numbers from 0, in increasing order")
    folders = {epoch: folder / f"epoch-{epoch}" if epoch else Path(start) for epoch in epochs}
    if all((path / "config.json").exists() for path in folders.values()):
        return folders
    model = models.load(start, "causal").to(device)
    per_epoch = steps_per_epoch(recipe, len(texts))
    keep = {epoch * per_epoch: path for epoch, path in folders.items() if epoch}

    def save(step: int) -> None:
        if step in keep:
            with atomic_path(keep[step], directory=True) as temporary:
                model.save_pretrained(temporary)

    whole = epoch_recipe({**recipe, "num_train_epochs": epochs[-1]}, len(texts), "film client recipe")
    pretrain_causal(
        model,
        token_rows(tokenizer, texts),
        whole,
        seed=derive(seed, "client"),
        state_path=folder.with_name(f"{folder.name}.train"),
        after_step=save,
        **options,
    )
    return folders


@torch.no_grad()
def sentence_losses(model, tokenizer, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """Mean next-token loss (nats) of each sentence, float64 (len(texts),)."""
    rows, losses = token_rows(tokenizer, texts), []
    for first in range(0, len(rows), batch_size):
        ids, mask = rows.take(np.arange(first, min(first + batch_size, len(rows))))
        ids, mask = ids.to(model.device), mask.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
        token = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
        losses.append((token.sum(1) / mask[:, 1:].sum(1).clamp(min=1)).double().cpu().numpy())
    return np.concatenate(losses)


def public_loss(folder: Path) -> list[float]:
    """Loss of each update of the public model's pre-training; [] where the model was not made here."""
    path = folder / "record.json"
    return read_json(path)["loss"] if path.exists() else []
