"""Unlikelihood training, the baseline: push the probability of every token of a bad sequence down.

Source: Welleck et al. 2020 as ParlAI has it for rewarded sequences (projects/dialogue_unlikelihood), which the CRINGE paper
compares with. Two separate means, over the tokens of good and of bad sequences:

    loss = mean CE(good) + alpha * mean -log(max(1 - p(y), floor))(bad)

An empty side counts as 0. Where p is 1 in float32 the value saturates at -log(floor) and the gradient is 0, as in the original.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

FLOOR, FLOOR_FP16 = 1e-20, 1e-6


class UnlikelihoodTerms(NamedTuple):
    """The loss, its two means (nats a token, without alpha) and their numbers of tokens."""

    loss: torch.Tensor
    ce: torch.Tensor
    ul: torch.Tensor
    ce_count: int
    ul_count: int


def unlikelihood_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    negative: torch.Tensor,
    *,
    alpha: float = 1.0,
    ignore_index: int = -100,
    training: bool = True,
    floor: float = FLOOR,
) -> UnlikelihoodTerms:
    """`logits` (B, T, V) or (N, V), `labels` (B, T) or (N), `negative` (bool; of the labels' shape, or (B, 1)).

    In evaluation (`training=False`) the original counts bad sequences as ordinary targets; its perplexity is therefore not
    that of CRINGE, and the arms of the study are compared by one evaluation of their own.
    """
    negative = negative.expand(labels.shape).reshape(-1)
    labels, logits = labels.reshape(-1), logits.reshape(-1, logits.shape[-1]).float()
    real = (labels != ignore_index) & (labels != -100)
    bad = real & negative if training else torch.zeros_like(real)
    good = real & ~bad
    ce_sum = F.cross_entropy(logits[good], labels[good], reduction="sum")
    probability = logits[bad].softmax(dim=-1).gather(1, labels[bad, None])[:, 0]
    saturated = probability >= 1
    nats = -torch.log1p(-probability.masked_fill(saturated, 0.0))
    ul_sum = nats.clamp(max=-math.log(floor)).masked_fill(saturated, -math.log(floor)).sum()
    counts = int(good.sum()), int(bad.sum())
    ce, ul = ce_sum / max(1, counts[0]), ul_sum / max(1, counts[1])
    return UnlikelihoodTerms(ce + alpha * ul, ce, ul, *counts)
