"""Masking for masked language models at any rate: uniform, whole-word, span and PMI masking.

Papers: Wettig, Gao, Zhong and Chen, "Should You Mask 15% in Masked Language Modeling?" (EACL 2023): rates, replacement,
and corruption and prediction rate apart from each other; Joshi et al., "SpanBERT" (TACL 2020), section 3.1: spans;
Levine et al., "PMI-Masking" (ICLR 2021): collocations as units (found in `reclaim.pmi`).

What differs from the papers' code
- Random numbers. fairseq reseeds the legacy numpy generator with a number below 1e6 that mostly is a multiple of 64, so
  that blocks share their masked positions. Here 64 bits are a function of (seed, epoch, index of the example, purpose,
  position): a mask depends on nothing else, neither on workers, order, batch size, padding and device, nor on a resumed
  run. The old streams are in `reclaim.masking_legacy`.
- A whole batch is masked by a few tensor operations; span masking runs one step per span for all rows at once.
- SpanBERT draws anchors until one is not masked yet; here the anchor is drawn among those positions, which gives the
  same distribution without rejections.
- The papers do not say what happens to a PMI unit that no longer fits the budget: it is left out if the count lands
  nearer to the budget without it, otherwise taken, and the draw ends there. The mean count keeps to the budget for
  units of three and is a quarter of a token above it where two thirds of a text are units of two, the ties being taken.
- With a prediction rate above the corruption rate, the copies of a row share one random order of its units and take
  consecutive pieces of it, so that they are disjoint and their union has the size that the prediction rate asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reclaim.counter_stream import LARGEST, CounterStream
from reclaim.errors import InputError

if TYPE_CHECKING:
    from reclaim.pmi import UnitMatcher

SCHEMES = ("uniform", "whole_word", "span", "pmi")
# Shares of (mask token, random token, same token) among the corrupted positions.
REPLACEMENTS: Mapping[str, tuple[float, float, float]] = {"mask": (1.0, 0.0, 0.0), "80-10-10": (0.8, 0.1, 0.1)}
IGNORED = -100

# The purposes of the random numbers; copy j of span masking draws from purpose SPANS + j.
COUNT, ORDER, SUBSET, KIND, RANDOM_ID, TIE, SPANS = range(7)


class MaskedBatch(NamedTuple):
    """A masked batch: row c * rows + r is copy c of row r (one copy unless the prediction rate exceeds the corruption
    rate).

    input_ids, labels: int64 [copies * rows, length]; labels hold the original id where a prediction is asked for (also
    where the input shows the same or a random token) and -100 elsewhere. The loss is the sum over all predictions of an
    update divided by their number, over all copies and micro-batches together.
    """

    input_ids: Tensor
    labels: Tensor
    copies: int

    @property
    def predicted(self) -> Tensor:
        """Where a prediction is asked for: bool [copies * rows, length]."""
        return self.labels != IGNORED


class Masker:
    """Masks batches of token ids by one scheme at one pair of rates.

    scheme: "uniform" (single tokens), "whole_word", "span" or "pmi".
    corruption_rate: share of a row's tokens that are corrupted in each copy. A row of n units gets floor(rate * n + u)
        of them, u uniform: an almost fixed number, not a coin per token. Units are tokens, or words in "whole_word";
        "pmi" draws units until that many tokens are reached; "span" corrupts exactly ceil(rate * n) tokens.
    prediction_rate: share of a row's tokens that are predicted, in all copies together; default: the corruption rate. A
        lower one predicts a uniform subset of the corrupted tokens. A higher one makes ceil(prediction / corruption)
        copies with disjoint corrupted sets; if the quotient is not whole, the last copy predicts a subset.
    replacement: a name in `REPLACEMENTS` or shares (mask, random, same) with sum 1, decided once per unit, or per run
        of masked tokens in "span" (per token if `replace_tokens_alone`). Each token of a random unit gets its own
        random id.
    special_ids: never drawn as random ids, and always a word of their own. The mask token may be drawn (as in fairseq)
        unless it is listed here.
    word_start: bool [vocab_size], whether an id begins a word; needed by "whole_word", optional in "span" and "pmi"
    (default
        there: every token is a word).
    units: the collocations of "pmi".
    random_weights: [vocab_size] weights of the random ids (fairseq: token counts); default: equal.
    span_p, max_span: lengths in words, P(l) proportional to p (1-p)^(l-1) for l = 1..max_span.

    Raises InputError for rates outside (0, 1), pairs of rates that leave no room for disjoint copies, shares that are
    not shares, and missing or misshapen tables.
    """

    def __init__(
        self,
        scheme: str,
        corruption_rate: float,
        prediction_rate: float | None = None,
        *,
        seed: int,
        vocab_size: int,
        mask_token_id: int,
        special_ids: Sequence[int] = (),
        replacement: str | Sequence[float] = "mask",
        replace_tokens_alone: bool = False,
        word_start: Tensor | np.ndarray | Sequence[bool] | None = None,
        units: UnitMatcher | None = None,
        random_weights: Sequence[float] | None = None,
        span_p: float = 0.2,
        max_span: int = 10,
    ):
        if scheme not in SCHEMES:
            raise InputError("masking scheme", repr(scheme), f"one of {', '.join(SCHEMES)}")
        prediction_rate = corruption_rate if prediction_rate is None else prediction_rate
        for name, rate in (("corruption_rate", corruption_rate), ("prediction_rate", prediction_rate)):
            if not 0 < rate < 1:
                raise InputError(name, str(rate), "a share of the tokens, above 0 and below 1")
        self.scheme, self.seed, self.mask_token_id = scheme, seed, mask_token_id
        self.corruption_rate, self.prediction_rate = corruption_rate, prediction_rate
        self.copies = math.ceil(prediction_rate / corruption_rate - 1e-9)
        if self.copies * corruption_rate > 1 + 1e-9:
            raise InputError(
                "prediction_rate",
                f"{prediction_rate} at corruption_rate {corruption_rate}, which takes {self.copies} copies",
                f"disjoint masked sets in all copies, so at most {1 / corruption_rate:.2f} copies",
                "Lower the prediction rate or choose another corruption rate.",
            )
        self.shares = _check_shares(replacement)
        self.replace_tokens_alone = replace_tokens_alone
        if scheme == "whole_word" and word_start is None:
            raise InputError("word_start", "none", "a table that says by id whether a token begins a word")
        if scheme == "pmi" and units is None:
            raise InputError("units", "none", "the collocations that PMI masking masks together", "See reclaim.pmi.")
        outside = [token for token in (*special_ids, mask_token_id) if not 0 <= token < vocab_size]
        if outside:
            raise InputError("special_ids, mask_token_id", str(outside), f"ids below vocab_size = {vocab_size}")
        self.units = units
        self.word_start = None
        if word_start is not None:
            self.word_start = torch.as_tensor(word_start).bool().clone()
            if self.word_start.shape != (vocab_size,):
                raise InputError("word_start", f"shape {tuple(self.word_start.shape)}", f"shape ({vocab_size},)")
            self.word_start[list(special_ids)] = True
        weights = np.ones(vocab_size) if random_weights is None else np.array(random_weights, dtype=np.float64)
        if weights.shape != (vocab_size,) or (weights < 0).any():
            raise InputError("random_weights", f"shape {weights.shape}", f"{vocab_size} weights of at least 0")
        weights[list(special_ids)] = 0
        if self.shares[1] > 0 and not weights.any():
            raise InputError("random_weights", "no id with a positive weight", "an id to draw", "Shorten special_ids.")
        self.random_ids = torch.from_numpy(np.flatnonzero(weights))
        self.random_cdf = None
        if random_weights is not None:
            self.random_cdf = torch.from_numpy(np.cumsum(weights[weights > 0]) / weights.sum())
        if not 0 < span_p < 1 or max_span < 1:
            raise InputError("span_p, max_span", f"{span_p}, {max_span}", "0 < span_p < 1 and max_span >= 1")
        self.span_cdf = torch.from_numpy(np.cumsum(span_lengths(span_p, max_span)))

    def mask(
        self,
        input_ids: Tensor,
        epoch: int,
        indices: Tensor | Sequence[int],
        attention_mask: Tensor | None = None,
        eligible: Tensor | None = None,
    ) -> MaskedBatch:
        """Mask a batch; the same (seed, epoch, index) gives the same mask in any batch.

        input_ids: [rows, length], padded on the right. indices: [rows], which example of the data set each row is.
        attention_mask: [rows, length], 0 at padding, which is never masked. eligible: [rows, length], False where a
        token may not be masked; rates count eligible tokens (fairseq: all, the special tokens too, which is the
        default). Raises InputError if the shapes do not fit.
        """
        device = input_ids.device
        indices = torch.as_tensor(indices, device=device)
        if input_ids.dim() != 2 or indices.shape != input_ids.shape[:1]:
            found = f"input_ids of shape {tuple(input_ids.shape)}, indices of shape {tuple(indices.shape)}"
            raise InputError("Masker.mask", found, "[rows, length] and [rows]")
        allowed = torch.ones_like(input_ids, dtype=torch.bool)
        for name, tensor in (("attention_mask", attention_mask), ("eligible", eligible)):
            if tensor is not None:
                if tensor.shape != input_ids.shape:
                    raise InputError(name, f"shape {tuple(tensor.shape)}", f"shape {tuple(input_ids.shape)}")
                allowed = allowed & tensor.to(device).bool()
        stream = CounterStream("masking", self.seed, epoch, indices)
        begins = None if self.word_start is None else self.word_start.to(device)[input_ids]
        if self.scheme == "span":
            corrupted = self._spans(stream, allowed, begins)
            unit_starts = [None if self.replace_tokens_alone else _run_starts(chosen) for chosen in corrupted]
        else:
            starts = self._unit_starts(stream, input_ids, begins)
            corrupted = self._units(stream, allowed, starts)
            unit_starts = [None if self.replace_tokens_alone else starts] * self.copies
        predicted = self._predictions(stream, allowed, corrupted)
        inputs = self._replace(stream, input_ids, corrupted, unit_starts)
        labels = [input_ids.masked_fill(~chosen, IGNORED) for chosen in predicted]
        return MaskedBatch(torch.cat(inputs), torch.cat(labels), self.copies)

    def _unit_starts(self, stream: CounterStream, input_ids: Tensor, begins: Tensor | None) -> Tensor | None:
        """Position of the first token of each token's unit, [rows, length]; None: every token is a unit."""
        if self.scheme == "uniform":
            return None
        if self.scheme == "whole_word":
            assert begins is not None  # checked by __init__, as the units of "pmi" are
            return _last_true(begins)
        assert self.units is not None
        return self.units.unit_starts(input_ids, begins, stream.bits(TIE, input_ids.shape[1]))

    def _boundaries(self, stream: CounterStream, sizes: Tensor) -> list[Tensor]:
        """floor(j * rate * size + u), where copy j = 1..copies ends: [rows, 1] each, one u a row for all."""
        u = stream.uniform(COUNT, 1)
        return [(j * self.corruption_rate * sizes[:, None] + u).floor().long() for j in range(1, self.copies + 1)]

    def _units(self, stream: CounterStream, allowed: Tensor, starts: Tensor | None) -> list[Tensor]:
        """The corrupted set of each copy: consecutive pieces of one random order of the row's units."""
        scores = stream.bits(ORDER, allowed.shape[1])
        if starts is None:
            heads = allowed
        else:
            tokens = torch.zeros_like(starts).scatter_add_(1, starts, allowed.long())
            heads = tokens > 0
        keys = scores.masked_fill(~heads, LARGEST)
        if self.scheme == "pmi":
            ordered, order = keys.sort(dim=1)
            reached = tokens.gather(1, order).cumsum(1)
            borders = [_landing(reached, budget) for budget in self._boundaries(stream, allowed.sum(1))]
        else:
            ordered = _sorted(keys)
            borders = self._boundaries(stream, heads.sum(1))
        token_scores = scores if starts is None else scores.gather(1, starts)
        below = [allowed & (token_scores <= _key_before(ordered, border)) for border in borders]
        return [below[0], *(below[j] & ~below[j - 1] for j in range(1, self.copies))]

    def _spans(self, stream: CounterStream, allowed: Tensor, begins: Tensor | None) -> list[Tensor]:
        """The corrupted set of each copy by spans, ceil(rate * n) tokens each up to the rounding of their sum."""
        size = allowed.sum(1)
        budgets = [(j * self.corruption_rate * size - 1e-9).ceil().long().clamp(min=0) for j in range(self.copies + 1)]
        free, sets = allowed, []
        for j in range(self.copies):
            draws = stream.uniform(SPANS + j, 2 * int((budgets[j + 1] - budgets[j]).max()))
            chosen, _ = draw_spans(free, begins, budgets[j + 1] - budgets[j], self.span_cdf.to(free.device), draws)
            free = free & ~chosen
            sets.append(chosen)
        return sets

    def _predictions(self, stream: CounterStream, allowed: Tensor, corrupted: list[Tensor]) -> list[Tensor]:
        """The predicted set of each copy: all that is corrupted, in the last copy what the rate leaves over."""
        if abs(self.copies * self.corruption_rate - self.prediction_rate) < 1e-9:
            return corrupted
        wanted = self.prediction_rate * allowed.sum(1, keepdim=True)
        wanted = (wanted - 1e-9).ceil() if self.scheme == "span" else (wanted + stream.uniform(COUNT, 1)).floor()
        for chosen in corrupted[:-1]:
            wanted = wanted - chosen.sum(1, keepdim=True)
        last = corrupted[-1]
        number = wanted.long().clamp(min=0).minimum(last.sum(1, keepdim=True))
        keys = stream.bits(SUBSET, allowed.shape[1]).masked_fill(~last, LARGEST)
        return [*corrupted[:-1], last & (keys <= _key_before(_sorted(keys), number))]

    def _replace(
        self, stream: CounterStream, input_ids: Tensor, corrupted: list[Tensor], starts: list[Tensor | None]
    ) -> list[Tensor]:
        """The input of each copy. Copies may share draws because no position is corrupted in two of them."""
        _, random_share, same_share = self.shares
        if random_share == same_share == 0:
            return [input_ids.masked_fill(chosen, self.mask_token_id) for chosen in corrupted]
        kinds, inputs = stream.uniform(KIND, input_ids.shape[1]), []
        random_ids = self._random_ids(stream, input_ids) if random_share > 0 else input_ids
        for chosen, start in zip(corrupted, starts, strict=True):
            kind = kinds if start is None else kinds.gather(1, start)
            masked = input_ids.masked_fill(chosen & (kind >= random_share + same_share), self.mask_token_id)
            inputs.append(torch.where(chosen & (kind < random_share), random_ids, masked))
        return inputs

    def _random_ids(self, stream: CounterStream, input_ids: Tensor) -> Tensor:
        ids = self.random_ids.to(input_ids.device)
        if self.random_cdf is None:
            # The upper 31 bits, scaled to the number of ids: a bias below 1e-4 for a vocabulary of 200,000.
            return ids[((stream.bits(RANDOM_ID, input_ids.shape[1]) >> 32) * len(ids)) >> 31]
        cdf = self.random_cdf.to(input_ids.device)
        drawn = torch.searchsorted(cdf, stream.uniform(RANDOM_ID, input_ids.shape[1]), right=True)
        return ids[drawn.clamp(max=len(ids) - 1)]


def span_lengths(p: float, longest: int) -> np.ndarray:
    """Geometric span lengths cut at `longest` and renormalised (not clipped onto the last): P(1), ..., P(longest)."""
    weights = p * (1 - p) ** np.arange(longest)
    return weights / weights.sum()


def draw_spans(
    free: Tensor, begins: Tensor | None, budgets: Tensor, length_cdf: Tensor, draws: Tensor
) -> tuple[Tensor, Tensor]:
    """SpanBERT's spans for all rows at once, one span per row and step, until each row has its budget.

    free: bool [rows, n], what may be masked; a span runs over other tokens without masking them. begins: bool [rows,
    n], where words begin (None: everywhere). budgets: int64 [rows]. draws: uniforms [rows, 2 * largest budget].
    A span starts at the word of a free anchor and takes whole words until it has its length, the row ends or the budget
    is reached, if need be inside a word. Returns the masked positions, bool [rows, n], and the spans as drawn: int64
    [steps, rows, 2], first and last position, last = -1 where a row was already done.
    """
    rows, n = free.shape
    positions = torch.arange(n, device=free.device)
    begins = torch.ones_like(free) if begins is None else begins.clone()
    begins[:, :1] = True
    word = begins.long().cumsum(1) - 1
    # Where the words begin, by number; n for words that the row does not have.
    word_begin = torch.full((rows, n + 1), n, device=free.device)
    word_begin.scatter_reduce_(1, word, positions.expand(rows, n), "amin")
    anchors, lengths = draws[:, ::2], torch.searchsorted(length_cdf, draws[:, 1::2].contiguous(), right=True) + 1
    lengths.clamp_(max=len(length_cdf))
    masked, free, remaining, spans = torch.zeros_like(free), free.clone(), budgets[:, None].clone(), []
    for step in range(lengths.shape[1]):
        active = remaining > 0
        if not active.any():
            break
        count = free.cumsum(1)
        number = (anchors[:, step, None] * count[:, -1:]).long() + 1
        anchor = torch.searchsorted(count, number).clamp(max=n - 1)
        first_word = word.gather(1, anchor)
        first = word_begin.gather(1, first_word)
        last = word_begin.gather(1, (first_word + lengths[:, step, None]).clamp(max=n)) - 1
        before = count.gather(1, first) - free.gather(1, first).long()
        budget_end = torch.searchsorted(count, before + remaining)
        last = torch.where(active, last.minimum(budget_end), -1)
        new = free & (positions >= first) & (positions <= last)
        masked |= new
        free &= ~new
        remaining = remaining - new.sum(1, keepdim=True)
        spans.append(torch.cat([first, last], dim=1))
    return masked, torch.stack(spans) if spans else torch.zeros((0, rows, 2), dtype=torch.long, device=free.device)


def _check_shares(replacement: str | Sequence[float]) -> tuple[float, float, float]:
    if isinstance(replacement, str):
        if replacement not in REPLACEMENTS:
            raise InputError("replacement", repr(replacement), f"one of {', '.join(REPLACEMENTS)} or three shares")
        return REPLACEMENTS[replacement]
    shares = tuple(float(share) for share in replacement)
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError("replacement", str(shares), "three shares (mask, random, same) of at least 0 that sum to 1")
    return shares


def _sorted(keys: Tensor) -> Tensor:
    """Rows in ascending order. numpy's sort uses vector instructions and takes a tenth of torch's time on a CPU."""
    if keys.device.type == "cpu":
        return torch.from_numpy(np.sort(keys.numpy(), axis=1))
    return keys.sort(dim=1).values


def _key_before(ordered: Tensor, number: Tensor) -> Tensor:
    """The largest of the `number` ([rows, 1]) smallest keys; -1 for none."""
    return ordered.gather(1, (number - 1).clamp(min=0)).masked_fill(number == 0, -1)


def _landing(reached: Tensor, budget: Tensor) -> Tensor:
    """How many units to take, [rows, 1], given the tokens `reached` after each; the next if it lands as near."""
    fitting = (reached <= budget).sum(1, keepdim=True)
    without = _key_before(reached, fitting).clamp(min=0)
    with_next = reached.gather(1, fitting.clamp(max=reached.shape[1] - 1))
    take = (with_next > budget) & (with_next - budget <= budget - without)
    return fitting + take


def _last_true(flags: Tensor) -> Tensor:
    """The last position up to each one at which `flags` holds; 0 if there is none."""
    positions = torch.arange(flags.shape[1], device=flags.device)
    return torch.where(flags, positions, 0).cummax(1).values


def _run_starts(chosen: Tensor) -> Tensor:
    """The first position of the run of chosen tokens: spans that overlap or touch count as one."""
    first = chosen.clone()
    first[:, 1:] &= ~chosen[:, :-1]
    return _last_true(first)
