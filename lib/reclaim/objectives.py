"""What MeZO minimises: losses of a language model, as plain functions of a model and a batch.

Malladi et al. (2023) and the official code (princeton-nlp/MeZO): the LM loss on an option, classification over options,
prompted masked-LM classification, and two objectives that have no gradient, minus accuracy and minus F1 of generations.

Batches for a causal model are LEFT-padded, and the option is the last `option_len` tokens of each row. Only the
positions that are scored get logits, and these are computed in float32 (float64 models: float64), because a
half-precision loss quantises the projected gradient away.

Differences from the official code: it computes logits at every position; an `option_len` of 0 there trains on the whole
row and is refused here; classification takes one label and one number of options per example, not per row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reclaim.errors import InputError
from reclaim.metrics.qa import mean_answer_f1
from reclaim.scoring import at_least_float32, label_word_logits


def option_token_logprobs(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, option_len: Sequence[int] | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the tokens of each row's option, and a mask of the same shape.

    input_ids, attention_mask: (rows, length), left-padded. option_len: per row, from 1 to its tokens minus 1.

    Returns `(rows, longest option)`, right-aligned, where the mask is 0 before the option. Raises InputError for an
    option that is empty or leaves no token before it, and for right-padded rows.
    """
    lengths = torch.as_tensor(option_len, device=input_ids.device)
    tokens = attention_mask.sum(-1)
    if lengths.shape != tokens.shape or bool((lengths < 1).any()) or bool((lengths >= tokens).any()):
        raise InputError(
            "option_len",
            f"{lengths.tolist()} for rows of {tokens.tolist()} tokens",
            "1 <= option_len < tokens of the row",
        )
    if not bool(attention_mask[:, -1].all()):
        raise InputError("attention_mask", "rows that end in padding", "left-padded rows: the option is at the end")

    longest = int(lengths.max())
    logits = _last_logits(model, input_ids, attention_mask, longest + 1)[:, :-1]
    targets = input_ids[:, -longest:, None]
    # Less memory than log_softmax over the vocabulary: no second tensor of the logits' size is kept.
    logprobs = logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(-1)
    mask = torch.arange(longest, 0, -1, device=lengths.device) <= lengths[:, None]
    return logprobs, mask


def option_lm_loss(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, option_len: Sequence[int] | torch.Tensor
) -> torch.Tensor:
    """Cross entropy of the option tokens, averaged over all option TOKENS of the batch (not over rows)."""
    logprobs, mask = option_token_logprobs(model, input_ids, attention_mask, option_len)
    return -(logprobs * mask).sum() / mask.sum()


def option_scores(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    option_len: Sequence[int] | torch.Tensor,
    num_options: Sequence[int],
) -> torch.Tensor:
    """Mean token log-probability of every option: (examples, most options), with -inf where an example has fewer.

    The rows of an example follow one another; `num_options` counts them, per example.
    """
    counts = [int(count) for count in num_options]
    if min(counts, default=0) < 1 or sum(counts) != len(input_ids):
        raise InputError("num_options", f"{counts} for {len(input_ids)} rows", "counts >= 1 that add up to the rows")
    logprobs, mask = option_token_logprobs(model, input_ids, attention_mask, option_len)
    means = (logprobs * mask).sum(-1) / mask.sum(-1)
    return nn.utils.rnn.pad_sequence(means.split(counts), batch_first=True, padding_value=float("-inf"))


def option_classification_loss(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    option_len: Sequence[int] | torch.Tensor,
    num_options: Sequence[int],
    labels: torch.Tensor,
) -> torch.Tensor:
    """Cross entropy over each example's options, scored by mean log-probability; the mean over examples.

    labels: (examples,), the index of the right option.
    """
    return F.cross_entropy(option_scores(model, input_ids, attention_mask, option_len, num_options), labels)


def prompt_mlm_loss(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    mask_positions: torch.Tensor,
    label_word_ids: Sequence[int],
    labels: torch.Tensor,
) -> torch.Tensor:
    """Cross entropy over the label words at the mask. labels: (rows,), indices into `label_word_ids`."""
    return F.cross_entropy(
        label_word_logits(model, input_ids, attention_mask, mask_positions, label_word_ids), labels.reshape(-1)
    )


def minus_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Minus the share of rows whose arg max is the label (the first on ties). A multiple of 1 / rows."""
    return -float((logits.argmax(-1) == labels.reshape(-1)).double().mean())


def minus_f1(generate: Callable[[], Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Minus the mean answer F1 of the texts that `generate` gives without teacher forcing, each against its
    references."""
    return -mean_answer_f1(generate(), references)


def _last_logits(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, last: int) -> torch.Tensor:
    """Logits of the last positions, in float32 or wider, with positions counted from each row's first real token."""
    accepted = inspect.signature(model.forward).parameters
    optional: dict[str, Any] = {"use_cache": False, "logits_to_keep": last}
    # Models with absolute positions place left-padded rows wrongly unless told; OPT does this itself, to the same
    # effect.
    optional["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    arguments = {name: value for name, value in optional.items() if name in accepted}
    output = model(input_ids=input_ids, attention_mask=attention_mask, **arguments)
    return at_least_float32(output.logits[:, -last:])
