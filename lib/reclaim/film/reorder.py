"""Reordering: the words of a found sentence are moved until perplexity and gradient norm are low (Gupta et al. 2022, 4.3).

Followed from the official `reorder.py`: a coarse stage of segment moves, proposed by a table of the model's own transitions,
then a fine stage of swaps and, where asked for, insertions. The score to minimise is

    norm of the gradient of one LayerNorm weight + alpha x perplexity

of the candidate as a text: decoded and read again, cut and padded to 20 tokens for the gradient, whole for the perplexity.
The client's gradient has no part in it; the premise is that gradients are small on text that was trained on.

Differences: all candidates of a step are scored in one forward and one backward pass (`reorder_scores`); sets of cuts are
enumerated, not laid out in a dense table of L^k; one private generator draws everything; a candidate without tokens, on
which the official code fails, has an infinite score, and so has one that the model's vocabulary cannot read; the loop
compares a score with the score before and not, at first, with another quantity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from reclaim.film.reorder_scores import reorder_scores
from reclaim.metrics.recovery import cut

MOVES = (3, 4, 5)  # numbers of cuts of a segment move
LONGEST_INSERTED = 40  # sentences of this length get no insertions
LARGEST_SET = 4


@dataclass(frozen=True)
class ReorderOptions:
    """Settings with the official defaults, `alpha` as its README has it (the argument's default is 10).

    `gradient` False leaves the gradient norm out of the score. `block` None: the block in the middle (5 of GPT-2's 12).
    """

    alpha: float = 1.0
    gradient: bool = True
    block: int | None = None
    coarse_steps: int = 100
    fine_steps: int = 100
    patience: int = 50
    proposals: int = 64
    best_gains: int = 256
    swaps: int = 50
    insertions: int = 0


@dataclass(frozen=True)
class Reordered:
    """The sentence that came out, its score, and sentence and score after each stage."""

    text: str
    score: float
    stages: dict[str, tuple[str, float]]


def reorder(model, tokenizer, text: str, options: ReorderOptions, rng: np.random.Generator, pool=()) -> Reordered:
    """Reorder one sentence. It begins with the cut or the uncut version, whichever has the lower perplexity.

    `pool`: ids that may be inserted (with `options.insertions` > 0).
    """
    whole = [version for version in dict.fromkeys([text, cut(text)]) if version]
    if not whole:
        return Reordered(text, float("inf"), {})
    perplexities = reorder_scores(model, tokenizer, [[version] for version in whole], gradient=False).perplexity
    start = whole[int(np.argmin(perplexities))]
    score = _Score(model, tokenizer, options)
    ids = tokenizer(start, add_special_tokens=False)["input_ids"]
    stages = {"start": (start, float(score([[start]])[0]))}
    if not np.isfinite(stages["start"][1]):
        return Reordered(*stages["start"], stages)
    ids, value = _coarse(model, tokenizer, ids, stages["start"][1], score, options, rng)
    stages["coarse"] = (tokenizer.decode(ids), value)
    ids, value = _fine(tokenizer, ids, value, score, options, rng, list(pool))
    stages["fine"] = (pieces_of(tokenizer, ids)[0], value)
    return Reordered(*stages["fine"], stages)


class _Score:
    """Scores of candidates, each a list of pieces; texts seen before are not scored again."""

    def __init__(self, model, tokenizer, options: ReorderOptions):
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.known: dict[tuple[str, ...], float] = {}

    def __call__(self, candidates: Sequence[Sequence[str]]) -> np.ndarray:
        keys = [tuple(pieces) for pieces in candidates]
        new = list(dict.fromkeys(key for key in keys if key not in self.known))
        if new:
            options = self.options
            scores = reorder_scores(
                self.model, self.tokenizer, new, block=options.block, alpha=options.alpha, gradient=options.gradient
            )
            self.known.update(zip(new, scores.total.tolist(), strict=True))
        return np.array([self.known[key] for key in keys])


def pieces_of(tokenizer, ids: Sequence[int]) -> list[str]:
    """The texts between end tokens."""
    return tokenizer.decode(list(ids)).split(tokenizer.eos_token)


# ---------------------------------------------------------------------------------------------------------- coarse: segments


def _coarse(model, tokenizer, ids: list[int], value: float, score: _Score, options: ReorderOptions, rng):
    """Segment moves; gives the best ids and their score."""
    end = tokenizer.eos_token_id
    joined = continues_word(tokenizer)
    tokens = np.array([end, *ids, end])
    may_cut = ~joined[tokens]
    may_cut[[0, 1, -1]] = True
    table = None
    for step in range(options.coarse_steps):
        if table is None:
            table = transition_table(model, tokens)
        k = int(rng.choice(MOVES))
        candidates = _cut_candidates(may_cut, step % 2 == 0 and len(tokens) > 6, rng)
        if len(candidates) <= k:
            continue
        orders = segment_orders(k)
        order = orders[rng.integers(len(orders))]
        cuts, gains = segment_moves(table[np.ix_(candidates, candidates)], order)
        best = np.argsort(-gains, kind="stable")[: options.best_gains]
        drawn = cuts[best[rng.integers(len(best), size=options.proposals)]]
        moved = [moved_places(len(tokens), candidates, each, order) for each in drawn]
        values = score([[_without_ends(tokenizer, tokens[places])] for places in moved])
        winner = int(values.argmin())
        if values[winner] < value:
            value, table = float(values[winner]), None
            tokens, may_cut = tokens[moved[winner]], may_cut[moved[winner]]
    return [int(token) for token in tokens[1:-1]], value


def _without_ends(tokenizer, tokens: np.ndarray) -> str:
    return tokenizer.decode(tokens.tolist()).replace(tokenizer.eos_token, "")


@lru_cache(maxsize=4)
def continues_word(tokenizer) -> np.ndarray:
    """For each id whether it begins with a letter, so that it continues a word: bool (len(tokenizer),)."""
    found = np.zeros(len(tokenizer), dtype=bool)
    for token, number in tokenizer.get_vocab().items():
        found[number] = token[:1].isascii() and token[:1].isalpha()
    return found


@torch.no_grad()
def transition_table(model, tokens: np.ndarray) -> np.ndarray:
    """T[a, b] = log p(token at place b | the tokens before place a), float64 (places, places); row 0 is zero."""
    ids = torch.from_numpy(tokens).to(model.device)
    log_probs = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
    table = np.zeros((len(tokens), len(tokens)))
    table[1:] = log_probs[:-1][:, ids].double().cpu().numpy()
    return table


def _cut_candidates(may_cut: np.ndarray, everywhere: bool, rng: np.random.Generator) -> np.ndarray:
    """Places where a segment may begin: at most 40 of all, or those of a window of 7 to 14 tokens; in order."""
    length = len(may_cut)
    weights = may_cut.astype(float)
    weights[[0, -1]] = 100.0
    if everywhere:
        size = min(40, int(may_cut.sum()))
        return np.sort(rng.choice(length, size=size, replace=False, p=weights / weights.sum()))
    width = int(rng.integers(7, 15))
    if length - width <= 1:
        width = min(15, length - 2)
    start = int(rng.integers(1, max(2, length - width)))
    return start + np.flatnonzero(weights[start : start + width] > 0)


@lru_cache(maxsize=8)
def segment_orders(k: int) -> list[tuple[int, ...]]:
    """Orders of the k + 1 segments, numbered from 1, with the first and last in place and the others not all."""
    same = tuple(range(1, k + 2))
    orders = [(1, *inner, k + 1) for inner in itertools.permutations(range(2, k + 1))]
    return [order for order in orders if order != same]


@lru_cache(maxsize=64)
def _cut_sets(length: int, k: int) -> np.ndarray:
    """Every increasing choice of k numbers from 1 to length - 1: int64 (choices, k)."""
    flat = itertools.chain.from_iterable(itertools.combinations(range(1, length), k))
    return np.fromiter(flat, dtype=np.int64).reshape(-1, k)


def segment_moves(links: np.ndarray, order: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Every set of cuts and the gain in log-probability at the cuts when the segments between are put in `order`.

    `links` (L, L) is the transition table at the L candidates; a segment ends where the next one begins, so the head of
    segment s is at cut s - 1. Gain = sum of links of each head behind its new left neighbour minus behind its old one. Cuts
    are numbers of candidates, int64 (sets, k); gains float64 (sets,).
    """
    k = len(order) - 1
    cuts = _cut_sets(len(links), k)
    gains = -links[cuts, cuts].sum(axis=1)
    for here, after in zip(order, order[1:], strict=False):
        gains = gains + links[cuts[:, here - 1], cuts[:, after - 2]]
    return cuts, gains


def moved_places(length: int, candidates: np.ndarray, cuts: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The places 0..length - 1 in the sequence that a segment move makes of them: int64 (length,).

    `candidates` (L,) are places, `cuts` (k,) numbers of candidates, as in `segment_moves`.
    """
    bounds = [candidates[0], *candidates[cuts], candidates[-1]]
    places = np.arange(length)
    segments = [places[bounds[number - 1] : bounds[number]] for number in order]
    return np.concatenate([places[: bounds[0]], *segments, places[bounds[-1] :]])


# ------------------------------------------------------------------------------------------------- fine: swaps, insertions


def _fine(tokenizer, ids: list[int], value: float, score: _Score, options: ReorderOptions, rng, pool: list[int]):
    """Swaps and insertions; gives the best ids and their score."""
    swaps = insertions = None
    unimproved = 0
    for _ in range(options.fine_steps):
        if swaps is None or insertions is None:
            ends = [place for place, token in enumerate(ids) if token == tokenizer.eos_token_id]
            swaps = sequences(pairs(len(ids), ends, ordered=False), rng)
            insertions = sequences(pairs(len(pool), ends, ordered=True), rng)
        proposed = [swapped(ids, each) for each in itertools.islice(swaps, options.swaps)]
        if len(ids) < LONGEST_INSERTED:
            proposed += [inserted(ids, pool, each) for each in itertools.islice(insertions, options.insertions)]
        if not proposed:
            break
        values = score([pieces_of(tokenizer, each) for each in proposed])
        winner = int(values.argmin())
        unimproved += 1
        if values[winner] < value:
            ids, value, swaps, unimproved = proposed[winner], float(values[winner]), None, 0
        if unimproved > options.patience:
            break
    return ids, value


def pairs(size: int, ends: Sequence[int], ordered: bool) -> list[tuple[int, int]]:
    """Pairs of different numbers from 1 to size - 1, before the first of `ends` (where the first sentence stops)."""
    last = min(size, ends[0]) if ends else size
    if ordered:
        return list(itertools.permutations(range(1, last), 2))
    return list(itertools.combinations(range(1, last), 2))


def sequences(pairs: list[tuple[int, int]], rng: np.random.Generator) -> Iterator[tuple[tuple[int, int], ...]]:
    """Sets of 1 to 4 pairs: all of size 1 in shuffled order, then products of shuffled lists."""
    for size in range(1, LARGEST_SET + 1):
        shuffled = [[pairs[place] for place in rng.permutation(len(pairs))] for _ in range(size)]
        yield from itertools.product(*shuffled)


def swapped(ids: Sequence[int], sequence: Sequence[tuple[int, int]]) -> list[int]:
    """The ids after swaps of places, one after the other."""
    ids = list(ids)
    for i, j in sequence:
        ids[i], ids[j] = ids[j], ids[i]
    return ids


def inserted(ids: Sequence[int], pool: Sequence[int], sequence: Sequence[tuple[int, int]]) -> list[int]:
    """The ids after insertions of pool number i at place j; what is outside pool or sentence is passed over."""
    ids = list(ids)
    for i, j in sequence:
        if i < len(pool) and j < len(ids):
            ids.insert(j, pool[i])
    return ids
