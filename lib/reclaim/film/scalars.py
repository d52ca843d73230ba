"""What a MeZO client sends, a seed and a scalar, and what an attacker can make of it.

A client that trains by MeZO (Malladi et al., NeurIPS 2023) sends g = (L(w + eps z) - L(w - eps z)) / (2 eps), the derivative
of its loss along a direction z that anybody can draw again from the seed. Two attacks on that:

* averaging: (1/K) sum g_k z_k over K scalars of one batch at fixed weights is an unbiased estimate of the gradient, which is
  then read as any gradient is. Each coordinate of it carries noise of standard deviation |gradient| / sqrt(K), so that a
  row of the word embedding stands out from K of the order of d (|gradient| / |row|)^2 on;
* verification: whoever has a list of candidates computes the scalar of each under the same seed, and compares.

FILM (Gupta et al. 2022) knows neither; the question is this project's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reclaim.errors import InputError
from reclaim.optim import MeZO
from reclaim.optim.slots import trainable_slots
from reclaim.optim.streams import Scratch, SequentialDirection


@dataclass(frozen=True)
class Message:
    """All that a MeZO client sends of a step: the seed of its direction and the projected gradient."""

    seed: int
    projected_grad: float


def send_scalars(
    model: nn.Module, loss: Callable[[], torch.Tensor | float], num_scalars: int, *, seed: int, eps: float = 1e-3
) -> list[Message]:
    """The messages of a client that probes `num_scalars` directions with one batch, at fixed weights.

    `loss` gives the loss of that batch at the model's present weights. The weights are as before afterwards.
    """
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    result = MeZO(model, 0.0, eps=eps, num_directions=num_scalars, seed=seed).step(loss)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)  # the sweeps restore them up to rounding only
    return [Message(*pair) for pair in zip(result.seeds, result.projected_grads, strict=True)]


def direction(model: nn.Module, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and z of every trainable parameter in order, tied ones once, as `MeZO` draws them on the model's device."""
    slots = trainable_slots(model.named_parameters())
    stream = SequentialDirection(seed, slots, Scratch())
    for index, slot in enumerate(slots):
        z = torch.cat([part.clone() for _, _, part in stream.chunks(index)])
        yield slot.name, z.view_as(slot.parameter)


def average_scalars(model: nn.Module, messages: Sequence[Message], name: str) -> torch.Tensor:
    """The attacker's estimate of the gradient of the parameter `name`: the mean of g z over the messages.

    Costs one draw of all parameters up to that one for each message. Raises InputError for an unknown name and for no message.
    """
    total = None
    for message in messages:
        drawn = next((z for found, z in direction(model, message.seed) if found == name), None)
        if drawn is None:
            raise InputError("average_scalars(name=...)", repr(name), "the name of a trainable parameter")
        part = drawn * message.projected_grad
        total = part if total is None else total.add_(part)
    if total is None:
        raise InputError("average_scalars", "no message", "at least one")
    return total / len(messages)


def draw_average(
    gradients: Mapping[str, torch.Tensor], name: str, num_scalars: int, generator: torch.Generator
) -> torch.Tensor:
    """A draw from the distribution of `average_scalars` for a loss that is linear within eps, at the price of one scalar.

    With u the unit vector of the whole gradient, g_k = |gradient| a_k and z_k = a_k u + w_k, where a_k is standard normal
    and w_k, orthogonal to u, independent of it. So the mean of g z is |gradient| (S u + sqrt(S) w) / K with S chi-squared
    of K degrees of freedom, and w standard normal in the complement of u. It shows where averaging begins to work for K too
    large to simulate; it is no attack, as it starts from the gradient.
    """
    norm = math.sqrt(sum(float(part.double().square().sum()) for part in gradients.values()))
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    square = float(rng.chisquare(num_scalars))
    noise = {key: torch.randn(part.shape, generator=generator).to(part.device) for key, part in gradients.items()}
    along = sum(float((noise[key].double() * part.double()).sum()) for key, part in gradients.items()) / norm**2
    complement = noise[name] - along * gradients[name]
    return (square * gradients[name] + norm * math.sqrt(square) * complement) / num_scalars


def scalars_needed(gradients: Mapping[str, torch.Tensor], name: str, words: Sequence[int]) -> float:
    """The rule of thumb for averaging: d (|gradient| / |row|)^2, with the mean norm of the rows of the batch's `words`."""
    total = sum(float(part.double().square().sum()) for part in gradients.values())
    rows = gradients[name][list(words)].double().norm(dim=1)
    return gradients[name].shape[1] * total / float(rows.mean()) ** 2


def candidate_scalars(
    model: nn.Module,
    losses: Callable[[nn.Module], torch.Tensor],
    seed: int,
    eps: float = 1e-3,
) -> torch.Tensor:
    """The projected gradient that a client would send for each candidate under one seed: float64 (candidates,).

    `losses(model)` gives the loss of each candidate, each as a batch of its own. The direction is drawn as the client's
    float32 model draws it, and the rest is computed in float64: the two losses differ in their last float32 digits only.
    """
    exact = copy.deepcopy(model).double().eval()
    named = dict(exact.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in named.items()}
    with torch.no_grad():
        sides = []
        for sign in (1, -1):
            for name, z in direction(model, seed):
                named[name].copy_(kept[name] + sign * eps * z.double())
            sides.append(losses(exact).double())
    return (sides[0] - sides[1]) / (2 * eps)


def pick_candidate(message: Message, scalars: torch.Tensor) -> int:
    """The candidate whose scalar is nearest to the one sent."""
    return int((scalars - message.projected_grad).abs().argmin())
