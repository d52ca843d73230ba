"""Prompts of AutoSeq: sentences in a template with one sentinel, as token ids for T5, and the targets that fill it.

Source: Yu et al. 2022 ("Automatic Label Sequence Generation for Prompting Sequence-to-sequence Models") and its official
code; the template language is LM-BFF's (`reclaim.prompting.masked.parse_template`), with `<extra_id_0>` for the mask. The
templates of the paper's tasks lie in `reclaim/templates/autoseq.yaml`.

A prompt's sentences are any number of texts (COPA has four), so it is not a `MaskedTemplate`, which also fixes the label
words that are searched for here. Difference from the official code: a sentinel that truncation removes is an `InputError`
where one is needed, not a silent input without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from reclaim.errors import InputError
from reclaim.prompting.masked import parse_template
from reclaim.prompting.tokens import literal_ids, separator_id, text_ids

WORD_START = "▁"  # T5's mark of a word's beginning; alone it is a token of its own


@dataclass(frozen=True)
class Prompt:
    """`input_ids`; `literals`: positions of the tokens of literal text, which soft prompt tuning replaces."""

    input_ids: list[int]
    literals: list[int]


@dataclass(frozen=True)
class Sentinels:
    """Token ids around a span: `first` stands in the input and opens the target, `second` may close it, and `end` does."""

    first: int
    second: int
    end: int

    @classmethod
    def of(cls, tokenizer) -> Sentinels:
        """Look the tokens up, whatever their ids; raises `InputError` where the tokenizer has no sentinels."""
        first, second = tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"])
        if any(i in (None, tokenizer.unk_token_id) for i in (first, second)) or tokenizer.eos_token_id is None:
            raise InputError("tokenizer", type(tokenizer).__name__, "T5's sentinels and an end token")
        return cls(first, second, tokenizer.eos_token_id)

    def terminator(self, name: str) -> list[int]:
        """What ends a target: `end` (official), or `sentinel`: the next sentinel and the end, as in pre-training."""
        if name not in ("end", "sentinel"):
            raise InputError("terminator", repr(name), "end or sentinel")
        return [self.end] if name == "end" else [self.second, self.end]


def encode_prompt(
    tokenizer,
    template: str,
    sentences: Sequence[str],
    *,
    max_length: int | None = None,
    first_sent_limit: int | None = None,
    other_sent_limit: int | None = None,
    truncate_head: bool = False,
    require_sentinel: bool = True,
    keep_sentinel: bool = False,
) -> Prompt:
    """Fill a template with sentences; every part is tokenized by itself.

    Each sentence is first cut to its limit, then the whole to `max_length`, from the tail or, with `truncate_head`, from the
    head. Candidate generation sets no limit. The sentinel is the part `mask` or the literal `<extra_id_0>`. With
    `keep_sentinel` the longest sentence before it is cut further, where otherwise it would be cut off from the tail.

    Raises `InputError` for a sentence that the template names and the row lacks, and for a sentinel that is cut off.
    """
    sentinel = Sentinels.of(tokenizer).first
    ids: list[int] = []
    literals: list[int] = []
    before: list[range] = []  # where the sentences in front of the sentinel lie
    # The templates of the search name the sentinel itself, in whose name `_` is no space.
    for part in parse_template(template.replace("*<extra_id_0>*", "*mask*")):
        if part.kind == "cls":
            continue
        if part.kind == "sep":
            ids.append(separator_id(tokenizer))
        elif part.kind == "mask":
            ids.append(sentinel)
        elif part.kind == "sentence":
            if part.index >= len(sentences):
                raise InputError(
                    f"template {template!r}", f"{len(sentences)} sentences", f"at least {part.index + 1} of them"
                )
            limit = other_sent_limit if part.index else first_sent_limit
            new = text_ids(tokenizer, part.apply(sentences[part.index]))[:limit]
            before += [range(len(ids), len(ids) + len(new))] if sentinel not in ids else []
            ids += new
        else:
            new = literal_ids(tokenizer, part.text)
            literals += range(len(ids), len(ids) + len(new))
            ids += new
    missing = ids.index(sentinel) + 1 - max_length if max_length and sentinel in ids and not truncate_head else 0
    if keep_sentinel and missing > 0 and len(longest := max(before, key=len, default=range(0))) > missing:
        del ids[longest.stop - missing : longest.stop]
        literals = [position - missing * (position >= longest.stop) for position in literals]
    cut = max(0, len(ids) - max_length) if max_length else 0
    first, last = (cut, len(ids)) if truncate_head else (0, len(ids) - cut)
    kept = ids[first:last]
    if require_sentinel and sentinel not in kept:
        raise InputError(
            f"template {template!r}", f"no sentinel in the {len(kept)} tokens kept of {len(ids)}", "the sentinel",
            "Raise max_length, or set first_sent_limit and other_sent_limit.",
        )  # fmt: skip
    return Prompt(kept, [position - first for position in literals if first <= position < last])


def label_ids(tokenizer, text: str) -> list[int]:
    """Token ids of a label sequence in training and prediction: a lone word-start mark at its beginning is dropped."""
    ids = text_ids(tokenizer, text)
    mark = tokenizer.convert_tokens_to_ids(WORD_START)
    return ids[1:] if ids[:1] == [mark] and mark not in (None, tokenizer.unk_token_id) else ids


def target_ids(tokenizer, text: str, terminator: str = "end") -> list[int]:
    """The target of a label sequence: first sentinel, `label_ids`, terminator."""
    sentinels = Sentinels.of(tokenizer)
    return [sentinels.first, *label_ids(tokenizer, text), *sentinels.terminator(terminator)]


def tokens_text(tokenizer, ids: Sequence[int], remove: Sequence[int] = ()) -> str:
    """The pieces of `ids` joined, without the ids `remove`; rows of the model that no token has are left out."""
    pieces = tokenizer.convert_ids_to_tokens([i for i in ids if i not in remove and i < len(tokenizer)])
    return "".join(pieces).replace(WORD_START, " ").strip()


@cache
def task_prompts() -> Mapping[str, Any]:
    """The prompts of the paper's tasks: task -> form (`generation`, `auto`, `manual`, `manual_eng`, ...) -> its keys."""
    text = (resources.files("reclaim") / "templates" / "autoseq.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["tasks"]


def task_prompt(task: str, form: str) -> Mapping[str, Any]:
    """The keys of one prompt: `template`, `limits`, and `labels` where its label words are given.

    Raises `InputError` for a task or form that the file lacks.
    """
    if task not in task_prompts():
        raise InputError("prompts", repr(task), f"one of {', '.join(task_prompts())}")
    if form not in task_prompts()[task]:
        raise InputError(f"prompts of {task}", repr(form), f"one of {', '.join(task_prompts()[task])}")
    return task_prompts()[task][form]
