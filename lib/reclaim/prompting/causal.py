"""Prompts for causal language models, as MeZO's OPT experiments encode them (Malladi et al. 2023, section 3, appendix
E).

Differences from the official code: ids come from any tokenizer, fast or slow (the official runs force a slow one,
whose OPT prompts start with id 0 in place of 2), and tokens that a tokenizer adds at the end are left out; an option
without tokens raises instead of training on the whole row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jinja2

from reclaim.errors import InputError
from reclaim.prompting.base import Row, Template, compile_expression, compile_text, compute, fill
from reclaim.prompting.tokens import leading_ids, start_id, text_ids, truncate_left


@dataclass(frozen=True)
class EncodedOption:
    """One candidate in its context: `input_ids` end in the `option_length` tokens of the candidate.

    `option_length` is 0 for a prompt to generate from. `cut` says that truncation removed tokens.
    """

    input_ids: list[int]
    option_length: int
    cut: bool

    @property
    def context_ids(self) -> list[int]:
        """The tokens before the candidate."""
        return self.input_ids[: len(self.input_ids) - self.option_length]

    @property
    def continuation_ids(self) -> list[int]:
        """The candidate's own tokens."""
        return self.input_ids[len(self.input_ids) - self.option_length :]


@dataclass(frozen=True)
class CausalTemplate(Template):
    """A prompt and its candidates for a causal model.

    Texts are Jinja templates over the row's fields with single braces: `{text.strip()} It was`. A candidate is
    verbalised as prompt + option, where the option is `{candidate}` unless given. `candidates` is a list of texts, or
    an expression for a list in the row (`choices`). `calibration_prompt` and `calibration_option` make the
    content-free prompt of surface-form calibration (Holtzman et al. 2021). `label` is an expression for the row's
    label (or its list of right ones); `labels` are the values it takes in the order of the candidates, a list or an
    expression, by default 0, 1, ... . `separator` stands between demonstrations. With `generation` the candidates are
    the gold answers, and a demonstration shows the first.
    """

    family: ClassVar[str] = "causal"
    required: ClassVar[tuple[str, ...]] = ("prompt", "candidates")

    prompt: str
    candidates: tuple[str, ...] | str
    option: str = "{candidate}"
    calibration_prompt: str = ""
    calibration_option: str | None = None
    label: str = "label"
    labels: tuple[Hashable, ...] | str | None = None
    separator: str = "\n\n"
    generation: bool = False
    name: str = "template"

    def __post_init__(self) -> None:
        self.check_types(
            prompt=str, candidates=(tuple, str), option=str, calibration_prompt=str, calibration_option=(str,
            type(None)), label=str, labels=(tuple, str, type(None)), separator=str, generation=bool,
        )  # fmt: skip
        listed = self.candidates if isinstance(self.candidates, tuple) else ()
        if listed and isinstance(self.labels, tuple) and len(self.labels) != len(listed):
            raise InputError(
                f"{self.name}: labels", f"{len(self.labels)} labels", f"as many as candidates ({len(listed)})"
            )
        try:
            for text in (self.prompt, self.option, self.calibration_prompt, self.calibration_option or "", *listed):
                compile_text(text)
            for expression in (self.label, self.candidates, self.labels):
                if isinstance(expression, str):
                    compile_expression(expression)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                self.name, f"a text that does not parse ({error})", "text with fields in single braces"
            ) from error

    def candidate_texts(self, row: Row) -> list[str]:
        """The row's candidates (gold answers with `generation`), at least one, not yet in a prompt."""
        if isinstance(self.candidates, tuple):
            return [fill(self.name, text, row) for text in self.candidates]
        texts = compute(self.name, self.candidates, row)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{self.name}: candidates {self.candidates!r}", repr(texts), "a list of at least one text")
        return texts

    def label_values(self, row: Row) -> Sequence[Hashable]:
        """As of `Template`; 0, 1, ... unless `labels` says otherwise."""
        if self.labels is None:
            return range(len(self.candidate_texts(row)))
        return compute(self.name, self.labels, row) if isinstance(self.labels, str) else self.labels

    def prompt_text(self, row: Row, calibration: bool = False) -> str:
        """The prompt without a candidate; with `calibration` the content-free one."""
        return fill(self.name, self.calibration_prompt if calibration else self.prompt, row)

    def verbalize(self, row: Row, candidate: str, calibration: bool = False) -> str:
        """The prompt with a candidate put in."""
        option = self.calibration_option if calibration and self.calibration_option is not None else self.option
        return self.prompt_text(row, calibration) + fill(self.name, option, row, candidate=candidate)

    def demonstration(self, row: Row) -> str:
        """The row with its (first) right answer, stripped of outer blanks."""
        position = 0 if self.generation else self.correct(row)[0]
        return self.verbalize(row, self.candidate_texts(row)[position]).strip()

    def encode(
        self,
        tokenizer,
        row: Row,
        demonstrations: Sequence[Row] = (),
        max_length: int = 2048,
        calibration: str | None = None,
    ) -> list[EncodedOption]:
        """Encode every candidate of a row (the first gold answer with `generation`).

        The demonstrations stand before the prompt, each followed by the separator. An option's length is the number
        of tokens of prompt + option minus that of the prompt, both without outer spaces, as in the official code: it
        stays right where the tokenizer merges across the border. Longer inputs lose tokens from the left, after the
        special tokens that open the sequence. `calibration`: None; "sfc", the content-free prompt without
        demonstrations; "icl_sfc", with them. Where no context is left (no prompt, and a tokenizer that adds no start
        token), the start or end token opens it.

        Raises `InputError` for an option of no tokens or one that fills `max_length`.
        """
        content_free = calibration is not None
        if calibration not in (None, "sfc", "icl_sfc") or (content_free and self.generation):
            raise InputError(
                f"{self.name}: calibration", repr(calibration), "None, 'sfc' or 'icl_sfc' (without generation)"
            )
        texts = self.candidate_texts(row)
        verbalized = [self.verbalize(row, text, content_free) for text in (texts[:1] if self.generation else texts)]
        if not self.generation:
            verbalized = [text.strip(" ") for text in verbalized]
        bare_length = len(text_ids(tokenizer, self.prompt_text(row, content_free).strip(" ")))
        preamble = None if calibration == "sfc" else self._preamble(demonstrations)
        encoded = []
        for text in verbalized:
            length = len(text_ids(tokenizer, text)) - bare_length
            if not 0 < length < max_length:
                raise InputError(
                    f"{self.name}: option {text[-40:]!r}", f"{length} tokens", f"between 1 and {max_length - 1}",
                    "An option must add tokens to its prompt and leave room for some of it.",
                )  # fmt: skip
            # The official code strips blanks and newlines from the start of every prompt but this one.
            final = text if preamble is None else (preamble + text).lstrip()
            encoded.append(self._finish(tokenizer, final, length, max_length))
        return encoded

    def encode_generation(
        self, tokenizer, row: Row, demonstrations: Sequence[Row] = (), max_length: int = 2048, max_new_tokens: int = 50
    ) -> EncodedOption:
        """Encode the prompt to generate from; `max_new_tokens` of `max_length` stay free."""
        text = (self._preamble(demonstrations) + self.prompt_text(row).strip(" ")).lstrip()
        return self._finish(tokenizer, text, 0, max_length - max_new_tokens)

    def _preamble(self, demonstrations: Sequence[Row]) -> str:
        return self.separator.join(map(self.demonstration, demonstrations)).strip() + self.separator

    def _finish(self, tokenizer, text: str, option_length: int, max_length: int) -> EncodedOption:
        leading = leading_ids(tokenizer)
        ids = leading + text_ids(tokenizer, text.strip(" "))
        if len(ids) == option_length:
            ids = [start_id(tokenizer), *ids]
        kept = truncate_left(ids, max_length, keep_first=len(leading))
        return EncodedOption(kept, option_length, cut=len(kept) < len(ids))
