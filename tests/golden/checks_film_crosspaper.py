"""Checks of the vectors of FILM's cross-paper questions: scalars of MeZO clients, and the span test."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from reclaim.film.scalars import Message, candidate_scalars, direction, pick_candidate
from reclaim.film.span import ATTENTION, CUTS, first_layer_gradient, span_bag, span_basis, span_residuals

SCALAR_TOLERANCE = 1e-5  # the vectors' own
RESIDUAL_TOLERANCE = 1e-2  # relative; residuals are written with three digits


def _loss(model, tokenizer, sentences: list[str]) -> torch.Tensor:
    """Mean token loss by transformers, which the vectors were made with; it rounds the logits to float32."""
    rows = [tokenizer(sentence)["input_ids"] for sentence in sentences]
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss


def _check_scalars(case: dict, model, tokenizer) -> int:
    assert [name for name, _ in direction(model, case["seed"])] == case["parameter_order"], "order of the parameters"
    batches = [[sentence] for sentence in case["candidates"]] + [case["batch_of_three"]["sentences"]]

    def losses(exact):
        return torch.stack([_loss(exact, tokenizer, sentences) for sentences in batches])

    found = candidate_scalars(model, losses, case["seed"], case["eps"]).numpy()
    expected = np.array([*case["scalars"], case["batch_of_three"]["scalar"]])
    worst = int(np.abs(found - expected).argmax())
    assert np.allclose(found, expected, rtol=SCALAR_TOLERANCE, atol=SCALAR_TOLERANCE), f"scalar {worst}: {found[worst]}"
    picked = pick_candidate(Message(case["seed"], case["sent_by_client"]), torch.from_numpy(found[:-1]))
    assert picked == case["answer"], f"picked candidate {picked}"
    return len(expected) + 1


def _check_span(case: dict, model, tokenizer) -> int:
    """The test through the full gradient, or through that of a zero LoRA B, whose A is as the vectors state it."""
    exact = copy.deepcopy(model).double()
    weight = exact.get_submodule(ATTENTION).weight
    (gradient,) = torch.autograd.grad(_loss(exact, tokenizer, case["sentences"]), weight)
    cut, adapter, place = CUTS[torch.float64], None, f"{len(case['sentences'])} sentences"
    sent = {f"{ATTENTION}.weight": gradient}
    if "r" in case:
        place += f", r {case['r']}"
        width = weight.shape[0]
        generator = torch.Generator().manual_seed(case["r"])
        adapter = torch.randn((case["r"], width), generator=generator) / math.sqrt(width)
        sent = {f"{ATTENTION}.lora_B.default.weight": gradient.T @ adapter.double().T}
    basis = span_basis(first_layer_gradient(sent))
    assert len(basis) == case["rank"], f"{place}: rank {len(basis)}, not {case['rank']}"
    residuals = span_residuals(model, basis, _num_positions(case, model, tokenizer), adapter)
    bag = span_bag(residuals, cut)
    assert bag == set(case["tokens"]), f"{place}: words {sorted(bag ^ set(case['tokens']))} differ"
    if "min_residual_per_token" in case:
        expected, found = np.array(case["min_residual_per_token"]), residuals.amin(dim=1).numpy()
        outside = expected >= cut
        assert np.allclose(found[outside], expected[outside], rtol=RESIDUAL_TOLERANCE), f"{place}: residuals"
        assert (found[~outside] < cut).all(), f"{place}: residuals inside the span"
    return 1


def _num_positions(case: dict, model, tokenizer) -> int:
    """Positions that have a target in the longest sentence."""
    return max(len(tokenizer(sentence)["input_ids"]) for sentence in case["sentences"]) - 1


def check_crosspaper(path: Path) -> int:
    model = GPT2LMHeadModel.from_pretrained(path.parent / "model").float().eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent / "model")
    document = json.loads(path.read_text(encoding="utf-8"))
    count = _check_scalars(document["mezo"], model, tokenizer)
    for section in ("frozen_embedding_span", "lora_span"):
        count += sum(_check_span(case, model, tokenizer) for case in document[section])
    return count


CHECKS = [("crosspaper.json", check_crosspaper)]
