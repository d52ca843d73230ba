"""Indexes over passages: built shard by shard, read from the disk at query time, one form of answer whatever the backend.

    build_index(data, spec, folder, state_dir=...)       # the passages of a canonical data set, kind `text`
    open_index(folder).search(queries, k)                # a table: query, rank, passage, score

A passage is the row's `title`, where it has one, a newline and its `text` (Gao et al. 2023, section 3.1 of the code: the
string that GTR encodes); its id is the row's. Backends: `bm25` (`reclaim.retrieval_bm25`) and `dense`
(`reclaim.retrieval_dense`). An index has `shards` pieces, each of which is all that has to fit into memory while it is
built. Scores use statistics of the whole corpus, and equal scores are ordered by the row's number, so that any number of
shards gives the same table. A shard is written whole or not at all, with the checksums of its files: a build that was
killed goes on behind the last one, and `build_index` on a finished index makes anew the shards whose checksums are wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from reclaim.data import iter_split, load_info
from reclaim.data_local import sha256
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json

COLUMNS = ("query", "rank", "passage", "score")
Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32 (texts, width)."""


class Backend(Protocol):
    """What a kind of index does; `reclaim.retrieval_bm25.Bm25` and `reclaim.retrieval_dense.Dense` are the two."""

    def prepare(self, passages: Passages, folder: Path, progress) -> dict[str, Any]:
        """Write what all shards share into `folder`, once for the whole corpus, and give what the index file says of it."""

    def write_shard(
        self, passages: Passages, number: int, shared: Path, facts: Mapping[str, Any], folder: Path
    ) -> None:
        """Write the files of a shard into `folder`."""

    def open_shard(self, folder: Path, rows: int) -> Any:
        """Open a shard; what it gives has `search(prepared, k, allowed) -> list of (rows, scores)`, best first."""

    def prepare_queries(self, queries: Sequence[str], shared: Path, facts: Mapping[str, Any]) -> Any:
        """What all shards need to know of the queries."""


class Passages:
    """The rows of a canonical data set in shards of equal size (the last one may be smaller)."""

    def __init__(self, folder: str | Path, split: str, shards: int):
        info = load_info(folder)
        if split not in info["rows"] or info["kind"] != "text":
            raise InputError(f"{folder}", f"kind {info['kind']}, splits {sorted(info['rows'])}", f"texts in {split}")
        self.folder, self.split, self.digest = Path(folder), split, info["sha256"][f"{split}.parquet"]
        self.size = info["rows"][split]
        self.per_shard = -(-self.size // shards)
        self.shards = -(-self.size // self.per_shard)

    def rows_of(self, number: int) -> int:
        return min(self.per_shard, self.size - number * self.per_shard)

    def shard(self, number: int) -> Iterator[pd.DataFrame]:
        """Frames with the columns `id` and `passage` of a shard."""
        left = self.rows_of(number)
        for frame in iter_split(self.folder, self.split, first=number * self.per_shard):
            part = frame.iloc[:left]
            yield pd.DataFrame({"id": part["id"], "passage": passage_texts(part)})
            left -= len(part)
            if not left:
                return

    def texts(self, number: int) -> Iterator[str]:
        for frame in self.shard(number):
            yield from frame["passage"]


def passage_texts(frame: pd.DataFrame) -> list[str]:
    """The strings that are indexed: title, newline, text; the text alone where there is no title."""
    if "title" not in frame:
        return frame["text"].tolist()
    return [f"{title}\n{text}" if title else text for title, text in zip(frame["title"], frame["text"], strict=True)]


# ------------------------------------------------------------------------------------------------------------------ build


def make_backend(spec: Mapping[str, Any], encode: Encode | None = None, place: str = "index") -> Backend:
    """The backend of a spec: `backend`, and the settings of its module. Raises InputError for what does not fit."""
    from reclaim.retrieval_bm25 import Bm25
    from reclaim.retrieval_dense import Dense

    settings = {key: value for key, value in spec.items() if key not in NOT_SETTINGS}
    try:
        if spec["backend"] == "bm25":
            return Bm25(**settings)
        if spec["backend"] == "dense":
            return Dense(encode=encode, **settings)
    except TypeError as error:
        raise InputError(place, str(error), f"settings of the backend {spec['backend']}") from None
    raise InputError(f"{place}.backend", repr(spec["backend"]), "bm25 or dense")


NOT_SETTINGS = ("backend", "data", "split", "shards", "model", "pooling", "normalize", "dtype", "max_length")
"""Keys of an entry of `indexes:` that are not the backend's: those of the encoder are for `reclaim.encoders`."""


def build_index(
    data: str | Path,
    spec: Mapping[str, Any],
    folder: str | Path,
    *,
    state_dir: str | Path,
    encode: Encode | None = None,
    encoder: str = "",
    progress: Callable[..., Iterable[Any]] = iter,
) -> None:
    """Build an index over the passages of a canonical data set, or mend a finished one at `folder`.

    `spec`: `backend`, `shards` (default 1), `split` (default train) and the backend's settings. `encode` turns passages into
    vectors (dense); `encoder` is whatever identifies it. Finished shards lie in `state_dir`, from which a build that was
    stopped goes on, as long as data, spec and encoder are the same. Raises InputError for data that is not of kind `text`.
    """
    folder, state_dir = Path(folder), Path(state_dir)
    backend = make_backend(spec, encode)
    passages = Passages(data, spec.get("split", "train"), spec.get("shards", 1))
    identity = {"spec": {k: v for k, v in spec.items() if k != "data"}, "data": passages.digest, "encoder": encoder}
    if folder.exists():
        if read_json(folder / "index.json")["identity"] != identity:
            raise InputError(str(folder), "an index of other data or settings", "none, or a damaged one of this spec")
        state_dir = folder
    elif not (state_dir / "identity.json").exists() or read_json(state_dir / "identity.json") != identity:
        shutil.rmtree(state_dir, ignore_errors=True)
        write_json(identity, state_dir / "identity.json")
    if damage(state_dir / "shared"):
        with _piece(state_dir / "shared") as temporary:
            facts = backend.prepare(passages, temporary, progress)
            write_json(facts, temporary / "facts.json")
    facts = read_json(state_dir / "shared" / "facts.json")
    for number in progress(range(passages.shards)):
        place = state_dir / shard_name(number)
        if damage(place):
            with _piece(place) as temporary:
                _write_ids(passages, number, temporary / "ids.npy")
                backend.write_shard(passages, number, state_dir / "shared", facts, temporary)
    if state_dir != folder:
        rows = [passages.rows_of(number) for number in range(passages.shards)]
        write_json({"identity": identity, "spec": dict(spec), "facts": facts, "rows": rows}, state_dir / "index.json")
        (state_dir / "identity.json").unlink()
        with atomic_path(folder, directory=True) as temporary:
            temporary.rmdir()
            shutil.move(state_dir, temporary)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


@contextmanager
def _piece(place: Path) -> Iterator[Path]:
    """A folder that appears at once, with the checksums of its files."""
    with atomic_path(place, directory=True) as temporary:
        yield temporary
        sums = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        write_json(sums, temporary / "sha256.json")


def damage(place: Path) -> str:
    """What is wrong with a piece of an index ("" if nothing): it is not there, or a file is not what was written."""
    if not (place / "sha256.json").exists():
        return "missing"
    try:
        sums = read_json(place / "sha256.json")
    except ValueError:
        return "its checksums are unreadable"
    for name, expected in sums.items():
        if not (place / name).exists():
            return f"{name} is missing"
        if sha256(place / name) != expected:
            return f"{name} is not what was written"
    return ""


def _write_ids(passages: Passages, number: int, path: Path) -> None:
    """The ids of a shard's rows as fixed-width UTF-8, which can be memory-mapped."""
    ids = [text.encode() for frame in passages.shard(number) for text in frame["id"]]
    np.save(path, np.array(ids, dtype=np.bytes_))


# ------------------------------------------------------------------------------------------------------------------ query


class Index:
    """A built index. `ids` are those of all passages in the order of their rows."""

    def __init__(self, folder: Path, record: Mapping[str, Any], backend: Backend):
        self.shared, self.facts, self.rows, self.backend = folder / "shared", record["facts"], record["rows"], backend
        places = [folder / shard_name(number) for number in range(len(self.rows))]
        self.shards = [backend.open_shard(place, rows) for place, rows in zip(places, self.rows, strict=True)]
        self._ids = [np.asarray(np.load(place / "ids.npy", mmap_mode="r")) for place in places]

    @property
    def ids(self) -> list[str]:
        return [text.decode() for part in self._ids for text in part.tolist()]

    def search(self, queries: Mapping[str, str], k: int, among: Iterable[str] | None = None) -> pd.DataFrame:
        """The best `k` passages of every query (id -> text), of those `among` where ids are given.

        Columns: query, rank (from 1), passage (its id), score; best first, equal scores in the order of the passages. BM25
        finds no passage that shares no word with the query, so a query may have fewer rows than `k`, or none.
        """
        if k < 1:
            raise InputError("k", str(k), "a positive number of passages")
        wanted = None if among is None else np.array([text.encode() for text in among], dtype=np.bytes_)
        prepared = self.backend.prepare_queries(list(queries.values()), self.shared, self.facts)
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
        first = 0
        for shard, ids, rows in zip(self.shards, self._ids, self.rows, strict=True):
            allowed = None if wanted is None else np.isin(ids, wanted)
            for place, (numbers, scores) in zip(found, shard.search(prepared, k, allowed), strict=True):
                place.append((numbers.astype(np.int64) + first, scores))
            first += rows
        tables = [_merged(parts, k) for parts in found]
        counts = np.array([len(numbers) for numbers, _ in tables], dtype=np.int64)
        nothing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        numbers, scores = map(np.concatenate, zip(*tables, nothing, strict=True))
        return pd.DataFrame(
            {
                "query": pd.array(list(queries), dtype="str").repeat(counts),
                "rank": np.arange(1, len(numbers) + 1) - np.repeat(np.cumsum(counts) - counts, counts),
                "passage": self._names(numbers),
                "score": scores,
            },
            columns=list(COLUMNS),
        )

    def _names(self, numbers: np.ndarray) -> pd.api.extensions.ExtensionArray:
        """The ids of passages. Never objects of Python, which take as long as a search."""
        ends = np.cumsum(self.rows)
        shards = np.searchsorted(ends, numbers, side="right")
        names = np.empty(len(numbers), dtype=max((ids.dtype for ids in self._ids), key=lambda dtype: dtype.itemsize))
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            names[places] = self._ids[shard][numbers[places] - (ends[shard] - self.rows[shard])]
        return pd.array(pa.array(names, type=pa.binary()).cast(pa.string()), dtype="str")


def _merged(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    numbers = np.concatenate([numbers for numbers, _ in parts])
    scores = np.concatenate([scores for _, scores in parts])
    return best(numbers, scores, k)


def best(numbers: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` highest scores with their row numbers, equal scores by row number."""
    if len(scores) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= threshold
        numbers, scores = numbers[keep], scores[keep]
    order = np.lexsort((numbers, -scores))[:k]
    return numbers[order], scores[order]


def open_index(folder: str | Path, encode: Encode | None = None, verify: bool = True) -> Index:
    """Open a built index for queries; its arrays stay on the disk. `encode` is the encoder of queries (dense).

    With `verify` the checksums of all files are compared first, which reads the whole index once. Raises InputError for a
    folder that holds no index and for one with a damaged piece.
    """
    folder = Path(folder)
    if not (folder / "index.json").exists():
        raise InputError(str(folder), "no index.json", "an index written by build_index", "Run its rule again.")
    record = read_json(folder / "index.json")
    for name in ["shared", *map(shard_name, range(len(record["rows"])))] if verify else []:
        if fault := damage(folder / name):
            raise InputError(
                f"{folder}/{name}", fault, "a whole piece", "Run its rule again; build_index mends a piece."
            )
    return Index(folder, record, make_backend(record["spec"], encode, str(folder)))
