"""Token ids at the edges of a prompt: special tokens, single pieces, truncation."""

from __future__ import annotations

from collections.abc import Sequence

from reclaim.errors import InputError


def leading_ids(tokenizer) -> list[int]:
    """The special tokens that the tokenizer puts before a text (OPT: one; GPT-2: none), not those at its end."""
    bare, full = text_ids(tokenizer, "a"), list(tokenizer.encode("a"))
    starts = [start for start in range(len(full)) if full[start : start + len(bare)] == bare]
    return full[: starts[0]] if bare and starts else []


def start_id(tokenizer) -> int:
    """The token that opens an otherwise empty context: start of sequence, else end of sequence."""
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise InputError("tokenizer", "neither a bos nor an eos token", "one of them, to open an empty prompt")


def truncate_left(ids: Sequence[int], max_length: int, keep_first: int = 0) -> list[int]:
    """Keep the first `keep_first` and the last of the other tokens, `max_length` in all."""
    ids = list(ids)
    if len(ids) <= max_length:
        return ids
    room = max_length - keep_first
    return ids[:keep_first] + (ids[len(ids) - room :] if room > 0 else [])


def text_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def mask_id(tokenizer) -> int:
    """The mask token, or T5's first sentinel."""
    if getattr(tokenizer, "mask_token_id", None) is not None:
        return tokenizer.mask_token_id
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    if sentinel in (None, getattr(tokenizer, "unk_token_id", None)):
        raise InputError("tokenizer", "neither a mask token nor <extra_id_0>", "one of them, for a masked template")
    return sentinel


def separator_id(tokenizer) -> int:
    """The separator token, or the end-of-sequence token where there is none (T5)."""
    return tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id


def literal_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a template's literal text; one character is looked up as a bare piece where the vocabulary has it.

    Without that a sentencepiece tokenizer would start a new word at each `?`.
    """
    if len(text) == 1:
        piece = tokenizer.convert_tokens_to_ids(text)
        if piece not in (None, getattr(tokenizer, "unk_token_id", None)):
            return [piece]
    return text_ids(tokenizer, text)
