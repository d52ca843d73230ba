"""The CRINGE loss: cross entropy on what is good, a contrast with the model's own top-k on what is bad.

Source: Adolphs et al., "The CRINGE Loss: Learning what language not to model" (ACL 2023), section 3, and its official code in
ParlAI (projects/cringe). For logits z, target y and polarity s of a position:

    CE = -log softmax(z)[y]                             where s is POSITIVE or UNLABELLED
    p ~ softmax of z over its k largest entries but y   (one draw, no gradient through the probabilities)
    CT = softplus(z[y] - z[p])                          where s is NEGATIVE
    loss = sum(CE + alpha * CT) / number of positions that have either

One denominator for both, so that `alpha` acts per token and a batch with few negatives gives them little weight.

Differences from the official code: labels of -100 are ignored as anywhere else in PyTorch; a padding id of 0 or 1 does not
switch the contrast off (`official_quirks=True` brings that back); k is clamped to the vocabulary less one; a batch
without any such position gives 0 with a gradient and not NaN; draws come from a generator of their own; in evaluation the
exact expectation over the draws can be asked for. The default is the paper's k = 5 (the code's own is 1: `README`).

`linear_cringe_loss` computes output layer and loss together without the logits of all positions.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F

from reclaim.errors import InputError

POSITIVE, NEGATIVE, UNLABELLED = 1, 0, -1
README = {"k": 1, "alpha": 1.0}
"""What the commands of the project's README train with; the paper has k = 5 and alpha among 0.5, 1, 2, 5."""
REDUCTIONS = ("mean", "sum", "none")
CHUNK_ROWS = 128


class CringeTerms(NamedTuple):
    """The loss and its parts. Per position (N), zero where a part does not apply:

    `ce`, `ct` (nats), `ce_mask`, `ct_mask` (bool, padding excluded), `positive_ids` (the drawn tokens, -1 where none is).
    `loss` is reduced as asked for, `count` the number of positions that have either part.
    """

    loss: torch.Tensor
    ce: torch.Tensor
    ct: torch.Tensor
    ce_mask: torch.Tensor
    ct_mask: torch.Tensor
    positive_ids: torch.Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of this


def polarity_masks(
    labels: torch.Tensor,
    polarity: torch.Tensor,
    ignore_index: int = -100,
    *,
    ce_on_positives: bool = True,
    contrast_positives: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions have cross entropy and which have the contrast, padding excluded: two bool tensors like `labels`."""
    real = (labels != ignore_index) & (labels != -100)
    ce = (polarity == UNLABELLED) | (polarity == POSITIVE if ce_on_positives else False)
    contrast = (polarity == NEGATIVE) | (polarity == POSITIVE if contrast_positives else False)
    return ce & real, contrast & real


def candidates(logits: torch.Tensor, labels: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (N, m) and probabilities (N, m) of what a label is contrasted with: the k largest logits without the label's own.

    `logits` (N, V), `labels` (N) in 0..V-1. m is min(k, V - 1) + 1; one slot of each row has probability 0: the label's own
    or, where that is not among the k + 1 largest, the last. Raises `InputError` for k below 1; warns where k is clamped.
    """
    if k < 1:
        raise InputError("k of the CRINGE loss", str(k), "1 or more: with 0 a token would be contrasted with itself")
    vocabulary = logits.shape[-1]
    if vocabulary < 2:
        raise InputError("logits of the CRINGE loss", "a vocabulary of one token", "two tokens or more")
    if k > vocabulary - 1:
        warnings.warn(f"k = {k} is clamped to {vocabulary - 1}, all tokens but the label", stacklevel=2)
        k = vocabulary - 1
    values, ids = logits.detach().float().topk(k + 1, dim=-1)
    own = ids == labels[:, None]
    own[:, -1] |= ~own.any(dim=-1)
    return ids, values.masked_fill(own, float("-inf")).softmax(dim=-1)


def cringe_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    polarity: torch.Tensor,
    *,
    k: int = 5,
    alpha: float = 1.0,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
    positive_ids: torch.Tensor | None = None,
    detach_positives: bool = False,
    contrast_positives: bool = False,
    ce_on_positives: bool = True,
    expected: bool = False,
    official_quirks: bool = False,
    reduction: str = "mean",
) -> CringeTerms:
    """The loss of positions: `logits` (N, V) or (B, T, V), `labels` (N) or (B, T), `polarity` of their shape or (B, 1).

    Labels equal to `ignore_index` or -100 count for nothing. `positive_ids` (N) gives the contrasted tokens in place of a draw
    from `generator` (on the logits' device). `detach_positives`: no gradient into the contrasted token. `contrast_positives`:
    positives are also contrasted, the label being the one to prefer. `expected` replaces the draw by its expectation,
    sum over candidates of probability * contrast, which has no noise. `reduction`: "mean" (over positions that have a part),
    "sum" or "none" (N). `official_quirks`: the contrast of positives vanishes with `ignore_index` 0, that of negatives with 1.

    Raises `InputError` for another reduction or k below 1.
    """
    if reduction not in REDUCTIONS:
        raise InputError("reduction of the CRINGE loss", repr(reduction), f"one of {', '.join(REDUCTIONS)}")
    if k < 1:
        raise InputError("k of the CRINGE loss", str(k), "1 or more: with 0 a token would be contrasted with itself")
    polarity = polarity.expand(labels.shape).reshape(-1)
    labels, logits = labels.reshape(-1), logits.reshape(-1, logits.shape[-1])
    options = {"ce_on_positives": ce_on_positives, "contrast_positives": contrast_positives}
    ce_mask, ct_mask = polarity_masks(labels, polarity, ignore_index, **options)
    safe = labels.masked_fill(~(ce_mask | ct_mask), -100)
    ce = F.cross_entropy(logits.float(), safe.masked_fill(~ce_mask, -100), reduction="none", ignore_index=-100)
    ct = torch.zeros_like(ce)
    drawn = torch.full_like(labels, -1)
    rows = ct_mask.nonzero()[:, 0]
    if len(rows):
        own, chosen = labels[rows], logits[rows]
        sign = torch.where(polarity[rows] == POSITIVE, -1.0, 1.0)
        own_logit = chosen.gather(1, own[:, None]).float()
        if expected:
            ids, probability = candidates(chosen, own, k)
            other = chosen.gather(1, ids).float()
            contrast = (probability * F.softplus(sign[:, None] * (own_logit - other))).sum(dim=-1)
        else:
            if positive_ids is None:
                ids, probability = candidates(chosen, own, k)
                slots = torch.multinomial(probability, 1, generator=generator)
                drawn[rows] = ids.gather(1, slots)[:, 0]
            else:
                drawn[rows] = positive_ids.reshape(-1)[rows]
            other = chosen.gather(1, drawn[rows, None]).float()
            other = other.detach() if detach_positives else other
            contrast = F.softplus(sign * (own_logit - other)[:, 0])
        if official_quirks:
            silent = {0: POSITIVE, 1: NEGATIVE}.get(ignore_index)
            contrast = contrast * (polarity[rows] != silent) if silent is not None else contrast
        ct = ct.index_put((rows,), contrast)
    count = int((ce_mask | ct_mask).sum())
    loss = ce + alpha * ct
    if reduction != "none":
        loss = loss.sum() if reduction == "sum" else loss.sum() / max(1, count)
    return CringeTerms(loss, ce, ct, ce_mask, ct_mask, drawn, count)


class CringeLoss(torch.nn.Module):
    """The loss as a module: `CringeLoss(k=5, alpha=1.0)(logits, labels, polarity)` gives the mean loss.

    `labels` (B, T) and `polarity` (B), (B, 1) or (B, T) as in `cringe_loss`; the caller has shifted them. In evaluation mode
    the expectation over draws stands in the place of a draw. `seed` gives the draws a generator of their own, so that
    dropout and data order do not change them; two calls draw differently.
    """

    def __init__(self, k: int = 5, alpha: float = 1.0, seed: int = 0, **options):
        super().__init__()
        self.k, self.alpha, self.seed, self.options = k, alpha, seed, options
        self.generator: torch.Generator | None = None

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, polarity: torch.Tensor) -> torch.Tensor:
        """The mean loss, a scalar."""
        if self.generator is None or self.generator.device != logits.device:
            self.generator = torch.Generator(logits.device).manual_seed(self.seed)
        polarity = polarity[:, None] if polarity.dim() < labels.dim() else polarity
        options = {"k": self.k, "alpha": self.alpha, "generator": self.generator, "expected": not self.training}
        return cringe_loss(logits, labels, polarity, **{**options, **self.options}).loss


class LinearTerms(NamedTuple):
    """What `linear_cringe_loss` gives: the summed loss (with a gradient), its parts without weight, and the counts."""

    loss: torch.Tensor
    ce_sum: float
    ct_sum: float
    ce_count: int
    ct_count: int


def linear_cringe_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    polarity: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    k: int = 5,
    alpha: float = 1.0,
    generator: torch.Generator | None = None,
    positive_ids: torch.Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> LinearTerms:
    """Output layer and CRINGE loss together, the logits of `chunk_rows` positions at a time; the loss is a SUM.

    `hidden` (N, d), `weight` (V, d), `bias` (V), `labels` and `polarity` (N); labels of -100 count for nothing. Gradients with
    respect to hidden, weight and bias are computed in the forward pass, chunk by chunk, as the logits are at hand there:
    nothing is computed twice and no (N, V) tensor exists. Second derivatives are not defined. On 1,024 positions, 50,257 tokens
    and width 512 that took 0.21 of the memory and 0.93 of the time of the loss on all logits (`benchmarks/cringe_loss.py`,
    one core); recomputing chunks in the backward pass took 0.39 and 1.58.
    """
    ce_mask, ct_mask = polarity_masks(labels, polarity)
    rows = (ce_mask | ct_mask).nonzero()[:, 0]
    draws = _Draws(k, generator, None if positive_ids is None else positive_ids[rows])
    parts: list[float] = []
    with torch.autocast(hidden.device.type, enabled=False):
        chosen = hidden[rows], weight, bias, labels[rows], ct_mask[rows]
        loss = _LinearCringe.apply(*chosen, alpha, draws, chunk_rows, parts)
    return LinearTerms(loss, parts[0], parts[1], int(ce_mask.sum()), int(ct_mask.sum()))


class _Draws:
    """The contrasted tokens of a run of positions: given, or drawn in the order of the positions."""

    def __init__(self, k: int, generator: torch.Generator | None, given: torch.Tensor | None):
        self.k, self.generator, self.given = k, generator, given

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        if self.given is not None:
            return self.given[place]
        ids, probability = candidates(logits, labels, self.k)
        return ids.gather(1, torch.multinomial(probability, 1, generator=self.generator))[:, 0]


class _LinearCringe(torch.autograd.Function):
    """Sum of the loss over positions, with its gradients taken on the way."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, contrasted, alpha, draws, chunk_rows, parts):
        gradients = [
            torch.zeros_like(tensor) if tensor is not None and needed else None
            for tensor, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        # Under autocast the hidden states are of a smaller type than the weights.
        table, offset = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        ce_sum = hidden.new_zeros((), dtype=torch.float32)
        ct_sum = ce_sum.clone()
        for start in range(0, len(hidden), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            part, label = hidden[chunk], labels[chunk]
            logits = F.linear(part, table, offset).float()
            bad = contrasted[chunk].nonzero()[:, 0]
            good = (~contrasted[chunk]).nonzero()[:, 0]
            other = None
            if len(bad):
                own_logit = logits[bad, label[bad]]
                other = draws(logits if len(bad) == len(logits) else logits[bad], label[bad], bad + start)
                difference = own_logit - logits[bad, other]
                ct_sum += F.softplus(difference).sum()
            if any(gradient is not None for gradient in gradients):
                # The logits' storage becomes their gradient's: softmax minus one-hot, or two entries a row.
                # (The maximum goes first: next to a large logit the difference of two large numbers would be rounded.)
                gradient = logits.sub_(logits.amax(dim=-1, keepdim=True))
                gradient.sub_(gradient.logsumexp(dim=-1, keepdim=True))
                ce_sum -= gradient[good, label[good]].sum()
                gradient.exp_()
                gradient[good, label[good]] -= 1.0
                if other is not None:
                    slope = alpha * torch.sigmoid(difference)
                    gradient[bad] = 0.0
                    gradient[bad, label[bad]] = slope
                    gradient[bad, other] = -slope
                gradient = gradient.to(part.dtype)
                if gradients[0] is not None:
                    torch.mm(gradient, table, out=gradients[0][chunk])
                if gradients[1] is not None:
                    if part.dtype == weight.dtype:
                        gradients[1].addmm_(gradient.T, part)
                    else:
                        gradients[1] += gradient.T @ part
                if gradients[2] is not None:
                    gradients[2] += gradient.sum(dim=0)
            else:
                ce_sum += F.cross_entropy(logits[good], label[good], reduction="sum")
        ctx.gradients = gradients
        parts += [float(ce_sum), float(ct_sum)]
        return ce_sum + alpha * ct_sum

    @staticmethod
    def backward(ctx, scale):
        gradients = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.gradients]
        ctx.gradients = None
        return (*gradients, *[None] * 6)


def example_metrics(terms: CringeTerms, logits: torch.Tensor, labels: torch.Tensor, alpha: float = 1.0) -> dict:
    """Means per sequence, as the official training class reports them: name -> tensor (B), NaN where nothing is counted
    (`loss`: 0).

    `terms` with the positions of `logits` (B, T, V) and `labels` (B, T). `loss`, `ce_loss`, `ct_loss` (nats a token), `ppl_ce`,
    `ppl_ct` (exp of them; the second is not a perplexity of any language model), `token_acc` and its values on sequences
    with and without cross entropy (falling accuracy on negatives says that training works), and the counts of tokens.
    """
    shape = labels.shape
    ce_mask, ct_mask = terms.ce_mask.view(shape), terms.ct_mask.view(shape)
    either = ce_mask | ct_mask
    right = (logits.argmax(dim=-1) == labels).float()
    loss = (terms.ce + alpha * terms.ct).view(shape)
    nats = {
        "loss": (loss * either).sum(dim=1) / either.sum(dim=1).clamp(min=1),
        "ce_loss": _means(terms.ce.view(shape), ce_mask),
        "ct_loss": _means(terms.ct.view(shape), ct_mask),
    }
    return {
        **nats,
        "ppl_ce": nats["ce_loss"].exp(),
        "ppl_ct": nats["ct_loss"].exp(),
        "token_acc": _means(right, either),
        "token_acc_pos": _means(right, ce_mask),
        "token_acc_neg": _means(right, ct_mask),
        "ce_target_tokens": ce_mask.sum(dim=1).float(),
        "ct_target_tokens": ct_mask.sum(dim=1).float(),
        "total_target_tokens": either.sum(dim=1).float(),
    }


def _means(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1)
