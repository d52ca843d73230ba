"""What an experiment leaves behind: a folder with some of the tables metrics, items, curves, costs, and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reclaim.io import atomic_path, write_parquet
from reclaim.tables import COLUMNS, concat, validate, variant_json

CURVES = ("paper", "experiment", "variant", "seed", "step", "measure", "value", "unit")


def write_outcome(outcome: Mapping[str, Any], folder: str | Path, **key: Any) -> None:
    """Write an outcome as one folder, with `key` (paper, experiment, seed; stage and job of costs) put beside each row.

    `outcome` has `metrics`, `items`, `curves`, `costs` (frames or iterables of rows, variants as mappings or texts) and
    `pictures` (file name -> PNG bytes), each optional, and `predictions`, a frame kept as it is, from which metrics can be
    recomputed without the model. The file of metrics is always there. Raises InputError for rows that do not fit their table.
    """
    with atomic_path(folder, directory=True) as temporary:
        for kind in ("metrics", "items", "curves", "costs"):
            if kind in outcome or kind == "metrics":
                columns = CURVES if kind == "curves" else COLUMNS[kind]
                table = _with_key(
                    outcome.get(kind, ()), {name: value for name, value in key.items() if name in columns}
                )
                write_parquet(_checked(table, kind, f"{folder}: {kind}"), temporary / f"{kind}.parquet")
        if "predictions" in outcome:
            write_parquet(outcome["predictions"], temporary / "predictions.parquet")
        for name, data in outcome.get("pictures", {}).items():
            (temporary / "pictures").mkdir(exist_ok=True)
            (temporary / "pictures" / name).write_bytes(data)


def read_outcomes(folders: Iterable[str | Path], kind: str) -> pd.DataFrame:
    """Join the tables of a kind that the folders hold, in an order that does not depend on theirs."""
    paths = [Path(folder) / f"{kind}.parquet" for folder in folders]
    tables = [pd.read_parquet(path) for path in paths if path.exists()]
    if kind != "curves":
        return concat(tables, kind)
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(CURVES))
    return joined.sort_values(["paper", "experiment", "variant", "seed", "measure", "step"], ignore_index=True)


def read_pictures(folders: Iterable[str | Path]) -> dict[str, dict[str, bytes]]:
    """Pictures that outcomes hold: paper -> `experiment/job/file name` -> PNG bytes. Folders are `.../paper/experiment/job`."""
    pictures: dict[str, dict[str, bytes]] = {}
    for folder in map(Path, folders):
        for path in sorted(folder.glob("pictures/*.png")):
            experiment, job = folder.parts[-2:]
            pictures.setdefault(folder.parts[-3], {})[f"{experiment}/{job}/{path.name}"] = path.read_bytes()
    return pictures


def stretches(losses: Sequence[float], every: int = 10) -> list[tuple[int, float]]:
    """A training loss averaged over stretches of `every` steps: (last step of a stretch, counted from 1; mean)."""
    ends = range(every, len(losses) + 1, every)
    return [(end, float(np.mean(losses[end - every : end]))) for end in ends]


def _with_key(rows: pd.DataFrame | Iterable[Mapping[str, Any]], key: Mapping[str, Any]) -> pd.DataFrame:
    table = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if len(table):
        table["variant"] = [value if isinstance(value, str) else variant_json(value) for value in table["variant"]]
    return table.assign(**{name: value for name, value in key.items() if name not in table})


def _checked(table: pd.DataFrame, kind: str, place: str) -> pd.DataFrame:
    if kind == "curves":
        return table[list(CURVES)]
    return validate(table if len(table) else table.reindex(columns=list(COLUMNS[kind])), kind, place)
