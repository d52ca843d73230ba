"""The official beam search of FILM: one sentence from a bag of words under the attacked model (Gupta et al. 2022, 4.2).

Followed from the Rust source of the official repository, slips included: every beam grows to full length, banned candidates
tie (a ban swallows the score in float32), the diversity penalty counts tokens in all positions of all new beams of earlier
groups, filler included, and where fewer candidates are allowed than there are beams, others enter at minus infinity, so that
words outside the bag can appear. Start tokens are shuffled only with `rng`; which order ties come out in is not defined there.

What differs is the work: the official search runs all positions of all beams through the model at every step and takes the
whole vocabulary's softmax at each. Here a key/value cache follows the parents, one position a beam is new, and only the
bag's columns are scored. `film.start_search` has the better search that the official one is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers.cache_utils import DynamicCache

from reclaim.errors import InputError

BAN = -10e10
REDUCTIONS = ("sum", "min", "minavg")


@dataclass(frozen=True)
class SearchOptions:
    """Settings of the official search, with the defaults of its Rust program; its Python front end has 32 beams and n = 2.

    `height` sentences are searched jointly and their scores reduced by `reduction`; `no_repeat_ngram_size` None: no ban.
    """

    max_length: int = 40
    num_beams: int = 16
    num_groups: int = 8
    diversity_penalty: float = 0.1
    counts_known: bool = False
    height: int = 1
    reduction: str = "sum"
    no_repeat_ngram_size: int | None = None
    repetitions: int = 1

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise InputError("film search reduction", repr(self.reduction), f"one of {', '.join(REDUCTIONS)}")
        if self.repetitions > 1 and self.no_repeat_ngram_size is None:
            raise InputError("film search repetitions", f"{self.repetitions} without an n-gram ban", "an n-gram size")


@dataclass(frozen=True)
class Hypothesis:
    """Sentences found together (one unless `height` says more), their log-probability (reduced) and last penalised score."""

    tokens: list[list[int]]
    log_prob: float
    score: float


@dataclass
class Group:
    """The beams of a group: tokens (beams, height, length + 1), lengths and log_probs (beams, height), scores (beams,).

    `rows` (beams, height): where the model's output for each sentence stands.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    log_probs: torch.Tensor
    scores: torch.Tensor
    rows: torch.Tensor


def start_tokens(bag: Sequence[int], tokenizer, batch_size: int) -> list[int]:
    """Tokens of the bag whose text begins with an upper-case letter; whole copies are added while they are fewer than the
    batch's sentences. A token that decodes to nothing, on which the official code fails, is none.
    """
    found = [token for token in sorted(bag) if tokenizer.decode([token])[:1].isupper()]
    if found and len(found) < batch_size:
        found = found * (1 + -(-batch_size // len(found)))
    return found


@torch.no_grad()
def official_search(
    model,
    bag: Mapping[int, int],
    starts: Sequence[int],
    filler: int,
    options: SearchOptions,
    *,
    rng: np.random.Generator | None = None,
    watch: Callable[[int, list[Group]], None] = lambda step, groups: None,
) -> list[Hypothesis]:
    """Search sentences made of the words of `bag` (id -> count) that begin with one of `starts`; best first.

    `num_groups` results in each repetition. Counts limit the length (their sum) and, with `counts_known`, the use of a
    word. `filler` is the id that stands behind a sentence's end. `watch(step, groups)` sees the beams after each step.
    No start token or an empty bag: no result.
    """
    if not bag or len(starts) < options.height:
        return []
    results: list[Hypothesis] = []
    for _ in range(options.repetitions):
        order = np.array(starts) if rng is None else rng.permutation(starts)
        results += _search_once(model, bag, order, filler, options, results, watch)
    return sorted(results, key=lambda result: -result.log_prob)


def _search_once(model, bag, starts, filler, options, previous, watch) -> list[Hypothesis]:
    height, device = options.height, model.device
    total = sum(bag.values())
    length = min(total, options.max_length)
    steps = min(total, options.max_length * height) - height
    starts = torch.from_numpy(starts[: len(starts) // height * height].reshape(-1, height)).to(device)
    tokens = torch.full((len(starts), height, length + 1), filler, dtype=torch.long, device=device)
    tokens[..., 0] = starts
    ones = torch.ones(starts.shape, dtype=torch.long, device=device)
    rows = torch.arange(starts.numel(), device=device).view(-1, height)
    first = Group(tokens, ones, torch.zeros(starts.shape, dtype=torch.double), torch.zeros(len(starts)), rows)
    groups = [first] * options.num_groups
    candidates = _Candidates(bag, model.config.vocab_size, length, options, _ngrams_of(previous, options), device)
    decoder = _Decoder(model, height)
    decoder.begin(starts.reshape(-1))
    for step in range(1, steps + 1):
        used = torch.zeros(model.config.vocab_size, dtype=torch.long, device=device)
        grown, parents = [], []
        for number, group in enumerate(groups):
            diversity = used * -options.diversity_penalty if number else None
            chosen = candidates.best(group, decoder, diversity)
            new, parent = _advance(group, chosen, length)
            used += torch.bincount(new.tokens.flatten(), minlength=len(used))
            grown.append(new)
            parents.append(parent)
        offset = 0
        for number, new in enumerate(grown):
            grown[number] = replace(
                new, rows=torch.arange(offset, offset + new.rows.numel(), device=device).view(-1, height)
            )
            offset += new.rows.numel()
        if step < steps:
            decoder.follow(torch.cat([parent.flatten() for parent in parents]), grown)
        groups = grown
        watch(step, groups)
    ends = [_finish(group, options) for group in groups]
    return [hypothesis for _, hypothesis in sorted(ends, key=lambda end: -end[0])]


def _advance(group: Group, chosen, length: int) -> tuple[Group, torch.Tensor]:
    """Append the chosen tokens, without those of full sentences and without repeated beams; gives the parents' rows."""
    scores, beams, places, new_tokens, log_probs = chosen
    open_ones = (group.lengths[beams, places] < length).nonzero().flatten()
    scores, beams, places, new_tokens, log_probs = (
        value[open_ones] for value in (scores, beams, places, new_tokens, log_probs)
    )
    tokens, lengths, sums = group.tokens[beams], group.lengths[beams], group.log_probs[beams.cpu()]
    number = torch.arange(len(beams), device=tokens.device)
    tokens[number, places, lengths[number, places]] = new_tokens
    lengths[number, places] += 1
    sums[number.cpu(), places.cpu()] += log_probs.double().cpu()
    seen: dict[bytes, int] = {}
    for row, state in enumerate(tokens.cpu().numpy()):
        seen.setdefault(state.tobytes(), row)
    keep = torch.tensor(list(seen.values()), device=tokens.device)
    grown = Group(tokens[keep], lengths[keep], sums[keep.cpu()], scores[keep].cpu(), group.rows[beams[keep]])
    return grown, grown.rows


def _finish(group: Group, options: SearchOptions) -> tuple[float, Hypothesis]:
    """The beam with the largest sum of log-probabilities, the last one of equals."""
    sums = group.log_probs.sum(1).tolist()
    best = max(range(len(sums)), key=lambda beam: (sums[beam], beam))
    tokens = [
        row[:length] for row, length in zip(group.tokens[best].tolist(), group.lengths[best].tolist(), strict=True)
    ]
    reduced = float(
        reduce_log_probs(group.log_probs[best : best + 1], group.lengths[best : best + 1], options.reduction)
    )
    return sums[best], Hypothesis(tokens, reduced, float(group.scores[best]))


def reduce_log_probs(log_probs: torch.Tensor, lengths: torch.Tensor, reduction: str) -> torch.Tensor:
    """R of the sentences of each beam (beams,): their sum, the least, or the least mean a token."""
    if reduction == "sum":
        return log_probs.sum(1)
    return (log_probs / lengths.cpu() if reduction == "minavg" else log_probs).min(1).values


# -------------------------------------------------------------------------------------------------------------- candidates


class _Candidates:
    """Scores of every next token of every sentence of a group, and the best `num_beams` of them."""

    def __init__(self, bag, vocab_size: int, length: int, options: SearchOptions, banned_ngrams, device):
        self.columns = torch.tensor(sorted(bag), device=device)
        self.counts = torch.tensor([bag[token] for token in sorted(bag)], device=device)
        self.column_of = torch.full((vocab_size,), -1, dtype=torch.long, device=device)
        self.column_of[self.columns] = torch.arange(len(self.columns), device=device)
        self.vocab_size, self.length, self.options = vocab_size, length, options
        self.previous = None if banned_ngrams is None else banned_ngrams.to(device)

    def best(self, group: Group, decoder: _Decoder, diversity: torch.Tensor | None):
        """Scores, beams, places (which sentence of the beam), tokens and raw log-probabilities of the best candidates."""
        options = self.options
        scores = decoder.log_probs(group.rows, self.columns)
        if options.counts_known:
            num_beams = len(group.tokens)
            used = torch.zeros(num_beams, self.vocab_size, dtype=torch.long, device=scores.device)
            flat = group.tokens.view(num_beams, -1)
            used.scatter_add_(1, flat, torch.ones_like(flat))
            scores = scores.masked_fill((used[:, self.columns] >= self.counts)[:, None], -torch.inf)
        scores = scores.masked_fill((group.lengths >= self.length)[..., None], -torch.inf)
        if options.no_repeat_ngram_size is not None:
            scores = scores + repeated_ngrams(
                group.tokens,
                group.lengths,
                options.no_repeat_ngram_size,
                self.column_of,
                len(self.columns),
                self.previous,
            ).to(scores.dtype).mul(BAN)
        if diversity is not None:
            scores = scores + diversity[self.columns]
        reduced = reduce_log_probs(group.log_probs, group.lengths, options.reduction)
        scores = scores + reduced.to(scores.device, scores.dtype)[:, None, None]
        width = len(self.columns)
        if int((scores > BAN / 2).sum()) < options.num_beams:
            # Banned and forbidden candidates enter. They tie, and the order among equals depends on the table's layout.
            whole = scores.new_full((*scores.shape[:2], self.vocab_size), -torch.inf)
            whole[..., self.columns] = scores
            scores, width = whole, self.vocab_size
        values, places = scores.flatten().topk(min(options.num_beams, scores.numel()))
        sentences = places // width
        tokens = places % width if width == self.vocab_size else self.columns[places % width]
        beams, place = sentences // options.height, sentences % options.height
        return values, beams, place, tokens, decoder.log_prob(group.rows[beams, place], tokens)


def repeated_ngrams(
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    size: int,
    column_of: torch.Tensor,
    num_columns: int,
    previous: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which next tokens would repeat an n-gram of any sentence of the same beam, or one of `previous` (n-grams, size).

    `tokens` (beams, height, positions), `lengths` (beams, height), `column_of` (vocabulary,) the column of a token or -1.
    Bool (beams, height, num_columns).
    """
    beams, height, positions = tokens.shape
    device = tokens.device
    at = (lengths[..., None] - (size - 1) + torch.arange(size - 1, device=device)).clamp(min=0)
    suffix = tokens.gather(2, at)
    long_enough = lengths >= size - 1
    banned = torch.zeros(beams, height, num_columns + 1, dtype=torch.bool, device=device)

    def ban(grams: torch.Tensor, known: torch.Tensor) -> None:
        same = (suffix[:, :, None] == grams[:, None, :, :-1]).all(-1) & known[:, None] & long_enough[..., None]
        beam, place, gram = same.nonzero(as_tuple=True)
        last = grams[..., -1].expand(beams, -1)[beam, gram]
        banned[beam, place, column_of[last]] = True  # column -1, which is dropped, takes what is outside the bag

    if positions >= size:
        grams = tokens.unfold(2, size, 1)
        ends = torch.arange(grams.shape[2], device=device) + size - 1
        # A first token alone was given and is no n-gram that the search made.
        known = (ends < lengths[..., None]) & (ends > 0)
        ban(grams.reshape(beams, -1, size), known.reshape(beams, -1))
    if previous is not None and len(previous):
        ban(previous[None], torch.ones(1, len(previous), dtype=torch.bool, device=device))
    return banned[..., :-1]


def _ngrams_of(results: Sequence[Hypothesis], options: SearchOptions) -> torch.Tensor | None:
    size = options.no_repeat_ngram_size
    if size is None or not results:
        return None
    rows = [row for result in results for row in result.tokens]
    found = {tuple(row[end - size + 1 : end + 1]) for row in rows for end in range(max(1, size - 1), len(row))}
    return torch.tensor(sorted(found), dtype=torch.long).view(-1, size)


# ----------------------------------------------------------------------------------------------------------------- decoder


class _Decoder:
    """Next-token distributions of all sentences, kept up to date through a key/value cache.

    With one sentence a beam all have the same length. With more, the sentences that did not grow get a masked filler, and
    keep the distribution that they had.
    """

    def __init__(self, model, height: int):
        self.model, self.height = model, height
        self.cache = DynamicCache()
        self.logits: torch.Tensor
        self.norms: torch.Tensor
        self.real: torch.Tensor

    def begin(self, tokens: torch.Tensor) -> None:
        self._run(tokens[:, None])
        self.real = torch.ones(len(tokens), 1, dtype=torch.long, device=tokens.device)

    def follow(self, parents: torch.Tensor, groups: Sequence[Group]) -> None:
        """Go on with the sentences of `groups`, in order, each the child of the row in `parents`."""
        self.cache.reorder_cache(parents)
        tokens = torch.cat([group.tokens.flatten(0, 1) for group in groups])
        lengths = torch.cat([group.lengths.flatten() for group in groups])
        last = tokens.gather(1, lengths[:, None] - 1)
        if self.height == 1:
            self._run(last)
            return
        old_logits, old_norms = self.logits[parents], self.norms[parents]
        real = self.real[parents]
        grew = (lengths > real.sum(1))[:, None]
        self.real = torch.cat([real, grew.long()], dim=1)
        self._run(last, attention_mask=self.real, position_ids=lengths[:, None] - 1)
        self.logits = torch.where(grew, self.logits, old_logits)
        self.norms = torch.where(grew, self.norms, old_norms)

    def _run(self, tokens: torch.Tensor, **options) -> None:
        output = self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **options)
        self.logits = output.logits[:, -1].float()
        self.norms = self.logits.logsumexp(-1, keepdim=True)

    def log_probs(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the columns for each row: float32 (*rows.shape, columns)."""
        flat = rows.flatten()
        found = self.logits[flat[:, None], columns] - self.norms[flat]
        return found.view(*rows.shape, -1)

    def log_prob(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[rows, tokens] - self.norms[rows, 0]
