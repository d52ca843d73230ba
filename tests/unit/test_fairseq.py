"""Names of fairseq and DeepSpeed checkpoints, the refusal of the wrong network, and fairseq's Adam."""

import math

import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.errors import InputError
from reclaim.fairseq import from_deepspeed_kernel, from_fairseq, refuse_post_norm, to_fairseq
from reclaim.optim.fairseq_adam import FairseqAdam


@pytest.fixture(scope="module")
def model():
    from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM

    config = RobertaPreLayerNormConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        type_vocab_size=1,
    )
    model = RobertaPreLayerNormForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token_type" in name:
                parameter.zero_()
            else:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


def test_there_and_back_gives_the_same_weights(model):
    state = model.state_dict()
    back = from_fairseq(to_fairseq(state))
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_the_norms_are_not_mixed_up(model):
    number = {name: torch.tensor(i) for i, name in enumerate(model.state_dict()) if "type" not in name}
    names = to_fairseq(number)
    layer, body = "encoder.sentence_encoder.layers.1.", "roberta_prelayernorm.encoder.layer.1."
    assert names[layer + "final_layer_norm.weight"] == number[body + "intermediate.LayerNorm.weight"]
    assert names[layer + "self_attn_layer_norm.weight"] == number[body + "attention.LayerNorm.weight"]
    assert names["encoder.sentence_encoder.layer_norm.weight"] == number["roberta_prelayernorm.LayerNorm.weight"]


def test_a_post_norm_checkpoint_and_unknown_tensors_are_refused(model):
    state = to_fairseq(model.state_dict())
    without = {name: tensor for name, tensor in state.items() if ".sentence_encoder.layer_norm." not in name}
    with pytest.raises(InputError, match="final layer norm"):
        from_fairseq(without)
    with pytest.raises(InputError, match="relative_positions"):
        from_fairseq(state | {"encoder.relative_positions.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="token type"):
        to_fairseq({"roberta_prelayernorm.embeddings.token_type_embeddings.weight": torch.ones(1, 8)})


def test_classification_heads_are_chosen_by_name(model):
    state = to_fairseq(model.state_dict())
    for head in ("mnli", "rte"):
        state[f"classification_heads.{head}.dense.weight"] = torch.full((8, 8), float(len(head)))
    found = from_fairseq(state, classification_head="rte")
    assert found["classifier.dense.weight"].unique().tolist() == [3.0]
    assert not any(name.startswith("lm_head") for name in found)
    with pytest.raises(InputError, match="mnli"):
        from_fairseq(state, classification_head="cola")


def test_kernel_tensors_are_cut_and_named():
    joint = torch.arange(12.0).reshape(6, 2)
    found = from_deepspeed_kernel({"l.0.attn_qkvw": joint, "l.0.attn_nw": torch.ones(2), "other": torch.zeros(1)})
    assert torch.equal(found["l.0.self_attn.k_proj.weight"], joint[2:4])
    assert set(found) == {f"l.0.self_attn.{p}_proj.weight" for p in "qkv"} | {"l.0.final_layer_norm.weight", "other"}
    with pytest.raises(InputError, match="7 rows"):
        from_deepspeed_kernel({"l.0.attn_qkvb": torch.zeros(7)})


def test_the_studys_checkpoints_are_refused_as_roberta_only():
    roberta = {"model_type": "roberta"}
    with pytest.raises(InputError, match="roberta-prelayernorm"):
        refuse_post_norm("princeton-nlp/efficient_mlm_m0.40", roberta)
    refuse_post_norm("andreasmadsen/efficient_mlm_m0.40", {"model_type": "roberta-prelayernorm"})
    post_norm = [
        "roberta.embeddings.LayerNorm.weight",
        "roberta.encoder.layer.0.attention.output.LayerNorm.weight",
        "roberta.encoder.layer.0.output.LayerNorm.bias",
        "lm_head.layer_norm.weight",
    ]
    refuse_post_norm("FacebookAI/roberta-base", roberta, post_norm)
    for name in ("roberta.LayerNorm.weight", "LayerNorm.bias", "roberta.encoder.layer.3.attention.LayerNorm.weight"):
        with pytest.raises(InputError, match="post-norm"):
            refuse_post_norm("copies/of-it", roberta, [*post_norm, name])


# --- Adam


def test_adams_eps_is_added_before_the_bias_correction():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = FairseqAdam([parameter], lr=1.0, betas=(0.9, 0.98), eps=1e-3)
    parameter.grad = torch.tensor([1e-3])
    optimizer.step()
    corrected = math.sqrt(1 - 0.98) * 1e-3
    expected = -(0.1 * 1e-3) / (corrected + 1e-3) * math.sqrt(1 - 0.98) / 0.1
    assert abs(parameter.item() - expected) < 1e-6
    assert abs(parameter.item() + 0.5) > 0.3, "torch's Adam gives -0.5 here"


def test_adam_without_eps_is_torchs_adamw():
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 0.0, "weight_decay": 0.1}
    pairs = [(ours, FairseqAdam([ours], **options)), (theirs, torch.optim.AdamW([theirs], **options))]
    for step in range(5):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in pairs:
            parameter.grad = gradient
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_adam_resumes_exactly():
    def run(steps, parameter, optimizer, first=0):
        for step in range(first, steps):
            parameter.grad = torch.randn(4, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    whole = torch.nn.Parameter(torch.ones(4))
    run(6, whole, FairseqAdam([whole], lr=0.1))
    part = torch.nn.Parameter(torch.ones(4))
    optimizer = FairseqAdam([part], lr=0.1)
    run(3, part, optimizer)
    resumed = torch.nn.Parameter(part.detach().clone())
    again = FairseqAdam([resumed], lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    run(6, resumed, again, first=3)
    assert torch.equal(resumed, whole)


def test_adam_refuses_bad_settings():
    with pytest.raises(InputError, match="lr"):
        FairseqAdam([torch.nn.Parameter(torch.zeros(1))], lr=-1)
    with pytest.raises(InputError, match="betas"):
        FairseqAdam([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 1.0))
