"""Pre-train a language model: masked, with any masking scheme and rate, or causal.

Masked (Wettig et al., "Should You Mask 15% in Masked Language Modeling?", EACL 2023; recipe of Izsak et al. 2021): masks are
drawn afresh each epoch, the vocabulary head is evaluated at the predicted positions only, and the loss is the mean over all
predictions of an update. With a prediction rate above the corruption rate each sequence is repeated with disjoint masks.
The trained model's loss on held-out text is at the run's own rate too, as the perplexities of the paper are.
"""

from __future__ import annotations

import logging
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reclaim import parallel
from reclaim.architectures import ARCHITECTURES
from reclaim.batches import epoch_batches
from reclaim.blocks import token_blocks
from reclaim.errors import InputError
from reclaim.masking import IGNORED, Masker
from reclaim.models import build, masked_lm_logits
from reclaim.pmi import UnitMatcher
from reclaim.seeding import derive
from reclaim.tokenization import model_vocab_size, word_starts
from reclaim.train import History, Recipe, train

log = logging.getLogger(__name__)


def pretrain(
    spec: dict,
    texts: Iterable[str],
    tokenizer,
    *,
    held_out: Iterable[str] = (),
    pmi=None,
    device: torch.device | str = "cpu",
    progress: Callable[..., Any] = iter,
    **options: Any,
):
    """Build and pre-train the model that a checkpoint's `spec` describes; give it with the record of its training.

    `spec` has `model` (architecture, config, linear_init), `recipe`, `masking` and `seed`; with the scheme `none` the model
    stays as it was drawn. `held_out`: texts to test a masked model on, perhaps none. `pmi` is the n-gram table of `reclaim.pmi`
    where the scheme needs one. `progress` and `options` go to `reclaim.train.train`. One seed fixes weights, data order and
    masks, so that arms of one seed are paired.

    The record: loss of each update (nats, at the run's own rate), predictions, forward_passes, input_tokens, and
    unigram_entropy (nats a predicted position), the loss of a model that knows word frequencies and nothing else; with
    `held_out` texts held_out_loss (see `held_out_loss`).
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
    packing["max_length"] = recipe_spec.pop("max_length")
    rows = pack(texts, tokenizer, **packing)
    recipe = Recipe.from_config(recipe_spec, "recipes.*")
    never_masked = [] if mask_special_tokens else tokenizer.all_special_ids
    record["unigram_entropy"] = unigram_entropy(rows, never_masked)
    batch_rows = min(recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps, len(rows))
    step_tokens = batch_rows * len(rows.tokens) / len(rows)
    record["input_tokens"] = round(step_tokens * recipe.num_train_steps)
    options["progress"] = _with_speed(progress, step_tokens)
    if ARCHITECTURES[model_spec["architecture"]][1] == "causal":
        history = pretrain_causal(model, rows, recipe, seed=seed, **options)
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
        history = pretrain_masked(model, rows, masker, recipe, seed=seed, never_masked=never_masked, **options)
        if others := list(held_out):
            rows = pack(others, tokenizer, **packing)
            record["held_out_loss"] = held_out_loss(
                model, rows, masker, recipe.per_device_train_batch_size, never_masked=never_masked
            )
    record |= {"loss": history.loss, "predictions": history.predictions, "forward_passes": history.forward_passes}
    return model, record


def _with_speed(progress: Callable[..., Any], step_tokens: float) -> Callable[[range], Iterator[int]]:
    """`progress` that logs at its end how many tokens of text a second its steps took; a resumed run counts its own steps."""

    def run(steps: range) -> Iterator[int]:
        start = time.perf_counter()
        yield from progress(steps)
        if steps:
            speed = step_tokens * len(steps) / (time.perf_counter() - start)
            log.info("pre-training: %d steps, %.0f tokens/s", len(steps), speed)

    return run


class TokenRows:
    """Rows of token ids of any length, end to end in one array, which may be a file: only the rows of a batch are in memory.

    `tokens`: int32 (all tokens). `offsets`: int64 (rows + 1); row i is tokens[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, pad_token_id: int):
        self.tokens, self.offsets, self.pad_token_id = tokens, offsets, pad_token_id

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids int64 and attention_mask bool, (rows, longest), padded on the right."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        positions = np.arange(lengths.max())[None, :]
        mask = positions < lengths[:, None]
        input_ids = np.full(mask.shape, self.pad_token_id, dtype=np.int64)
        input_ids[mask] = self.tokens[(starts[:, None] + positions)[mask]]
        return torch.from_numpy(input_ids), torch.from_numpy(mask)


TEXTS_AT_A_TIME = 10_000
TOKENS_AT_A_TIME = 2**24


def pack(
    texts: Iterable[str], tokenizer, max_length: int, packing: str = "blocks", append_eos: bool = True
) -> TokenRows:
    """Tokenize a corpus into rows of at most `max_length` tokens, some thousand texts at a time.

    `blocks`: the texts, each followed by `</s>`, are one stream cut every `max_length - 1` tokens, whatever the borders, and
    `<s>` is put in front of each piece (fairseq's `break_mode none`). `documents`: one text a row behind `<s>` (and before
    `</s>` with `append_eos`), cut at `max_length`. The tokens go through an unnamed temporary file, so that a corpus need not
    fit into memory.

    Raises `InputError` for another packing, and for a corpus without a row.
    """
    if packing not in ("blocks", "documents"):
        raise InputError("recipes.*.packing", repr(packing), "blocks or documents")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    lengths = array("q")
    left_over: list[int] = []
    with tempfile.TemporaryFile() as file:

        def write(rows: Iterable[Sequence[int] | np.ndarray]) -> None:
            for row in rows:
                lengths.append(len(row))
                file.write(np.asarray(row, dtype=np.int32).tobytes())

        for part in batched(texts, TEXTS_AT_A_TIME):
            encoded = tokenizer(part, add_special_tokens=False)["input_ids"]
            if packing == "documents":
                room = max_length - 1 - append_eos
                write([bos, *ids[:room], *([eos] if append_eos else [])] for ids in encoded)
                continue
            stream = [left_over, *([*ids, eos] for ids in encoded)]
            *whole, last = token_blocks(stream, block_size=max_length - 1, bos=bos)
            write(whole)
            left_over = list(last[1:])
        if left_over:
            write([[bos, *left_over]])
        if not lengths:
            raise InputError("the corpus to pre-train on", "no text", "at least one")
        file.flush()
        tokens = np.memmap(file, dtype=np.int32, mode="r")
    offsets = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, dtype=np.int64))])
    return TokenRows(tokens, offsets, tokenizer.pad_token_id)


def batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of up to `size` texts."""
    iterator = iter(texts)
    while part := list(islice(iterator, size)):
        yield part


def unigram_entropy(rows: TokenRows, never_masked: Sequence[int] = ()) -> float:
    """Entropy (nats) of a predicted token when only frequencies are known; the start token, at a known place, is free.

    Tokens that are `never_masked` count neither as predicted nor in the frequencies.
    """
    counts = np.zeros(1 + int(rows.tokens.max()))
    for start in range(0, len(rows.tokens), TOKENS_AT_A_TIME):  # numpy counts a copy in 64 bits
        counts += np.bincount(rows.tokens[start : start + TOKENS_AT_A_TIME], minlength=len(counts))
    starts = np.bincount(rows.tokens[rows.offsets[:-1]], minlength=len(counts))
    masked = np.ones(len(counts), dtype=bool)
    masked[[token for token in never_masked if token < len(counts)]] = False
    predicted = counts[masked].sum()
    inner = np.where(masked, counts - starts, 0)
    share = inner[inner > 0] / inner.sum()
    return float(-(share * np.log(share)).sum() * inner.sum() / predicted)


def pretrain_masked(
    model,
    rows: TokenRows,
    masker: Masker,
    recipe: Recipe,
    *,
    seed: int,
    never_masked: Sequence[int] = (),
    **options: Any,
) -> History:
    """Pre-train a masked language model in place; `options` go to `reclaim.train.train`.

    Two runs with one seed and different maskers see the same text in the same order. Losses are at the run's own rate: at
    different rates they are different tasks.
    """

    def batches(step: int) -> Iterator[MaskedRows]:
        for epoch, part in take(step):
            yield _masked(rows, part, masker, epoch, never_masked, device)

    device = next(model.parameters()).device
    take = _micro_batches(len(rows), recipe, seed)
    return train(model, batches, lambda batch: _masked_loss(model, batch), recipe, seed=seed, **options)


MaskedRows = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""input_ids and labels (copies * rows, length), and the attention mask where a row is padded."""

HELD_OUT = -1
"""The epoch that stands for held-out text, so that its masks are none of the training's."""


def _masked(
    rows: TokenRows, part: np.ndarray, masker: Masker, epoch: int, never_masked: Sequence[int], device
) -> MaskedRows:
    input_ids, mask = (tensor.to(device) for tensor in rows.take(part))
    eligible = mask
    if len(never_masked):
        eligible = mask & ~torch.isin(input_ids, torch.tensor(list(never_masked), device=device))
    batch = masker.mask(input_ids, epoch, torch.from_numpy(part), mask, eligible)
    # Full rows need no attention mask, and without one attention takes its faster path.
    return batch.input_ids, batch.labels, None if bool(mask.all()) else mask.repeat(batch.copies, 1)


def _masked_loss(model, batch: MaskedRows) -> tuple[torch.Tensor, int]:
    ids, labels, mask = batch
    hidden = model.base_model(input_ids=ids, attention_mask=mask)[0]
    predicted = labels != IGNORED
    logits = masked_lm_logits(model, hidden[predicted]).float()
    return F.cross_entropy(logits, labels[predicted], reduction="sum"), len(logits)


@torch.no_grad()
def held_out_loss(
    model, rows: TokenRows, masker: Masker, batch_rows: int, *, never_masked: Sequence[int] = ()
) -> float | None:
    """Mean loss (nats) over all predictions in rows that were not trained on, each row masked once at the masker's own rates.

    exp of it is the perplexity at the run's rate. The masks depend on the masker's seed and a row's number alone. `batch_rows`:
    rows at a time. None where the rows are too few and short for a prediction.
    """
    device, total, count = next(model.parameters()).device, 0.0, 0
    for start in range(0, len(rows), batch_rows):
        part = np.arange(start, min(start + batch_rows, len(rows)))
        loss, predictions = _masked_loss(model, _masked(rows, part, masker, HELD_OUT, never_masked, device))
        total, count = total + loss.item(), count + predictions
    return total / count if count else None


def pretrain_causal(model, rows: TokenRows, recipe: Recipe, *, seed: int, **options: Any) -> History:
    """Pre-train a causal language model in place: next-token cross entropy over all real tokens."""

    def batches(step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, part in take(step):
            ids, mask = rows.take(part)
            yield ids.to(device), mask.to(device)

    def loss(batch) -> tuple[torch.Tensor, int]:
        ids, mask = batch
        hidden = model.base_model(input_ids=ids, attention_mask=mask.long())[0][:, :-1]
        predicted = mask[:, 1:]
        logits = model.get_output_embeddings()(hidden[predicted]).float()
        return F.cross_entropy(logits, ids[:, 1:][predicted], reduction="sum"), len(logits)

    device = next(model.parameters()).device
    take = _micro_batches(len(rows), recipe, seed)
    return train(model, batches, loss, recipe, seed=seed, **options)


def _micro_batches(num_rows: int, recipe: Recipe, seed: int):
    """A function from step to the (epoch, row indices) of its micro-batches; of this process's, where there are several."""
    rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    take = epoch_batches(num_rows, rows, derive(seed, "pretrain"))

    def micro_batches(step: int) -> Iterator[tuple[int, np.ndarray]]:
        epoch, indices = take(step)
        parts = np.array_split(indices, recipe.gradient_accumulation_steps)
        for part in parallel.share(parts, "recipes.*.gradient_accumulation_steps"):
            yield epoch, part

    return micro_batches
