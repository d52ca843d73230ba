"""The three long tables of a run: metrics, items and costs.

metrics.parquet  one row per measured number          paper, experiment, variant, seed, metric, value, n, unit
items.parquet    one row per test row, question, ...  paper, experiment, variant, seed, metric, item, value
costs.parquet    what a job used                      paper, experiment, variant, seed, stage, job, measure, value, unit

`variant` names the arm as JSON with sorted keys and no spaces, so that equal arms are equal strings. Costs are kept
apart because they differ from run to run, and metrics and items must not. Accuracy-like values are fractions in 0..1
(unit "fraction"), losses "nats", counts "count", sizes "bytes", times "s".
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reclaim.errors import InputError

COLUMNS: dict[str, dict[str, str]] = {
    "metrics": {
        "paper": "str",
        "experiment": "str",
        "variant": "str",
        "seed": "int64",
        "metric": "str",
        "value": "float64",
        "n": "int64",
        "unit": "str",
    },
    "items": {
        "paper": "str",
        "experiment": "str",
        "variant": "str",
        "seed": "int64",
        "metric": "str",
        "item": "str",
        "value": "float64",
    },
    "costs": {
        "paper": "str",
        "experiment": "str",
        "variant": "str",
        "seed": "int64",
        "stage": "str",
        "job": "str",
        "measure": "str",
        "value": "float64",
        "unit": "str",
    },
}
NOT_KEYS = ("value", "n", "unit")


def variant_json(variant: Mapping[str, Any]) -> str:
    """Write a variant as the one JSON text that equal variants share: sorted keys, no spaces.

    Numpy scalars become numbers. Raises InputError for values that JSON has not.
    """
    plain = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in variant.items()}
    try:
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            "variant", repr(dict(variant)), "text, finite numbers, true, false or null", str(error)
        ) from None


def frame(rows: Iterable[Mapping[str, Any]], kind: str, place: str = "") -> pd.DataFrame:
    """Make a checked table of `kind` ("metrics", "items" or "costs") from row mappings; `variant` may be a mapping.

    Raises InputError as `validate` does, naming `place`.
    """
    rows = [
        {**row, "variant": variant_json(row["variant"])} if isinstance(row.get("variant"), Mapping) else row
        for row in rows
    ]
    return validate(pd.DataFrame(rows) if rows else empty(kind), kind, place or f"{kind} rows")


def empty(kind: str) -> pd.DataFrame:
    """Give the table of `kind` without rows."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS[kind].items()})


def validate(table: pd.DataFrame, kind: str, place: str) -> pd.DataFrame:
    """Give `table` with its columns in order and of the right types, sorted by its keys.

    Raises InputError (naming `place`) for missing or unknown columns, missing or non-finite values, a value of the
    wrong type, a variant that is not in the form of `variant_json`, and two rows with the same keys.
    """
    dtypes = COLUMNS[kind]
    if set(table.columns) != set(dtypes) or len(table.columns) != len(dtypes):
        missing, extra = sorted(set(dtypes) - set(table.columns)), sorted(set(table.columns) - set(dtypes))
        raise InputError(
            place,
            f"columns {list(table.columns)} (missing {missing}, unknown {extra})",
            f"the {kind} columns {list(dtypes)}",
        )
    table = table[list(dtypes)]
    for column, dtype in dtypes.items():
        if table[column].isna().any():
            row = table[table[column].isna()].iloc[0].to_dict()
            raise InputError(
                f"{place}: column {column}", f"no value in {row}", "a value in every row", "A failed run has no row."
            )
        if dtype == "str":
            wrong = [value for value in table[column].unique() if not isinstance(value, str)]
            if wrong:
                raise InputError(f"{place}: column {column}", repr(wrong[0]), "text")
            continue
        try:
            number = pd.to_numeric(table[column])
        except (TypeError, ValueError) as error:
            raise InputError(f"{place}: column {column}", str(error), "numbers") from None
        if not np.isfinite(number).all():
            raise InputError(
                f"{place}: column {column}", table[~np.isfinite(number)].iloc[0].to_dict(), "a finite number"
            )
        if dtype == "int64" and (number != number.round()).any():
            raise InputError(
                f"{place}: column {column}", repr(number[number != number.round()].iloc[0]), "whole numbers"
            )
    table = table.astype(dtypes)
    for text in table["variant"].unique():
        parse_variant(text, place)
    keys = [column for column in dtypes if column not in NOT_KEYS]
    repeated = table.duplicated(keys)
    if repeated.any():
        row = table.loc[repeated, keys].iloc[0].to_dict()
        raise InputError(place, f"two rows with the keys {row}", "one row per key", "Give the runs different variants.")
    return table.sort_values(keys, kind="stable", ignore_index=True)


def parse_variant(text: str, place: str = "variant") -> dict[str, Any]:
    """Read a variant text; raises InputError where it is not what `variant_json` writes."""
    try:
        variant = json.loads(text)
        if isinstance(variant, dict) and variant_json(variant) == text:
            return variant
    except ValueError:
        pass
    raise InputError(
        f"{place}: column variant", repr(text), "a JSON object with sorted keys and no spaces", "Use variant_json."
    )


def read(path: str | Path, kind: str) -> pd.DataFrame:
    """Read and check one Parquet table of `kind`."""
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(str(path), "no such file", f"a Parquet file with {kind} rows") from None
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"an unreadable file ({error})", f"a Parquet file with {kind} rows") from None
    return validate(table, kind, str(path))


def concat(tables: Sequence[pd.DataFrame], kind: str, place: str = "") -> pd.DataFrame:
    """Join tables of one kind; the result does not depend on their order. Raises InputError where they share a key."""
    filled = [table for table in tables if len(table)]
    return validate(
        pd.concat(filled, ignore_index=True) if filled else empty(kind), kind, place or f"{kind} tables joined"
    )


def matches(variant: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Say whether a variant holds every key of `where` with its value.

    A list means any of its values; `{"not": value or list}` means none of them, and a variant without the key passes.
    Numbers compare by value (0.4 and 0.40), true and false only with themselves.
    """
    for key, wanted in where.items():
        negated = isinstance(wanted, Mapping)
        if negated:
            wanted = wanted["not"]
        options = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        found = key in variant and any(_equal(variant[key], option) for option in options)
        if found == negated:
            return False
    return True


def _equal(left: Any, right: Any) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def select(
    table: pd.DataFrame,
    paper: str | None = None,
    experiment: str | Sequence[str] | None = None,
    metric: str | None = None,
    where: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Give the rows of a table whose variant matches `where` (see `matches`); for costs, `metric` is the measure."""
    keep = pd.Series(True, index=table.index)
    if paper is not None:
        keep &= table["paper"] == paper
    if experiment is not None:
        keep &= table["experiment"].isin([experiment] if isinstance(experiment, str) else list(experiment))
    if metric is not None:
        keep &= table["measure" if "measure" in table.columns else "metric"] == metric
    table = table[keep]
    if where:
        texts = [text for text in table["variant"].unique() if matches(json.loads(text), where)]
        table = table[table["variant"].isin(texts)]
    return table
