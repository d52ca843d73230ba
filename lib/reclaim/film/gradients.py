"""What a client sends for one step, as the eavesdropper receives it (Gupta et al. 2022, section 3; threat model, figure 1).

The gradient of the mean next-token loss over the batch, padding masked, dropout off. The official repository has no client:
`run_leakage` there takes the gradient of the plain sum of an encoder's hidden states, pads included, which
`hidden_state_gradient` follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.film.clients import token_rows


@dataclass(frozen=True)
class ClientGradient:
    """One step's message: gradients by parameter name, and what goes with them.

    `loss` is the client's mean loss (nats), `num_targets` the number of tokens it is a mean over. Neither is sent; the
    attack's thresholds take `num_targets` as known up to some 20 % (the batch's total length).
    """

    gradients: dict[str, torch.Tensor]
    loss: float
    num_targets: int


def padded(model, tokenizer, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids int64 and mask bool, (texts, longest), padded on the right, on the model's device."""
    ids, mask = token_rows(tokenizer, texts).take(np.arange(len(texts)))
    return ids.to(model.device), mask.to(model.device)


def client_loss(model, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Mean next-token loss over all predicted tokens of the batch (nats), and their number."""
    predicted = mask[:, 1:].bool()
    logits = model(input_ids=input_ids, attention_mask=mask.long()).logits[:, :-1][predicted].float()
    return F.cross_entropy(logits, input_ids[:, 1:][predicted]), int(predicted.sum())


def client_gradient(
    model, input_ids: torch.Tensor, mask: torch.Tensor, names: Sequence[str] | None = None
) -> ClientGradient:
    """The gradient that a client with this batch (sentences, longest) sends. `names`: some parameters, default all trained.

    A tied matrix is one parameter, whose gradient is the sum of its two uses.
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    named = named if names is None else {name: named[name] for name in names}
    loss, num_targets = client_loss(model, input_ids, mask)
    found = torch.autograd.grad(loss, list(named.values()))
    gradients = {name: gradient.detach() for name, gradient in zip(named, found, strict=True)}
    return ClientGradient(gradients, float(loss.detach()), num_targets)


def is_tied(model) -> bool:
    """Whether the output head is the word-embedding matrix."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def embedding_names(model) -> tuple[str, str | None]:
    """Names of the word-embedding matrix and of GPT-2's position matrix (None for models without one)."""
    words = model.get_input_embeddings().weight
    names = {id(value): name for name, value in model.named_parameters()}
    positions = getattr(model.base_model, "wpe", None)
    return names[id(words)], names[id(positions.weight)] if positions is not None else None


@torch.no_grad()
def mean_hidden_norm(model, input_ids: torch.Tensor, mask: torch.Tensor) -> float:
    """H of the kH/N rule: mean norm of the final hidden states of the tokens of texts (texts, longest).

    Any own text of the eavesdropper will do.
    """
    hidden = model.base_model(input_ids=input_ids, attention_mask=mask.long())[0]
    return float(hidden[mask.bool()].float().norm(dim=-1).mean())


def hidden_state_gradient(model, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Word and position gradients of the plain sum of the final hidden states, every position, pads included (official)."""
    names = [name for name in embedding_names(model) if name]
    named = dict(model.named_parameters())
    hidden = model.base_model(input_ids=input_ids)[0]
    gradients = torch.autograd.grad(hidden.sum(), [named[name] for name in names])
    return dict(zip(names, gradients, strict=True))


def gradient_distances(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> dict[str, float]:
    """Squared error and cosine distance of two gradients, summed over parameters (official `calculateGradLoss`)."""
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(first, second, strict=True)]
    squared = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    cosine = sum(1 - float((a @ b) / (a.norm() * b.norm() + 1e-6)) for a, b in pairs)
    return {"mse": squared, "cosine": cosine}
