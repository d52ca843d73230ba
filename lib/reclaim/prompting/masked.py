"""Prompts for masked language models in the template language of LM-BFF (Gao et al. 2021), as MeZO's RoBERTa
experiments and AutoSeq use it.

Differences from the official code: a label word that is not one token, and a mask that truncation removes, are
`InputError`s; a one-character literal that the vocabulary lacks is tokenized instead of becoming `<unk>`; the mask is
the template's, also where a sentence holds one; segment ids are not built.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from reclaim.errors import InputError
from reclaim.prompting.base import Row, Template, lower_first, upper_first
from reclaim.prompting.tokens import literal_ids, mask_id, separator_id, text_ids


@dataclass(frozen=True)
class MaskedPrompt:
    """`input_ids` with one mask token at `mask_position`. `cut` says that truncation removed tokens."""

    input_ids: list[int]
    mask_position: int
    cut: bool


@dataclass(frozen=True)
class Part:
    """One part of a masked template: a special token, a demonstration's label word, a sentence, or literal text."""

    kind: str  # cls, mask, sep, label, sentence, literal
    index: int = 0  # of the sentence or label
    text: str = ""  # of a literal
    space: bool = False  # a leading space before the sentence
    case: str = ""  # l or u: lower- or upper-case the sentence's first letter
    drop_last: bool = False  # drop the sentence's last character

    def apply(self, sentence: str) -> str:
        """The sentence as this part shows it."""
        sentence = {"l": lower_first, "u": upper_first}.get(self.case, str)(sentence)
        return " " * self.space + (sentence[:-1] if self.drop_last else sentence)


_SPECIAL = {"cls": "cls", "mask": "mask", "sep": "sep", "sep+": "sep"}
_SENTENCE = re.compile(r"(\+?)sent([lu]?)(-?)_(\d+)")
_LABEL = re.compile(r"label_(\d+)")
_ALMOST = re.compile(r"\+?(sent|label)[a-z]?[-+]?_?\d*")


@cache
def parse_template(template: str) -> tuple[Part, ...]:
    """Read LM-BFF's template language: parts between asterisks.

    `cls`, `mask`, `sep` and `sep+` are special tokens (`sep+` also starts a new segment, which is not built here);
    `label_0` is the first label word; `sent_0` is the first sentence, with `+` in front for a leading space, `l` or
    `u` after `sent` to lower- or upper-case its first letter, and `-` to drop its last CHARACTER, whatever that is.
    Anything else is literal text with `_` for a space, also where it stands alone between two asterisks.

    Raises `InputError` for a part that looks like a variable and is none.
    """
    parts = []
    for text in template.split("*"):
        if text in _SPECIAL:
            parts.append(Part(_SPECIAL[text]))
        elif match := _SENTENCE.fullmatch(text):
            plus, case, minus, index = match.groups()
            parts.append(Part("sentence", int(index), space=bool(plus), case=case, drop_last=bool(minus)))
        elif match := _LABEL.fullmatch(text):
            parts.append(Part("label", int(match[1])))
        elif _ALMOST.fullmatch(text):
            raise InputError(f"template {template!r}", f"*{text}*", "a variable such as *sent_0* or *+sentl_1*")
        elif text:
            parts.append(Part("literal", text=text.replace("_", " ")))
    return tuple(parts)


@dataclass(frozen=True)
class MaskedTemplate(Template):
    """A prompt with one mask and a label word for each class, for a masked model (or a T5 sentinel).

    `sentences` names the row's fields behind `sent_0`, `sent_1`. `first_limit` and `other_limit` bound the tokens of
    the first and of the other sentences; the whole is cut to `max_length` from the tail. `labels` are the values of
    the field `label` in the order of `label_words` (default 0, 1, ...).
    """

    family: ClassVar[str] = "masked"
    required: ClassVar[tuple[str, ...]] = ("template", "label_words")

    template: str
    label_words: tuple[str, ...]
    sentences: tuple[str, ...] = ("text", "text_pair")
    label: str = "label"
    labels: tuple[Hashable, ...] | None = None
    first_limit: int | None = None
    other_limit: int | None = None
    max_length: int = 128
    name: str = "template"

    def __post_init__(self) -> None:
        self.check_types(
            template=str, label_words=tuple, sentences=tuple, label=str, labels=(tuple, type(None)),
            first_limit=(int, type(None)), other_limit=(int, type(None)), max_length=int,
        )  # fmt: skip
        parts = parse_template(self.template)
        masks = sum(part.kind == "mask" for part in parts)
        if masks != 1:
            raise InputError(f"{self.name}: {self.template!r}", f"{masks} masks", "exactly one *mask*")
        for kind, names in (("sentence", self.sentences), ("label", self.label_words)):
            if (highest := max((part.index for part in parts if part.kind == kind), default=-1)) >= len(names):
                found = f"{kind} {highest}, counted from 0"
                raise InputError(f"{self.name}: {self.template!r}", found, f"one of the {len(names)} given")
        if not all(self.label_words) or len(self.label_values({})) != len(self.label_words):
            raise InputError(f"{self.name}: label_words", repr(list(self.label_words)), "a word for each of the labels")

    def label_values(self, row: Row) -> Sequence[Hashable]:
        """As of `Template`; 0, 1, ... unless `labels` says otherwise."""
        return range(len(self.label_words)) if self.labels is None else self.labels

    def label_word_ids(self, tokenizer) -> list[int]:
        """The token of each label word: with a leading space, unless it starts with `<`, `[`, `.` or `,` (LM-BFF).

        Raises `InputError` for a word that is not one known token, or two words that share one.
        """
        found: list[int] = []
        for word in self.label_words:
            bare = word.strip()
            ids = text_ids(tokenizer, bare if bare[:1] in tuple("<[.,") else f" {bare}")
            if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None) or ids[0] in found:
                reason = f"{len(ids)} tokens" if len(ids) != 1 else "an unknown token, or that of another label word"
                raise InputError(f"{self.name}: label word {word!r}", reason, "one token of its own after a space")
            found.append(ids[0])
        return found

    def encode(
        self, tokenizer, row: Row, demonstrations: Sequence[Row] = (), max_length: int | None = None
    ) -> MaskedPrompt:
        """Encode a row; demonstrations follow it in the same template, with their label words in place of the mask.

        Every part is tokenized by itself; a literal of one character is looked up as a bare piece. `cls` is left out
        where the tokenizer has no such token (T5), and in demonstrations.

        Raises `InputError` where truncation removes the mask.
        """
        max_length = self.max_length if max_length is None else max_length
        ids, mask_position = self._assemble(tokenizer, row)
        for demonstration in demonstrations:
            word = self.label_word_ids(tokenizer)[self.correct(demonstration)[0]]
            ids += self._assemble(tokenizer, demonstration, shown=word)[0]
        if mask_position >= max_length:
            raise InputError(
                f"{self.name}: {self.template!r}", f"the mask at position {mask_position} of {len(ids)} tokens",
                f"a mask within max_length {max_length}", "Raise max_length, or set first_limit and other_limit.",
            )  # fmt: skip
        return MaskedPrompt(ids[:max_length], mask_position, cut=len(ids) > max_length)

    def encode_content_free(self, tokenizer) -> MaskedPrompt:
        """The prompt with empty sentences."""
        ids, mask_position = self._assemble(tokenizer, dict.fromkeys(self.sentences, ""))
        return MaskedPrompt(ids, mask_position, cut=False)

    def _assemble(self, tokenizer, row: Row, shown: int | None = None) -> tuple[list[int], int]:
        """Token ids, and the mask's position. For a demonstration the token `shown` replaces the mask, without cls."""
        ids: list[int] = []
        mask_position = -1
        for part in parse_template(self.template):
            if part.kind == "cls":
                if tokenizer.cls_token_id is not None and shown is None:
                    ids.append(tokenizer.cls_token_id)
            elif part.kind == "sep":
                ids.append(separator_id(tokenizer))
            elif part.kind == "mask":
                mask_position = len(ids)
                ids.append(mask_id(tokenizer) if shown is None else shown)
            elif part.kind == "label":
                ids.append(self.label_word_ids(tokenizer)[part.index])
            elif part.kind == "literal":
                ids += literal_ids(tokenizer, part.text)
            else:
                sentence = row.get(self.sentences[part.index])
                if not isinstance(sentence, str):
                    found = f"{sentence!r} in a row with the fields {sorted(row)}"
                    raise InputError(f"{self.name}: sentence {self.sentences[part.index]!r}", found, "a text")
                limit = self.other_limit if part.index else self.first_limit
                ids += text_ids(tokenizer, part.apply(sentence))[:limit]
        return ids, mask_position


def encode_plain(tokenizer, sentences: Sequence[str], max_length: int) -> list[int]:
    """The input without a template (the no-prompt arm): `cls`, each sentence followed by `sep`, cut from the tail."""
    ids = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    for sentence in sentences:
        ids += [*text_ids(tokenizer, sentence), separator_id(tokenizer)]
    return ids[:max_length]
