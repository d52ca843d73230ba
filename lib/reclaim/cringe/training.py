"""Train a model on a mixture by one of the methods: cross entropy, CRINGE, unlikelihood, DIRECTOR, KTO.

One way for decoders and encoder-decoders, through the one backprop loop. Cross entropy and CRINGE take output layer and loss
together (`loss.linear_cringe_loss`), so that no tensor of logits of all positions exists; unlikelihood and DIRECTOR, which
need the whole distribution, compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from reclaim.cringe.director import director_loss
from reclaim.cringe.loss import NEGATIVE, UNLABELLED, linear_cringe_loss
from reclaim.cringe.rows import IGNORED, Rows
from reclaim.cringe.unlikelihood import unlikelihood_loss
from reclaim.errors import InputError
from reclaim.seeding import derive
from reclaim.train import History, Recipe, train

METHODS = ("ce", "cringe", "unlikelihood", "director", "kto")
Micro = tuple[int, Rows]
"""A micro-batch: its number, which seeds the draws, and its rows."""


def fit(
    model,
    method: str,
    batches: Callable[[int], Rows],
    recipe: Recipe,
    settings: Mapping[str, Any],
    *,
    seed: int,
    state_path: Path | None = None,
    run: str = "",
    after_step: Callable[[int], None] = lambda step: None,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> History:
    """Train `model` in place. `batches` gives the rows of an update, which go through the model in as many equal parts as
    `recipe.gradient_accumulation_steps` says. `settings`: `alpha`, `k` (CRINGE), `alpha` (unlikelihood), `gamma_train`,
    `norm_coeff`, `lm_on_positives` (DIRECTOR), `beta` (KTO), `contrast_eos` (whether the ends of negatives count, default no).

    Raises `InputError` for an unknown method.
    """
    if method not in METHODS:
        raise InputError("method", repr(method), f"one of {', '.join(METHODS)}")
    device = next(model.parameters()).device
    eos = model.config.eos_token_id
    loss = {"unlikelihood": _unlikelihood, "director": _director}.get(method, _cringe)
    if method == "kto":
        loss = KtoLoss(model)

    def micro_batches(step: int) -> list[Micro]:
        rows = batches(step)
        if not settings.get("contrast_eos", False):
            rows = rows.without_negative_end(eos)
        size, parts = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
        return [(step * parts + i, rows[slice(i * size, (i + 1) * size)].to(device)) for i in range(parts)]

    def loss_function(micro: Micro) -> tuple[torch.Tensor, int]:
        return loss(model, *micro, settings, seed)

    return train(
        model, micro_batches, loss_function, recipe, seed=seed, state_path=state_path, run=run, after_step=after_step,
        progress=progress,
    )  # fmt: skip


def hidden_states(model, rows: Rows) -> torch.Tensor:
    """The last hidden states (rows, tokens, width) of a decoder or of the decoder of an encoder-decoder."""
    return model.base_model(**rows.inputs(), use_cache=False)[0]


def output_layer(model) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight (V, d) and bias (V) or None of the layer that gives the logits."""
    layer = model.get_output_embeddings()
    bias = getattr(model, "final_logits_bias", None)
    return layer.weight, layer.bias if bias is None else bias[0]


def check_output_layer(model, rows: Rows, place: str) -> None:
    """Raise `InputError` unless the model's logits are its output layer of its last hidden states, as the loss takes it."""
    with torch.inference_mode():
        direct = F.linear(hidden_states(model, rows), *output_layer(model))
        difference = float((model(**rows.inputs(), use_cache=False).logits - direct).abs().max())
    if difference > 1e-2:
        expected = "a model whose logits are a linear layer of its last hidden states"
        raise InputError(place, f"logits that differ from that by {difference:.3g}", expected)


def _cringe(model, number: int, rows: Rows, settings: Mapping[str, Any], seed: int) -> tuple[torch.Tensor, int]:
    hidden = hidden_states(model, rows)
    weight, bias = output_layer(model)
    generator = torch.Generator(hidden.device).manual_seed(derive(seed, "cringe", number))
    terms = linear_cringe_loss(
        hidden.flatten(0, 1), weight, rows.labels.flatten(), rows.polarity.flatten(), bias=bias,
        k=settings.get("k", 5), alpha=settings.get("alpha", 1.0), generator=generator,
    )  # fmt: skip
    return terms.loss, terms.ce_count + terms.ct_count


def _unlikelihood(model, number: int, rows: Rows, settings: Mapping[str, Any], seed: int) -> tuple[torch.Tensor, int]:
    counted = rows.labels != IGNORED
    logits = F.linear(hidden_states(model, rows)[counted], *output_layer(model))
    negative = rows.polarity[counted] == NEGATIVE
    terms = unlikelihood_loss(logits, rows.labels[counted], negative, alpha=settings.get("alpha", 1.0))
    count = terms.ce_count + terms.ul_count
    return terms.loss * count, count  # two means of their own: the loop divides by the count again


def _director(model, number: int, rows: Rows, settings: Mapping[str, Any], seed: int) -> tuple[torch.Tensor, int]:
    logits, head = model.both(**rows.inputs(), use_cache=False)
    polarity = torch.where(rows.labels == IGNORED, 1, rows.polarity).amin(dim=1)
    loss = director_loss(
        logits, head, rows.labels, polarity,
        gamma_train=settings.get("gamma_train", 1.0), norm_coeff=settings.get("norm_coeff", 0.0),
        trains_lm=polarity != NEGATIVE if settings.get("lm_on_positives") else None,
    )  # fmt: skip
    return loss, len(rows)


class KtoLoss:
    """KTO (Ethayarajh et al. 2024), the present-day comparator: labelled rows against a reference, the model as it started.

    loss = 1 - sigmoid(beta * (r - z)) for good and 1 - sigmoid(beta * (z - r)) for bad rows, r the log-ratio of a reply to the
    reference. z, the mean log-ratio of mismatched pairs in the original, is the mean log-ratio of the batch here, not below 0,
    without gradient. Unlabelled rows have cross entropy, as in the other arms. Parameter names as in TRL.
    """

    def __init__(self, model):
        import copy

        self.reference = copy.deepcopy(model).eval().requires_grad_(False)

    def __call__(
        self, model, number: int, rows: Rows, settings: Mapping[str, Any], seed: int
    ) -> tuple[torch.Tensor, int]:
        labelled = (rows.labels != IGNORED) & (rows.polarity != UNLABELLED)
        is_labelled = labelled.any(dim=1)
        score = self._log_probability(model, rows)
        with torch.no_grad():
            score_reference = self._log_probability(self.reference, rows)
        plain = -(score[~is_labelled]).sum()
        tokens = int((rows.labels[~is_labelled] != IGNORED).sum())
        ratio = (score - score_reference)[is_labelled]
        negative = ((rows.polarity == NEGATIVE) & labelled).any(dim=1)[is_labelled]
        sign = torch.where(negative, -1.0, 1.0)
        base = ratio.detach().mean().clamp(min=0.0) if len(ratio) else 0.0
        kept = (1 - torch.sigmoid(settings.get("beta", 0.1) * sign * (ratio - base))).sum()
        # Rows of both kinds count alike: a row of cross entropy by its mean over tokens.
        mean = plain / max(1, tokens) * int((~is_labelled).sum())
        return mean + kept, len(rows)

    @staticmethod
    def _log_probability(model, rows: Rows) -> torch.Tensor:
        logits = F.linear(hidden_states(model, rows), *output_layer(model)).float()
        nats = F.cross_entropy(logits.transpose(1, 2), rows.labels, reduction="none", ignore_index=IGNORED)
        return -nats.sum(dim=1)
