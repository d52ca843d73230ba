"""A better search than the official one: a beam of its own for each start token, and sentences that may end.

The official search (`film.search`) lets start tokens compete in one beam, grows every hypothesis to full length and ranks by
summed log-probability, which prefers what is short and common. Here every start token has an independent beam, all of them
in one batch; a hypothesis that ends in a sentence-final token leaves its beam; the rank is the mean log-probability of a
predicted token. Not from the paper: measured against its search by this project.
"""

from __future__ import annotations

from collections.abc import Sequence

import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers.cache_utils import DynamicCache

from reclaim.film.search import Hypothesis, repeated_ngrams


def end_tokens(tokenizer, vocab_size: int) -> list[int]:
    """Ids whose text ends in a sentence-final mark, quotes and brackets behind it aside: an attacker adds them by hand."""
    texts = (tokenizer.decode([token]) for token in range(vocab_size))
    return [token for token, text in enumerate(texts) if text.strip().rstrip("\"')]").endswith((".", "?", "!"))]


@torch.no_grad()
def start_search(
    model,
    bag: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    *,
    max_length: int = 40,
    num_beams: int = 16,
    no_repeat_ngram_size: int | None = None,
    per_start: int = 1,
) -> list[Hypothesis]:
    """Sentences of the words of `bag` from each of `starts`, the best `per_start` of each, by mean log-probability.

    `ends`: ids at which a sentence ends (those in the bag count). A start from which nothing ended within `max_length`
    tokens gives its best unfinished beam. `score` of a result is the mean log-probability of a predicted token, `log_prob`
    the sum. An empty bag or no start token: no result.
    """
    starts = sorted(set(starts))
    if not bag or not starts:
        return []
    device = model.device
    columns = torch.tensor(sorted(bag), device=device)
    is_end = torch.isin(columns, torch.tensor(sorted(ends), dtype=torch.long, device=device))
    column_of = torch.full((model.config.vocab_size,), -1, dtype=torch.long, device=device)
    column_of[columns] = torch.arange(len(columns), device=device)
    live = _Live(torch.tensor(starts, device=device)[:, None, None], torch.zeros(len(starts), 1, device=device))
    pool = _Pool(len(starts), max_length, per_start, device)
    cache = DynamicCache()
    for length in range(1, max_length):
        output = model(
            input_ids=live.tokens[..., -1].reshape(-1, 1), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        logits = output.logits[:, -1].float()
        scores = logits[:, columns] - logits.logsumexp(-1, keepdim=True)
        scores = scores.view(*live.tokens.shape[:2], -1)
        if no_repeat_ngram_size is not None:
            # Each hypothesis is a beam of one sentence.
            tokens = live.tokens.flatten(0, 1)[:, None]
            lengths = torch.full(tokens.shape[:2], length, device=device)
            repeats = repeated_ngrams(tokens, lengths, no_repeat_ngram_size, column_of, len(columns))
            scores = scores.masked_fill(repeats.view(scores.shape), -torch.inf)
        totals = live.sums[..., None] + scores
        pool.add(live, totals[..., is_end], columns[is_end], length)
        totals = totals.masked_fill(is_end, -torch.inf)
        values, places = totals.flatten(1).topk(min(num_beams, totals[0].numel()), dim=1)
        parents, chosen = places // len(columns), columns[places % len(columns)]
        live = live.grow(parents, chosen, values)
        if not torch.isfinite(values).any():
            break
        offsets = torch.arange(len(starts), device=device)[:, None] * totals.shape[1]
        cache.reorder_cache((parents + offsets).flatten())
    return pool.results(live)


class _Live:
    """Hypotheses that have not ended: tokens (starts, beams, length), sums of log-probabilities (starts, beams)."""

    def __init__(self, tokens: torch.Tensor, sums: torch.Tensor):
        self.tokens, self.sums = tokens, sums

    def grow(self, parents: torch.Tensor, tokens: torch.Tensor, sums: torch.Tensor) -> _Live:
        kept = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[2]))
        return _Live(torch.cat([kept, tokens[..., None]], dim=2), sums)


class _Pool:
    """The best ended hypotheses of each start."""

    def __init__(self, num_starts: int, max_length: int, size: int, device):
        self.size = size
        self.means = torch.full((num_starts, 0), -torch.inf, device=device)
        self.tokens = torch.zeros(num_starts, 0, max_length, dtype=torch.long, device=device)
        self.lengths = torch.zeros(num_starts, 0, dtype=torch.long, device=device)

    def add(self, live: _Live, totals: torch.Tensor, ends: torch.Tensor, length: int) -> None:
        """Add every hypothesis with every end behind it: `totals` (starts, beams, ends), after `length` tokens."""
        if not len(ends):
            return
        starts, beams, _ = totals.shape
        means = totals.flatten(1) / length  # the first token was given, the end is predicted
        tokens = self.tokens.new_zeros(starts, beams, len(ends), self.tokens.shape[2])
        tokens[..., :length] = live.tokens[:, :, None]
        tokens[..., length] = ends
        self.means = torch.cat([self.means, means], dim=1)
        self.tokens = torch.cat([self.tokens, tokens.flatten(1, 2)], dim=1)
        self.lengths = torch.cat([self.lengths, torch.full_like(means, length + 1, dtype=torch.long)], dim=1)
        self.means, best = self.means.topk(min(self.size, self.means.shape[1]), dim=1)
        self.tokens = self.tokens.gather(1, best[..., None].expand(-1, -1, self.tokens.shape[2]))
        self.lengths = self.lengths.gather(1, best)

    def results(self, live: _Live) -> list[Hypothesis]:
        found = []
        for start in range(len(self.means)):
            ended = [
                Hypothesis([tokens[:length]], mean * (length - 1), mean)
                for mean, tokens, length in zip(
                    self.means[start].tolist(), self.tokens[start].tolist(), self.lengths[start].tolist(), strict=True
                )
                if mean > -float("inf")
            ]
            if not ended:
                total, beam = live.sums[start].max(0)
                tokens = live.tokens[start, beam].tolist()
                ended = [Hypothesis([tokens], float(total), float(total) / max(len(tokens) - 1, 1))]
            found += ended
        return sorted(found, key=lambda hypothesis: -hypothesis.score)
