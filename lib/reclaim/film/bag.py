"""A bag of words read from the gradient of the word embeddings (Gupta et al. 2022, section 4.1).

With a head of its own, row v of the input gradient differs from zero exactly where token v is an input whose output
matters: the last token of each sentence has no target, so one that occurs only there is missed and sentence ends are added
by hand. With a tied head, as in GPT-2, the softmax makes every row differ from zero. Rows of true tokens are still longer,
and a threshold is needed. The paper names none; the rules here are those of the public attack library `breaching`
(`embedding-norm`), a rule scaled by what one occurrence adds (kH/N), and the largest gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from reclaim.errors import InputError

# A rule by name, for heads of their own and for tied ones.
RULES = ("nonzero", "scaled", "gap", "log_norm", "size")


def nonzero_rows(gradient: torch.Tensor) -> list[int]:
    """Ids of the rows (vocabulary, width) that are not all zero: the exact bag, but for sentence ends, without a tied head."""
    return torch.nonzero((gradient != 0).any(dim=1)).flatten().tolist()


def varying_rows(gradient: torch.Tensor) -> list[int]:
    """Ids of the rows (vocabulary, width) whose entries differ among themselves (the official `run_leakage`)."""
    return torch.nonzero(gradient.var(dim=1)).flatten().tolist()


def scaled_rows(norms: torch.Tensor, hidden_norm: float, num_targets: int, k: float = 0.35) -> list[int]:
    """Ids with row norm above k H / N: one occurrence of a target adds about (1 - p) H / N. May be empty.

    `norms` (vocabulary,); H = `hidden_norm` as `gradients.mean_hidden_norm` gives it; N = `num_targets`.
    """
    return torch.nonzero(norms > k * hidden_norm / num_targets).flatten().tolist()


def gap_rows(norms: torch.Tensor, num_targets: int) -> list[int]:
    """Ids above the largest gap of the sorted log-norms (vocabulary,) between ranks .3 N and 1.15 N. May be empty."""
    ordered, ids = norms.sort(descending=True)
    known = int((ordered > 0).sum())
    first, last = max(1, int(0.3 * num_targets)), min(known - 1, int(1.15 * num_targets))
    if last < first:
        return sorted(ids[:known].tolist())
    logs = ordered[: last + 1].log()
    # The cut behind rank r (r tokens kept) has the gap logs[r - 1] - logs[r].
    kept = first + int((logs[first - 1 : last] - logs[first : last + 1]).argmax())
    return sorted(ids[:kept].tolist())


def log_norm_tokens(norms: torch.Tensor, num_tokens: int, cutoff: float = 1.5) -> list[int]:
    """`num_tokens` ids with repetitions, sorted, by the rule `embedding-norm` of breaching (Fowl et al. 2023).

    Rows whose log-norm is `cutoff` standard deviations above the mean; the cutoff shrinks by .8 until there is one. Further
    occurrences go, one at a time, to the row with the largest norm left when each takes an equal share. Where rows are zero
    the mean is not finite and all others count.
    """
    std, mean = torch.std_mean(norms.log())
    while True:
        threshold = mean + cutoff * std
        above = norms.log() > threshold if threshold.isfinite() else norms != 0
        if above.any() or not threshold.isfinite():
            break
        cutoff *= 0.8
    valid = torch.nonzero(above).flatten()
    if len(valid) > num_tokens:
        valid = norms.topk(num_tokens).indices
    if not len(valid):
        return []
    tokens, left = valid.tolist(), norms[valid].clone()
    share = left.sum() / num_tokens
    left -= share
    while len(tokens) < num_tokens:
        most = left.argmax()
        tokens.append(int(valid[most]))
        left[most] -= share
    return sorted(tokens)


def largest_rows(norms: torch.Tensor, size: int) -> list[int]:
    """Ids of the `size` largest norms (vocabulary,), for an attacker who is given the size of the bag."""
    return sorted(norms.topk(min(size, len(norms))).indices.tolist())


def read_bag(
    gradient: torch.Tensor,
    rule: str,
    *,
    num_targets: int,
    hidden_norm: float = 0.0,
    k: float = 0.35,
    cutoff: float = 1.5,
    size: int = 0,
    add: Iterable[int] = (),
) -> list[int]:
    """The bag as sorted ids: what `rule` reads from the gradient (vocabulary, width), and the ids of `add`.

    `rule`: `nonzero`, `scaled` (k, hidden_norm), `gap`, `log_norm` (cutoff; as a set), `size`. A rule that reads nothing
    gives an empty bag whatever `add` holds. Raises InputError for another rule.
    """
    norms = gradient.float().norm(dim=1)
    if rule == "nonzero":
        found = nonzero_rows(gradient)
    elif rule == "scaled":
        found = scaled_rows(norms, hidden_norm, num_targets, k)
    elif rule == "gap":
        found = gap_rows(norms, num_targets)
    elif rule == "log_norm":
        found = log_norm_tokens(norms, num_targets, cutoff)
    elif rule == "size":
        found = largest_rows(norms, size)
    else:
        raise InputError("film bag rule", repr(rule), f"one of {', '.join(RULES)}")
    return sorted(set(found).union(add)) if found else []


def standing_out(norms: torch.Tensor, among: Sequence[int], most: int) -> list[int]:
    """Ids of `among`, at most `most`, above the largest gap of their sorted log-norms; `norms` (vocabulary,).

    For tokens that begin sentences, under a tied head: they are inputs and never targets, so that their rows are too short
    for a threshold made for targets, but the head adds next to nothing to the rows of those that are absent.
    """
    ids = torch.tensor(sorted(among), dtype=torch.long, device=norms.device)
    if len(ids) < 2:
        return ids.tolist()
    ordered, places = norms[ids].clamp(min=torch.finfo(norms.dtype).tiny).log().sort(descending=True)
    kept = 1 + int((ordered[:-1] - ordered[1:])[:most].argmax())
    return sorted(ids[places[:kept]].tolist())


def longest_input(position_gradient: torch.Tensor) -> int:
    """The last position with a gradient, -1 for none: the longest sentence has two tokens more (its last has no target)."""
    places = torch.nonzero((position_gradient != 0).any(dim=1)).flatten()
    return int(places[-1]) if len(places) else -1
