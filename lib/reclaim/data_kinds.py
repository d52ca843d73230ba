"""The canonical kinds of data set, and the checks of a row, of a table and of a config entry.

reclaim.data says what the kinds are for. Check a config entry (no file is touched) with `check_spec`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from reclaim.data_local import FORMAT_KEYS
from reclaim.errors import InputError

STRINGS = pa.list_(pa.string())
KINDS: dict[str, dict[str, pa.DataType]] = {
    "text": {"text": pa.string()},
    "classification": {"text": pa.string(), "label": pa.int64()},
    "pair_classification": {"text": pa.string(), "text_pair": pa.string(), "label": pa.int64()},
    "regression": {"text": pa.string(), "text_pair": pa.string(), "label": pa.float64()},
    "multiple_choice": {"text": pa.string(), "choices": STRINGS, "label": pa.int64()},
    "qa": {
        "title": pa.string(),
        "context": pa.string(),
        "question": pa.string(),
        "answers": STRINGS,
        "answer_starts": pa.list_(pa.int64()),
    },
}
LABELLED = ("classification", "pair_classification")
# Canonical columns that are read only where the config names them.
OPTIONAL = ("id", "title", "answer_starts")


def validate_table(frame: pd.DataFrame, kind: str, label_names: list[str], place: str) -> None:
    """Check that a frame is a canonical table of `kind`; columns beside the canonical ones are allowed.

    Raises InputError at the first fault, with the row's position.
    """
    if kind not in KINDS:
        raise InputError(place, f"kind {kind!r}", f"one of {list(KINDS)}")
    missing = [column for column in ("id", *KINDS[kind]) if column not in frame.columns]
    if missing:
        raise InputError(place, f"columns {list(frame.columns)}", f"columns {['id', *KINDS[kind]]} (kind {kind})")
    if not len(frame):
        raise InputError(place, "no rows", "at least one row")
    if "label" in KINDS[kind]:
        dtype = str(KINDS[kind]["label"]).replace("double", "float64")
        if str(frame["label"].dtype) != dtype:
            raise InputError(place, f"labels of type {frame['label'].dtype}", f"{dtype} (kind {kind})")
    repeated = frame["id"][frame["id"].duplicated()]
    if len(repeated):
        raise InputError(place, f"the id {repeated.iloc[0]!r} twice", "ids once each")
    for i, row in enumerate(records(frame[["id", *KINDS[kind]]])):
        try:
            check_row(row, kind, len(label_names))
        except Fault as fault:
            raise InputError(f"{place}, row {i}", *fault.args) from None


class Fault(Exception):
    """(found, expected, remedy) of a row; whoever knows the place turns it into an InputError."""


def check_row(row: dict[str, Any], kind: str, label_count: int) -> None:
    """Check one canonical row of plain Python values, labels being ids below `label_count`; raises Fault."""
    for column in ("id", "text", "text_pair", "context", "question", "title"):
        if column in row:
            _check_text(row[column], column, blank_allowed=column == "title")
    for column in ("choices", "answers"):
        if column in row:
            if not isinstance(row[column], list):
                raise Fault(f"{column} of type {type(row[column]).__name__}", "a list of texts", "")
            for text in row[column]:
                _check_text(text, column)
    label: Any = row.get("label")
    if kind == "regression":
        if not isinstance(label, float) or not math.isfinite(label):
            raise Fault(f"label {label!r}", "a finite number", "")
    elif kind == "multiple_choice":
        if len(row["choices"]) < 2 or not 0 <= label < len(row["choices"]):
            raise Fault(f"label {label} of {len(row['choices'])} choices", "a choice's position, from 0", "")
    elif kind in LABELLED and not 0 <= label < label_count:
        raise Fault(f"label {label}", f"a label from 0 to {label_count - 1}", "")
    elif kind == "qa":
        starts = row["answer_starts"]
        if len(starts) != len(row["answers"]):
            raise Fault(f"{len(starts)} answer_starts for {len(row['answers'])} answers", "as many of each", "")
        for start in starts:
            if not isinstance(start, int) or not -1 <= start < len(row["context"]):
                raise Fault(f"answer_start {start}", f"-1 or an offset into {len(row['context'])} characters", "")


def _check_text(text: Any, column: str, blank_allowed: bool = False) -> None:
    if not isinstance(text, str):
        raise Fault(f"{column} {text!r}", "a text", "`drop_empty: true` leaves out rows without text.")
    if not blank_allowed and not text.strip():
        raise Fault(f"an empty {column}", "a text", "`drop_empty: true` leaves out rows without text.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise Fault(f"{column} with half of a surrogate pair", "text that UTF-8 can hold", "") from None


def check_spec(spec: dict[str, Any], place: str) -> None:
    """Check one entry of `data:` without touching its files; raises InputError that names the key under `place`."""
    import jsonschema

    _check_keys(spec, place)
    errors = jsonschema.Draft202012Validator(spec_schema()).iter_errors(spec)
    error = jsonschema.exceptions.best_match(errors)
    if error is not None:
        keys = ".".join([place, *map(str, error.absolute_path)])
        if error.validator in ("required", "additionalProperties"):
            known = ", ".join(error.schema.get("properties", {})) or ", ".join(
                error.schema.get("patternProperties", {})
            )
            raise InputError(keys, error.message, f"keys among: {known}" if known else "the key")
        found = "neither or both" if error.validator == "oneOf" else repr(error.instance)
        raise InputError(keys, found, error.schema.get("description", error.message))
    if spec["source"] == "world":
        from reclaim.world.generators import GENERATORS

        if spec["generator"] not in GENERATORS:
            raise InputError(f"{place}.generator", repr(spec["generator"]), f"one of {', '.join(GENERATORS)}")
        return
    kind, columns = spec["kind"], spec.get("columns", {})
    if spec["source"] == "local":
        _check_format(spec, place)
    allowed = ["id", *KINDS[kind]]
    for column in columns:
        if column not in allowed:
            raise InputError(
                f"{place}.columns", repr(column), f"columns of kind {kind}: {allowed}", "See extra_columns."
            )
    for column in spec.get("extra_columns", {}):
        if column in allowed:
            raise InputError(f"{place}.extra_columns", repr(column), f"a name other than {allowed}")
    names = spec.get("label_names")
    if kind in ("text", "regression", "qa"):
        for key in ("label_names", "label_map", "drop_labels"):
            if key in spec:
                raise InputError(f"{place}.{key}", "labels", f"none: kind {kind} has no label names", "Remove the key.")
    for raw, label in spec.get("label_map", {}).items():
        if label not in (names or ()):
            raise InputError(f"{place}.label_map", f"{raw!r}: {label!r}", f"one of label_names ({names})")
    pools = spec["files" if spec["source"] == "local" else "splits"]
    taken = [split for split in ("dev", "test") if split in spec.get("split", {})]
    if "all" in pools and (len(pools) > 1 or not taken):
        raise InputError(
            place, f"`all` with {sorted(set(pools) - {'all'}) or 'no `split`'}", "`all` alone, and a `split`"
        )
    for split in taken:
        if split in pools or not {"all", "train"} & set(pools):
            raise InputError(
                f"{place}.split.{split}",
                f"a share of {sorted(pools)}",
                f"`all` or `train` to take it from, no own {split}",
            )
    if sum(spec["split"][split] for split in taken) >= 1:
        raise InputError(f"{place}.split", str(spec["split"]), "shares that leave something for train")
    if spec.get("split", {}).get("stratify") and kind not in LABELLED:
        raise InputError(f"{place}.split.stratify", f"kind {kind}", f"a kind with classes: {list(LABELLED)}")
    made = set(pools) - {"all"} | set(taken) | ({"train"} if "all" in pools else set())
    for split in spec.get("limit", {}):
        if split not in made:
            raise InputError(f"{place}.limit", repr(split), f"a split that the data set has: {sorted(made)}")


@cache
def spec_schema() -> dict[str, Any]:
    """Give the JSON Schema of one entry of `data:`."""
    return yaml.safe_load((Path(__file__).parent / "data.schema.yaml").read_text(encoding="utf-8"))


def records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Give the rows of a frame as dicts of plain Python values."""
    columns = [[v.tolist() if isinstance(v, np.ndarray) else v for v in frame[column].tolist()] for column in frame]
    for values in zip(*columns, strict=True):
        yield dict(zip(frame.columns, values, strict=True))


def _check_keys(value: Any, place: str) -> None:
    """Refuse keys that YAML does not read as text, such as 0, yes and no."""
    for key, below in value.items() if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise InputError(place, f"the key {key!r}", "text", "Put it in quotation marks.")
        _check_keys(below, f"{place}.{key}")


def _check_format(spec: dict[str, Any], place: str) -> None:
    """Refuse keys of a local data set that its format has no use for, and formats that do not fit the kind."""
    form, kind = spec["format"], spec["kind"]
    for key in sorted(set().union(*FORMAT_KEYS.values()) & set(spec) - FORMAT_KEYS[form]):
        raise InputError(f"{place}.{key}", "the key", f"only keys for format {form}: {sorted(FORMAT_KEYS[form])}")
    fixed = {"text": "text", "label_text": "classification"}.get(form, kind)
    if kind != fixed:
        raise InputError(f"{place}.kind", repr(kind), f"{fixed} (the only kind of format {form})")
    headless = form in ("tsv", "csv") and not spec.get("header", True)
    named = {**spec.get("columns", {}), **spec.get("extra_columns", {})}
    for ours in KINDS[kind] if headless else ():
        if ours not in named and ours not in OPTIONAL:
            raise InputError(
                f"{place}.columns", f"no position of {ours!r}", "positions from 0 of all columns (no header)"
            )
    for ours, theirs in named.items():
        for column in theirs if isinstance(theirs, list) else [theirs]:
            if isinstance(column, int) != headless:
                expected = (
                    "a position from 0 (the file has no header)" if headless else "a column's name, in quotation marks"
                )
                raise InputError(f"{place}.columns.{ours}", repr(column), expected)
