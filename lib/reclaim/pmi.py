"""Collocations by pointwise mutual information: counts, scores, vocabulary, and units in token sequences.

Paper: Levine, Lenz, Lieber, Abend, Leyton-Brown, Tennenholtz and Shoham, "PMI-Masking: Principled Masking of Correlated
Spans" (ICLR 2021), equation 3 (the score) and section 3 (the vocabulary). The authors published their lists, not their
code; the rules that the paper leaves open are set here: n-grams do not cross the end of a sequence; the probability of
an n-gram is its count over the number of n-gram tokens of that length; ranks order by the score rounded to nine digits,
then by count, then by the words.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reclaim.errors import InputError

# Shares of the vocabulary by length: half bigrams, a quarter trigrams, an eighth each of length 4 and 5.
SHARES: Mapping[int, float] = {2: 0.5, 3: 0.25, 4: 0.125, 5: 0.125}


@dataclass(frozen=True)
class NgramCounts:
    """Counts of the frequent n-grams of a corpus.

    words: the distinct words; ngrams[n]: int64 [number, n], word numbers in ascending order of their key; counts[n]:
    int64 [number]; totals[n]: how many n-gram tokens the corpus has, rare ones included. Length 1 holds all words.
    """

    words: list[str]
    ngrams: dict[int, np.ndarray]
    counts: dict[int, np.ndarray]
    totals: dict[int, int]
    keys: dict[int, np.ndarray]

    def find(self, ngrams: np.ndarray) -> np.ndarray:
        """Row numbers in `self.ngrams[n]` of n-grams, [number, n], that are all there."""
        row = ngrams[:, 0]
        for n in range(2, ngrams.shape[1] + 1):
            row = np.searchsorted(self.keys[n], row * len(self.words) + ngrams[:, n - 1])
        return row


def count_ngrams(sequences: Iterable[Sequence[str]], max_length: int = 5, count_above: int = 10) -> NgramCounts:
    """Count n-grams of 1..max_length words that occur more than `count_above` times and do not cross a sequence's end.

    sequences: word sequences, such as `line.split()`. An n-gram is looked at only where both its
    (n-1)-grams are frequent, so that memory follows the frequent ones. Raises InputError if there are no words.
    """
    number_of: dict[str, int] = {}
    lengths, flat = [], array("q")
    for sequence in sequences:
        lengths.append(len(sequence))
        flat.extend(number_of.setdefault(word, len(number_of)) for word in sequence)
    if not flat:
        raise InputError("corpus for PMI", "no words", "at least one sequence with a word")
    word = np.frombuffer(flat, dtype=np.int64)
    ends = np.cumsum(lengths)
    # How many words are left in the sequence at each position, itself included.
    left = np.repeat(ends, lengths) - np.arange(len(word))
    size = len(number_of)
    counts = {1: np.bincount(word, minlength=size)}
    ngrams = {1: np.arange(size)[:, None]}
    totals, keys = {1: len(word)}, {1: np.arange(size)}
    # Number of the frequent (n-1)-gram that starts at each position, -1 where it is rare or cut off.
    previous = np.where(counts[1][word] > count_above, word, -1)
    for n in range(2, max_length + 1):
        totals[n] = int((left >= n).sum())
        starts = np.flatnonzero((left >= n) & (previous >= 0) & (np.roll(previous, -1) >= 0))
        key, inverse, count = np.unique(
            previous[starts] * size + word[(starts + n - 1) % len(word)], return_inverse=True, return_counts=True
        )
        frequent = count > count_above
        keys[n], counts[n] = key[frequent], count[frequent]
        ngrams[n] = np.column_stack([ngrams[n - 1][keys[n] // size], keys[n] % size])
        number = np.where(frequent, np.cumsum(frequent) - 1, -1)
        previous = np.full(len(word), -1)
        previous[starts] = number[inverse]
    return NgramCounts(list(number_of), ngrams, counts, totals, keys)


def score_ngrams(counts: NgramCounts, power: int = 1) -> pd.DataFrame:
    """PMI of every counted n-gram of two or more words, ranked within each length.

    score = power * log p(w1..wn) - max over segmentations into two or more parts of the sum of log p(part), natural
    log; all 2^(n-1) - 1 segmentations count, by a dynamic programme over prefixes. power 1 is the paper's equation;
    power 2 is what the published lists use, which favours frequent n-grams. Columns: ngram (words joined by blanks),
    length, count, score. Raises InputError for another power.
    """
    if power not in (1, 2):
        raise InputError("power of the n-gram's probability", str(power), "1 (the paper) or 2 (the published lists)")
    log_p = {}
    for n, count in counts.counts.items():
        log_p[n] = np.log(count) - np.log(max(counts.totals[n], 1))
    frames = []
    for n in sorted(log_p)[1:]:
        ngrams = counts.ngrams[n]
        best = [np.zeros(len(ngrams))]
        for end in range(1, n + 1):
            # The last part is words start..end-1; the whole n-gram as its own only part is left out.
            starts = range(1 if end == n else 0, end)
            options = [best[s] + log_p[end - s][counts.find(ngrams[:, s:end])] for s in starts]
            best.append(np.max(options, axis=0))
        frames.append(
            pd.DataFrame(
                {
                    "ngram": [" ".join(counts.words[i] for i in row) for row in ngrams.tolist()],
                    "length": np.full(len(ngrams), n, dtype=np.int64),
                    "count": counts.counts[n].astype(np.int64),
                    "score": power * log_p[n] - best[n],
                }
            )
        )
    scores = pd.concat(frames, ignore_index=True)
    rank = pd.DataFrame(
        {
            "length": scores["length"],
            "score": -scores["score"].round(9),
            "count": -scores["count"],
            "ngram": scores["ngram"],
        }
    ).sort_values(["length", "score", "count", "ngram"])
    return scores.loc[rank.index].reset_index(drop=True)


def build_vocabulary(scores: pd.DataFrame, size: int = 800_000, shares: Mapping[int, float] = SHARES) -> pd.DataFrame:
    """The best `size * share` n-grams of each length, in the order of `score_ngrams`; fewer if there are fewer."""
    return pd.concat(
        [scores[scores["length"] == n].head(int(size * share + 1e-9)) for n, share in sorted(shares.items())],
        ignore_index=True,
    )


class UnitMatcher:
    """Finds the units of PMI masking in token ids: collocations of the vocabulary, and all other words one by one.

    ngrams: the token ids of each collocation (of all its words). Matches begin and end at word borders. A match inside
    a longer one is dropped; of partly overlapping ones that with the highest priority stays. Raises InputError for an
    empty list or an empty collocation.
    """

    def __init__(self, ngrams: Iterable[Sequence[int]]):
        import torch  # here, because counting and scoring do without it

        edges: dict[int, int] = {}
        ends: set[int] = set()
        self.longest = 0
        for ngram in ngrams:
            state = 0
            for token in ngram:
                state = edges.setdefault((state << 32) | int(token), len(edges) + 1)
            if state == 0:
                raise InputError("collocations", "one without tokens", "token ids for each")
            ends.add(state)
            self.longest = max(self.longest, len(ngram))
        if not edges:
            raise InputError("collocations", "none", "at least one", "Lower `count_above` or use another corpus.")
        # A trie: sorted (state, token) keys with the state that each leads to.
        self._keys, order = torch.tensor(list(edges)).sort()
        self._next = torch.arange(1, len(edges) + 1)[order]
        self._is_end = torch.zeros(len(edges) + 1, dtype=torch.bool)
        self._is_end[list(ends)] = True

    @classmethod
    def from_vocabulary(cls, vocabulary: pd.DataFrame, encode: Callable[[str], Sequence[int]]) -> UnitMatcher:
        """Build from `build_vocabulary` and a function: the token ids of words as they stand inside a text."""
        return cls(encode(ngram) for ngram in vocabulary["ngram"])

    def unit_starts(self, input_ids, begins, priorities):
        """Position of the first token of the unit that each token belongs to.

        input_ids: int64 tensor [rows, length]; begins: bool, where words begin (None: everywhere); priorities: int64 of
        at least 0, who stays of overlapping matches, by the position at which they start. Random ones keep one at
        random; falling ones keep the leftmost. Returns int64 [rows, length].
        """
        import torch

        rows, length = input_ids.shape
        if input_ids.numel() == 0:
            return torch.zeros_like(input_ids)
        begins = torch.ones_like(input_ids, dtype=torch.bool) if begins is None else begins.clone()
        begins[:, :1] = True
        positions = torch.arange(length, device=input_ids.device).expand(rows, length)
        stop = self._longest_matches(input_ids, begins)
        earlier = torch.zeros_like(stop)
        earlier[:, 1:] = stop.cummax(1).values[:, :-1]
        row, first = (stop > earlier).nonzero(as_tuple=True)
        kept = self._keep(row, first, stop[row, first], priorities[row, first])
        start = torch.zeros_like(input_ids)
        start[row[kept], first[kept]] = first[kept]
        start = start.cummax(1).values
        # A match that starts at 0 cannot be told from none by `start` alone; there `stop` decides, if it was kept.
        whole = torch.zeros_like(stop)
        whole[row[kept], first[kept]] = stop[row[kept], first[kept]]
        covered = whole.gather(1, start) > positions
        return torch.where(covered, start, torch.where(begins, positions, 0).cummax(1).values)

    def _keep(self, row, first, stop, priority):
        """Which matches stay, bool; they are sorted by row and start, and none lies inside another."""
        import torch

        lefts, rights = [], []
        for apart in range(1, self.longest):
            overlap = ((row[apart:] == row[:-apart]) & (stop[:-apart] > first[apart:])).nonzero()[:, 0]
            lefts.append(overlap)
            rights.append(overlap + apart)
        left, right = (torch.cat(side) if side else row[:0] for side in (lefts, rights))
        alive, kept = torch.ones_like(row, dtype=torch.bool), torch.zeros_like(row, dtype=torch.bool)
        # Matches that no overlapping one outranks stay and take their neighbours out, until no two are left that
        # overlap.
        while len(left):
            winners = alive.clone()
            winners[torch.where(priority[left] >= priority[right], right, left)] = False
            kept |= winners
            alive[left[winners[right]]] = False
            alive[right[winners[left]]] = False
            alive &= ~winners
            both = alive[left] & alive[right]
            left, right = left[both], right[both]
        return kept | alive

    def _longest_matches(self, input_ids, begins):
        """Where the longest match ends (exclusive) that starts at each position; 0: none."""
        import torch

        rows, length = input_ids.shape
        keys, following, is_end = (t.to(input_ids.device) for t in (self._keys, self._next, self._is_end))
        border = torch.ones((rows, length + 1), dtype=torch.bool, device=input_ids.device)
        border[:, :length] = begins
        row, position = begins.nonzero(as_tuple=True)
        state = torch.zeros_like(position)
        stop = torch.zeros_like(input_ids)
        # Only the walks that are still inside the trie go on to the next token.
        for k in range(self.longest):
            inside = position + k < length
            row, position, state = row[inside], position[inside], state[inside]
            key = (state << 32) | input_ids[row, position + k]
            edge = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
            found = keys[edge] == key
            row, position, state = row[found], position[found], following[edge[found]]
            whole = is_end[state] & border[row, position + k + 1]
            stop[row[whole], position[whole]] = position[whole] + k + 1
        return stop
