"""What a client can do against the attack, each with a strength: prune, DP-SGD, freeze the word embeddings, LoRA, MeZO.

The defences of FILM (Gupta et al., NeurIPS 2022, section 6) and the two cross-paper ones of this project:

    none
    prune   p         of each tensor, entries below the p-quantile of their absolute values become 0 (as in GradAttack)
    dp      sigma     clip the gradient of each sentence to norm C, add noise of deviation sigma C to the sum, divide by B
    freeze            word embeddings, and the head, tied or not, are neither trained nor sent; positions are
    lora    r         only low-rank updates of the attention projections are trained and sent
    mezo    K         K seeds and scalars of a step are all that is sent (`scalars`)

What a client sends is what the server applies: training goes through the one loop with exactly the gradients that
`sent_gradients` gives for a batch, so that the utility is that of the defence that was attacked.

The epsilon of DP-SGD (Abadi et al. 2016) is Opacus's, by Renyi accounting of the sampled Gaussian mechanism (Mironov et al.
2019). It supposes that each sentence is drawn independently; batches here are pieces of a permutation, as is usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from reclaim.adapters import add_lora
from reclaim.batches import epoch_batches
from reclaim.errors import InputError
from reclaim.film.clients import epoch_recipe
from reclaim.film.gradients import client_gradient, client_loss
from reclaim.optim import MeZO
from reclaim.pretrain import TokenRows
from reclaim.seeding import derive
from reclaim.train import Recipe, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFENCES = ("none", "prune", "dp", "freeze", "lora", "mezo")
LORA_TARGETS = ["c_attn"]
Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Defence:
    """A defence and its strength (see the module); `max_grad_norm` is C of DP-SGD.

    Raises InputError for an unknown name and for a strength out of range.
    """

    name: str = "none"
    strength: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in DEFENCES:
            raise InputError("defence", repr(self.name), f"one of {', '.join(DEFENCES)}")
        whole = float(self.strength).is_integer() and self.strength >= 1
        fits = {"prune": 0 <= self.strength < 1, "dp": self.strength >= 0, "lora": whole, "mezo": whole}
        if not fits.get(self.name, True):
            expected = {"prune": "a share in [0, 1)", "dp": "a number >= 0"}.get(self.name, "a whole number from 1")
            raise InputError(f"strength of the defence {self.name}", repr(self.strength), expected)

    def protect(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """Fix in place what of the model is trained and sent, and give it; `seed` is of LoRA's start."""
        if self.name == "freeze":
            for part in (model.get_input_embeddings(), model.get_output_embeddings()):
                part.weight.requires_grad_(False)
        elif self.name == "lora":
            r = int(self.strength)
            add_lora(model, r=r, lora_alpha=2 * r, target_modules=LORA_TARGETS, train_head=False, seed=seed)
        return model


# ------------------------------------------------------------------------------------------------------- what is sent


def sent_gradients(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, defence: Defence, generator: torch.Generator
) -> Gradients:
    """The gradients that a client sends for a batch, by name of the trainable parameter.

    `ids` and `mask` (sentences, longest) are padded on the right. The plain gradient is of the mean loss over all targets of
    the batch; that of DP-SGD is a mean over sentences, each clipped, of the mean over a sentence's targets. `generator` is of
    the noise. The model is one that `Defence.protect` gave. Raises InputError for MeZO, which sends no gradient.
    """
    if defence.name == "mezo":
        raise InputError("sent_gradients", "a MeZO client", "a client that sends gradients", "See film.scalars.")
    if defence.name == "dp":
        return _private_gradients(model, ids, mask, defence, generator)
    gradients = client_gradient(model, ids, mask).gradients
    if defence.name == "prune":
        return {name: prune(gradient, defence.strength) for name, gradient in gradients.items()}
    return gradients


def prune(gradient: torch.Tensor, ratio: float) -> torch.Tensor:
    """Set the entries whose absolute value is below the `ratio`-quantile (linear interpolation) of the tensor's to 0."""
    sizes = gradient.abs().flatten()
    place = ratio * (sizes.numel() - 1)
    # torch.quantile sorts, and refuses more than 16 million entries.
    low, high = (torch.kthvalue(sizes, min(int(place) + step, sizes.numel() - 1) + 1).values for step in (0, 1))
    threshold = torch.lerp(low, high, place - int(place))
    return torch.where(gradient.abs() < threshold, 0, gradient)


def _private_gradients(model, ids, mask, defence: Defence, generator: torch.Generator) -> Gradients:
    """Clip each sentence's gradient, add noise to the sum, divide by the number of sentences."""
    total: Gradients = {}
    for gradients in sentence_gradients(model, ids, mask):
        square = reduce(torch.add, (part.flatten(1).square().sum(1) for part in gradients.values()))
        scale = (defence.max_grad_norm / square.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        for name, part in gradients.items():
            clipped = torch.einsum("n,n...->...", scale, part)
            total[name] = total[name] + clipped if name in total else clipped
    deviation = defence.strength * defence.max_grad_norm
    for part in total.values():
        noise = torch.randn(part.shape, generator=generator, dtype=part.dtype)
        part.add_(noise.to(part.device), alpha=deviation).div_(len(ids))
    return total


def sentence_gradients(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, chunk: int = 32
) -> Iterator[Gradients]:
    """The gradient of each sentence's mean loss, `chunk` sentences at a time: name -> (sentences, *parameter's shape)."""
    trained = {name: part.detach() for name, part in model.named_parameters() if part.requires_grad}
    length = ids.shape[1]
    # A mask of its own, because transformers' decides by the values in it, which vmap cannot follow. Padding on the right
    # is behind every real token, so being causal is enough.
    lowest = torch.finfo(model.dtype).min
    causal = torch.full((1, 1, length, length), lowest, dtype=model.dtype, device=ids.device).triu(1)
    fixed = {"attention_mask": causal, "position_ids": torch.arange(length, device=ids.device)[None]}

    def loss(parameters: Gradients, row: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": row[None], "use_cache": False, **fixed}
        logits = functional_call(model, parameters, (), inputs).logits[0, :-1].float()
        real = real[1:].to(logits.dtype)
        return (F.cross_entropy(logits, row[1:], reduction="none") * real).sum() / real.sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")  # dropout, in a model that trains
    for start in range(0, len(ids), chunk):
        with sdpa_kernel(SDPBackend.MATH):  # the others fall back to a loop under vmap
            gradients = each(trained, ids[start : start + chunk], mask[start : start + chunk])
        yield gradients


def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """The epsilon of DP-SGD at `delta` after `steps` batches with a share `sample_rate` of the sentences each.

    Raises InputError without noise, where there is none.
    """
    from opacus.accountants import RDPAccountant

    if not noise_multiplier > 0:
        raise InputError("epsilon(noise_multiplier=...)", repr(noise_multiplier), "a positive number")
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    # Orders near 1 give the least epsilon where there is hardly any noise.
    orders = [1 + step / 10**digits for digits in (4, 3, 2) for step in (1, 2, 5)] + accountant.DEFAULT_ALPHAS
    return float(accountant.get_epsilon(delta, alphas=orders))


# ------------------------------------------------------------------------------------------------- training under it


def train_client(
    model: nn.Module,
    rows: TokenRows,
    recipe: Mapping[str, Any],
    defence: Defence,
    *,
    seed: int,
    eps: float = 1e-3,
    **options: Any,
) -> Recipe:
    """Train a model that `Defence.protect` gave, in place, on what a client under the defence sends; gives the recipe.

    `recipe` has the keys of `reclaim.train.Recipe`, `num_train_epochs` in place of the steps. MeZO takes its `learning_rate`
    at a constant rate, by plain descent, and `eps`; `options` go to `reclaim.train.train` in all other cases.
    """
    used = epoch_recipe(recipe, len(rows), f"film recipe of the defence {defence.name}")
    take = epoch_batches(len(rows), used.per_device_train_batch_size, derive(seed, "client"))
    device = next(model.parameters()).device

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = rows.take(take(step)[1])
        return ids.to(device), mask.to(device)

    if defence.name == "mezo":
        _train_by_scalars(model, batch, used, defence, seed, eps)
        return used

    def loss(micro_batch) -> tuple[torch.Tensor, int]:
        step, ids, mask = micro_batch
        generator = torch.Generator().manual_seed(derive(seed, "noise", step))
        gradients = sent_gradients(model, ids, mask, defence, generator)
        count = int(mask[:, 1:].sum())
        return _with_gradients(model, gradients) * count, count

    train(model, lambda step: [(step, *batch(step))], loss, used, seed=seed, **options)
    return used


def _with_gradients(model: nn.Module, gradients: Gradients) -> torch.Tensor:
    """A scalar whose gradient is the given one: how what was sent reaches the optimiser through the one loop."""
    named = dict(model.named_parameters())
    return reduce(torch.add, ((named[name] * gradient).sum() for name, gradient in gradients.items()))


def _train_by_scalars(
    model: nn.Module, batch: Callable[[int], tuple], recipe: Recipe, defence: Defence, seed: int, eps: float
) -> None:
    optimizer = MeZO(
        model, recipe.learning_rate, eps=eps, num_directions=int(defence.strength), seed=derive(seed, "directions")
    )
    with torch.inference_mode():
        for step in range(recipe.num_train_steps):
            ids, mask = batch(step)
            optimizer.step(partial(_loss, model, ids, mask))


def _loss(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return client_loss(model, ids, mask)[0]
