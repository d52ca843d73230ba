"""What the two template families share: texts with fields in braces, construction from a config, right candidates."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, ClassVar, Self

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from reclaim.errors import InputError

Row = Mapping[str, Any]


def upper_first(text: str) -> str:
    """Upper-case the first letter."""
    return text[:1].upper() + text[1:]


def lower_first(text: str) -> str:
    """Lower-case the first letter."""
    return text[:1].lower() + text[1:]


def lower_first_word(text: str) -> str:
    """Lower-case the first word, unless it is `I`."""
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


# `{field}` in place of Jinja's `{{ field }}`, because prompts are mostly text. Sandboxed: a template may come from a
# config.
_JINJA = SandboxedEnvironment(
    variable_start_string="{", variable_end_string="}", keep_trailing_newline=True, undefined=jinja2.StrictUndefined
)
_JINJA.filters.update(
    upper_first=upper_first,
    lower_first_word=lower_first_word,
    ensure_end=lambda text, end: text if text.endswith(end) else text + end,
)


@cache
def compile_text(source: str) -> jinja2.Template:
    """A text with fields; raises `jinja2.TemplateSyntaxError`."""
    return _JINJA.from_string(source)


@cache
def compile_expression(source: str):
    """An expression over fields, such as `answers[0]`; raises `jinja2.TemplateSyntaxError`."""
    return _JINJA.compile_expression(source, undefined_to_none=False)


def fill(name: str, source: str, row: Row, **extra: str) -> str:
    """Fill a text with the row's fields; `name` says whose text it is if a field is missing (`InputError`)."""
    try:
        return compile_text(source).render(row, **extra)
    except (jinja2.TemplateError, TypeError, AttributeError) as error:
        raise _misfit(name, source, row, error) from error


def compute(name: str, source: str, row: Row) -> list[Any]:
    """Value of an expression over the row's fields, as a list (of one, for a scalar) of plain Python values."""
    try:
        value = compile_expression(source)(**row)
        if isinstance(value, jinja2.Undefined):
            raise jinja2.UndefinedError(f"{source!r} is undefined")
    except (jinja2.TemplateError, TypeError, AttributeError) as error:
        raise _misfit(name, source, row, error) from error
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _misfit(name: str, source: str, row: Row, error: Exception) -> InputError:
    return InputError(
        f"{name}: {source!r}", f"a row with the fields {sorted(row)} ({error})", "the fields that it names"
    )


class Template:
    """Construction from a config, and the positions of a row's right candidates. Subclasses are frozen dataclasses."""

    family: ClassVar[str]
    required: ClassVar[tuple[str, ...]]
    name: str
    label: str

    @classmethod
    def from_config(cls, spec: Mapping[str, Any], name: str = "template") -> Self:
        """Build from the keys of a config or template file; `name` says where they stand in error messages.

        Raises `InputError` for unknown or missing keys, wrong types, and texts that do not parse.
        """
        allowed = {field.name for field in fields(cls)} - {"name"}  # type: ignore[arg-type]  # subclasses are dataclasses
        given = {key: value for key, value in spec.items() if key != "family"}
        if spec.get("family", cls.family) != cls.family:
            raise InputError(name, f"family {spec['family']!r}", repr(cls.family))
        if unknown := sorted(set(given) - allowed):
            raise InputError(name, f"the unknown key {unknown[0]!r}", f"keys among {', '.join(sorted(allowed))}")
        if missing := sorted(set(cls.required) - set(given)):
            raise InputError(name, f"no key {missing[0]!r}", f"the keys {', '.join(cls.required)}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return cls(name=name, **values)  # type: ignore[call-arg]  # subclasses are dataclasses

    def check_types(self, **types: type | tuple[type, ...]) -> None:
        """Raise `InputError` for a field of another type; lists other than `labels` hold texts."""
        for field, kind in types.items():
            value = getattr(self, field)
            kinds = kind if isinstance(kind, tuple) else (kind,)
            place = f"{self.name}: {field}"
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                names = {tuple: "a list", str: "a text", int: "a number", bool: "true or false", type(None): "nothing"}
                raise InputError(place, repr(value), " or ".join(names[kind] for kind in kinds))
            if (
                isinstance(value, tuple)
                and field != "labels"
                and not (value and all(isinstance(v, str) for v in value))
            ):
                raise InputError(place, repr(list(value)), "a list of texts", "Put words such as no in quotes.")

    def label_values(self, row: Row) -> Sequence[Hashable]:
        """The values that the label takes, in the order of the candidates."""
        raise NotImplementedError

    def correct(self, row: Row) -> tuple[int, ...]:
        """Positions of the row's right candidates (several where the label is a list).

        Raises `InputError` when the label is not a known value.
        """
        known = list(self.label_values(row))
        positions = []
        for value in compute(self.name, self.label, row):
            # A truth value is not the number that Python makes of it.
            same = [
                i for i, item in enumerate(known) if item == value and isinstance(item, bool) == isinstance(value, bool)
            ]
            if not same:
                raise InputError(f"{self.name}: label {self.label!r}", repr(value), f"one of {known}")
            positions.append(same[0])
        return tuple(positions)
