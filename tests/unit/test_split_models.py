"""Models that accelerate spreads over devices: the same scores, and MeZO trains them."""

import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM, OPTConfig

from reclaim.models import load
from reclaim.optim import MeZO

SIZES = {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PARTS = ("embed_tokens", "embed_positions", "layers.0", "layers.1", "final_layer_norm")
IDS = torch.randint(4, 50, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("opt")
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=50, max_position_embeddings=64, dropout=0.0, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def _map(**other: str) -> dict[str, str]:
    return {f"model.decoder.{part}": other.get(part.replace(".", "_"), "cpu") for part in PARTS} | {"lm_head": "cpu"}


@torch.inference_mode()
def test_a_model_of_which_a_layer_lies_elsewhere_gives_the_same_scores(folder):
    split = load(folder, "causal", device_map=_map(layers_1="disk"))
    places = {name: parameter.device.type for name, parameter in split.named_parameters()}
    assert (
        places["model.decoder.layers.1.fc1.weight"] == "meta" and places["model.decoder.layers.0.fc1.weight"] == "cpu"
    )
    assert torch.equal(split(IDS).logits, load(folder, "causal")(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mezo_trains_a_split_model_to_the_same_bits(folder, dtype):
    def trained(model) -> tuple[dict[str, torch.Tensor], list[float]]:
        optimizer = MeZO(model, 1e-2, seed=3, rng="per_tensor")
        steps = [optimizer.step(lambda: model(IDS, labels=IDS).loss) for _ in range(5)]
        return {name: weight.clone() for name, weight in model.named_parameters()}, [step.loss for step in steps]

    # One kind of device is all there is here; the hooks between the parts are those of several.
    split = dispatch_model(load(folder, "causal", dtype=dtype), device_map=_map(), force_hooks=True)
    assert hasattr(split.model.decoder.layers[1], "_hf_hook")
    weights, losses = trained(split)
    expected, expected_losses = trained(load(folder, "causal", dtype=dtype))
    assert losses == expected_losses
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
