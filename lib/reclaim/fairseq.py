"""Checkpoints of the masking-rate study: fairseq and DeepSpeed tensor names, and the network they belong to.

Wettig et al. (EACL 2023) trained RoBERTa with layer norms in front of attention and feed-forward, one after the
embeddings and one at the end. That network is `roberta-prelayernorm` in transformers. The authors' own uploads say
`roberta` in their config, so that `AutoModel` builds the post-norm network without an error and gives nonsense:
`refuse_post_norm` stops this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from reclaim.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_BODY = "encoder.sentence_encoder."
_PRE = "roberta_prelayernorm."
_CLASSIFIER = "classification_heads."

# fairseq's name within a layer -> transformers' name. fairseq's "final" norm is the one in front of the feed-forward
# part.
_LAYER = {
    "self_attn_layer_norm": "attention.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "final_layer_norm": "intermediate.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
_TOP = {
    _BODY + "embed_tokens": _PRE + "embeddings.word_embeddings",
    _BODY + "embed_positions": _PRE + "embeddings.position_embeddings",
    _BODY + "layernorm_embedding": _PRE + "embeddings.LayerNorm",
    _BODY + "layer_norm": _PRE + "LayerNorm",
    "encoder.lm_head.dense": "lm_head.dense",
    "encoder.lm_head.layer_norm": "lm_head.layer_norm",
}
# The kernel of DeepSpeed: its "norm" is the attention's, its "attn_n" the one in front of the feed-forward part.
_KERNEL = {
    "attn_ow": "self_attn.out_proj.weight",
    "attn_ob": "self_attn.out_proj.bias",
    "attn_nw": "final_layer_norm.weight",
    "attn_nb": "final_layer_norm.bias",
    "inter_w": "fc1.weight",
    "inter_b": "fc1.bias",
    "output_w": "fc2.weight",
    "output_b": "fc2.bias",
    "norm_w": "self_attn_layer_norm.weight",
    "norm_b": "self_attn_layer_norm.bias",
}
_TOKEN_TYPES = _PRE + "embeddings.token_type_embeddings.weight"


def from_fairseq(state: Mapping[str, Tensor], classification_head: str | None = None) -> dict[str, Tensor]:
    """Rename fairseq's tensors to those of `RobertaPreLayerNormForMaskedLM`, or of the sequence classifier.

    state: tensors by fairseq's names. classification_head: name of the head to take along instead of the masked-LM head.
    Token types, which fairseq has not, become one row of zeros. Raises InputError for a tensor that belongs nowhere, and
    for a checkpoint without pre-norm layers.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(re.escape(_BODY) + r"layers\.(\d+)\.(.+)", stem)
        if name == _BODY + "version":
            continue
        if layer and layer[2] in _LAYER:
            renamed[f"{_PRE}encoder.layer.{layer[1]}.{_LAYER[layer[2]]}.{kind}"] = tensor
        elif name.startswith("encoder.lm_head."):
            if classification_head is None:
                renamed.update(_masked_lm_head(name, tensor))
        elif stem in _TOP:
            renamed[f"{_TOP[stem]}.{kind}"] = tensor
        elif name.startswith(_CLASSIFIER):
            head, _, part = name.removeprefix(_CLASSIFIER).partition(".")
            if head == classification_head:
                renamed[f"classifier.{part}"] = tensor
        else:
            raise InputError("fairseq checkpoint", f"the tensor {name}", "the tensors of a pre-norm RoBERTa encoder")
    words = renamed.get(_PRE + "embeddings.word_embeddings.weight")
    if words is None or _PRE + "LayerNorm.weight" not in renamed:
        raise InputError(
            "fairseq checkpoint",
            "no final layer norm or no token table",
            "an encoder trained with encoder_normalize_before",
            "A post-norm RoBERTa converts with the tools of transformers.",
        )
    if classification_head is not None and "classifier.dense.weight" not in renamed:
        heads = sorted({name.split(".")[1] for name in state if name.startswith(_CLASSIFIER)})
        raise InputError("classification_head", repr(classification_head), f"one of {heads}")
    if classification_head is None:
        # Tied, so that a file may hold it once.
        renamed.setdefault("lm_head.decoder.weight", words)
    renamed[_TOKEN_TYPES] = words.new_zeros(1, words.shape[1])
    return renamed


def _masked_lm_head(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The bias goes to both names that transformers ties; the weight is the token table's, tied too."""
    if name == "encoder.lm_head.bias":
        return {"lm_head.bias": tensor, "lm_head.decoder.bias": tensor}
    if name == "encoder.lm_head.weight":
        return {"lm_head.decoder.weight": tensor}
    stem, _, kind = name.rpartition(".")
    return {f"{_TOP[stem]}.{kind}": tensor}


def to_fairseq(
    state: Mapping[str, Tensor], classification_head: str = "sentence_classification_head"
) -> dict[str, Tensor]:
    """The inverse of `from_fairseq`; tied copies and token types, which must be zero, are left out.

    Raises InputError for a tensor that belongs nowhere or token types that are not zero.
    """
    top = {new: old for old, new in _TOP.items()} | {"lm_head": "encoder.lm_head", "lm_head.decoder": "encoder.lm_head"}
    inside = {new: old for old, new in _LAYER.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(re.escape(_PRE) + r"encoder\.layer\.(\d+)\.(.+)", stem)
        if name == _TOKEN_TYPES:
            if tensor.any():
                raise InputError("token type embeddings", "a row that is not zero", "zeros: fairseq has no such table")
        elif layer and layer[2] in inside:
            renamed[f"{_BODY}layers.{layer[1]}.{inside[layer[2]]}.{kind}"] = tensor
        elif stem in top:
            renamed[f"{top[stem]}.{kind}"] = tensor
        elif name.startswith("classifier."):
            renamed[f"{_CLASSIFIER}{classification_head}.{name.removeprefix('classifier.')}"] = tensor
        else:
            raise InputError("checkpoint", f"the tensor {name}", "the tensors of roberta-prelayernorm")
    return renamed


def from_deepspeed_kernel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of DeepSpeed's transformer kernel to fairseq's; queries, keys and values are cut apart.

    Other tensors keep their names. Raises InputError for a joint tensor whose rows are not a multiple of three.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, _, last = name.rpartition(".")
        if last in ("attn_qkvw", "attn_qkvb"):
            if len(tensor) % 3:
                raise InputError(f"DeepSpeed tensor {name}", f"{len(tensor)} rows", "three equal parts for q, k and v")
            kind = "weight" if last.endswith("w") else "bias"
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{prefix}.self_attn.{part}_proj.{kind}"] = rows
        else:
            renamed[f"{prefix}.{_KERNEL[last]}" if last in _KERNEL else name] = tensor
    return renamed


def refuse_post_norm(place: str, config: Mapping[str, Any], tensor_names: Iterable[str] = ()) -> None:
    """Stop before a checkpoint of the study is loaded as the post-norm network.

    place: the Hub name or folder, used in the message and searched for the study's names (`efficient_mlm`). config: the
    model's config as a mapping. tensor_names: names in the weight file, if they are at hand: a final or an attention
    `LayerNorm` gives the network away under any name. Raises InputError if `model_type` is `roberta` for such a
    checkpoint.
    """
    if config.get("model_type") != "roberta":
        return
    pre_norm = re.compile(r"(^|roberta\.)LayerNorm\.|\.attention\.LayerNorm\.|\.intermediate\.LayerNorm\.")
    named = re.search(r"efficient_mlm", place) is not None
    if named or any(pre_norm.search(name) for name in tensor_names):
        raise InputError(
            f"model {place}",
            "model_type `roberta`, which builds a post-norm network",
            "model_type `roberta-prelayernorm`, which these weights were trained with",
            "Use the corrected copies, andreasmadsen/efficient_mlm_m0.15 to m0.80, or convert with reclaim.fairseq.",
        )
