"""Rows of the Hub and of local files, brought into canonical form one by one. reclaim.data says what that form is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from reclaim.data_hub import HubSource
from reclaim.data_kinds import KINDS, LABELLED, OPTIONAL, STRINGS, Fault, check_row
from reclaim.data_local import LocalSource
from reclaim.errors import InputError

MOST_INFERRED_LABELS = 1000


class TableReader:
    """Rows of a Hub or local source in canonical form; `noted` counts, per name of the source, what was left out."""

    def __init__(self, spec: dict[str, Any], place: str):
        self.spec, self.place, self.kind = spec, place, spec["kind"]
        given = spec.get("columns", {})
        self.columns = {column: given.get(column, column) for column in ("id", *KINDS[self.kind])}
        self.columns = {ours: theirs for ours, theirs in self.columns.items() if ours not in OPTIONAL or ours in given}
        self.extra = spec.get("extra_columns", {})
        self.extra_types: dict[str, pa.DataType] | None = None
        wanted = [column for value in (*self.columns.values(), *self.extra.values()) for column in _listed(value)]
        self.source: HubSource | LocalSource
        if spec["source"] == "hub":
            label = self.columns.get("label")
            self.source = HubSource(spec, place, wanted, None if isinstance(label, list) else label)
        else:
            self.source = LocalSource(spec, place, wanted)
        self.files = self.source.files
        self.noted: dict[str, Counter] = {}
        self.drop_labels = {str(label) for label in spec.get("drop_labels", [])}
        self.label_names: list[str] = []
        self.label_ids: dict[str, int] = {}
        if self.kind in LABELLED or self.kind == "multiple_choice":
            self.label_names, self.label_ids = self._labels()

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Give the canonical rows of one file or Hub split, each checked; rows that the spec leaves out are counted."""
        noted = self.noted[name] = Counter()
        ids: set[str] = set()
        for i, (number, raw) in enumerate(self.source.rows(name)):
            try:
                if "label" in self.columns and self._raw_label(raw) in self.drop_labels:
                    noted["label left out"] += 1
                    continue
                row = {"id": f"{name}-{i}"} | {ours: self._value(ours, raw) for ours in self.columns}
                if self.spec.get("drop_empty") and _has_empty(row):
                    noted["empty text left out"] += 1
                    continue
                if self.kind == "qa":
                    row = {"title": "", "answer_starts": [-1] * len(row["answers"])} | row
                check_row(row, self.kind, len(self.label_names))
                if "id" in self.columns:
                    if row["id"] in ids:
                        raise Fault(f"the id {row['id']!r} again", "ids once each", "")
                    ids.add(row["id"])
                row |= {ours: _as_text(_get(raw, theirs)) for ours, theirs in self.extra.items()}
            except Fault as fault:
                raise InputError(self.source.place(name, number), *fault.args) from None
            starts = zip(row["answers"], row["answer_starts"], strict=True) if self.kind == "qa" else ()
            if any(start >= 0 and not row["context"].startswith(answer, start) for answer, start in starts):
                noted["answer not at its answer_start"] += 1
            if self.extra_types is None:
                self.extra_types = {c: STRINGS if isinstance(row[c], list) else pa.string() for c in self.extra}
            yield row

    def _value(self, ours: str, raw: dict) -> Any:
        theirs = self.columns[ours]
        if ours == "label":
            return self._label(raw)
        if ours == "choices":
            listed = isinstance(theirs, list)
            value = [_get(raw, column) for column in theirs] if listed else _get(raw, theirs)
            return [_stripped(choice) for choice in value] if isinstance(value, list) else value
        value = _get(raw, theirs)
        if ours == "answers":
            return _listed(value)
        if ours == "answer_starts":
            return [int(v) if isinstance(v, str) and v.lstrip("-").isdecimal() else v for v in _listed(value)]
        if ours == "id":
            return None if value is None else str(value)
        return value if ours == "context" else _stripped(value)

    def _label(self, raw: dict) -> int | float:
        text = self._raw_label(raw)
        if self.kind == "regression":
            try:
                return float(text)
            except ValueError:
                raise Fault(f"label {text!r}", "a finite number", "") from None
        if text in self.label_ids:
            return self.label_ids[text]
        if self.kind == "multiple_choice" and not self.label_names and text.isdecimal():
            return int(text)
        known = ", ".join(map(repr, list(self.label_ids)[:20])) or "a choice's position, from 0"
        raise Fault(
            f"label {text!r}",
            known,
            "Correct label_names or label_map, or leave such rows out with `drop_labels`"
            + (" (-1 often stands for the hidden labels of a test split)." if text == "-1" else "."),
        )

    def _raw_label(self, raw: dict) -> str:
        """Give a row's label as text: the set's own name of it where it has names, otherwise the number or text.

        Of several columns it is the largest number: 1 where any of several faults is marked. Of a list of right choices it
        is the position of the first choice that is one.
        """
        column = self.columns["label"]
        value = _largest(raw, column) if isinstance(column, list) else _get(raw, column)
        if self.kind == "multiple_choice" and isinstance(value, list):
            return _position(value, self._value("choices", raw))
        if isinstance(value, bool) or (isinstance(value, float) and value.is_integer() and self.kind != "regression"):
            value = int(value)
        if not isinstance(value, (str, int, float)) or str(value).strip() in ("", "nan"):
            raise Fault(f"label {value!r}", "a label", "")
        names = self.source.class_names
        if names and isinstance(value, int) and 0 <= value < len(names):
            return names[value]
        return str(value).strip()

    def _labels(self) -> tuple[list[str], dict[str, int]]:
        """Give the label names in the order of their ids, and the id of each label as it may stand in the source.

        Names come from the config, else from the Hub set itself, else from the labels found, in order. Without a
        label_map, a number in the source is a position in the names where no name looks like a number, and the names of
        the config take the place of the Hub set's own ones where the two lists have no name in common.
        """
        own = self.source.class_names
        names = self.spec.get("label_names") or own
        if names is None:
            names = [] if self.kind == "multiple_choice" else self._found_labels()
        ids = {name: i for i, name in enumerate(names)}
        if "label_map" in self.spec:
            ids |= {raw: names.index(label) for raw, label in self.spec["label_map"].items()}
        elif own and set(names) != set(own):
            if set(names) & set(own) or len(names) != len(own):
                raise InputError(
                    f"{self.place}.label_names",
                    str(names),
                    f"the set's own names ({own}) in any order, or as many entirely new ones in that order",
                    "Use label_map to join or rename labels.",
                )
            ids = {name: i for i, name in enumerate(own)}
        elif not any(name.lstrip("-").isdecimal() for name in names):
            ids |= {str(i): i for i in range(len(names))}
        return names, ids

    def _found_labels(self) -> list[str]:
        found: set[str] = set()
        for name in self.spec.get("files") or self.spec["splits"]:
            for number, raw in self.source.rows(name):
                try:
                    found.add(self._raw_label(raw))
                except Fault as fault:
                    raise InputError(self.source.place(name, number), *fault.args) from None
                if len(found) > MOST_INFERRED_LABELS:
                    raise InputError(
                        self.source.place(name, number),
                        f"more than {MOST_INFERRED_LABELS} different labels in column {self.columns['label']!r}",
                        "a column of labels",
                        "Correct `columns`, or give label_names.",
                    )
        found -= self.drop_labels
        whole = all(label.lstrip("-").isdecimal() for label in found)
        return sorted(found, key=int) if whole else sorted(found)


def _get(raw: dict, column: str | int) -> Any:
    """Give the value of a column; `answers.text` is the key `text` inside `answers` unless a column is so named."""
    if column in raw:
        return raw[column]
    value: Any = raw
    for key in str(column).split("."):
        if not isinstance(value, dict) or key not in value:
            raise Fault(f"no column {column!r} among {list(raw)}", "every column that the config names", "")
        value = value[key]
    return value


def _largest(raw: dict, columns: list) -> int:
    values = [_get(raw, column) for column in columns]
    try:
        return max(map(int, values))
    except (TypeError, ValueError):
        raise Fault(f"labels {values}", f"whole numbers in the columns {columns}", "") from None


def _position(right: list, choices: Any) -> str:
    """The position of the first choice that is among the right ones."""
    texts = {_stripped(text) for text in right}
    for place, choice in enumerate(choices if isinstance(choices, list) else ()):
        if choice in texts:
            return str(place)
    raise Fault(f"the right choices {right}", f"at least one of the choices {choices}", "")


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _stripped(value: Any) -> Any:
    # Not str.strip(): it also removes characters such as U+0085, the ellipsis of a cp1252 text read as Latin-1.
    return value.strip(" \t\r\n") if isinstance(value, str) else value


def _as_text(value: Any) -> str | list[str]:
    return [str(item) for item in value] if isinstance(value, list) else "" if value is None else str(value)


def _has_empty(row: dict[str, Any]) -> bool:
    texts = [row[ours] for ours in ("text", "text_pair", "context", "question") if ours in row]
    return any(text is None or (isinstance(text, str) and not text.strip()) for text in texts)
