"""BM25 in the form of Lucene, with its scores computed at build time (as bm25s does; Lu 2024), over shards of one corpus.

    score(q, d) = sum over the words of q (repeats count) of idf * tf / (tf + k1 * (1 - b + b * length / mean length))
    idf = ln(1 + (N - df + 0.5) / (df + 0.5))

bm25s keeps one matrix of scores with the statistics of that matrix. Here every shard has one of the same form (a column of
rows and scores for each word) with the statistics of the whole corpus, so that shards rank like one index; words are kept as
64-bit hashes, which can be searched on the disk. A query adds its words from the rarest on, and stops to look at new passages
when the words that are left could not bring any into the first k (MaxScore; Turtle and Flood 1995): a query of rare words
touches their passages only, one with frequent words does not walk through half of the corpus.

Words: `\\w+` of the lower-cased text, or (`analyzer: english`) as Lucene's English analyser: possessive 's removed, stop
list, Porter's stems. `lucene_lengths` rounds lengths as Lucene does, which stores them in one byte.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from reclaim.errors import InputError
from reclaim.retrieval import Passages, best

WORD = re.compile(r"\w+")
ENGLISH_WORD = re.compile(r"\w+(?:['’]\w+)*")
# Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to "
    "was will with".split()
)
ANALYZERS = ("words", "english")
# What sums of float32 may be off by, as a share: a bound is only trusted beyond it.
SLACK = 1e-5
# Seconds that a query and each of its postings take uncompiled, and that compiling takes: which way is quicker for a batch.
QUERY_S, POSTING_S, COMPILING_S = 1.2e-4, 2e-9, 3.0


class Bm25:
    """The backend; `k1`, `b`: the constants of the formula (Pyserini's defaults, which the study used)."""

    def __init__(self, k1: float = 0.9, b: float = 0.4, analyzer: str = "words", lucene_lengths: bool = False):
        if analyzer not in ANALYZERS:
            raise InputError("index: analyzer", repr(analyzer), f"one of {', '.join(ANALYZERS)}")
        self.k1, self.b, self.analyzer, self.lucene_lengths = k1, b, analyzer, lucene_lengths

    def prepare(self, passages: Passages, folder: Path, progress) -> dict[str, Any]:
        """Document frequencies of all words (`words.npy`, sorted hashes, and `counts.npy`) and the mean length."""
        words, counts, total = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64), 0
        for number in progress(range(passages.shards)):
            part = count_words(passages.texts(number), self.analyzer)
            total += int(self._lengths(part.lengths).sum())
            joined = np.concatenate([words, part.words])
            weights = np.concatenate([counts, np.diff(part.starts)])
            words, inverse = np.unique(joined, return_inverse=True)
            counts = np.bincount(inverse, weights=weights, minlength=len(words)).astype(np.int64)
        np.save(folder / "words.npy", words)
        np.save(folder / "counts.npy", counts)
        return {"passages": passages.size, "mean_length": total / passages.size}

    def write_shard(
        self, passages: Passages, number: int, shared: Path, facts: Mapping[str, Any], folder: Path
    ) -> None:
        """`words.npy` (sorted hashes), `starts.npy`, and for each word its `rows.npy`, `scores.npy`, and their `tops.npy`."""
        part = count_words(passages.texts(number), self.analyzer)
        idf = self._idf(part.words, shared, facts)
        relative = self._lengths(part.lengths) / max(facts["mean_length"], 1e-9)
        norms = self.k1 * (1 - self.b + self.b * relative)
        frequencies = part.frequencies.astype(np.float64)
        scores = np.repeat(idf, np.diff(part.starts)) * frequencies / (frequencies + norms[part.rows])
        scores = scores.astype(np.float32)
        tops = np.maximum.reduceat(scores, part.starts[:-1]) if len(scores) else np.empty(0, dtype=np.float32)
        arrays = {"words": part.words, "starts": part.starts, "rows": part.rows, "scores": scores, "tops": tops}
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)

    def open_shard(self, folder: Path, rows: int) -> Bm25Shard:
        return Bm25Shard(folder, rows)

    def prepare_queries(self, queries: Sequence[str], shared: Path, facts: Mapping[str, Any]) -> list[np.ndarray]:
        """For each query the hashes of its words, repeats included, from the rarest word of the corpus on."""
        hashed = [
            np.array([word_hash(word) for word in split(query, self.analyzer)], dtype=np.uint64) for query in queries
        ]
        different = np.unique(np.concatenate(hashed)) if hashed else np.empty(0, dtype=np.uint64)
        idf = self._idf(different, shared, facts)
        ordered = []
        for words in hashed:
            places = np.searchsorted(different, words)
            ordered.append(words[np.lexsort((words, -idf[places]))])
        return ordered

    def _idf(self, words: np.ndarray, shared: Path, facts: Mapping[str, Any]) -> np.ndarray:
        known = np.load(shared / "words.npy", mmap_mode="r")
        counts = np.load(shared / "counts.npy", mmap_mode="r")
        places, present = _find(known, words)
        frequency = np.where(present, counts[places], 0)
        return np.log1p((facts["passages"] - frequency + 0.5) / (frequency + 0.5))

    def _lengths(self, lengths: np.ndarray) -> np.ndarray:
        return np.array([lucene_length(length) for length in lengths]) if self.lucene_lengths else lengths


class Bm25Shard:
    """The columns of a shard, on the disk.

    `compiled`: whether queries run compiled (numba); None: where so many are asked that compiling pays.
    """

    def __init__(self, folder: Path, rows: int):
        names = ("words", "starts", "rows", "scores", "tops")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        # A view without the class of memory maps: slicing that costs more than reading a short column.
        self.words, self.starts, self.rows, self.scores, self.tops = (np.asarray(arrays[name]) for name in names)
        self.totals = np.zeros(rows, dtype=np.float32)
        self.compiled: bool | None = None

    def search(self, queries: Sequence[np.ndarray], k: int, allowed: np.ndarray | None) -> list:
        if self.compiled if self.compiled is not None else self._seconds(queries) > COMPILING_S:
            return self._search_compiled(queries, k, allowed)
        return [self._search(words, k, allowed) for words in queries]

    def _seconds(self, queries: Sequence[np.ndarray]) -> float:
        """About how long queries take uncompiled."""
        places, present = _find(self.words, np.concatenate(queries)) if len(queries) else (np.empty(0, dtype=int), [])
        touched = int((self.starts[places + 1] - self.starts[places])[present].sum()) if len(places) else 0
        return QUERY_S * len(queries) + POSTING_S * touched

    def _search_compiled(self, queries: Sequence[np.ndarray], k: int, allowed: np.ndarray | None) -> list:
        from reclaim.retrieval_numba import top_k

        touched = np.empty(len(self.totals), dtype=np.int64)
        chosen = np.empty(0, dtype=bool) if allowed is None else allowed
        found = []
        for words in queries:
            places, present = _find(self.words, words)
            columns = places[present]
            starts, ends = self.starts[columns], self.starts[columns + 1]
            found.append(best(*top_k(self.rows, self.scores, starts, ends, self.totals, touched, chosen, k), k))
        return found

    def _search(self, words: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        places, present = _find(self.words, words)
        columns = places[present].tolist()
        left = np.cumsum(self.tops[columns][::-1])[::-1].tolist() + [0.0]
        totals, candidates = self.totals, None
        touched: list[np.ndarray] = []
        for done, column in enumerate(columns):
            start, end = self.starts[column], self.starts[column + 1]
            rows, scores = self.rows[start:end], self.scores[start:end]
            if candidates is None and touched and end - start > 4 * k:
                # Before a long column: could it, and those behind it, lift an untouched passage into the first k?
                seen = self._seen(touched, allowed)
                if len(seen) >= k:
                    partial = totals[seen]
                    least = np.partition(partial, len(seen) - k)[len(seen) - k] * (1 - SLACK)
                    if left[done] < least:
                        candidates = seen[partial + left[done] * (1 + SLACK) >= least]
            if candidates is None:
                totals[rows] += scores
                touched.append(rows)
            else:
                at = np.minimum(np.searchsorted(rows, candidates), len(rows) - 1)
                hit = rows[at] == candidates
                totals[candidates[hit]] += scores[at[hit]]
        if candidates is None:
            candidates = self._seen(touched, allowed)
        found = best(candidates, totals[candidates], k)
        for rows in touched:
            totals[rows] = 0.0
        return found

    def _seen(self, touched: Sequence[np.ndarray], allowed: np.ndarray | None) -> np.ndarray:
        """The rows touched so far, sorted."""
        if not touched:
            return np.empty(0, dtype=np.int64)
        if sum(map(len, touched)) * 8 > len(self.totals):
            seen = np.flatnonzero(self.totals)
        else:
            seen = np.unique(np.concatenate(touched)).astype(np.int64)
        return seen if allowed is None else seen[allowed[seen]]


class WordCounts:
    """How often words occur in the texts of a shard, by word.

    `words`: sorted hashes; column i of `rows` (ascending) and `frequencies` is starts[i]:starts[i+1]; `lengths` in words.
    """

    def __init__(
        self, words: np.ndarray, starts: np.ndarray, rows: np.ndarray, frequencies: np.ndarray, lengths: np.ndarray
    ):
        self.words, self.starts, self.rows, self.frequencies, self.lengths = words, starts, rows, frequencies, lengths


def count_words(texts: Iterable[str], analyzer: str) -> WordCounts:
    """Count the words of texts."""
    number_of: dict[str, int] = {}
    words_of_text, numbers = array("q"), array("q")
    for text in texts:
        words = split(text, analyzer)
        words_of_text.append(len(words))
        numbers.extend([number_of.setdefault(word, len(number_of)) for word in words])
    lengths = np.frombuffer(words_of_text, dtype=np.int64) if words_of_text else np.empty(0, dtype=np.int64)
    hashes = np.array([word_hash(word) for word in number_of], dtype=np.uint64)
    order = np.argsort(hashes)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    flat = np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, dtype=np.int64)
    keys = rank[flat] * max(len(lengths), 1) + np.repeat(np.arange(len(lengths)), lengths)
    keys, frequencies = np.unique(keys, return_counts=True)
    columns, rows = np.divmod(keys, max(len(lengths), 1))
    starts = np.searchsorted(columns, np.arange(len(order) + 1))
    return WordCounts(hashes[order], starts, rows.astype(np.int32), frequencies, lengths)


def split(text: str, analyzer: str = "words") -> list[str]:
    """The words of a text."""
    if analyzer == "words":
        return WORD.findall(text.lower())
    words = (re.sub(r"['’]s$", "", word) for word in ENGLISH_WORD.findall(text.lower()))
    return [_stem(word) for word in words if word not in STOP_WORDS]


@cache
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer(mode="ORIGINAL_ALGORITHM")


# Bounded: the words of a corpus of the web do not end.
@lru_cache(maxsize=1 << 20)
def _stem(word: str) -> str:
    return _stemmer().stem(word)


def word_hash(word: str) -> int:
    """64 bits of a word: two of five million words share them with probability 7e-7."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _find(known: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of words in sorted hashes, and which of them are there (the place of others means nothing)."""
    if not len(known):
        return np.zeros(len(words), dtype=np.int64), np.zeros(len(words), dtype=bool)
    places = np.minimum(np.searchsorted(known, words), len(known) - 1)
    return places, known[places] == words


def lucene_length(length: int) -> int:
    """The length that Lucene reads back from the byte it stores (`SmallFloat.intToByte4`): exact to 40, then 4 bits."""
    free = 24
    if length < free:
        return int(length)
    rest = int(length) - free
    shift = max(rest.bit_length() - 4, 0)
    return free + (rest >> shift << shift)
