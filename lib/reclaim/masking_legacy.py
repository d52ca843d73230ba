"""The masking of fairseq and SpanBERT draw by draw, only to compare with what their programs gave.

Sources: fairseq's MaskTokensDataset as in princeton-nlp/DinkyTrain (masking at any rate, whole words, multiple lengths)
and SpanBERT's PairWithSpanMaskingScheme. One sequence at a time, on numpy's legacy generator. Use `reclaim.masking` for
anything
else: this stream gives many blocks of an epoch the same masked positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def numpy_seed(seed: int, epoch: int, index: int) -> int:
    """fairseq's seed of one item: Python's hash of three numbers, reduced in floating point (CPython from 3.8)."""
    return int(hash((seed, epoch, index)) % 1e6)


def mask_fairseq(
    item: Sequence[int] | np.ndarray,
    seed: int,
    *,
    mask_prob: float,
    mask_id: int,
    pad_id: int,
    random_weights: Sequence[float],
    leave_unmasked_prob: float = 0.0,
    random_token_prob: float = 0.0,
    word_start: Sequence[bool] | None = None,
    mask_multiple_length: int = 1,
    mask_stdev: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of one item; the target is `pad_id` where nothing is predicted.

    random_weights: [vocab_size] weights of random ids, 0 for the special ids. word_start: by id, whether it begins a
    word; given, whole words are masked. The first token must begin a word.
    """
    item = np.asarray(item)
    random = np.random.RandomState(seed)
    begins = np.ones(len(item), dtype=bool) if word_start is None else np.asarray(word_start, dtype=bool)[item]
    unit_of = np.cumsum(begins) - 1
    units = int(begins.sum())
    number = int(mask_prob * units / mask_multiple_length + random.rand())
    starts = random.choice(units, number, replace=False)
    lengths = np.full(number, mask_multiple_length)
    if mask_stdev > 0:
        lengths = np.maximum(np.rint(random.normal(mask_multiple_length, mask_stdev, number)).astype(int), 0)
    masked = np.zeros(units, dtype=bool)
    for start, length in zip(starts, lengths, strict=True):
        masked[start : start + length] = True

    same, drawn = np.zeros(units, dtype=bool), np.zeros(units, dtype=bool)
    if leave_unmasked_prob + random_token_prob > 0:
        special = masked & (random.rand(units) < leave_unmasked_prob + random_token_prob)
        if random_token_prob == 0:
            same = special
        elif leave_unmasked_prob == 0:
            drawn = special
        else:
            is_same = random.rand(units) < leave_unmasked_prob / (leave_unmasked_prob + random_token_prob)
            same, drawn = special & is_same, special & ~is_same
    source = np.where((masked & ~same)[unit_of], mask_id, item)
    drawn_tokens = drawn[unit_of]
    if drawn_tokens.any():
        weights = np.asarray(random_weights, dtype=np.float64)
        source[drawn_tokens] = random.choice(len(weights), int(drawn_tokens.sum()), p=weights / weights.sum())
    return source, np.where(masked[unit_of], item, pad_id)


def mask_spanbert(
    sentence: Sequence[int] | np.ndarray,
    seed: int,
    *,
    ratio: float,
    length_distribution: Sequence[float],
    random_token_pool: Sequence[int],
    mask_id: int,
    pad_id: int,
    per_span: bool = True,
    word_start: Sequence[bool] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[list[int]], list[list[int]]]:
    """Source, target, spans as drawn and merged spans (first and last position) of one sequence without special tokens.

    length_distribution: P(1), P(2), ... in words. random_token_pool: first and last id, both included. per_span: one
    draw of 80/10/10 per merged span, otherwise per token. word_start: by id (None: every token is a word).
    """
    sentence = np.asarray(sentence)
    n = len(sentence)
    random = np.random.RandomState(seed)
    begins = np.ones(n, dtype=bool) if word_start is None else np.asarray(word_start, dtype=bool)[sentence]
    begins[:1] = True
    word = np.cumsum(begins) - 1
    edges = [*np.flatnonzero(begins), n]
    budget = math.ceil(n * ratio)
    masked: set[int] = set()
    drawn = []
    while len(masked) < budget:
        length = random.choice(np.arange(1, len(length_distribution) + 1), p=length_distribution)
        random.random_sample()
        anchor = random.choice(n)
        if anchor in masked:
            continue
        first = last = int(edges[word[anchor]])
        for position in range(first, edges[min(word[anchor] + length, len(edges) - 1)]):
            if len(masked) >= budget:
                break
            masked.add(position)
            last = position
        drawn.append([first, last])

    merged: list[list[int]] = []
    for position in sorted(masked):
        if merged and merged[-1][1] == position - 1:
            merged[-1][1] = position
        else:
            merged.append([position, position])
    source, target = sentence.copy(), np.full(n, pad_id)
    for first, last in merged:
        kind = random.random_sample()
        for position in range(first, last + 1):
            target[position] = sentence[position]
            if not per_span:
                kind = random.random_sample()
            if kind < 0.8:
                source[position] = mask_id
            elif kind < 0.9:
                source[position] = random.choice(np.arange(random_token_pool[0], random_token_pool[-1] + 1))
    return source, target, drawn, merged
