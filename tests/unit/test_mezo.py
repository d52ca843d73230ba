"""The MeZO step: what it estimates, what it writes, and the shortcuts that it must not take."""

import itertools
import math

import numpy as np
import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from reclaim.errors import InputError
from reclaim.memory import peak_memory
from reclaim.optim import MeZO
from reclaim.optim.blocks import measure_block_scales
from reclaim.optim.slots import block_of


def tiny_opt(dtype=torch.float32, dropout=0.1):
    transformers.set_seed(0)
    config = transformers.OPTConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        ffn_dim=32,
        num_attention_heads=2,
        max_position_embeddings=24,
        word_embed_proj_dim=16,
        dropout=dropout,
        init_std=0.2,
    )
    return transformers.OPTForCausalLM(config).to(dtype)


IDS = torch.randint(4, 60, (4, 9), generator=torch.Generator().manual_seed(1))


def lm_loss(model):
    return lambda: F.cross_entropy(model(input_ids=IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def official_steps(named, closure, seeds, learning_rate, eps=1e-3, weight_decay=0.0, decayed=lambda name: True):
    """The paper's Algorithm 1, with its four sweeps and whole tensors."""

    def sweep(seed, change):
        generator = torch.Generator().manual_seed(seed)
        for name, p in named:
            change(name, p, torch.empty_like(p.data).normal_(generator=generator))

    def move(scale):
        return lambda _, p, z: p.data.add_(z * scale)

    for seed in seeds:
        with torch.no_grad():
            sweep(seed, move(eps))
            plus = float(closure())
            sweep(seed, move(-2 * eps))
            g = (plus - float(closure())) / (2 * eps)
            sweep(seed, move(eps))
            sweep(
                seed,
                lambda name, p, z, g=g: p.data.sub_(learning_rate * (g * z + decayed(name) * weight_decay * p.data)),
            )


def test_three_sweeps_equal_the_four_of_algorithm_1_in_float64():
    ours, reference = tiny_opt(torch.float64).eval(), tiny_opt(torch.float64).eval()
    optimizer = MeZO(ours, 1e-3, weight_decay=0.1, direction_seeds=range(5))
    for _ in range(5):
        optimizer.step(lm_loss(ours))
    undecayed = ("bias", "layer_norm", "layernorm")
    official_steps(
        list(reference.named_parameters()),
        lm_loss(reference),
        range(5),
        1e-3,
        weight_decay=0.1,
        decayed=lambda name: not any(part in name for part in undecayed),
    )
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=0, atol=1e-12)


def test_the_projected_gradient_is_the_directional_derivative():
    model = tiny_opt(torch.float64).eval()
    named = list(model.named_parameters())
    gradients = torch.autograd.grad(lm_loss(model)(), [p for _, p in named])
    generator = torch.Generator().manual_seed(5)
    exact = sum((g * torch.empty_like(g).normal_(generator=generator)).sum() for g in gradients).item()
    found = MeZO(model, 0.0, eps=1e-6, direction_seeds=[5]).step(lm_loss(model)).projected_grad
    assert found == pytest.approx(exact, rel=1e-7)


def test_no_backward_pass_hides_behind_the_name(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    model = tiny_opt()
    needs_grad = []
    optimizer = MeZO(model, 1e-3)
    optimizer.step(lambda: needs_grad.append(torch.is_grad_enabled()) or lm_loss(model)())
    assert needs_grad == [False, False]
    with torch.inference_mode():
        optimizer.step(lm_loss(model))
    assert all(p.grad is None for p in model.parameters())


def test_the_direction_is_not_stored():
    layer = nn.Linear(4096, 4096, bias=False)  # 64 MiB
    optimizer = MeZO(layer, 1e-6)
    optimizer.step(lambda: 0.0)
    with peak_memory() as used:
        for _ in range(2):
            optimizer.step(lambda: 0.0)
    assert used.peak_bytes < 0.05 * layer.weight.nbytes


def test_both_losses_see_the_same_dropout_free_model_and_the_mode_comes_back():
    model = tiny_opt(torch.float64, dropout=0.5)
    model.train()
    model.model.decoder.layers[0].eval()
    optimizer = MeZO(model, 0.0, eps=1e-9, direction_seeds=[3, 3])
    first, second = (optimizer.step(lm_loss(model)) for _ in range(2))
    assert abs(first.losses_plus[0] - first.losses_minus[0]) < 1e-6
    assert first.losses_plus[0] == pytest.approx(second.losses_plus[0], abs=1e-12)
    assert model.training and model.lm_head.training and not model.model.decoder.layers[0].training


def test_weights_come_back_to_where_they_were_at_learning_rate_0():
    model = tiny_opt()
    before = weights(model)
    optimizer = MeZO(model, 0.0, num_directions=2)
    for _ in range(20):
        optimizer.step(lm_loss(model))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=2e-6)


def test_the_loss_is_that_of_the_perturbed_weights():
    model = tiny_opt(torch.float64).eval()
    result = MeZO(model, 0.0, eps=0.1, direction_seeds=[4]).step(lm_loss(model))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.empty_like(p).normal_(generator=generator), alpha=0.1)
        assert result.loss == pytest.approx(lm_loss(model)().item(), abs=1e-12)


def test_tied_tensors_move_once():
    model = tiny_opt()
    before = model.lm_head.weight.clone()
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    result = MeZO(model, 0.5, direction_seeds=[9]).step(lm_loss(model))
    z = torch.empty_like(before).normal_(generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(model.lm_head.weight, before - 0.5 * result.projected_grad * z, rtol=0, atol=1e-6)


def test_frozen_tensors_and_global_random_streams_are_left_alone():
    model = tiny_opt()
    model.model.decoder.embed_positions.weight.requires_grad_(False)
    frozen = model.model.decoder.embed_positions.weight.clone()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    for rng in ("sequential", "per_tensor"):
        MeZO(model, 1e-2, rng=rng, num_directions=2).step(lm_loss(model))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state[1]).all() and np.random.get_state()[2] == numpy_state[2]
    assert torch.equal(model.model.decoder.embed_positions.weight, frozen)


def test_it_trains_any_module_from_losses_without_a_gradient():
    target = torch.tensor([1.0, -2.0, 0.5])
    point = nn.Parameter(torch.zeros(3))
    optimizer = MeZO([("point", point)], 0.02, eps=1e-2)
    for _ in range(500):
        optimizer.step(lambda: float(np.square(point.detach().numpy() - target.numpy()).sum()))
    torch.testing.assert_close(point.data, target, rtol=0, atol=1e-2)


def test_per_tensor_streams_do_not_depend_on_the_order():
    models = [tiny_opt(torch.float64) for _ in range(2)]
    orders = [list(models[0].named_parameters()), list(models[1].named_parameters())[::-1]]
    for model, named in zip(models, orders, strict=True):
        optimizer = MeZO(named, 1e-3, rng="per_tensor", seed=3)
        for _ in range(3):
            optimizer.step(lm_loss(model.eval()))
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "num_directions": 2}])
def test_threads_change_no_bit(options):
    models = [tiny_opt() for _ in range(2)]
    for model, threads in zip(models, (1, 3), strict=True):
        optimizer = MeZO(model, 1e-3, rng="per_tensor", num_threads=threads, **options)
        for _ in range(4):
            optimizer.step(lm_loss(model))
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


# ---------------------------------------------------------------------- estimators and optimisers


def gradient_of(named, closure, seeds, eps=1e-3, reduction="mean"):
    """sum or mean of g_i z_i as whole tensors, the slow way."""
    total = {name: torch.zeros_like(p) for name, p in named}
    for seed in seeds:
        drawn = {}
        generator = torch.Generator().manual_seed(seed)
        for name, p in named:
            drawn[name] = torch.empty_like(p).normal_(generator=generator)
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                for name, p in named:
                    p.add_(drawn[name], alpha=sign * eps)
                losses.append(float(closure()))
                for name, p in named:
                    p.add_(drawn[name], alpha=-sign * eps)
        for name in total:
            total[name] += (losses[0] - losses[1]) / (2 * eps) * drawn[name]
    return {name: t / (len(seeds) if reduction == "mean" else 1) for name, t in total.items()}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{"optimizer": "momentum"}, {"optimizer": "momentum", "momentum_horizon": 100}])
def test_momentum_over_several_directions_is_torchs_sgd_on_the_estimate(reduction, options):
    ours, reference = tiny_opt(torch.float64).eval(), tiny_opt(torch.float64).eval()
    named = list(reference.named_parameters())
    seeds = list(range(12))
    optimizer = MeZO(
        ours, 1e-3, num_directions=3, direction_reduction=reduction, momentum=0.7, direction_seeds=seeds, **options
    )
    torch_sgd = torch.optim.SGD(reference.parameters(), lr=1e-3, momentum=0.7)
    for step in range(4):
        optimizer.step(lm_loss(ours))
        gradients = gradient_of(named, lm_loss(reference), seeds[3 * step : 3 * step + 3], reduction=reduction)
        for name, p in named:
            p.grad = gradients[name]
        torch_sgd.step()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=0, atol=1e-11)


def test_a_short_horizon_forgets():
    losses = {}
    for horizon in (1, 3, 50):
        model = tiny_opt(torch.float64).eval()
        optimizer = MeZO(model, 1e-3, optimizer="momentum", momentum_horizon=horizon, seed=1)
        losses[horizon] = [optimizer.step(lm_loss(model)).loss for _ in range(6)]
    assert losses[1][:2] == losses[3][:2] and losses[1][2] != losses[3][2]
    assert losses[3][:4] == losses[50][:4] and losses[3][4] != losses[50][4]


def test_adam_is_torchs_adamw_up_to_eps():
    ours, reference = tiny_opt(torch.float64).eval(), tiny_opt(torch.float64).eval()
    named = list(reference.named_parameters())
    optimizer = MeZO(ours, 1e-3, optimizer="adam", adam_eps=1e-30, direction_seeds=range(4))
    adam = torch.optim.AdamW(reference.parameters(), lr=1e-3, eps=1e-30, weight_decay=0)
    for step in range(4):
        optimizer.step(lm_loss(ours))
        for name, gradient in gradient_of(named, lm_loss(reference), [step]).items():
            reference.get_parameter(name).grad = gradient
        adam.step()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name], rtol=0, atol=1e-11)


def test_the_number_of_directions_can_grow():
    model = tiny_opt()
    optimizer = MeZO(model, 1e-4, num_directions=4, direction_schedule="linear", num_train_steps=8)
    assert [len(optimizer.step(lm_loss(model)).seeds) for _ in range(8)] == [1, 1, 1, 1, 2, 2, 3, 3]


def test_the_learning_rate_may_be_a_function_of_the_step():
    model = tiny_opt()
    optimizer = MeZO(model, lambda step: 1e-3 * (1 - step / 4))
    assert [optimizer.step(lm_loss(model)).learning_rate for _ in range(4)] == [1e-3, 7.5e-4, 5e-4, 2.5e-4]


def test_decay_filters_are_the_official_rules():
    names = ["LayerNorm.weight", "layer_norm.weight", "layernorm.weight", "dense.bias", "dense.weight"]
    named = [(name, nn.Parameter(torch.ones(3))) for name in names]
    for rule, decayed in (("no_bias_or_norm", [1, 0, 0, 0, 1]), ("all", [1, 1, 1, 1, 1])):
        for _, p in named:
            p.data.fill_(1.0)
        MeZO(named, 0.1, weight_decay=0.5, decay_filter=rule).step(lambda: 0.0)
        assert [round(p[0].item(), 4) for _, p in named] == [1 - 0.05 * d for d in decayed]


def test_blocks():
    names = {
        "model.decoder.embed_tokens.weight": "embed",
        "model.decoder.layers.11.fc1.weight": "layers.11.",
        "roberta.encoder.layer.0.output.LayerNorm.weight": "layer.0.",
        "lm_head.dense.weight": "lm_head",
        "model.decoder.final_layer_norm.weight": None,
        "classifier.weight": None,
    }
    assert {name: block_of(name) for name in names} == names


def test_block_scales_keep_the_expectation_or_normalise_it():
    # For a linear loss g = <a, z> / c exactly, so the mean update tells the estimators apart.
    means = {}
    for estimate in ("variance", "expectation"):
        p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = MeZO(
            [("embed", p)], 1.0, eps=0.5, block_scales={"embed": 4.0}, scale_estimate=estimate, num_directions=4000
        )
        optimizer.step(lambda p=p: 3.0 * p.item())
        means[estimate] = -p.item()
    assert means["variance"] == pytest.approx(3.0, rel=0.15)
    assert means["expectation"] == pytest.approx(3.0 / 4, rel=0.15)


def test_a_zeroth_order_probe_per_block_follows_the_gradient_norm():
    model = tiny_opt(torch.float64).eval()
    exact = measure_block_scales(model, "grad_norm", lm_loss(model))
    probes = [measure_block_scales(model, "zo_grad_norm", lm_loss(model), seed=seed) for seed in range(60)]
    for block, norm in exact.items():
        mean = sum(probe[block] for probe in probes) / len(probes)
        assert mean == pytest.approx(math.sqrt(2 / math.pi) * norm, rel=0.35)
    assert set(exact) == {"embed", "layers.0.", "layers.1."}
    with pytest.raises(InputError, match="without a closure"):
        measure_block_scales(model, "grad_norm")


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"learning_rate": "1e-3"},
        {"eps": 0},
        {"weight_decay": -0.1},
        {"decay_filter": "norms"},
        {"num_directions": 0},
        {"direction_schedule": "cosine"},
        {"direction_schedule": "linear"},
        {"direction_reduction": "median"},
        {"optimizer": "lion"},
        {"momentum": 1.0},
        {"momentum_horizon": 3},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"block_scales": {"embed": 0.0}},
        {"block_scales": {"elsewhere": 1.0}},
        {"scale_estimate": "both"},
        {"rng": "global"},
        {"seed": -1},
        {"rounding": "up"},
        {"num_threads": 0},
        {"num_threads": 2},
    ],
)
def test_every_argument_is_checked_by_name(options):
    named = [("embed.weight", nn.Parameter(torch.zeros(3)))]
    with pytest.raises(InputError) as error:
        MeZO(named, **{"learning_rate": 1e-3, **options})
    assert next(iter(options)) in str(error.value) or "num_train_steps" in str(error.value)


def test_a_failed_loss_restores_the_weights_and_training_may_go_on():
    model = tiny_opt()
    before = weights(model)
    optimizer = MeZO(model, 1e-3)
    calls = itertools.count()

    def closure():
        if next(calls) in (0, 2):
            raise RuntimeError("out of memory")
        return lm_loss(model)()

    for _ in range(2):  # at the first loss, then at the second
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(closure)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    assert optimizer.step(closure).step == 1


@pytest.mark.parametrize("loss", [float("nan"), torch.tensor(float("inf")), torch.zeros(2)])
def test_a_loss_must_be_one_finite_number(loss):
    with pytest.raises(InputError, match="closure"):
        MeZO([("w", nn.Parameter(torch.zeros(3)))], 1e-3).step(lambda: loss)


def test_seeds_that_run_out_are_reported_before_any_weight_changes():
    p = nn.Parameter(torch.zeros(3))
    with pytest.raises(InputError, match="no seed left at step 1"):
        MeZO([("w", p)], 1e-3, num_directions=2, direction_seeds=[1]).step(lambda: 0.0)
    assert p.data.eq(0).all()
