import numpy as np
import pytest
import torch

from reclaim.errors import InputError
from reclaim.vision.baselines import BASELINES, build_model
from reclaim.vision.segmenter import complexity, initialize, predict
from reclaim.vision.stm_unet import PCASMLP, VARIANTS, STMUNet, SwinPair, axial_shift, stm_unet

TINY = {"widths": (8, 16, 32, 40, 64), "window_size": 4, "first_pool": False}
NETWORK = {
    "stm_unet": TINY,
    "unet": {"widths": (4, 8, 16)},
    "transunet": {
        "layers": (1, 1, 1),
        "channels": (32, 32, 32),
        "stem_channels": 16,
        "num_groups": 8,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "bridge_channels": 16,
        "decoder_channels": (8, 8, 8, 8),
    },
    "swin_unet": {"patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def randomized(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def touched(module, x: torch.Tensor, row: int, column: int) -> set[tuple[int, int]]:
    """Which positions of the output a change of one input position reaches."""
    moved = x.clone()
    moved[0, row, column, 0] += 1.0  # one channel: a shift of all would vanish in the normalisation
    with torch.no_grad():
        difference = (module(moved) - module(x)).abs().sum(-1)[0]
    return {tuple(place) for place in (difference > 1e-6).nonzero().tolist()}


# ------------------------------------------------------------------------------------------------ shift


@pytest.mark.parametrize("channels", [5, 6, 7, 10, 128, 256])
def test_shift_is_the_closed_form(channels):
    x = torch.randn(1, 7, 6, channels, generator=torch.Generator().manual_seed(0))
    found, size = axial_shift(x, dim=1), -(-channels // 5)
    for c in range(channels):
        distance = c // size - 2
        for i in range(7):
            inside = 0 <= i - distance < 7
            expected = x[0, i - distance, :, c] if inside else torch.zeros(6)
            assert torch.equal(found[0, i, :, c], expected), (c, i)


def test_shifts_of_the_two_axes_are_transposes_of_each_other():
    x = torch.randn(2, 5, 5, 10)
    assert torch.equal(axial_shift(x, 1), axial_shift(x.transpose(1, 2), 2).transpose(1, 2))
    assert not torch.equal(axial_shift(x, 1), axial_shift(x, 2))


def test_nothing_wraps_around():
    x = torch.ones(1, 4, 4, 5)
    moved = axial_shift(x, 1)
    assert moved[0, :2, :, 4].sum() == 0 and moved[0, 2:, :, 0].sum() == 0
    assert moved.sum() == 4 * (2 + 3 + 4 + 3 + 2)


# ------------------------------------------------------------------------------------------------ Swin pairs


def test_one_block_stays_in_its_window_and_a_pair_crosses_it():
    pair = randomized(SwinPair(4, (16, 16), 1, 4, 2.0))
    x = torch.randn(1, 16, 16, 4, generator=torch.Generator().manual_seed(1))
    first = touched(pair[0], x, 5, 6)
    assert first == {(i, j) for i in range(4, 8) for j in range(4, 8)}
    both = touched(pair, x, 5, 6)
    # The shifted windows of 2..5 and 6..9 are the ones that overlap 4..7.
    assert both == {(i, j) for i in range(2, 10) for j in range(2, 10)}


def test_position_bias_is_there():
    pair = SwinPair(16, (128, 128), 1, 8, 2.0)
    assert [block.attn.relative_position_bias_table.numel() for block in pair] == [225, 225]
    block = randomized(pair)[0]
    x = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(2))
    block.set_input_size((8, 8), (8, 8))
    mirrored = block(x.flip(1)).flip(1)
    assert not torch.allclose(block(x), mirrored, atol=1e-4), "attention that knows no position commutes with a mirror"


def test_a_map_no_larger_than_the_window_is_not_shifted():
    pair = SwinPair(8, (4, 4), 2, 8, 2.0)
    assert all(block.window_size == (4, 4) and block.shift_size == (0, 0) for block in pair)


@pytest.mark.parametrize(("skip_residual", "factor"), [(True, 2), (False, 1)])
def test_skip_is_a_residual_branch(skip_residual, factor):
    model = stm_unet(image_size=64, skip_residual=skip_residual, **TINY)
    with torch.no_grad():
        for pair in model.skips.values():
            for block in pair:
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight.zero_()
                    layer.bias.zero_()
    t = torch.randn(1, 16, 32, 32)
    assert torch.equal(model._skip(t, 2), factor * t)


# ------------------------------------------------------------------------------------------------ PCAS-MLP


def test_parallel_convolutions_are_a_sum_of_three_supports():
    block = randomized(PCASMLP(4)).double()
    impulse = torch.zeros(1, 15, 15, 4, dtype=torch.float64)
    impulse[0, 7, 7] = 1.0
    with torch.no_grad():
        silent = block.multi_scale(torch.zeros_like(impulse))
        response = block.multi_scale(impulse) - silent
        apart = impulse + sum(conv(impulse) - conv(torch.zeros_like(impulse)) for conv in block.parallel.values())
    assert torch.allclose(response, apart)
    support = response.abs().sum(-1)[0] > 1e-12
    rows, columns = support.any(1).nonzero().flatten(), support.any(0).nonzero().flatten()
    assert rows.tolist() == columns.tolist() == list(range(4, 11))
    only = randomized(PCASMLP(4, parallel_kernels=(3,))).double()
    with torch.no_grad():
        narrow = only.multi_scale(impulse) - only.multi_scale(torch.zeros_like(impulse))
    assert (narrow.abs().sum(-1)[0] > 1e-12).sum() == 9


def test_pcas_parameter_formula():
    channels = 256
    expected = 6 * channels**2 + 6 * channels + channels * (9 + 25 + 49 + 3) + channels * (9 + 1) + 8 * channels
    assert sum(p.numel() for p in PCASMLP(channels).parameters()) == expected == 421_376


@pytest.mark.parametrize("settings", [{"fusion": "max"}, {"axial_branches": ()}, {"parallel_kernels": (4,)}])
def test_pcas_refuses(settings):
    with pytest.raises(InputError):
        PCASMLP(10, **settings)


# ------------------------------------------------------------------------------------------------ whole networks


def test_tiny_counts_of_the_protocol():
    expected = {
        "full": 174_593,
        "no_swin": 124_201,
        "no_swin_plain_mlp": 118_057,
        "plain_mlp": 168_449,
        "unext": 101_673,
    }
    for variant, parameters in expected.items():
        assert complexity(build_model(variant, 64, NETWORK), 64)["parameters"] == parameters


def test_macs_of_the_papers_sizes():
    macs = {name: complexity(build_model(name, 256, {}), 256)["macs"] for name in ("full", "no_swin", "unext")}
    assert {name: round(value / 1e9, 3) for name, value in macs.items()} == {
        "full": 1.232,
        "no_swin": 0.580,
        "unext": 0.562,
    }


@pytest.mark.parametrize(
    ("name", "size", "settings", "parameters"),
    [
        ("unet", 256, {}, 31_037_633),
        ("transunet", 224, {"num_classes": 9}, 105_277_081),
        ("swin_unet", 224, {"num_classes": 9, "window_size": 7}, 27_168_900),
    ],
)
def test_rivals_have_the_papers_sizes(name, size, settings, parameters):
    """TransUNet's 105.28 M and Swin-Unet's 27.17 M are the papers' figures, with 9 classes."""
    with torch.device("meta"):
        model = build_model(name, size, {}, **settings)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", [*VARIANTS, *BASELINES])
def test_every_model_maps_images_to_logits_and_learns(name):
    model = build_model(name, 32, NETWORK, num_classes=2, in_channels=4)
    initialize(model, 3)
    x = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (2, 2, 32, 32)
    logits.square().mean().backward()
    dead = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not dead


def test_batch_norm_comes_before_pooling():
    model = stm_unet("unext", image_size=64, **{**TINY, "first_pool": True})
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = {}
    model.ebn1.register_forward_hook(lambda module, inputs, output: seen.update(shape=inputs[0].shape))
    model(x)
    assert seen["shape"][-1] == 64


@pytest.mark.parametrize("name", ["full", "unet", "transunet", "swin_unet"])
def test_sizes_that_do_not_divide_are_refused(name):
    with pytest.raises(InputError, match="50 x 50"):
        build_model(name, 50, NETWORK)
    model = build_model(name, 64, NETWORK)
    with pytest.raises(InputError, match="64 x 50"):
        model(torch.zeros(1, 3, 64, 50))


def test_another_size_needs_set_input_size():
    model = randomized(build_model("full", 32, NETWORK))
    with pytest.raises(InputError, match="set_input_size"):
        model(torch.zeros(1, 3, 64, 48))
    names = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.set_input_size((64, 48))
    assert model(torch.zeros(1, 3, 64, 48)).shape == (1, 1, 64, 48)
    same = {name for name, parameter in model.named_parameters() if parameter.shape == names[name]}
    # At 32 pixels the deepest skip is 4 x 4, as large as its window; all weights keep their size.
    assert same == set(names)


def test_predict_pads_and_cuts_and_fits_the_skips():
    model = randomized(build_model("full", 32, NETWORK))
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 35, 3), dtype=np.uint8)
    found = predict(model, images, batch_size=2)
    assert found.shape == (3, 1, 50, 35) and model.image_size == (32, 32)
    padded = np.pad(images, ((0, 0), (0, 14), (0, 13), (0, 0)), mode="edge")
    assert np.allclose(found, predict(model, padded)[..., :50, :35], atol=1e-6)


def test_predict_leaves_a_model_as_it_is_whose_windows_grow_for_larger_images():
    """At 32 pixels the deepest window is 4 wide, at 64 it is 8; biases that are resized twice are others than before."""
    model = randomized(build_model("full", 32, {"stm_unet": {**TINY, "window_size": 8}}))
    before, parameters = {name: value.clone() for name, value in model.state_dict().items()}, list(model.parameters())
    found = predict(model, np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8))
    assert found.shape == (1, 1, 64, 64) and model.image_size == (32, 32)
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"bottleneck": "mlp"}, "pcas"), ({"swin_levels": (5,)}, "levels"), ({"widths": (8, 16)}, "5 widths")],
)
def test_wrong_settings(settings, word):
    with pytest.raises(InputError, match=word):
        STMUNet(64, **settings)


def test_unknown_names_and_settings():
    with pytest.raises(InputError, match="segmentation model"):
        build_model("fulll", 64, NETWORK)
    with pytest.raises(InputError, match="network.unet"):
        build_model("unet", 64, {"unet": {"width": 3}})
