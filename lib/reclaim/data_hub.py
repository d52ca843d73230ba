"""Data sets of the Hugging Face Hub, at a pinned commit, or from a downloaded copy of a repository.

No code of a repository runs: `datasets` 5 has no loading scripts. A set that still is a script must be named at a
commit of its Parquet branch (`refs/convert/parquet`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reclaim.data_local import BATCH_ROWS, expand_path, sha256, top_column
from reclaim.errors import InputError


class HubSource:
    """The splits of one data set of the Hub, memory-mapped; `rows(name)` gives (0-based row, row) pairs.

    `class_names` are the names that the set itself gives to the integers of the label column, where it does.
    """

    def __init__(self, spec: dict[str, Any], place: str, columns: list[str | int], label_column: str | int | None):
        import datasets

        self.spec, self.columns = spec, columns
        self.folder = None
        if "path" in spec:
            self.folder = expand_path(spec["path"], f"{place}.path")
            if not self.folder.is_dir():
                raise InputError(
                    f"{place}.path", f"no folder {self.folder}", "a folder with a copy of a Hub repository"
                )
            self.label = str(self.folder)
        else:
            self.label = f"{spec['id']}@{spec['revision'][:12]}"
            if Path(spec["id"]).exists():
                raise InputError(
                    f"{place}.id",
                    f"{spec['id']!r}, which is also a path under {Path.cwd()} and would be read instead of the Hub",
                    "the id of a data set of the Hub",
                    "Use `path` for a folder, or run from another working directory.",
                )
        self.splits = {}
        for name, split in spec["splits"].items():
            try:
                self.splits[name] = datasets.load_dataset(
                    str(self.folder or spec["id"]), spec.get("name"), split=split, revision=spec.get("revision")
                )
            except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
                raise InputError(
                    f"{place}.splits.{name} ({self.label}, {spec.get('name', 'no name')}, split {split})",
                    f"a set that cannot be loaded ({type(error).__name__}: {error})",
                    "a data set of data files, reachable or in the local cache",
                    "Without network, download the repository elsewhere and give its folder as `path`; for a set made "
                    "by a script, take the commit of its branch refs/convert/parquet as `revision`.",
                ) from error
        for name, dataset in self.splits.items():
            for column in columns:
                if top_column(column, dataset.column_names) not in dataset.column_names:
                    raise InputError(
                        f"{place}.columns",
                        f"no column {column!r} in {self.label}, split {spec['splits'][name]}: {dataset.column_names}",
                        "columns that the set has",
                    )
        feature = next(iter(self.splits.values())).features.get(label_column)
        self.class_names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def rows(self, name: str) -> Iterator[tuple[int, dict]]:
        """Give (0-based row, row) pairs of one of the named splits, the columns that were asked for."""
        dataset = self.splits[name]
        tops = list(dict.fromkeys(top_column(column, dataset.column_names) for column in self.columns))
        number = 0
        for batch in dataset.select_columns(tops).with_format("arrow").iter(BATCH_ROWS):
            for row in batch.to_pylist():
                yield number, row
                number += 1

    def place(self, name: str, number: int) -> str:
        """Say where a row is, for error messages."""
        return f"{self.label}, split {self.spec['splits'][name]}, row {number}"

    def files(self) -> dict[str, str]:
        """Give the SHA-256 of the files of a downloaded copy; a pinned commit of the Hub needs none."""
        if self.folder is None:
            return {}
        inside = (path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {str(path): sha256(self.folder / path) for path in inside if not path.parts[0].startswith(".")}
