"""Sources of data (the generated world, the Hub, your own files) turned into one canonical form.

A canonical data set is a folder with one `<split>.parquet` for each of train, dev and test that exists, and
`dataset.json` (kind, label_names, where it came from with checksums, rows, label counts, what was left out). Whatever
comes after reads this form only, so that a Hub set, a local TSV and the embedded world go through the same code.

    kind                  columns beside id (a string, unique in its split)
    text                  text
    classification        text, label (int64)
    pair_classification   text, text_pair, label (int64)
    regression            text, text_pair, label (float64)
    multiple_choice       text, choices (list of strings), label (int64, position in choices)
    qa                    title, context, question, answers (list of strings), answer_starts (list of int64; -1 unknown)

Outer blanks of texts are removed, except in contexts and answers, where offsets count. `extra_columns` follow as
strings. A text that stands in two splits is a leak from training to test. By default it is dropped from train (and from
dev if it stands in test), compared without regard to case and spacing; `dataset.json` has the number. Rows of the world
are only counted, because its generators keep the splits of a task apart and a corpus must stay as it was measured.

Rows pass one at a time from the source to the Parquet file, so that a corpus need not fit into memory.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from reclaim.data_kinds import KINDS, LABELLED, check_spec, records, spec_schema, validate_table
from reclaim.data_local import expand_path, sha256
from reclaim.data_table import TableReader
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json
from reclaim.seeding import derive

__all__ = [
    "KINDS",
    "check_spec",
    "iter_split",
    "iter_texts",
    "load_info",
    "load_split",
    "source_files",
    "materialize",
    "spec_schema",
    "validate_table",
]

log = logging.getLogger(__name__)

SPLITS = ("test", "dev", "train")  # in this order, a row yields to those before it
ROWS_PER_GROUP = 5000


def materialize(spec: dict[str, Any], out_dir: str | Path) -> None:
    """Write the data set that `spec` (an entry of `data:` in the config) describes as a canonical folder.

    Raises InputError for a wrong spec, an unreadable source and a row that does not fit; `out_dir` is then as before.
    """
    out_dir = Path(out_dir)
    place = f"data.{out_dir.name}"
    check_spec(spec, place)
    reader = WorldReader(spec, place) if spec["source"] == "world" else TableReader(spec, place)
    parts = _parts(spec, reader)
    with atomic_path(out_dir, directory=True) as folder:
        rows: dict[str, int] = {}
        label_counts: dict[str, dict[str, int]] = {}
        shared: dict[str, int] = {}
        seen: set[bytes] = set()
        # The world's generators keep apart what must be apart; a protocol's corpus stays as it was measured.
        duplicates = spec.get("duplicates", "keep" if spec["source"] == "world" else "drop")
        for split in sorted(parts, key=SPLITS.index):
            name, mask = parts[split]
            chosen = (row for i, row in enumerate(reader.rows(name)) if mask is None or mask[i])
            kept = _without_seen(chosen, split, f"{place}, split {split}", reader.kind, duplicates, seen, shared)
            rows[split], label_counts[split] = _write(kept, folder / f"{split}.parquet", reader)
            if not rows[split]:
                left_out = {**reader.noted.get(name, {}), "also in another split": shared[split]}
                raise InputError(f"{place}, split {split}", f"no rows (left out: {left_out})", "at least one row")
            if shared[split]:
                log.warning(
                    "%s: %d rows of %s also stand in another split: %s", place, shared[split], split, duplicates
                )
        info = {
            "kind": reader.kind,
            "label_names": reader.label_names,
            "source": {"spec": spec, "files": reader.files()},
            "rows": rows,
            "label_counts": label_counts,
            "shared_between_splits": shared,
            "noted": {name: dict(counts) for name, counts in reader.noted.items() if counts},
            "sha256": {f"{split}.parquet": sha256(folder / f"{split}.parquet") for split in rows},
        }
        write_json(info, folder / "dataset.json")


def load_info(folder: str | Path) -> dict[str, Any]:
    """Read `dataset.json` of a canonical folder."""
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise InputError(
            str(path), "no such file", "a folder written by reclaim.data.materialize", "Run its rule again."
        )
    return read_json(path)


def load_split(folder: str | Path, split: str) -> pd.DataFrame:
    """Read one split (train, dev or test) of a canonical folder; lists are Python lists."""
    with _open(folder, split) as file:
        return _frame(file.read())


def iter_split(
    folder: str | Path, split: str, batch_size: int = ROWS_PER_GROUP, first: int = 0
) -> Iterator[pd.DataFrame]:
    """Read one split in frames of at most `batch_size` rows, for corpora that do not fit into memory.

    `first`: the row to begin at; groups of rows that end before it are not read.
    """
    with _open(folder, split) as file:
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        groups = np.flatnonzero(ends > first).tolist()
        start = int(ends[groups[0] - 1]) if groups and groups[0] else 0
        for batch in file.iter_batches(batch_size, row_groups=groups):
            end = start + len(batch)
            if end > first:
                yield _frame(pa.Table.from_batches([batch.slice(max(0, first - start))]))
            start = end


def source_files(spec: dict[str, Any], place: str) -> list[str]:
    """Paths of the files behind a local data set ([] for other sources); raises InputError for one that is not there."""
    if spec["source"] != "local":
        return []
    paths = {name: expand_path(text, f"{place}.files.{name}") for name, text in spec["files"].items()}
    for name, path in paths.items():
        if not path.is_file():
            raise InputError(f"{place}.files.{name}", f"no file {path}", "a file", "Correct the path.")
    return list(map(str, paths.values()))


def iter_texts(folder: str | Path, splits: Sequence[str] = SPLITS) -> Iterator[str]:
    """Give every text of the named splits that exist: all text columns, list columns element by element."""
    for split in splits:
        if split in load_info(folder)["rows"]:
            for frame in iter_split(folder, split):
                for column in frame.columns.drop("id"):
                    for value in frame[column]:
                        if isinstance(value, str):
                            yield value
                        elif isinstance(value, list):
                            yield from (text for text in value if isinstance(text, str))


class WorldReader:
    """Rows of a generator of the embedded world, which makes canonical tables; further columns are kept as they are."""

    def __init__(self, spec: dict[str, Any], place: str):
        from reclaim.world import generators

        name = spec["generator"]
        info = generators.info(name)
        self.kind, self.label_names = info["kind"], list(info["label_names"])
        self.frames = generators.generate(name, spec["splits"], spec.get("seed", 0), **spec.get("parameters", {}))
        for split, frame in self.frames.items():
            validate_table(frame, self.kind, self.label_names, f"{place} (generator {name}), split {split}")
        first = next(iter(self.frames.values()))
        extra = [column for column in first.columns if column not in ("id", *KINDS[self.kind])]
        schema = pa.Schema.from_pandas(first[extra], preserve_index=False)
        self.extra_types = dict(zip(schema.names, schema.types, strict=True))
        self.noted: dict[str, Counter] = {}

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Give the canonical rows of a split."""
        return records(self.frames[name])

    def files(self) -> dict[str, str]:
        """No file stands behind the world."""
        return {}


def _parts(spec: dict[str, Any], reader: TableReader | WorldReader) -> dict[str, tuple[str, np.ndarray | None]]:
    """Give for each split the name of the source's part it comes from, and which of its rows (None: all of them)."""
    if spec["source"] == "world":
        return {split: (split, None) for split in spec["splits"]}
    pools = spec.get("files") or spec["splits"]
    parts: dict[str, tuple[str, np.ndarray | None]] = {split: (split, None) for split in pools if split != "all"}
    split_spec = spec.get("split", {})
    if split_spec:
        pool = "all" if "all" in pools else "train"
        stratify = split_spec.get("stratify", False)
        groups = np.fromiter((row["label"] if stratify else 0 for row in reader.rows(pool)), dtype=np.int32)
        assigned = np.full(len(groups), SPLITS.index("train"), dtype=np.int8)
        for group in np.unique(groups):
            rng = np.random.default_rng(derive(split_spec.get("seed", 0), "split", group))
            order, start = rng.permutation(np.flatnonzero(groups == group)), 0
            for split in SPLITS[:2]:
                count = round(split_spec.get(split, 0) * len(order))
                assigned[order[start : start + count]] = SPLITS.index(split)
                start += count
        for split in ("train", *(split for split in SPLITS[:2] if split in split_spec)):
            parts[split] = (pool, assigned == SPLITS.index(split))
    for split, limit in spec.get("limit", {}).items():
        name, mask = parts[split]
        rows = np.flatnonzero(mask) if mask is not None else np.arange(sum(1 for _ in reader.rows(name)))
        if len(rows) > limit:
            chosen = np.random.default_rng(derive(0, "limit", split)).choice(len(rows), limit, replace=False)
            size = len(mask) if mask is not None else len(rows)
            mask = np.zeros(size, dtype=bool)
            mask[rows[chosen]] = True
            parts[split] = (name, mask)
    return parts


def _without_seen(
    rows: Iterator[dict[str, Any]],
    split: str,
    place: str,
    kind: str,
    duplicates: str,
    seen: set[bytes],
    shared: dict[str, int],
) -> Iterator[dict[str, Any]]:
    """Pass on the rows whose text is not in `seen` (the texts of the splits before), counting the others in `shared`.

    At the end, `seen` has this split's texts too; those of train, the last and largest one, are not needed.
    """
    shared[split], own = 0, set()
    for row in rows:
        key = _text_key(row, kind)
        if key in seen:
            shared[split] += 1
            if duplicates == "refuse":
                raise InputError(
                    f"{place}, row {row['id']!r}",
                    "a text that another split also has",
                    "splits without common texts (`duplicates: refuse`)",
                    "`duplicates: drop` leaves such rows out of train and dev.",
                )
            if duplicates == "drop":
                continue
        if split != "train":
            own.add(key)
        yield row
    seen |= own


def _text_key(row: dict[str, Any], kind: str) -> bytes:
    """Give 16 bytes that are the same for texts that differ in case and spacing only."""
    texts = []
    for column in KINDS[kind]:
        if column in ("text", "text_pair", "context", "question"):
            texts.append(row[column])
        elif column == "choices":
            texts.extend(row[column])
    text = "\x1f".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _write(rows: Iterator[dict[str, Any]], path: Path, reader: TableReader | WorldReader) -> tuple[int, dict[str, int]]:
    """Write rows as Parquet, some thousands at a time; gives their number and the number of rows per label name."""
    chunk = list(islice(rows, ROWS_PER_GROUP))
    schema = pa.schema({"id": pa.string(), **KINDS[reader.kind], **(reader.extra_types or {})})
    count = 0
    label_counts: Counter[str] = Counter()
    with pq.ParquetWriter(path, schema) as writer:
        while chunk:
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
            count += len(chunk)
            if reader.kind in LABELLED:
                label_counts.update(reader.label_names[row["label"]] for row in chunk)
            if count % (200 * ROWS_PER_GROUP) == 0:
                log.info("%s: %d rows", path.name, count)
            chunk = list(islice(rows, ROWS_PER_GROUP))
    return count, dict(label_counts)


@contextmanager
def _open(folder: str | Path, split: str) -> Iterator[pq.ParquetFile]:
    """Open the Parquet file of a split after a look at whether it is there and whole."""
    info, path = load_info(folder), Path(folder) / f"{split}.parquet"
    if split not in info["rows"]:
        raise InputError(f"{folder}", f"no split {split!r}", f"one of {sorted(info['rows'])}")
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != info["rows"][split]:
                raise InputError(
                    str(path), f"{file.metadata.num_rows} rows", f"{info['rows'][split]} as in dataset.json"
                )
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            str(path), f"no readable Parquet file ({error})", "a whole file", "Run its rule again."
        ) from None


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    for field in table.schema:
        if pa.types.is_list(field.type):
            frame[field.name] = pd.Series(table[field.name].to_pylist(), index=frame.index, dtype=object)
    return frame
