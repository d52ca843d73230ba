"""Rows of prompts and replies as tensors, and the mixture that each training step draws from.

Works for decoders (prompt and reply are one sequence) and for encoder-decoders (the reply is the decoder's). Only tokens of a
reply are ever trained on. Source of the mixture: the multitask weights of the CRINGE project (ParlAI), by which each row of a
batch comes from a data set with a probability in proportion to its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.cringe.loss import NEGATIVE, POSITIVE
from reclaim.seeding import derive

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Padded rows, each (rows, tokens): `labels` say the next token, -100 where it is not of the reply.

    `polarity` (1, 0, -1) is that of each label. Of encoder-decoders `input_ids` are the prompt's and `decoder_input_ids` the
    reply's; decoders have none of those.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    polarity: torch.Tensor
    decoder_input_ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> Rows:
        """The rows at `index`, without columns in which all of them are padding."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {name: None if value is None else value[index] for name, value in found.items()}
        width = max(1, int(found["attention_mask"].sum(dim=1).max())) if len(found["labels"]) else 1
        replies = width
        if found["decoder_input_ids"] is not None:
            used = (found["labels"] != IGNORED).any(dim=0).nonzero()
            replies = int(used.max()) + 1 if len(used) else 1
        widths = {"input_ids": width, "attention_mask": width}
        cut: dict[str, Any] = {
            name: None if v is None else v[:, : widths.get(name, replies)] for name, v in found.items()
        }
        return Rows(**cut)

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on another device."""
        moved: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: None if value is None else value.to(device) for name, value in moved.items()}
        return Rows(**moved)

    def inputs(self) -> dict[str, torch.Tensor]:
        """The arguments of a model's forward pass."""
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def without_negative_end(self, eos: int) -> Rows:
        """The same rows, without the end of sequence among what negatives are trained on.

        Every sequence ends, good or bad, so that a contrast on it only teaches to go on.
        """
        ends = (self.labels == eos) & (self.polarity == NEGATIVE)
        return Rows(**{**vars(self), "labels": self.labels.masked_fill(ends, IGNORED)})


def encode_rows(
    tokenizer,
    prompts: Sequence[str],
    replies: Sequence[str],
    polarity: Sequence[int | Sequence[int]],
    *,
    seq2seq: bool = False,
    start: int | None = None,
    max_prompt: int = 128,
    max_reply: int = 128,
) -> Rows:
    """Tokens of prompts and replies. `polarity` is one number a row, or one a word of the reply (words are apart by blanks).

    Prompts are cut on the left (their end is what is replied to), replies on the right. With word polarities the end of
    the sequence is good. `start` is the decoder's first token.
    """
    eos = tokenizer.eos_token_id
    befores = tokenizer(list(prompts))["input_ids"]
    afters = tokenizer([_with_blank(text) for text in replies], add_special_tokens=False)["input_ids"]
    sequences = []
    for before, after, reply, sign in zip(befores, afters, replies, polarity, strict=True):
        if isinstance(sign, int | np.integer):
            signs = [int(sign)] * (len(after) + 1)
        else:
            words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in reply.split()]
            after = [token for word in words for token in word]
            signs = [int(value) for word, value in zip(words, sign, strict=True) for _ in word]
            signs.append(POSITIVE)
        after = [*after, eos]
        if len(after) > max_reply:
            after, signs = after[:max_reply], signs[:max_reply]
        sequences.append((before[-max_prompt:], after, signs))
    pad = tokenizer.pad_token_id
    if seq2seq:
        shifted = [[start, *after[:-1]] for _, after, _ in sequences]
        return Rows(
            _padded([before for before, _, _ in sequences], pad),
            _padded([[1] * len(before) for before, _, _ in sequences], 0),
            _padded([after for _, after, _ in sequences], IGNORED),
            _padded([signs for _, _, signs in sequences], POSITIVE),
            _padded(shifted, pad),
        )
    # A reply without any prompt begins after the token that begins texts, or the one that ends them.
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos
    whole = [((before or [first]), after, signs) for before, after, signs in sequences]
    return Rows(
        _padded([before + after[:-1] for before, after, _ in whole], pad),
        _padded([[1] * (len(before) + len(after) - 1) for before, after, _ in whole], 0),
        _padded([[IGNORED] * (len(before) - 1) + after for before, after, _ in whole], IGNORED),
        _padded([[POSITIVE] * (len(before) - 1) + signs for before, _, signs in whole], POSITIVE),
    )


def _with_blank(reply: str) -> str:
    return f" {reply}" if reply else reply


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows), default=1)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def join(parts: Sequence[Rows], pad: int) -> Rows:
    """One table of several, padded to the widest."""
    filling = {"input_ids": pad, "attention_mask": 0, "labels": IGNORED, "polarity": POSITIVE, "decoder_input_ids": pad}
    joined: dict[str, Any] = {}
    for name, value in filling.items():
        tables = [getattr(part, name) for part in parts]
        if tables[0] is None:
            joined[name] = None
            continue
        width = max(table.shape[1] for table in tables)
        joined[name] = torch.cat([F.pad(table, (0, width - table.shape[1]), value=value) for table in tables])
    return Rows(**joined)


def mixture_batches(
    parts: Mapping[str, tuple[Rows, float]], batch_size: int, pad: int, seed: int
) -> Callable[[int], Rows]:
    """Give a function from step (from 0) to its batch: `batch_size` rows, each from a part with probability by its weight.

    `parts`: name -> (rows, weight). A step's draws depend on the seed and the step alone, so that two runs over parts of the
    same sizes see the same rows, and a run that was stopped goes on with what it would have seen.
    """
    tables = [rows for rows, _ in parts.values()]
    weights = np.array([weight for _, weight in parts.values()], dtype=float)
    weights /= weights.sum()
    sizes = np.array([len(rows) for rows in tables])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    everything = join(tables, pad)

    def batch(step: int) -> Rows:
        rng = np.random.default_rng(derive(seed, "mixture", step))
        chosen = rng.choice(len(tables), batch_size, p=weights)
        within = (rng.random(batch_size) * sizes[chosen]).astype(int)
        return everything[torch.from_numpy(offsets[chosen] + within)]

    return batch
