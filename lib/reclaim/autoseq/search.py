"""AutoSeq's search: candidate label sequences of each class, contrastive ranking, combinations; and AutoWord, its baseline.

Yu et al. 2022, section "Automatic label sequence generation"; official `tools/generate_label_sequences.py` and
`tools/generate_label_words.py`. Read from top to bottom: beam search over what the examples of a class agree on
(`label_sequences`), or single words (`label_words`); the probability under its own class minus the SUM of those under the
others (`contrast`); the best sums of one sequence a class (`combinations`); all of it together (`search`).

Differences from the official code: see `decoding` for speed; candidates are chosen on tensors and combinations from a heap,
with the same order of ties; fewer candidates than asked for are no error; token ids are looked up in the tokenizer.
Options that it does not have, off by default: `deduplicate`, `distinct`, `max_shared`, the terminator `sentinel`, other
rules of contrast, pooled probabilities.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from reclaim.autoseq.decoding import ClassDecoder
from reclaim.autoseq.prompts import WORD_START, Sentinels, tokens_text
from reclaim.errors import InputError
from reclaim.prompting.tokens import text_ids

# Of T5's vocabulary, as the official code lists them: never generated, and never two in a row.
T5_BANNED = (
    2, 3, 96, 137, 233, 535, 1141, 1280, 1820, 2824, 4275, 4609, 4720, 7067, 9374, 10011, 14125, 16463, 19794, 22354,
)  # fmt: skip
T5_PUNCTUATION = (
    5, 6, 10, 18, 31, 41, 55, 58, 61, 105, 117, 121, 153, 1239, 1603, 3155, 3158, 4697, 4819, 6810, 8546, 8665, 10769,
    12887, 20462,
)  # fmt: skip
EXTRA = 3  # a hypothesis is followed up with so many tokens more than the width of the beam, before bans
CONTRASTS = ("sum", "max", "log_ratio", "none")


@dataclass(frozen=True)
class Constraints:
    """Token ids that no candidate holds, and those of which no two stand side by side."""

    banned: frozenset[int]
    punctuation: frozenset[int]

    @classmethod
    def official(cls) -> Constraints:
        """The official lists of ids, which mean what they should in T5's own vocabulary only."""
        return cls(frozenset(T5_BANNED), frozenset(T5_PUNCTUATION))

    @classmethod
    def of(cls, tokenizer) -> Constraints:
        """The official lists for T5's vocabulary, else their sense: signs only, by the pieces of the tokenizer.

        Banned: the unknown token, a lone word-start mark, a quotation mark that opens a word, and pieces of several signs.
        Punctuation: pieces of one sign.
        """
        if len(tokenizer) >= 32000 and tokenizer.convert_ids_to_tokens([137, 233, 19794]) == [").", "...", "...."]:
            return cls.official()
        special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        banned, punctuation = {tokenizer.unk_token_id}, set[int]()
        for piece, number in tokenizer.get_vocab().items():
            signs = piece.replace(WORD_START, "")
            if number in special or any(sign.isalnum() for sign in signs):
                continue
            alone = len(signs) == 1 and piece != WORD_START + '"'
            (punctuation if alone else banned).add(number)
        return cls(frozenset(banned), frozenset(punctuation))


@dataclass(frozen=True)
class Candidate:
    """Token ids from the first sentinel on, as decoded, their text, and its probability for the class."""

    ids: tuple[int, ...]
    text: str
    probability: float


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search, by default the official ones for sequences; words have a wider beam (`arms`).

    `beam`: width; `max_length`: the official constant, of which the loop runs two steps fewer; `num_candidates`: kept per
    class; `per_class`: candidates of a class that enter combinations; `num_combinations`: kept; `terminator` (`end` or
    `sentinel`) closes targets; `contrast`: `sum` (official), `max`, `log_ratio`, `none`; `pooling`: see `ClassDecoder`;
    `deduplicate`: keep the likelier of equal texts; `distinct`: no combination with an empty text or with the same text for
    two classes; `max_shared`: at most so many combinations with the same sequence for a class.
    """

    beam: int = 50
    max_length: int = 20
    num_candidates: int = 50
    per_class: int = 20
    num_combinations: int = 20
    terminator: str = "end"
    contrast: str = "sum"
    pooling: str = "logits"
    deduplicate: bool = False
    distinct: bool = False
    max_shared: int | None = None

    def __post_init__(self) -> None:
        for name in ("beam", "num_candidates", "per_class", "num_combinations"):
            if getattr(self, name) < 1:
                raise InputError(f"search.{name}", str(getattr(self, name)), "at least 1")
        if self.max_length < 4:
            raise InputError("search.max_length", str(self.max_length), "at least 4: two steps of search")
        if self.contrast not in CONTRASTS:
            raise InputError("search.contrast", repr(self.contrast), f"one of {', '.join(CONTRASTS)}")


@dataclass
class SearchResult:
    """`candidates`: one row per class and candidate, best first (class, text, ids, own, others, score, rank).

    `combinations`: mappings class -> text, best first, with `scores`. `counts`: forward passes of encoder and decoder.
    """

    candidates: pd.DataFrame
    combinations: list[dict[Any, str]]
    scores: list[float]
    counts: dict[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- candidates of a class


def label_sequences(
    decoder: ClassDecoder, tokenizer, constraints: Constraints, *, beam: int = 50, max_length: int = 20
) -> list[Candidate]:
    """Beam search for sequences that all examples of the class agree on; at most `beam`, likeliest first.

    A hypothesis is finished by the second sentinel or by the end token; finished ones stay in the pool and compete by their
    raw score. Equal texts with different ends are both kept.
    """
    sentinels = Sentinels.of(tokenizer)
    finishers = {sentinels.second, sentinels.end}
    log_q, state = decoder.start()
    # Hypotheses: ids, score, finished; the unfinished ones are the rows of `state` and `log_q`, in order.
    pool: list[tuple[tuple[int, ...], float, bool]] = [((), 0.0, False)]
    for position in range(max_length - 2):
        tokens, values = _top(log_q, beam + EXTRA)
        live = [hypothesis for hypothesis in pool if not hypothesis[2]]
        allowed = ~np.isin(tokens, list(constraints.banned))
        if position == 1:
            allowed &= tokens != sentinels.end
        after_punctuation = np.array([bool(ids) and ids[-1] in constraints.punctuation for ids, _, _ in live])
        allowed &= ~(after_punctuation[:, None] & np.isin(tokens, list(constraints.punctuation)))
        scores = np.array([score for _, score, _ in live])[:, None] + values
        rows, columns = np.nonzero(allowed)
        finished = [hypothesis for hypothesis in pool if hypothesis[2]]
        merged = np.concatenate([[score for _, score, _ in finished], scores[rows, columns]])
        parents, next_tokens, new_pool = [], [], []
        for place in np.argsort(-merged, kind="stable")[:beam].tolist():
            if place < len(finished):
                new_pool.append(finished[place])
                continue
            row, column = rows[place - len(finished)], columns[place - len(finished)]
            token = int(tokens[row, column])
            new_pool.append(((*live[row][0], token), float(merged[place]), token in finishers))
            if token not in finishers:
                parents.append(int(row))
                next_tokens.append(token)
        pool = new_pool
        if not parents:
            break
        if position < max_length - 3:
            device = log_q.device
            state = state[torch.tensor(parents, device=device)]
            log_q, state = decoder.extend(state, torch.tensor(next_tokens, device=device))
    decoder.release()
    shown = (sentinels.first, *finishers)
    return [Candidate(ids, tokens_text(tokenizer, ids, shown), math.exp(score)) for ids, score, _ in pool]


def label_words(
    decoder: ClassDecoder,
    tokenizer,
    constraints: Constraints,
    *,
    beam: int = 200,
    num_candidates: int = 50,
    terminator: str = "end",
) -> list[Candidate]:
    """AutoWord: the likeliest tokens after the first sentinel, scored again as the target sentinel, word, terminator."""
    sentinels = Sentinels.of(tokenizer)
    _, state = decoder.start()
    log_q, _ = decoder.extend(state, torch.tensor([sentinels.first], device=decoder.model.device))
    tokens, _ = _top(log_q, beam + EXTRA)
    mark = tokenizer.convert_tokens_to_ids(WORD_START)
    excluded = constraints.banned | {sentinels.end, sentinels.second, mark}
    words = [int(token) for token in tokens[0] if token not in excluded][:beam]
    targets = [(sentinels.first, word, *sentinels.terminator(terminator)) for word in words]
    values = decoder.sequence_log_probabilities(targets)
    order = np.argsort(-values, kind="stable")[:num_candidates]
    # The text keeps sentinels: one of them may be the word.
    return [Candidate(targets[i], tokens_text(tokenizer, [words[i]]), math.exp(values[i])) for i in order]


def _top(log_q: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` likeliest tokens of each row, lower ids first among equals: ids and log q, (rows, count)."""
    count = min(count, log_q.shape[1])
    # One more than asked for, to see a tie across the border; equal values are rare and sorted with care.
    values, ids = log_q.topk(min(count + 1, log_q.shape[1]), dim=1)
    for row in (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0].tolist():
        values[row], ids[row] = (part[: ids.shape[1]] for part in log_q[row].sort(descending=True, stable=True))
    return ids[:, :count].cpu().numpy(), values[:, :count].double().cpu().numpy()


# ---------------------------------------------------------------------------------------------------------- contrast


def contrast(
    candidates: Mapping[Any, Sequence[Candidate]],
    decoders: Mapping[Any, ClassDecoder],
    target_of,
    key_of=lambda candidate: candidate.text,
    rule: str = "sum",
) -> dict[Any, list[tuple[Candidate, float, float]]]:
    """Rank the candidates of each class by how well they fit it and not the others: (candidate, others, score).

    `sum`: p_own - sum_o p_o (official). p_o is the probability of the first candidate of class o that has the same key, else
    that of the target `target_of(candidate)`. All values are those before any subtraction. `others` is the sum of the p_o,
    the largest for `max`; `log_ratio`: log p_own - log sum_o p_o; `none`: p_own alone.
    """
    known = {
        y: {key_of(candidate): candidate.probability for candidate in reversed(found)}
        for y, found in candidates.items()
    }
    ranked = {}
    for y, found in candidates.items():
        columns = []
        for other in candidates:
            if other == y:
                continue
            values = np.array([known[other].get(key_of(candidate), np.nan) for candidate in found])
            missing = np.flatnonzero(np.isnan(values))
            if len(missing):
                targets = [target_of(found[int(i)]) for i in missing]
                values[missing] = np.exp(decoders[other].sequence_log_probabilities(targets))
            columns.append(values)
        pooled = (np.max if rule == "max" else np.sum)(columns, axis=0) if columns else np.zeros(len(found))
        own = np.array([candidate.probability for candidate in found])
        if rule == "none":
            scores = own
        elif rule == "log_ratio":
            tiny = np.finfo(float).tiny
            scores = np.log(np.maximum(own, tiny)) - np.log(np.maximum(pooled, tiny))
        else:
            scores = own - pooled
        order = np.argsort(-scores, kind="stable")
        ranked[y] = [(found[i], float(pooled[i]), float(scores[i])) for i in order]
    return ranked


# ------------------------------------------------------------------------------------------------------- combinations


def combinations(
    ranked: Mapping[Any, Sequence[tuple[str, float]]],
    per_class: int = 20,
    num_combinations: int = 20,
    *,
    distinct: bool = False,
    max_shared: int | None = None,
) -> tuple[list[dict[Any, str]], list[float]]:
    """The best combinations of one text a class by the sum of their scores, and the sums.

    `ranked` are (text, score) of each class, best first, of which `per_class` enter. Equal sums come in the order of the
    Cartesian product. Sums are taken from a heap, in order, without enumerating the product.

    Raises `InputError` for a class without candidates, and where `distinct` leaves no combination.
    """
    lists = [list(found)[:per_class] for found in ranked.values()]
    if not lists or not all(lists):
        raise InputError("combinations", "a class without candidates", "at least one for each class")

    def total(places: tuple[int, ...]) -> float:
        value = 0.0
        for found, place in zip(lists, places, strict=True):
            value += found[place][1]
        return value

    first = (0,) * len(lists)
    heap, seen = [(-total(first), first)], {first}
    chosen: list[dict[Any, str]] = []
    scores: list[float] = []
    uses: dict[tuple[int, str], int] = {}
    while heap and len(chosen) < num_combinations:
        negative, places = heapq.heappop(heap)
        texts = [found[place][0] for found, place in zip(lists, places, strict=True)]
        apart = not distinct or (all(texts) and len(set(texts)) == len(texts))
        shared = [(i, text) for i, text in enumerate(texts)]
        if apart and (max_shared is None or all(uses.get(key, 0) < max_shared for key in shared)):
            chosen.append(dict(zip(ranked, texts, strict=True)))
            scores.append(-negative)
            uses |= {key: uses.get(key, 0) + 1 for key in shared}
        for i, place in enumerate(places):
            following = (*places[:i], place + 1, *places[i + 1 :])
            if place + 1 < len(lists[i]) and following not in seen:
                seen.add(following)
                heapq.heappush(heap, (-total(following), following))
    if not chosen:
        raise InputError(
            "search.distinct", "no combination of different texts that are not empty", "one", "Widen search.beam."
        )
    return chosen, scores


# -------------------------------------------------------------------------------------------------------- whole search


def search(
    model,
    tokenizer,
    prompts_by_class: Mapping[Any, Sequence[Sequence[int]]],
    settings: SearchSettings,
    *,
    words: bool = False,
    constraints: Constraints | None = None,
    batch_size: int = 16,
) -> SearchResult:
    """Find label sequences (or, with `words`, single words) for the classes of a task.

    `prompts_by_class` are the token ids of the training examples of each class, in the order of the classes. `constraints`
    default to those of the tokenizer. Nothing but these examples is read: no development and no test row.
    """
    constraints = constraints or Constraints.of(tokenizer)
    decoders = {
        y: ClassDecoder(model, prompts, pooling=settings.pooling, batch_size=batch_size)
        for y, prompts in prompts_by_class.items()
    }
    found = {}
    for y, decoder in decoders.items():
        if words:
            found[y] = label_words(
                decoder, tokenizer, constraints, beam=settings.beam,
                num_candidates=settings.num_candidates, terminator=settings.terminator,
            )  # fmt: skip
        else:
            found[y] = label_sequences(
                decoder, tokenizer, constraints, beam=settings.beam, max_length=settings.max_length
            )[: settings.num_candidates]
        if settings.deduplicate:
            found[y] = list({candidate.text: candidate for candidate in reversed(found[y])}.values())
            found[y].sort(key=lambda candidate: -candidate.probability)
    sentinels = Sentinels.of(tokenizer)
    closing = sentinels.terminator(settings.terminator)

    def target_of(candidate: Candidate) -> list[int]:
        return list(candidate.ids) if words else [sentinels.first, *text_ids(tokenizer, candidate.text), *closing]

    def key_of(candidate: Candidate):
        return candidate.ids if words else candidate.text

    ranked = contrast(found, decoders, target_of, key_of, settings.contrast)
    chosen, scores = combinations(
        {y: [(candidate.text, score) for candidate, _, score in rows] for y, rows in ranked.items()},
        settings.per_class,
        settings.num_combinations,
        distinct=settings.distinct,
        max_shared=settings.max_shared,
    )
    rows = [
        (y, candidate.text, list(candidate.ids), candidate.probability, others, score, rank)
        for y, table in ranked.items()
        for rank, (candidate, others, score) in enumerate(table)
    ]
    counts = {
        "encoder_passes": sum(decoder.encoder_calls for decoder in decoders.values()),
        "decoder_passes": sum(decoder.decoder_calls for decoder in decoders.values()),
    }
    columns = ["class", "text", "ids", "own", "others", "score", "rank"]
    return SearchResult(pd.DataFrame(rows, columns=columns), chosen, scores, counts)
