"""What of a model is trained: LoRA, prefix tuning, or the head alone. Each changes the model in place and returns it.

Malladi et al. (2023) run MeZO with LoRA (Hu et al. 2022; r 8, alpha 16, query and value projections) and with prefix
tuning (Li and Liang 2021; 5 key and value rows per layer). The names of the trainable tensors and their order are the
official code's, up to peft's suffixes.

* LoRA is peft's, injected into the model itself, so that `forward`, `generate` and `base_model` stay what they were.
* Prefixes start from REAL activations: the keys and values of random tokens in the frozen model in eval mode. They are
  joined to each layer's keys and values inside its attention, visible to every query, and real tokens keep the
  positions that they have without a prefix. (peft's prefix tuning starts at random and shifts positions.)

The prefix enters through transformers' attention interface, where keys and values come after projections, rotary
embedding and cache, so it works for causal and masked models alike, and `generate` needs no change. Encoder-decoder
models, and the few architectures that compute attention themselves, are refused.

Differences from the official code: it patches OPT's and RoBERTa's attention classes; adapter weights of a
half-precision model are float32 here, so that their updates are not rounded away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn

from reclaim.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX_ATTENTION = "reclaim_prefix"


def add_lora(
    model: PreTrainedModel,
    *,
    r: int = 8,
    lora_alpha: float = 16,
    target_modules: Sequence[str] | None = None,
    train_head: bool | None = None,
    seed: int = 0,
) -> nn.Module:
    """Freeze the model and add low-rank updates B A (scaled by lora_alpha / r) to the target layers.

    target_modules: names of linear layers; None: peft's choice for the architecture, the query and value projections.
    train_head: whether parameters outside the base model (LM head, classifier; not if tied to a frozen embedding) train
        as well. None: as the official code, in all but generating models.
    seed: of A, Kaiming-uniform with a = sqrt(5); B is zero.

    Raises InputError if no layer matches, or the architecture needs `target_modules`.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    kind = model.config.model_type
    targets = list(target_modules) if target_modules is not None else DEFAULTS.get(kind)
    if not targets:
        raise InputError("add_lora(target_modules=...)", f"none for model type {kind!r}", "names of linear layers")
    config = LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    try:
        with torch.random.fork_rng(devices=[]):  # peft draws from the global stream
            inject_adapter_in_model(config, model)
    except ValueError as error:
        raise InputError("add_lora(target_modules=...)", f"{targets} ({error})", "names of linear layers") from error

    if train_head is None:
        train_head = not model.can_generate()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_lora = ".lora_" in name
        parameter.requires_grad_(is_lora or (train_head and not name.startswith(f"{model.base_model_prefix}.")))
        if is_lora:
            start = torch.zeros(parameter.shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data = start.to(parameter.device, _at_least_float32(parameter.dtype))
    return model


def add_prefix(
    model: PreTrainedModel, *, num_prefix: int = 5, init_tokens: torch.Tensor | None = None, seed: int = 0
) -> PreTrainedModel:
    """Freeze the model and give every attention layer trainable `prefix_keys` and `prefix_values`.

    Both are (num_prefix, key-value heads x head size), the heads side by side. They start as the keys and values of
    `init_tokens` (num_prefix token ids) at positions 0, 1, ...; None: uniformly random ids other than padding, by
    `seed`.

    Raises InputError for models whose attention cannot be extended.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError("add_prefix", type(model).__name__, "a decoder-only or encoder-only model")
    if init_tokens is None:
        init_tokens = _random_tokens(model.config, num_prefix, seed)
    init_tokens = init_tokens.reshape(1, -1).to(next(model.parameters()).device)
    if init_tokens.shape[1] < 1:
        raise InputError("add_prefix(num_prefix=...)", "0", "at least 1")

    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    for attention, (key, value) in _attention_inputs(model, init_tokens).items():
        for name, states in (("prefix_keys", key), ("prefix_values", value)):
            rows = states[0].transpose(0, 1).flatten(1).contiguous()  # (heads, tokens, size) -> (tokens, heads x size)
            attention.register_parameter(name, nn.Parameter(rows.to(_at_least_float32(rows.dtype))))
    _register(PREFIX_ATTENTION, _attend_with_prefix)
    model.set_attn_implementation(PREFIX_ATTENTION)
    return model


def train_head_only(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze all but the parameters outside the base model: the LM head or the classifier.

    An LM head that is tied to the input embedding is untied first: otherwise training it would rewrite the inputs.
    """
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        for name, parameter in list(head.named_parameters(recurse=False)):  # RoBERTa's decoder shares its bias, too
            setattr(head, name, nn.Parameter(parameter.detach().clone()))
        model.config.tie_word_embeddings = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(f"{model.base_model_prefix}."))
    return model


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _random_tokens(config, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.ones(config.vocab_size)
    if config.pad_token_id is not None:
        allowed[config.pad_token_id] = 0  # padding would not stand at the position of a token
    return torch.multinomial(allowed, count, replacement=True, generator=generator)


# ---------------------------------------------------------------------- attention


def _register(name: str, attend) -> None:
    """Make an attention function known to transformers, with explicit boolean masks."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, _explicit_mask)


def _explicit_mask(*args, **kwargs) -> torch.Tensor:
    """sdpa's mask (True: visible), never left out in favour of `is_causal`, which would misplace the prefix."""
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def _attend_with_prefix(module, query, key, value, attention_mask, **kwargs):
    """sdpa attention over the module's prefix and the given keys (batch, heads, length, size)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = getattr(module, "prefix_keys", None)
    if rows is not None:
        key = torch.cat([_as_heads(rows, key), key], dim=2)
        value = torch.cat([_as_heads(module.prefix_values, value), value], dim=2)
        visible = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (len(rows), 0), value=visible)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _as_heads(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    batch, heads, _, size = like.shape
    return rows.to(like.dtype).view(len(rows), heads, size).transpose(0, 1).expand(batch, -1, -1, -1)


def _attention_inputs(
    model: PreTrainedModel, input_ids: torch.Tensor
) -> dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values (1, heads, tokens, size) of each attention layer, in the order in which they run."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(module, query, key, value, attention_mask, **kwargs):
        seen[module] = key, value
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    usual, training = model.config._attn_implementation, model.training
    recording = f"{PREFIX_ATTENTION}_recording"
    _register(recording, attend)
    try:
        model.set_attn_implementation(recording)
        with torch.no_grad():
            model.eval()(input_ids=input_ids)
    except ValueError as error:
        raise InputError(
            "add_prefix", f"{type(model).__name__} ({error})", "transformers' attention interface"
        ) from error
    finally:
        model.set_attn_implementation(usual)
        model.train(training)
    if not seen:
        raise InputError("add_prefix", f"{type(model).__name__}", "a model that uses transformers' attention interface")
    return seen
