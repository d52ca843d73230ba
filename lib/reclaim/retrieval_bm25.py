"""BM25 in the form of Lucene by bm25s (Lu 2024), over shards of one corpus.

    score(q, d) = sum over the words of q (repeats count) of idf * tf / (tf + k1 * (1 - b + b * length / mean length))
    idf = ln(1 + (N - df + 0.5) / (df + 0.5))

bm25s keeps a matrix of scores, computed at build time from the statistics of what it is given. Here every shard is an index of
bm25s that is given the statistics of the whole corpus, so that shards rank like one index. It is written and, memory-mapped,
read by bm25s; only its vocabulary is not bm25s's, which would be a dict in memory for each shard: words are sorted 64-bit
hashes, searched on the disk.

Scores of all passages come from bm25s: added up by numpy or, once so much was asked that compiling pays, by numba. For a query
of rare words they come from a product of sparse matrices in scipy, which goes to the passages of its words only. All three add
the same float32 numbers in the same order, the rarest word first, so that scores are equal to the last bit, and equal scores
are ordered by row, which bm25s's own selection does not promise.

Words: `\\w+` of the lower-cased text, or (`analyzer: english`) as Lucene's English analyser: possessive 's removed, stop
list, Porter's stems. `lucene_lengths` rounds lengths as Lucene does, which stores them in one byte.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from bm25s.numba.retrieve_utils import _compute_relevance_from_scores_jit_ready as compiled_scorer
from bm25s.scoring import _score_tfc_lucene
from scipy.sparse import csr_array

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
# A query is one of rare words if it has at most so many postings for each passage of the corpus.
RARE = 0.03
# How many postings the product of sparse matrices takes at once: some 50 MB.
BLOCK = 4_000_000
# So many postings that numpy takes longer to add them up than numba by the half second that compiling takes.
PAYING = 1_000_000_000
Found = tuple[np.ndarray, np.ndarray]
"""Rows and scores of the best passages for a query."""


@dataclass
class Queries:
    """Queries as all shards need them.

    `words`: hashes of the words of one query after the other, repeats included, in each the rarest of the corpus first;
    `owners`: which query each belongs to; `rare` (one for each query): whether its words are rare; `compiled`: whether numba
    adds up the scores of the others.
    """

    words: np.ndarray
    owners: np.ndarray
    rare: np.ndarray
    compiled: bool


class Bm25:
    """The backend; `k1`, `b`: the constants of the formula (Pyserini's defaults, which the study used)."""

    def __init__(self, k1: float = 0.9, b: float = 0.4, analyzer: str = "words", lucene_lengths: bool = False):
        if analyzer not in ANALYZERS:
            raise InputError("index: analyzer", repr(analyzer), f"one of {', '.join(ANALYZERS)}")
        self.k1, self.b, self.analyzer, self.lucene_lengths = k1, b, analyzer, lucene_lengths
        self.postings_asked = 0.0

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
        """An index of bm25s (`*.index.*`), and the hashes of its columns' words (`words.npy`, sorted).

        Raises InputError for a shard too large for 32-bit numbers of postings.
        """
        part = count_words(passages.texts(number), self.analyzer)
        if len(part.rows) > np.iinfo(np.int32).max:
            found = f"{len(part.rows)} pairs of a word and a passage in a shard"
            raise InputError("index: shards", found, "fewer than 2^31", "Ask for more shards.")
        frequency = _document_frequencies(part.words, shared)
        idf = np.log1p((facts["passages"] - frequency + 0.5) / (frequency + 0.5))
        lengths = self._lengths(part.lengths)[part.rows]
        weights = _score_tfc_lucene(part.frequencies, l_d=lengths, l_avg=facts["mean_length"], k1=self.k1, b=self.b)
        scores = (np.repeat(idf, np.diff(part.starts)) * weights).astype(np.float32)
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
        index.scores = {
            "data": scores,
            "indices": part.rows,
            "indptr": part.starts.astype(np.int32),
            "num_docs": passages.rows_of(number),
        }
        index.vocab_dict, index.nonoccurrence_array = {}, None
        index.save(folder, show_progress=False)
        np.save(folder / "words.npy", part.words)

    def open_shard(self, folder: Path, rows: int) -> Bm25Shard:
        return Bm25Shard(folder, rows)

    def prepare_queries(self, queries: Sequence[str], shared: Path, facts: Mapping[str, Any]) -> Queries:
        """The queries' words. What was asked before counts for whether compiling pays, as does what is asked now."""
        hashed = [[word_hash(word) for word in split(query, self.analyzer)] for query in queries]
        words = np.fromiter(chain.from_iterable(hashed), dtype=np.uint64)
        owners = np.repeat(np.arange(len(hashed)), [len(each) for each in hashed])
        frequency = _document_frequencies(words, shared)
        postings = np.bincount(owners, weights=frequency, minlength=len(hashed))
        rare = postings <= RARE * facts["passages"]
        self.postings_asked += float(postings[~rare].sum())
        order = np.lexsort((words, frequency, owners))
        return Queries(words[order], owners, rare, self.postings_asked > PAYING)

    def _lengths(self, lengths: np.ndarray) -> np.ndarray:
        return np.array([lucene_length(length) for length in lengths]) if self.lucene_lengths else lengths


class Bm25Shard:
    """An index of bm25s on the disk."""

    def __init__(self, folder: Path, rows: int):
        # Views without the class of memory maps: slicing that costs more than reading a short column.
        self.words = np.asarray(np.load(folder / "words.npy", mmap_mode="r"))
        self.index = bm25s.BM25.load(folder, mmap=True, load_vocab=False, show_progress=False)
        scores = self.index.scores
        scores |= {name: np.asarray(scores[name]) for name in ("data", "indices", "indptr")}
        # The same arrays as a matrix (words, passages).
        self.matrix = csr_array((scores["data"], scores["indices"], scores["indptr"]), shape=(len(self.words), rows))

    def search(self, queries: Queries, k: int, allowed: np.ndarray | None) -> list:
        places, present = _find(self.words, queries.words)
        # Numbers as wide as the matrix's own: of wider ones scipy would copy the matrix that wide.
        columns, count = places[present].astype(np.int32), len(queries.rare)
        starts = np.searchsorted(queries.owners[present], np.arange(count + 1)).astype(np.int32)
        # A row for each query, its words in their order: a word that stands twice is two entries.
        ones = np.ones(len(columns), dtype=np.float32)
        asked = csr_array((ones, columns, starts), shape=(count, len(self.words)))
        some = np.diff(starts) > 0
        found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))] * count
        if queries.compiled:
            # bm25s's own way to it would compile once for each shard.
            self.index._compute_relevance_from_scores = compiled_scorer
        for chosen, way in ((queries.rare & some, self._by_product), (~queries.rare & some, self._by_bm25s)):
            numbers = np.flatnonzero(chosen).astype(np.int32)
            if len(numbers):
                for number, answer in zip(numbers, way(asked[numbers], k, allowed), strict=True):
                    found[number] = answer
        return found

    def _by_product(self, asked: csr_array, k: int, allowed: np.ndarray | None) -> Iterator[Found]:
        """For each row of `asked` the best passages, by its product with the matrix, whose rows hold those with a score."""
        postings = self.matrix.indptr[asked.indices + 1] - self.matrix.indptr[asked.indices]
        done = np.cumsum(postings, dtype=np.int64)[asked.indptr[1:] - 1]
        for block in np.split(np.arange(len(done), dtype=np.int32), np.flatnonzero(np.diff(done // BLOCK)) + 1):
            sums = asked[block] @ self.matrix
            for start, end in pairwise(sums.indptr):
                rows, scores = sums.indices[start:end], sums.data[start:end]
                if allowed is not None:
                    rows, scores = rows[allowed[rows]], scores[allowed[rows]]
                yield best(rows, scores, k)

    def _by_bm25s(self, asked: csr_array, k: int, allowed: np.ndarray | None) -> Iterator[Found]:
        """The same, by the scores of all passages."""
        for columns in np.split(asked.indices, asked.indptr[1:-1]):
            yield best_of_all(self.index.get_scores_from_ids(columns, weight_mask=allowed), k)


def best_of_all(scores: np.ndarray, k: int) -> Found:
    """The `k` highest scores above zero with their row numbers, equal scores by row number.

    The best of each of many groups of rows are looked through first: the k-th of them is a bound that few rows reach. That
    takes less than half the time of a partition of all scores, and a tenth where most are zero.
    """
    size = max(len(scores) // (8 * k), 1)
    tops = scores[: len(scores) // size * size].reshape(size, -1).max(axis=0)
    least = np.partition(tops, len(tops) - k)[len(tops) - k] if len(tops) > k else 0
    rows = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    return best(rows, scores[rows], k)


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


def _document_frequencies(words: np.ndarray, shared: Path) -> np.ndarray:
    """How many passages of the corpus have each of some words."""
    places, present = _find(np.load(shared / "words.npy", mmap_mode="r"), words)
    frequency = np.zeros(len(words), dtype=np.int64)
    frequency[present] = np.load(shared / "counts.npy", mmap_mode="r")[places[present]]
    return frequency


def lucene_length(length: int) -> int:
    """The length that Lucene reads back from the byte it stores (`SmallFloat.intToByte4`): exact to 40, then 4 bits."""
    free = 24
    if length < free:
        return int(length)
    rest = int(length) - free
    shift = max(rest.bit_length() - 4, 0)
    return free + (rest >> shift << shift)
