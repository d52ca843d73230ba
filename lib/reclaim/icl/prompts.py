"""Data sets and templates of the in-context study as data, and how demonstrations and a query become one prompt.

Source: Pan et al. 2023 and its official code. GOLD and RANDOM show natural templates, ABSTRACT minimal ones, which do not
name the task. The files are `reclaim/templates/icl.yaml` and `icl_world.yaml`.

Official prompts are joined by three line breaks and stripped at both ends: where a template ends in a line break or a
space, the demonstrations keep it and the query loses it. The default mode gives both the same form (the template without
the blanks at its end, one space, the label), which is how the label of the query is scored in either mode; it also
mends the templates that have a slip.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from reclaim.errors import InputError

Row = Mapping[str, Any]
TEMPLATE_KINDS = ("natural", "minimal")
LIBRARIES = ("icl", "icl_world")

_FIELD = re.compile(r"\{(\w+)(-|\+ ?\.)?\}")
_TRUE_FALSE = {"Yes": "True", "No": "False"}


@dataclass(frozen=True)
class PromptTemplate:
    """The text before a label. `ours` replaces `prompt` in the default mode where the original has a slip."""

    prompt: str
    ours: str = ""
    true_false: bool = False

    def label_words(self, words: Sequence[str]) -> tuple[str, ...]:
        """The label words as this template asks for them."""
        return tuple(_TRUE_FALSE.get(word, word) if self.true_false else word for word in words)

    def fill(self, row: Row, official: bool = False) -> str:
        """The text before the label of a row. Raises `InputError` for a field that the row lacks."""

        def value(match: re.Match) -> str:
            if not isinstance(row.get(match[1]), str):
                raise InputError(
                    f"template {self.prompt!r}", f"a row with the fields {sorted(row)}", f"a text {match[1]!r}"
                )
            text = row[match[1]]
            if match[2] == "+.":
                return append_period(text)
            if match[2] == "+ .":
                return text.rstrip() if text.rstrip().endswith(".") else f"{text.rstrip()} ."
            return text.strip() if match[2] else text

        return _FIELD.sub(value, self.prompt if official or not self.ours else self.ours)


def append_period(text: str) -> str:
    """Cut blanks at the end and add a full stop unless the text ends in an ASCII punctuation mark."""
    text = text.rstrip()
    return text if text[-1:] in string.punctuation else f"{text}."


@dataclass(frozen=True)
class IclSet:
    """A data set as the study shows it.

    `pool` and `test` are rows with id, label (position in `label_words`) and the columns that the templates name. `made_up`
    restricts the made-up labels of a label space. `repeats` says that texts recur by chance, so that a query may equal a
    demonstration without being it. `content_free` stands for a text that says nothing (Zhao et al. 2021).
    """

    name: str
    label_words: tuple[str, ...]
    natural: tuple[PromptTemplate, ...]
    minimal: tuple[PromptTemplate, ...]
    group: str = ""
    separator: str = "\n\n\n"
    made_up: Mapping[str, Sequence[str]] = field(default_factory=dict)
    repeats: bool = False
    content_free: str = "N/A"
    pool: Sequence[Row] = ()
    test: Sequence[Row] = ()

    def template(self, kind: str, number: int) -> PromptTemplate:
        """Template `number` (from 1) of a kind. Raises `InputError` where there is none."""
        if kind not in TEMPLATE_KINDS:
            raise InputError("template kind", repr(kind), f"one of {', '.join(TEMPLATE_KINDS)}")
        templates = getattr(self, kind)
        if not 1 <= number <= len(templates):
            raise InputError(f"{kind} template of {self.name}", str(number), f"1 to {len(templates)}")
        return templates[number - 1]


@cache
def _library() -> tuple[dict[str, Any], dict[str, Any]]:
    """All templates and all data sets of the template files."""
    templates: dict[str, Any] = {}
    sets: dict[str, Any] = {}
    for name in LIBRARIES:
        text = (resources.files("reclaim") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        templates |= content["templates"]
        sets |= content["sets"]
    return templates, sets


def set_names() -> list[str]:
    """Names of the data sets that have templates."""
    return list(_library()[1])


def define_sets(name: str) -> dict[str, IclSet]:
    """The data sets of a name, without rows: one, or one for each value of the column that splits it.

    The key is that value, or the empty text. Raises `InputError` for an unknown name.
    """
    templates, sets = _library()
    if name not in sets:
        raise InputError("data set of the in-context study", repr(name), f"one of {', '.join(sets)}")
    known = sets[name]
    words = known["label_words"] if "by" in known else {"": known["label_words"]}
    fields: dict[str, Any] = {
        kind: _templates(templates[known[kind]], known.get("about", "")) for kind in TEMPLATE_KINDS
    }
    fields |= {key: known[key] for key in ("group", "separator", "made_up", "repeats", "content_free") if key in known}
    return {
        value: IclSet(
            name=f"{name}/{value}" if value else name,
            label_words=tuple(label_words),
            **fields,
        )
        for value, label_words in words.items()
    }


def _templates(entries: Sequence[str | Mapping[str, Any]], about: str) -> tuple[PromptTemplate, ...]:
    found = []
    for entry in entries:
        keys = {"prompt": entry} if isinstance(entry, str) else dict(entry)
        texts = {key: keys[key].replace("{about}", about) for key in ("prompt", "ours") if key in keys}
        found.append(PromptTemplate(**{**keys, **texts}))
    return tuple(found)


def load_sets(name: str, pool: pd.DataFrame, test: pd.DataFrame, place: str = "data") -> list[IclSet]:
    """The data sets of a name with rows from canonical tables; `place` says where the tables come from.

    Raises `InputError` for a table without the columns or classes that the name needs.
    """
    _, sets = _library()
    definitions, known = define_sets(name), sets[name]
    by = known.get("by")
    filled = []
    for value, definition in definitions.items():
        rows: dict[str, Any] = {}
        for part, frame in (("pool", pool), ("test", test)):
            if by is not None:
                if by not in frame:
                    raise InputError(place, f"columns {list(frame.columns)}", f"the column {by!r}")
                frame = frame[frame[by] == value]
            rows[part] = [_row(row, known.get("full_stop", False)) for row in frame.to_dict("records")]
            if not rows[part]:
                raise InputError(place, f"no row of {definition.name} ({part})", "at least one")
            highest = max(row["label"] for row in rows[part])
            if highest >= len(definition.label_words):
                expected = f"classes 0 to {len(definition.label_words) - 1} ({', '.join(definition.label_words)})"
                raise InputError(place, f"class {highest} in {definition.name}", expected)
        filled.append(replace(definition, **rows))
    return filled


def _row(row: dict[str, Any], full_stop: bool) -> dict[str, Any]:
    if full_stop:
        row |= {key: append_period(row[key]) for key in ("text", "text_pair") if key in row}
    return row | {"label": int(row["label"])}


# ----------------------------------------------------------------------------------------------------------------- prompts


def join_official(separator: str, shown: Sequence[tuple[str, str]], query: str) -> str:
    """The original's prompt before it is stripped, which is the form whose length it looks at.

    `shown` are (text before the label, label) of each demonstration, `query` the text before the missing label.
    """
    return separator.join([*(text + label for text, label in shown), query])


def join_prompt(separator: str, shown: Sequence[tuple[str, str]], query: str) -> str:
    """A prompt in which the labels of the demonstrations stand as that of the query is scored: after one space."""
    return separator.join([*(f"{text.rstrip()} {label}" for text, label in shown), query.rstrip()])


def shorten(count: int, fits: Callable[[list[int]], bool], rng: random.Random, place: str = "prompt") -> list[int]:
    """Which of `count` demonstrations the original keeps, in order: ever smaller fresh subsets until the prompt fits.

    A subset is drawn even where all of them fit. Raises `InputError` where not even the query fits.
    """
    for kept in range(count, -1, -1):
        subset = sorted(rng.sample(range(count), kept))
        if fits(subset):
            return subset
    raise InputError(place, "a query that is too long by itself", "a shorter text, or a model with more positions")


def clean_answer(text: str) -> str:
    """A generated answer as the original reads it: its first line, without blanks around it."""
    return text.strip().split("\n")[0].strip()
