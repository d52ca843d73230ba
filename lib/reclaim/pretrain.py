"""Pre-train a language model: masked, with any masking scheme and rate, or causal.

Masked (Wettig et al., "Should You Mask 15% in Masked Language Modeling?", EACL 2023; recipe of Izsak et al. 2021): masks are
drawn afresh each epoch, the vocabulary head is evaluated at the predicted positions only, and the loss is the mean over all
predictions of an update. With a prediction rate above the corruption rate each sequence is repeated with disjoint masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.architectures import ARCHITECTURES
from reclaim.batches import epoch_batches
from reclaim.blocks import token_blocks
from reclaim.errors import InputError
from reclaim.masking import Masker
from reclaim.models import build, masked_lm_logits
from reclaim.pmi import UnitMatcher
from reclaim.seeding import derive
from reclaim.tokenization import model_vocab_size, word_starts
from reclaim.train import History, Recipe, train


def pretrain(
    spec: dict, texts: Sequence[str], tokenizer, *, pmi=None, device: torch.device | str = "cpu", **options: Any
):
    """Build and pre-train the model that a checkpoint's `spec` describes; give it with the record of its training.

    `spec` has `model` (architecture, config, linear_init), `recipe`, `masking` and `seed`; with the scheme `none` the model
    stays as it was drawn. `pmi` is the n-gram table of `reclaim.pmi` where the scheme needs one. `options` go to
    `reclaim.train.train`. One seed fixes weights, data order and masks, so that arms of one seed are paired.

    The record: loss of each update (nats, at the run's own rate), predictions, forward_passes, input_tokens, and
    unigram_entropy (nats a predicted position), the loss of a model that knows word frequencies and nothing else.
    """
    model_spec, recipe_spec, masking, seed = spec["model"], dict(spec["recipe"]), spec["masking"], spec["seed"]
    model = build(
        model_spec["architecture"], tokenizer, model_spec["config"], seed, model_spec.get("linear_init", "config")
    ).to(device)
    record = {"loss": [], "predictions": 0, "forward_passes": 0, "input_tokens": 0}
    if masking["scheme"] == "none":
        return model, record
    packing = {key: recipe_spec.pop(key) for key in ("packing", "append_eos") if key in recipe_spec}
    mask_special_tokens = recipe_spec.pop("mask_special_tokens", False)
    input_ids, attention_mask = pack(texts, tokenizer, recipe_spec.pop("max_length"), **packing)
    recipe = Recipe.from_config(recipe_spec, "recipes.*")
    special = torch.tensor(tokenizer.all_special_ids)
    eligible = attention_mask if mask_special_tokens else attention_mask & ~torch.isin(input_ids, special)
    record["unigram_entropy"] = unigram_entropy(input_ids, eligible)
    rows = min(recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps, len(input_ids))
    record["input_tokens"] = int(rows * recipe.num_train_steps * attention_mask.sum() / len(attention_mask))
    if ARCHITECTURES[model_spec["architecture"]][1] == "causal":
        history = pretrain_causal(model, input_ids, attention_mask, recipe, seed=seed, **options)
    else:
        units, vocab_size = None, model_vocab_size(tokenizer)
        if masking["scheme"] == "pmi":
            units = UnitMatcher.from_vocabulary(
                pmi, lambda words: tokenizer.encode(f" {words}", add_special_tokens=False)
            )
        masker = Masker(
            masking["scheme"],
            masking["corruption"],
            masking.get("prediction"),
            seed=seed,
            vocab_size=vocab_size,
            mask_token_id=tokenizer.mask_token_id,
            special_ids=[i for i in tokenizer.all_special_ids if i != tokenizer.mask_token_id],
            replacement=masking.get("replacement", "mask"),
            word_start=word_starts(tokenizer)[:vocab_size],
            units=units,
        )
        history = pretrain_masked(model, input_ids, attention_mask, eligible, masker, recipe, seed=seed, **options)
    record |= {"loss": history.loss, "predictions": history.predictions, "forward_passes": history.forward_passes}
    return model, record


def pack(
    texts: Iterable[str], tokenizer, max_length: int, packing: str = "blocks", append_eos: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize a corpus into rows of at most `max_length` tokens: input_ids int64 and attention_mask bool, (rows, length).

    `blocks`: the texts, each followed by `</s>`, are one stream cut every `max_length - 1` tokens, whatever the borders, and
    `<s>` is put in front of each piece (fairseq's `break_mode none`). `documents`: one text a row behind `<s>` (and before
    `</s>` with `append_eos`), cut at `max_length`, padded to the longest.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    if packing == "blocks":
        rows = token_blocks([[*ids, eos] for ids in encoded], block_size=max_length - 1, bos=bos)
    elif packing == "documents":
        room = max_length - 1 - append_eos
        rows = [[bos, *ids[:room], *([eos] if append_eos else [])] for ids in encoded]
    else:
        raise InputError("recipes.*.packing", repr(packing), "blocks or documents")
    lengths = np.fromiter(map(len, rows), dtype=np.int64)
    attention_mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    input_ids = np.full(attention_mask.shape, tokenizer.pad_token_id, dtype=np.int64)
    input_ids[attention_mask] = np.concatenate(rows)
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def unigram_entropy(input_ids: torch.Tensor, eligible: torch.Tensor) -> float:
    """Entropy (nats) of the eligible tokens when only their frequency is known; the start token is free, being known."""
    start = torch.zeros_like(eligible)
    start[:, 0] = True
    counts = torch.bincount(input_ids[eligible & ~start]).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log()).sum() * (eligible & ~start).sum() / eligible.sum())


def pretrain_masked(
    model, input_ids, attention_mask, eligible, masker: Masker, recipe: Recipe, *, seed: int, **options: Any
) -> History:
    """Pre-train a masked language model in place; `options` go to `reclaim.train.train`.

    `input_ids`, `attention_mask`, `eligible` (may be masked): (rows, length). Two runs with one seed and different maskers see
    the same text in the same order. Losses are at the run's own rate: at different rates they are different tasks.
    """

    def batches(step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        for epoch, part in take(step):
            chosen = torch.from_numpy(part)
            mask = attention_mask[chosen].to(device)
            batch = masker.mask(input_ids[chosen].to(device), epoch, part, mask, eligible[chosen].to(device))
            # Full rows need no attention mask, and without one attention takes its faster path.
            yield batch.input_ids, batch.labels, None if full else mask.repeat(batch.copies, 1)

    def loss(batch) -> tuple[torch.Tensor, int]:
        ids, labels, mask = batch
        hidden = model.base_model(input_ids=ids, attention_mask=mask)[0]
        predicted = labels != -100
        logits = masked_lm_logits(model, hidden[predicted]).float()
        return F.cross_entropy(logits, labels[predicted], reduction="sum"), len(logits)

    device = next(model.parameters()).device
    full = bool(attention_mask.all())
    take = _micro_batches(len(input_ids), recipe, seed)
    return train(model, batches, loss, recipe, seed=seed, **options)


def pretrain_causal(model, input_ids, attention_mask, recipe: Recipe, *, seed: int, **options: Any) -> History:
    """Pre-train a causal language model in place: next-token cross entropy over all real tokens."""

    def batches(step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, part in take(step):
            chosen = torch.from_numpy(part)
            yield input_ids[chosen].to(device), attention_mask[chosen].to(device)

    def loss(batch) -> tuple[torch.Tensor, int]:
        ids, mask = batch
        hidden = model.base_model(input_ids=ids, attention_mask=mask.long())[0][:, :-1]
        predicted = mask[:, 1:]
        logits = model.get_output_embeddings()(hidden[predicted]).float()
        return F.cross_entropy(logits, ids[:, 1:][predicted], reduction="sum"), len(logits)

    device = next(model.parameters()).device
    take = _micro_batches(len(input_ids), recipe, seed)
    return train(model, batches, loss, recipe, seed=seed, **options)


def _micro_batches(num_rows: int, recipe: Recipe, seed: int):
    """A function from step to the (epoch, row indices) of its micro-batches."""
    rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    take = epoch_batches(num_rows, rows, derive(seed, "pretrain"))

    def micro_batches(step: int) -> Iterator[tuple[int, np.ndarray]]:
        epoch, indices = take(step)
        for part in np.array_split(indices, recipe.gradient_accumulation_steps):
            yield epoch, part

    return micro_batches
