"""Cutting a stream of sentences into blocks of tokens for pre-training.

Source: fairseq's TokenBlockDataset and PrependTokenDataset, used by Wettig et al. (EACL 2023) with break mode "none":
pieces of one fixed size, whatever ends inside them, with <s> in front. Every sentence carries its end token; an empty
line is a lone end token. As in fairseq a sentence longer than a block stays whole where sentences are kept whole:
truncate it before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reclaim.errors import InputError

BREAK_MODES = ("none", "complete", "complete_doc", "eos")


def token_blocks(
    sentences: Sequence[Sequence[int]], block_size: int, break_mode: str = "none", bos: int | None = None
) -> list[np.ndarray]:
    """Blocks of at most `block_size` tokens, and `bos` in front of each if given.

    break_mode: "none" cuts anywhere, "complete" puts whole sentences together as long as they fit, "complete_doc" does
    so within documents, which a lone end token separates (and which is dropped), "eos" makes each sentence a block.
    Raises InputError for another mode or a size below 1.
    """
    if break_mode not in BREAK_MODES:
        raise InputError("break_mode", repr(break_mode), f"one of {', '.join(BREAK_MODES)}")
    if block_size < 1:
        raise InputError("block_size", str(block_size), "at least 1 token")
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
    stream = np.concatenate([np.asarray(sentence, dtype=np.int64) for sentence in sentences] or [np.zeros(0, np.int64)])
    if break_mode == "none":
        edges = [(start, min(start + block_size, len(stream))) for start in range(0, len(stream), block_size)]
    elif break_mode == "eos":
        edges = list(zip(np.cumsum(lengths) - lengths, np.cumsum(lengths), strict=True))
    else:
        edges = _whole_sentences(lengths.tolist(), block_size, by_document=break_mode == "complete_doc")
    front = [] if bos is None else [bos]
    return [np.concatenate([np.array(front, dtype=np.int64), stream[start:end]]) for start, end in edges]


def _whole_sentences(lengths: Sequence[int], block_size: int, by_document: bool) -> list[tuple[int, int]]:
    edges: list[tuple[int, int]] = []
    start = end = 0
    for length in lengths:
        separates = by_document and length == 1
        if end > start and (separates or end - start + length > block_size):
            edges.append((start, end))
            start = end
        end += length
        if separates:
            start = end
    return [*edges, (start, end)] if end > start else edges
