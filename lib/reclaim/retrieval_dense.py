"""Dense indexes: vectors of passages in shards, searched exactly or by any index type of faiss.

`index_type` `flat32` and `flat16` keep the vectors as they are (float32 or float16) and compare a query with all of them.
For the few thousand questions of a benchmark that is the right choice at any size: the shards are read once from the disk,
all questions as one matrix. Anything else is a description for `faiss.index_factory`, such as `SQ8` or `IVF1024,PQ96` (an
approximate search for many queries or little memory); what such an index learns, it learns once, on a sample of the whole
corpus, so that shards give what one index would.

The first candidates come from a matrix product, whose last digits depend on the sizes of its operands; their scores are then
computed one by one, in float64, so that the number of shards changes no score and no rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reclaim.errors import InputError
from reclaim.retrieval import Passages, best
from reclaim.seeding import derive

EXACT = {"flat32": np.float32, "flat16": np.float16}
BLOCK = 16384
# How many more candidates than asked for are scored exactly.
SPARE = 10


class Dense:
    """The backend. `encode`: texts -> float32 (texts, width), normalised by whoever wants cosines.

    `nprobe`: inverted lists that a query visits (IVF types); `train_rows`: passages that an approximate type learns from.
    `passage_prefix` and `query_prefix` go in front of the texts, as some encoders want it.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], np.ndarray] | None = None,
        index_type: str = "flat32",
        nprobe: int = 64,
        train_rows: int = 100_000,
        batch_rows: int = 4096,
        passage_prefix: str = "",
        query_prefix: str = "",
    ):
        self.encode, self.index_type, self.nprobe, self.train_rows = encode, index_type, nprobe, train_rows
        self.batch_rows, self.passage_prefix, self.query_prefix = batch_rows, passage_prefix, query_prefix

    def prepare(self, passages: Passages, folder: Path, progress) -> dict[str, Any]:
        """For approximate types an empty index that has learned from a sample (`trained.faiss`)."""
        width = self._encoded([self.passage_prefix]).shape[1]
        if self.index_type not in EXACT:
            import faiss

            try:
                index = faiss.index_factory(width, self.index_type, faiss.METRIC_INNER_PRODUCT)
            except RuntimeError as error:
                expected = f"{', '.join(EXACT)}, or a description for faiss.index_factory"
                raise InputError("index_type", repr(self.index_type), expected, str(error).splitlines()[-1]) from None
            index.train(self._sample(passages, progress))
            faiss.write_index(index, str(folder / "trained.faiss"))
        return {"width": width}

    def _sample(self, passages: Passages, progress) -> np.ndarray:
        size = min(self.train_rows, passages.size)
        rng = np.random.default_rng(derive(0, "index", "sample"))
        chosen = np.zeros(passages.size, dtype=bool)
        chosen[rng.choice(passages.size, size, replace=False)] = True
        texts = (text for number in progress(range(passages.shards)) for text in passages.texts(number))
        return np.concatenate(list(self._batches(text for text, wanted in zip(texts, chosen, strict=True) if wanted)))

    def write_shard(
        self, passages: Passages, number: int, shared: Path, facts: Mapping[str, Any], folder: Path
    ) -> None:
        """`vectors.npy`, or `vectors.faiss`."""
        if self.index_type in EXACT:
            shape = (passages.rows_of(number), facts["width"])
            vectors = np.lib.format.open_memmap(
                folder / "vectors.npy", mode="w+", dtype=EXACT[self.index_type], shape=shape
            )
            start = 0
            for batch in self._batches(passages.texts(number)):
                vectors[start : start + len(batch)] = batch
                start += len(batch)
            vectors.flush()
            return
        import faiss

        index = faiss.read_index(str(shared / "trained.faiss"))
        for batch in self._batches(passages.texts(number)):
            index.add(batch)
        faiss.write_index(index, str(folder / "vectors.faiss"))

    def open_shard(self, folder: Path, rows: int) -> DenseShard | FaissShard:
        if self.index_type in EXACT:
            return DenseShard(folder / "vectors.npy")
        return FaissShard(folder / "vectors.faiss", self.nprobe)

    def prepare_queries(self, queries: Sequence[str], shared: Path, facts: Mapping[str, Any]) -> np.ndarray:
        """The queries' vectors."""
        if not queries:
            return np.empty((0, facts["width"]), dtype=np.float32)
        found = self._encoded([self.query_prefix + query for query in queries])
        if found.shape[1] != facts["width"]:
            raise InputError("query encoder", f"vectors of width {found.shape[1]}", f"the index's {facts['width']}")
        return found

    def _batches(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        batch: list[str] = []
        for text in texts:
            batch.append(self.passage_prefix + text)
            if len(batch) == self.batch_rows:
                yield self._encoded(batch)
                batch = []
        if batch:
            yield self._encoded(batch)

    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        if self.encode is None:
            raise InputError("dense index", "no encoder", "the encoder that the index was built with", "Pass `encode`.")
        return np.ascontiguousarray(self.encode(texts), dtype=np.float32)


class DenseShard:
    """Exact search through vectors on the disk, a block at a time."""

    def __init__(self, path: Path):
        self.vectors = np.load(path, mmap_mode="r")

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> list:
        wanted = k + SPARE
        found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)) for _ in queries]
        for start in range(0, len(self.vectors), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(self.vectors)))
            if allowed is not None:
                rows = rows[allowed[rows]]
            if not len(rows):
                continue
            scores = queries @ self.vectors[rows[0] : rows[-1] + 1].astype(np.float32)[rows - rows[0]].T
            for place, line in enumerate(scores):
                numbers, values = found[place]
                found[place] = best(np.concatenate([numbers, rows]), np.concatenate([values, line]), wanted)
        return [best(*self._exact(query, rows), k) for query, (rows, _) in zip(queries, found, strict=True)]

    def _exact(self, query: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors = self.vectors[rows].astype(np.float64)
        return rows, np.array([float(np.sum(vector * query)) for vector in vectors])


class FaissShard:
    """Search through an index of faiss, memory-mapped where its type can be."""

    def __init__(self, path: Path, nprobe: int):
        import faiss

        self.faiss = faiss
        try:
            self.index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError:  # types that have to lie in memory
            self.index = faiss.read_index(str(path))
        self.parameters = {"nprobe": nprobe} if isinstance(faiss.downcast_index(self.index), faiss.IndexIVF) else {}

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> list:
        options: dict[str, Any] = dict(self.parameters)
        if allowed is not None:
            options["sel"] = self.faiss.IDSelectorBatch(np.flatnonzero(allowed).astype(np.int64))
        kind = self.faiss.SearchParametersIVF if self.parameters else self.faiss.SearchParameters
        asked = min(k + SPARE, self.index.ntotal)
        while True:
            scores, rows = self.index.search(queries, asked, params=kind(**options) if options else None)
            # Which of equal vectors faiss gives is its own choice: ask for more until none is cut off.
            cut = (rows[:, -1] >= 0) & (scores[:, -1] == scores[:, min(k, asked) - 1])
            if asked == self.index.ntotal or not cut.any():
                return [best(row[row >= 0], score[row >= 0], k) for row, score in zip(rows, scores, strict=True)]
            asked = min(2 * asked, self.index.ntotal)
