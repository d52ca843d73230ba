import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from reclaim.errors import InputError
from reclaim.vision.autoencoder import _rate, count_parameters
from reclaim.vision.reducers import ConvAutoencoder, PlainAutoencoder
from reclaim.vision.transformer_dr import PRESETS, TransformerAutoencoder, TransformerDR

SMALL = {
    "image_shape": (8, 6),
    "patch_size": 2,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "epochs": 3,
    "batch_size": 16,
    "lr": 1e-2,
    "device": "cpu",
    "random_state": 0,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(n=50, features=48, seed=0):
    return np.random.default_rng(seed).random((n, features), dtype=np.float32)


def network(d=3, shape=(8, 6, 1), **changes):
    torch.manual_seed(0)
    return TransformerAutoencoder(shape, d, **{"patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 2, **changes})


# ---------------------------------------- the network


@pytest.mark.parametrize(
    ("preset", "d", "expected"),
    [
        ("digits", 2, 38_182),
        ("digits", 10, 46_382),
        ("mnist", 2, 292_114),
        ("mnist", 10, 342_298),
        ("mnist", 30, 467_758),
    ]
    + [("face32", 10, 364_378), ("face32", 50, 692_098), ("face32", 100, 1_101_748), ("coil", 10, 364_378)],
)
def test_presets_have_the_parameters_of_the_card(preset, d, expected):
    model = TransformerDR.preset(preset, d)
    with torch.device("meta"):
        assert count_parameters(model.build_network((*PRESETS[preset]["image_shape"], 1))) == expected


def test_a_patch_far_away_changes_every_token_through_attention_only():
    images = torch.rand(1, 8, 6, 1)
    swapped = images.clone()
    swapped[:, :2, :2], swapped[:, 6:, 4:] = images[:, 6:, 4:], images[:, :2, :2]
    others = slice(1, 11)  # neither the first nor the last token
    for attention, changed in ((True, True), (False, False)):
        model = network(attention=attention)
        difference = (model.encoder_tokens(images) - model.encoder_tokens(swapped))[:, others].abs().max()
        assert (difference > 1e-4) == changed


def test_positions_tell_patches_apart_before_they_are_averaged():
    images = torch.rand(1, 8, 6, 1)
    permuted = images.clone()
    permuted[:, :2], permuted[:, 2:4] = images[:, 2:4], images[:, :2]
    for positions, changed in ((True, True), (False, False)):
        model = network(pool="mean", positions=positions)
        if positions:
            torch.nn.init.normal_(model.encoder_positions)
        difference = (model.encode(images) - model.encode(permuted)).abs().max()
        assert (difference > 1e-5) == changed


@pytest.mark.parametrize(("pool", "d"), [("flatten", 3), ("mean", 3), ("token", 24)])
@pytest.mark.parametrize("decoder_depth", [None, 0, 2])
def test_every_pool_and_decoder_gives_codes_of_d_and_images_of_the_shape(pool, d, decoder_depth):
    model = network(d, pool=pool, decoder_depth=decoder_depth)
    codes = model.encode(torch.rand(5, 8, 6, 1))
    assert codes.shape == (5, d) and model.decode(codes).shape == (5, 8, 6, 1)


def test_token_pool_rebuilds_each_patch_from_its_own_numbers_only_without_attention():
    model = network(24, pool="token", attention=False)
    codes = torch.rand(1, 24)
    moved = codes.clone()
    moved[0, 2:4] += 1  # those of the second token
    changed = (model.decode(codes) - model.decode(moved)).abs()[0, ..., 0] > 1e-6
    assert changed[:2, 2:4].any() and not changed[2:].any() and not changed[:2, :2].any()


def test_a_decoder_of_depth_zero_is_linear_in_the_code():
    model = network(decoder_depth=0)
    a, b = torch.rand(2, 4, 3)
    zero = model.decode(torch.zeros(1, 3))
    torch.testing.assert_close(model.decode(a + b) - zero, model.decode(a) + model.decode(b) - 2 * zero)


def test_padding_is_cropped_again_and_colours_pass():
    model = network(shape=(7, 5, 3), patch_size=4)
    images = torch.rand(2, 7, 5, 3)
    assert model(images).shape == images.shape and model.num_tokens == 4
    assert not torch.equal(model.encode(images), model.encode(images.flip(1)))


# ---------------------------------------- the estimator


def test_scikit_learns_checks_pass():
    """Every check that scikit-learn yields for the estimator must pass.

    It is given `image_shape=None` and `pad=True`, since the checks use rows of any number of features. One check is
    skipped by scikit-learn itself: array API input, which needs SCIPY_ARRAY_API in the environment.
    """
    model = TransformerDR(
        patch_size=2, embed_dim=8, depth=1, num_heads=2, epochs=2, batch_size=16, pad=True, device="cpu"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(model, on_skip=None, on_fail=None)
    statuses = {result["check_name"]: result["status"] for result in results}
    assert {name for name, status in statuses.items() if status == "skipped"} <= {"check_array_api_input"}
    assert {name for name, status in statuses.items() if status not in ("passed", "skipped")} == set()
    assert len(statuses) > 40


@pytest.mark.parametrize("kind", [PlainAutoencoder, ConvAutoencoder])
def test_the_rivals_pass_them_too(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(kind(target_parameters=400, epochs=1, device="cpu"), on_skip=None, on_fail=None)
    assert [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")] == []


def test_labels_are_not_read():
    X, y = rows(), np.arange(50) % 5
    codes = [TransformerDR(3, **SMALL).fit(X, labels).transform(X) for labels in (y, y[::-1], None)]
    np.testing.assert_array_equal(codes[0], codes[1])
    np.testing.assert_array_equal(codes[0], codes[2])


def test_the_same_state_gives_the_same_bits_and_global_streams_stay():
    X = rows()
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.rand(1), np.random.random()
    torch.manual_seed(7)
    np.random.seed(7)
    first = TransformerDR(3, **SMALL).fit(X)
    assert (torch.rand(1), np.random.random()) == before
    second = TransformerDR(3, **SMALL).fit(X)
    np.testing.assert_array_equal(first.transform(X), second.transform(X))
    assert first.loss_curve_ == second.loss_curve_
    other = TransformerDR(3, **{**SMALL, "random_state": 1}).fit(X)
    assert not np.allclose(first.transform(X), other.transform(X))


def test_reconstruction_needs_the_codes_and_nothing_else():
    X = rows()
    model = TransformerDR(3, **SMALL).fit(X)
    codes = model.transform(X)
    assert codes.shape == (50, 3) and codes.dtype == np.float32
    rebuilt = clone(model).fit(X).inverse_transform(codes.copy())
    with torch.inference_mode():
        whole = model.network_(torch.from_numpy(X).view(-1, 8, 6, 1)).flatten(1).numpy()
    np.testing.assert_allclose(rebuilt, whole, atol=1e-6)


def test_score_is_minus_the_error_without_clipping():
    X = rows() * 3 - 1  # far outside [0, 1]
    model = TransformerDR(3, **{**SMALL, "epochs": 30}).fit(X)
    rebuilt = model.inverse_transform(model.transform(X))
    assert model.score(X) == pytest.approx(-np.mean((X - rebuilt) ** 2), rel=1e-5)
    assert (rebuilt < 0).any() and (rebuilt > 1).any()


def test_codes_do_not_depend_on_the_batches_of_transform():
    X = rows(600)
    model = TransformerDR(3, **{**SMALL, "epochs": 1}).fit(X[:50])
    whole = model.transform(X)
    np.testing.assert_allclose(
        whole, np.concatenate([model.transform(X[i : i + 7]) for i in range(0, 600, 7)]), atol=1e-5
    )
    assert model.score(X) == pytest.approx(-np.mean((X - model.inverse_transform(whole)) ** 2), rel=1e-5)


def test_training_learns_more_than_the_mean_image():
    from sklearn.datasets import load_digits

    X = load_digits().data[:800] / 16
    model = TransformerDR.preset("digits", 10, epochs=15, lr=2e-2, random_state=0, device="cpu").fit(X[:600])
    assert len(model.loss_curve_) == 15 and model.loss_curve_[-1] < model.loss_curve_[0]
    assert -model.score(X[600:]) < 0.8 * np.mean((X[600:] - X[:600].mean(0)) ** 2)


def test_the_rate_warms_up_and_falls_along_half_a_cosine():
    rates = [_rate(step, 200, 50) for step in range(200)]
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[49] == pytest.approx(0.5 * (1 + math.cos(math.pi * 49 / 200)))
    assert rates[100] == pytest.approx(0.5) and rates[199] < 1e-3
    assert _rate(0, 10, 0) == 1.0


def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(monkeypatch):
    sizes = []
    step = TransformerDR._step
    monkeypatch.setattr(
        TransformerDR, "_step", lambda self, batch, *rest: sizes.append(len(batch)) or step(self, batch, *rest)
    )
    TransformerDR(2, **{**SMALL, "epochs": 2}).fit(rows(50))
    assert sizes == [16, 16, 16] * 2
    sizes.clear()
    TransformerDR(2, **{**SMALL, "epochs": 2}).fit(rows(10))
    assert sizes == [10, 10]


def test_gradients_are_clipped_where_asked():
    X = rows()
    free, clipped = (TransformerDR(2, **SMALL, max_grad_norm=norm).fit(X) for norm in (0.0, 1e-4))
    assert not np.array_equal(free.transform(X), clipped.transform(X))


def test_early_stopping_keeps_the_weights_of_the_best_epoch():
    X = rows(60)
    model = TransformerDR(3, **{**SMALL, "epochs": 25, "lr": 0.05, "max_grad_norm": 0}, early_stopping=True).fit(X)
    assert len(model.validation_curve_) == 25
    assert model.best_epoch_ == 1 + int(np.argmin(model.validation_curve_))
    shorter = [TransformerDR(3, **SMALL, early_stopping=True).fit(X) for _ in range(2)]
    np.testing.assert_array_equal(shorter[0].transform(X), shorter[1].transform(X))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    X = rows()
    model = TransformerDR(3, **SMALL).fit(X)
    model.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    again = TransformerDR.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(model.transform(X), again.transform(X))
    assert again.get_params() == model.get_params() and again.loss_curve_ == model.loss_curve_
    with pytest.raises(InputError, match="a saved TransformerDR"):
        PlainAutoencoder.load(tmp_path / "model")
    with pytest.raises(InputError, match="a number or None"):
        TransformerDR(3, **{**SMALL, "random_state": np.random.RandomState(0)}).fit(X).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_pipeline_scales_and_nothing_else_does():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    X = rows()
    scaled = make_pipeline(FunctionTransformer(lambda X: X / 255), TransformerDR(3, **SMALL)).fit_transform(X * 255)
    np.testing.assert_allclose(scaled, TransformerDR(3, **SMALL).fit_transform(X), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_components": 0}, "n_components=...*a whole number from 1"),
        ({"n_components": 2.5}, "a whole number from 1"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": True}, "batch_size"),
        ({"lr": 0.0}, "a positive number"),
        ({"image_shape": (8, 8)}, r"\(8, 8\) for rows of 48 features"),
        ({"image_shape": (48,)}, "whose product is the number of features"),
        ({"patch_size": 4}, "4 for images of 8 x 6; expected a divisor"),
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"pool": "max"}, "flatten, mean or token"),
        ({"pool": "token"}, "a multiple of 12"),
        ({"lr": 1e30, "max_grad_norm": 0.0, "epochs": 5}, "Lower the learning rate"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TransformerDR(**{"n_components": 3, **SMALL, **changes}).fit(rows())


def test_wrong_rows_are_refused():
    X = rows()
    with pytest.raises(ValueError, match="contains NaN"):
        TransformerDR(3, **SMALL).fit(np.where(X > 0.99, np.nan, X))
    model = TransformerDR(3, **{**SMALL, "epochs": 1}).fit(X)
    with pytest.raises(ValueError, match="X has 40 features, but TransformerDR is expecting 48"):
        model.transform(X[:, :40])
    with pytest.raises(InputError, match="codes of 3"):
        model.inverse_transform(X)
    with pytest.raises(InputError, match="one of digits, mnist, face32, coil"):
        TransformerDR.preset("cifar")
