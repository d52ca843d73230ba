"""Pre-train a language model: masked, with any masking scheme and rate, or causal.

Masked (Wettig et al., "Should You Mask 15%...", 2023, section 2 and the efficient recipe of Izsak et al.): masks are drawn
afresh each epoch, the vocabulary head is evaluated at the predicted positions only, and the loss is the mean over all
predictions of an update. With a prediction rate above the corruption rate each sequence is repeated with disjoint masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.blocks import token_blocks
from reclaim.errors import InputError
from reclaim.masking import Masker
from reclaim.models import masked_lm_logits
from reclaim.seeding import derive
from reclaim.train import History, Recipe, epoch_batches, train


@dataclass(frozen=True)
class Sequences:
    """Token ids of a corpus: `input_ids` (rows, length) int64 and `attention_mask` (rows, length) bool."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def pack(texts: Sequence[str], tokenizer, max_length: int, packing: str = "blocks", append_eos: bool = True) -> Sequences:
    """Tokenize a corpus into rows of at most `max_length` tokens.

    `blocks`: the texts, each followed by `</s>`, are one stream cut every `max_length - 1` tokens, whatever the borders, and
    `<s>` is put in front of each piece (section 2.2 of the paper's recipe; fairseq `break_mode none`). `documents`: one text
    a row behind `<s>` (and before `</s>` with `append_eos`), cut at `max_length`, padded to the longest.
    """
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    if packing == "blocks":
        rows = token_blocks([[*ids, eos] for ids in encoded], block_size=max_length - 1, bos=bos)
    elif packing == "documents":
        room = max_length - 1 - append_eos
        rows = [[bos, *ids[:room], *([eos] if append_eos else [])] for ids in encoded]
    else:
        raise InputError("recipes.*.packing", repr(packing), "blocks or documents")
    length = max(map(len, rows))
    input_ids = np.full((len(rows), length), pad, dtype=np.int64)
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = ids
    lengths = np.fromiter(map(len, rows), dtype=np.int64)
    return Sequences(
        torch.from_numpy(input_ids), torch.from_numpy(np.arange(length)[None, :] < lengths[:, None])
    )


def pretrain_masked(
    model,
    sequences: Sequences,
    masker: Masker,
    recipe: Recipe,
    *,
    seed: int,
    **options: Any,
) -> History:
    """Pre-train a masked language model in place; `options` go to `reclaim.train.train`.

    `seed` fixes the data order and the masks; two runs with one seed and different maskers see the same text in the same
    order. Returns the history with the loss in nats at the run's own masking rate (losses at different rates are different
    tasks and say nothing about quality).
    """
    device = next(model.parameters()).device
    rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    take = epoch_batches(len(sequences.input_ids), rows, derive(seed, "pretrain"))

    def batches(step: int):
        epoch, indices = take(step)
        for part in np.array_split(indices, recipe.gradient_accumulation_steps):
            chosen = torch.from_numpy(part)
            attention_mask = sequences.attention_mask[chosen].to(device)
            yield masker.mask(sequences.input_ids[chosen].to(device), epoch, part, attention_mask=attention_mask)

    return train(model, batches, masked_lm_loss(model), recipe, seed=seed, **options)


def masked_lm_loss(model) -> Callable[[Any], tuple[torch.Tensor, int]]:
    """The summed cross entropy (nats) of a `MaskedBatch` and its number of predictions; the head sees only those rows."""

    def loss(batch) -> tuple[torch.Tensor, int]:
        hidden = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
        predicted = batch.labels != -100
        logits = masked_lm_logits(model, hidden[predicted]).float()
        return F.cross_entropy(logits, batch.labels[predicted], reduction="sum"), int(predicted.sum())

    return loss


def pretrain_causal(model, sequences: Sequences, recipe: Recipe, *, seed: int, **options: Any) -> History:
    """Pre-train a causal language model in place: next-token cross entropy over all real tokens."""
    device = next(model.parameters()).device
    rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    take = epoch_batches(len(sequences.input_ids), rows, derive(seed, "pretrain"))

    def batches(step: int):
        _, indices = take(step)
        for part in np.array_split(indices, recipe.gradient_accumulation_steps):
            chosen = torch.from_numpy(part)
            yield sequences.input_ids[chosen].to(device), sequences.attention_mask[chosen].to(device)

    def loss(batch):
        input_ids, attention_mask = batch
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        predicted = attention_mask[:, 1:]
        return (
            F.cross_entropy(logits[predicted].float(), input_ids[:, 1:][predicted], reduction="sum"),
            int(predicted.sum()),
        )

    return train(model, batches, loss, recipe, seed=seed, **options)


def last_loss(history: History, steps: int = 20) -> float:
    """Mean loss of the last updates: where no text is seen twice, a held-out loss."""
    return float(np.mean(history.loss[-steps:]))


def save(model, tokenizer, folder: Path) -> None:
    """Write model (safetensors) and tokenizer into one `save_pretrained` folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
