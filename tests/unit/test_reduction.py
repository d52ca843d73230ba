import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.decomposition import PCA

from reclaim.errors import InputError
from reclaim.io import write_json
from reclaim.outcome import read_outcomes, write_outcome
from reclaim.state import begin_state
from reclaim.vision import reduction
from reclaim.vision.locality import LPP, NPE
from reclaim.vision.reducers import (
    METHODS,
    ConvAutoencoder,
    PlainAutoencoder,
    count_parameters,
    transformer_parameters,
)
from reclaim.vision.reduction import run
from reclaim.vision.reduction_splits import all_images, holdout_split, per_subject_split

MODEL = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
TRAINING = {"epochs": 2, "batch_size": 16, "warmup_steps": 2}
HOLDOUT = {
    "protocol": "holdout",
    "data": "blobs",
    "sizes": {"train": 60, "validation": 12, "test": 48},
    "dimensions": [2, 3],
    "methods": ["transformer_dr", "plain_ae", "pca", "tsne", "lda"],
    "model": MODEL,
    "training": TRAINING,
    "learning_rates": [1e-3, 1e-2],
}
FACES = {
    "protocol": "per_subject",
    "data": "faces",
    "training_images": [3],
    "dimensions": [2, 3],
    "methods": ["transformer_dr", "pca", "lda", "tsne"],
    "model": MODEL,
    "training": TRAINING,
    "learning_rates": [1e-2],
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_set(folder, rows, classes=4, seed=0, change=lambda split, pixels: pixels):
    """Write images of 8 x 8 pixels, a pattern a class and noise, as a canonical folder."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 200, (classes, 64))
    folder.mkdir(parents=True)
    for split, count in rows.items():
        labels = np.arange(count) % classes
        pixels = change(split, (patterns[labels] + rng.integers(0, 55, (count, 64))).astype(np.uint8))
        ids = [f"{split}-{row}" for row in range(count)]
        columns = {"id": ids, "pixels": [row.tobytes() for row in pixels], "label": pa.array(labels, pa.int64())}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    info = {"kind": "labelled_images", "image_shape": [8, 8, 1], "scale": 255, "rows": rows}
    info |= {"label_names": [f"s{n}" for n in range(classes)], "sha256": {"x": str(folder)}}
    write_json(info, folder / "dataset.json")
    return folder


def values(outcome, **where):
    """Metric -> value of the rows whose variant has all of `where`."""
    return {
        row["metric"]: row["value"]
        for row in outcome["metrics"]
        if all(row["variant"].get(key) == value for key, value in where.items())
    }


def go(spec, folder, seed=5, state=None, **keywords):
    state = folder.parent / "state" if state is None else state
    return run(spec, seed, data={spec["data"]: folder}, device="cpu", state_dir=state, **keywords)


# ---------------------------------------- splits


def test_the_parts_of_a_pool_are_disjoint_and_follow_the_permutation(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 120})
    images = all_images(folder)
    split = holdout_split(folder, images, {"train": 60, "validation": 10, "test": 40}, 3)
    order = np.random.RandomState(3).permutation(120)
    np.testing.assert_array_equal(split.train, order[:60])
    np.testing.assert_array_equal(split.validation, order[60:70])
    np.testing.assert_array_equal(split.test, order[-40:])
    assert not set(split.test) & (set(split.train) | set(split.validation))


def test_with_a_test_split_of_its_own_no_test_image_is_of_train(tmp_path):
    folder = make_set(tmp_path / "blobs", {"train": 80, "test": 40})
    images = all_images(folder)
    split = holdout_split(folder, images, {"train": 50, "validation": 30, "test": 20}, 3)
    assert {images.ids[row].split("-")[0] for row in split.test} == {"test"}
    assert {images.ids[row].split("-")[0] for row in [*split.train, *split.validation]} == {"train"}
    assert len(set(split.train) | set(split.validation)) == 80


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        ({"all": 50}, {"train": 30, "validation": 10, "test": 11}),
        ({"train": 50, "test": 10}, {"train": 50, "validation": 1, "test": 5}),
        ({"train": 50, "test": 10}, {"train": 10, "validation": 1, "test": 11}),
        ({"train": 50}, {"train": 10, "validation": 1, "test": 5}),
    ],
)
def test_parts_larger_than_the_set_are_refused(tmp_path, rows, sizes):
    folder = make_set(tmp_path / "blobs", rows)
    with pytest.raises(InputError, match="blobs"):
        holdout_split(folder, all_images(folder), sizes, 0)


def test_training_images_of_each_subject_in_turn(tmp_path):
    images = all_images(make_set(tmp_path / "faces", {"all": 30}, classes=3))
    split = per_subject_split(images, 4, 8)
    rng = np.random.RandomState(8)
    for subject in range(3):
        drawn = np.flatnonzero(images.labels == subject)[rng.permutation(10)]
        np.testing.assert_array_equal(split.train[4 * subject : 4 * subject + 4], drawn[:4])
        assert split.validation[subject] == drawn[3]
    assert len(split.test) == 18 and not set(split.test) & set(split.train)
    for count in (0, 10):
        with pytest.raises(InputError, match="subject s0"):
            per_subject_split(images, count, 8)


# ---------------------------------------- the experiment


def test_a_holdout_run_has_the_rows_it_should(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 120})
    outcome = go(HOLDOUT, folder)
    ours = values(outcome, method="transformer_dr", dimension=2)
    assert {"mse", "train_mse", "psnr", "ssim", "knn1", "knn5", "trustworthiness", "continuity"} < set(ours)
    assert {"silhouette", "knn1_leave_one_out", "knn1_shuffled_labels", "learning_rate", "parameters"} < set(ours)
    assert ours["learning_rate"] in HOLDOUT["learning_rates"]
    # t-SNE has neither an inverse nor a map for new rows, and LDA no inverse.
    assert set(values(outcome, method="tsne", dimension=2)) == {
        "knn1_leave_one_out",
        "trustworthiness",
        "continuity",
        "silhouette",
    }
    assert "mse" not in values(outcome, method="lda", dimension=2)
    assert not {"learning_rate", "parameters"} & set(values(outcome, method="pca", dimension=2))
    equal = values(outcome, method="plain_ae", dimension=2)["parameters"] / ours["parameters"]
    assert abs(equal - 1) <= 0.05  # so small a model has coarse widths; see below for those in use
    assert {(row["variant"]["method"], row["measure"]) for row in outcome["costs"]} >= {
        ("pca", "fit_cpu_s"),
        ("pca", "fit_wall_s"),
    }
    losses = [
        row for row in outcome["curves"] if row["variant"] == {"data": "blobs", "method": "plain_ae", "dimension": 2}
    ]
    assert [row["step"] for row in losses] == [1, 2]
    assert set(outcome["pictures"]) == {"codes-blobs.png", "rebuilt-blobs-d2.png", "rebuilt-blobs-d3.png"}
    assert all(picture.startswith(b"\x89PNG") for picture in outcome["pictures"].values())


def test_an_outcome_is_written_and_read_by_the_chain(tmp_path):
    outcome = go({**HOLDOUT, "methods": ["pca", "plain_ae"]}, make_set(tmp_path / "blobs", {"all": 120}))
    outcome["costs"] = [{**row, "stage": "reduction", "job": "measured"} for row in outcome["costs"]]
    write_outcome(outcome, tmp_path / "out", paper="transformer_dr", experiment="codes", seed=5)
    for kind in ("metrics", "costs", "curves"):
        assert len(read_outcomes([tmp_path / "out"], kind)) == len(outcome[kind])


def test_pca_is_centred_and_not_whitened(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 120})
    outcome = go({**HOLDOUT, "methods": ["pca"]}, folder)
    images = all_images(folder)
    X = images.X[holdout_split(folder, images, HOLDOUT["sizes"], 5).train].astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(X.T, bias=True))
    assert values(outcome, dimension=2)["train_mse"] == pytest.approx(eigenvalues[:-2].sum() / 64, rel=1e-4)


def test_nothing_is_fitted_on_test_images_or_labels(tmp_path):
    folder = make_set(tmp_path / "blobs", {"train": 72, "test": 48})
    noise = np.random.default_rng(9).integers(0, 256, (48, 64)).astype(np.uint8)
    other = make_set(
        tmp_path / "other" / "blobs", {"train": 72, "test": 48}, change=lambda s, p: noise if s == "test" else p
    )
    spec = {**HOLDOUT, "methods": ["transformer_dr", "plain_ae", "pca"], "dimensions": [2]}
    first, second = go(spec, folder), go(spec, other)
    for method in spec["methods"]:
        ours, theirs = values(first, method=method), values(second, method=method)
        assert ours["train_mse"] == theirs["train_mse"] and ours["mse"] != theirs["mse"]
    assert [row["value"] for row in first["curves"]] == [row["value"] for row in second["curves"]]


def test_the_learning_rate_with_the_least_validation_error_is_kept(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 120})
    spec = {**HOLDOUT, "methods": ["transformer_dr", "plain_ae", "conv_ae"], "dimensions": [2]}
    for rates in ([1e-9, 1e-2], [1e-2, 1e-9]):
        outcome = go({**spec, "learning_rates": rates}, folder)
        assert all(values(outcome, method=name)["learning_rate"] == 1e-2 for name in spec["methods"])


def test_shuffled_labels_are_at_chance(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 800})
    spec = {**HOLDOUT, "sizes": {"train": 400, "validation": 1, "test": 399}, "methods": ["pca"]}
    found = values(go(spec, folder), dimension=3)
    assert found["knn1"] > 0.9 and abs(found["knn1_shuffled_labels"] - 0.25) < 0.08


def test_a_killed_job_goes_on_and_gives_the_same(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 120})
    spec = {**HOLDOUT, "methods": ["transformer_dr", "pca"]}
    whole = go(spec, folder)
    state, seen = tmp_path / "state2", []

    def killed(arms):
        for number, arm in enumerate(arms):
            if number == 3:
                raise KeyboardInterrupt
            yield arm

    def counted(arms):
        for arm in arms:
            before = len(list(state.glob("arm-*.json")))
            yield arm
            seen.append(len(list(state.glob("arm-*.json"))) - before)

    with pytest.raises(KeyboardInterrupt):
        go(spec, folder, state=state, progress=killed)
    assert len(list(state.glob("arm-*.json"))) == 3
    again = go(spec, folder, state=state, progress=counted)
    assert seen == [0, 0, 0, 1]  # three arms were there already
    assert again["metrics"] == whole["metrics"] and again["pictures"] == whole["pictures"]


def test_state_of_another_spec_seed_or_data_is_not_used(tmp_path, monkeypatch):
    folder = make_set(tmp_path / "blobs", {"all": 120})
    spec = {**HOLDOUT, "methods": ["pca"], "dimensions": [2]}

    ran = []
    run_arm = reduction._run_arm
    monkeypatch.setattr(reduction, "_run_arm", lambda *given: ran.append(given) or run_arm(*given))
    for changed, seed, fitted in ((spec, 5, 1), (spec, 5, 1), (spec, 6, 2), ({**spec, "learning_rates": [0.5]}, 6, 3)):
        go(changed, folder, seed, state=tmp_path / "kept")
        assert len(ran) == fitted
    other = make_set(tmp_path / "other" / "blobs", {"all": 120}, change=lambda split, pixels: 255 - pixels)
    go({**spec, "learning_rates": [0.5]}, other, 6, state=tmp_path / "kept")
    assert len(ran) == 4


def test_an_ablation_is_named_in_its_variant_and_changes_the_network(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 120})
    methods = [
        {"method": "transformer_dr", "ablation": "none"},
        {"method": "transformer_dr", "ablation": "no_attention", "attention": False},
    ]
    outcome = go({**HOLDOUT, "methods": methods, "dimensions": [2]}, folder)
    whole, without = (values(outcome, ablation=name)["parameters"] for name in ("none", "no_attention"))
    assert whole - without == 2 * (4 * 8 * 8 + 4 * 8 + 2 * 8)  # qkv, proj and their norm, on both sides


def test_faces_are_recognised_at_every_dimension_and_one_is_chosen_without_the_test(tmp_path):
    folder = make_set(tmp_path / "faces", {"all": 40}, classes=5)
    outcome = go(FACES, folder)
    pca = {d: values(outcome, method="pca", dimension=d) for d in (2, 3, "chosen", "oracle")}
    assert set(pca[2]) > {"knn1", "centroid", "knn1_train_leave_one_out", "mse", "train_mse"}
    assert pca[2]["subjects"] == 5
    leave = {d: pca[d]["knn1_train_leave_one_out"] for d in (2, 3)}
    chosen = max((2, 3), key=lambda d: (leave[d], -d))
    assert pca["chosen"] == {"knn1": pca[chosen]["knn1"], "dimension": chosen}
    assert pca["oracle"]["knn1"] == max(pca[d]["knn1"] for d in (2, 3)) >= pca["chosen"]["knn1"]
    assert values(outcome, method="raw").keys() == {"knn1", "centroid"}
    assert not values(outcome, method="tsne")
    assert all(row["n"] == 25 for row in outcome["metrics"])
    assert "rebuilt-faces-d2-3-images.png" in outcome["pictures"]


def test_faces_are_fitted_anew_on_all_training_images(tmp_path, monkeypatch):
    folder, sizes = make_set(tmp_path / "faces", {"all": 40}, classes=5), []
    fit = PlainAutoencoder.fit
    monkeypatch.setattr(PlainAutoencoder, "fit", lambda self, X, y=None: sizes.append(len(X)) or fit(self, X, y))
    go({**FACES, "methods": ["plain_ae"], "dimensions": [2], "learning_rates": [1e-3, 1e-2]}, folder)
    assert sizes == [10, 10, 15]


def test_bounds_of_the_methods_leave_arms_out(tmp_path):
    outcome = go(
        {**FACES, "dimensions": [2, 4, 5], "methods": ["lda", "pca"]}, make_set(tmp_path / "faces", {"all": 40}, 5)
    )
    assert {row["variant"]["dimension"] for row in outcome["metrics"] if row["variant"]["method"] == "lda"} == {
        2,
        4,
        "chosen",
        "oracle",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["pcaa"]}, "'pcaa'; expected names among transformer_dr"),
        ({"training_images": [1]}, "one of them is the validation part"),
        ({"training_images": [9]}, "9 of 8 images"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        go({**FACES, **changes}, make_set(tmp_path / "faces", {"all": 40}, 5))


def test_a_method_that_takes_few_rows_gets_them_of_every_subject(tmp_path, monkeypatch):
    folder, seen = make_set(tmp_path / "faces", {"all": 40}, classes=5), []
    monkeypatch.setitem(METHODS, "pca", dataclasses.replace(METHODS["pca"], max_rows=10))
    fit = PCA.fit
    monkeypatch.setattr(PCA, "fit", lambda self, X, y=None: seen.append(X) or fit(self, X))
    go({**FACES, "methods": ["pca"], "dimensions": [2]}, folder)
    images = all_images(folder)
    subjects = [images.labels[(images.X == row).all(1)].item() for row in seen[0]]
    assert sorted(subjects) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_all_methods_are_judged_inside_the_same_test_images(tmp_path, monkeypatch):
    """Also t-SNE, which takes no more than so many: among fewer images a neighbour of the same class is harder to find."""
    folder, counts = make_set(tmp_path / "blobs", {"all": 120}), []
    monkeypatch.setattr(reduction, "MOST_RANKED", 40)
    leave = reduction.embedding.leave_one_out_accuracy
    monkeypatch.setattr(
        reduction.embedding, "leave_one_out_accuracy", lambda codes, y: counts.append(len(codes)) or leave(codes, y)
    )
    outcome = go({**HOLDOUT, "methods": ["pca", "tsne"], "dimensions": [2]}, folder)
    assert counts == [40, 40]
    sizes = {row["metric"]: row["n"] for row in outcome["metrics"] if row["variant"]["method"] == "pca"}
    assert sizes["knn1"] == sizes["mse"] == 48 and sizes["trustworthiness"] == sizes["knn1_leave_one_out"] == 40


def test_a_network_that_cannot_be_built_ends_the_job_before_its_first_arm(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(reduction, "_run_arm", lambda *given: ran.append(given))
    methods = ["pca", {"method": "transformer_dr", "ablation": "token_pool", "pool": "token"}]
    with pytest.raises(InputError, match="a multiple of 4"):
        go({**HOLDOUT, "methods": methods}, make_set(tmp_path / "blobs", {"all": 120}))
    assert not ran


# ---------------------------------------- rivals


@pytest.mark.parametrize("kind", [PlainAutoencoder, ConvAutoencoder])
@pytest.mark.parametrize(("shape", "d"), [((8, 8, 1), 2), ((8, 8, 1), 10), ((28, 28, 1), 30), ((32, 32, 1), 100)])
def test_rivals_are_of_equal_size(kind, shape, d):
    model = {"patch_size": 2, "embed_dim": 32, "depth": 2} if shape[0] == 8 else {}
    target = transformer_parameters(d, shape, {**model, "image_shape": shape})
    with torch.device("meta"):
        network = kind(d, target_parameters=target).build_network(shape)
        images = torch.empty(3, *shape)
        assert network.encode(images).shape == (3, d) and network(images).shape == images.shape
    assert abs(count_parameters(network) / target - 1) < 0.005


def test_the_plain_rival_of_the_card():
    for target, expected in ((38_182, 38_286), (46_382, 46_406)):
        d = 2 if target == 38_182 else 10
        with torch.device("meta"):
            assert count_parameters(PlainAutoencoder(d, target_parameters=target).build_network((8, 8, 1))) == expected


def test_every_method_fits_and_maps_as_it_says():
    rng = np.random.default_rng(0)
    X, y = rng.random((80, 64), dtype=np.float32), np.arange(80) % 4
    options = {"image_shape": (8, 8), **MODEL, **TRAINING, "target_parameters": 3000, "device": "cpu", "lr": 1e-3}
    for name, method in METHODS.items():
        if name == "umap":
            continue  # compiles for a dozen seconds; runs in the smoke overlay
        estimator = method.build(2, 0, options).fit(X, y if method.supervised else None)
        assert hasattr(estimator, "transform") == method.new_rows, name
        assert method.inverse <= hasattr(estimator, "inverse_transform"), name
        if method.new_rows:
            codes = estimator.transform(X[:7])
            assert codes.shape == (7, 2), name
        if method.inverse:
            assert estimator.inverse_transform(codes).shape == (7, 64), name


def test_umap_is_built_deterministic():
    pytest.importorskip("umap")
    model = METHODS["umap"].build(3, 11, {})
    assert (model.n_components, model.random_state, model.n_jobs) == (3, 11, 1)


@pytest.mark.parametrize("kind", [LPP, NPE])
def test_locality_maps_minimise_their_quotient(kind):
    """No direction in the span of the PCA has a lower quotient than the first component."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 6)) * [4, 3, 2, 1, 1, 1]
    model = kind(2, energy=1.0).fit(X)
    rows = model.pca_.transform(X)
    from sklearn.neighbors import NearestNeighbors

    left, right = model._problem(rows, NearestNeighbors(n_neighbors=5).fit(rows))
    quotient = lambda a: (a @ left @ a) / (a @ right @ a)  # noqa: E731
    first, second = (quotient(model.projection_[:, i]) for i in range(2))
    assert first <= second
    assert all(first <= quotient(a) * (1 + 1e-5) for a in rng.normal(size=(200, 6)))
    np.testing.assert_allclose(model.transform(X), rows @ model.projection_)


def test_npe_finds_a_line_in_noise_free_data_and_lpp_keeps_neighbours():
    t = np.linspace(0, 1, 50)
    X = np.stack([t, 2 * t, np.sin(3 * t)], axis=1)
    for kind in (LPP, NPE):
        codes = kind(1, n_neighbors=4).fit_transform(X)[:, 0]
        steps = np.diff(codes)
        assert (steps > 0).all() or (steps < 0).all()


@pytest.mark.parametrize("kind", [LPP, NPE])
def test_locality_maps_refuse_what_they_cannot_do(kind):
    X = np.random.default_rng(0).normal(size=(20, 6))
    with pytest.raises(InputError, match="n_neighbors"):
        kind(2, n_neighbors=20).fit(X)
    with pytest.raises(InputError, match="from 1 to 6"):
        kind(7).fit(X)
    assert kind(6, energy=0.5).fit(X).transform(X).shape == (20, 6)


# ---------------------------------------- state


def test_state_goes_on_only_with_the_same_data_and_models(tmp_path):
    folder = make_set(tmp_path / "blobs", {"all": 12})
    model, state = tmp_path / "model", tmp_path / "state"
    model.mkdir()
    (model / "weights").write_text("one")
    arguments = ({"a": 1}, 3, {"blobs": folder, "model": model}, "reclaim.vision.reduction")

    def kept_by(*changed):
        (state / "arm-0.json").write_text("{}")
        begin_state(state, *(changed or arguments))
        return (state / "arm-0.json").exists()

    begin_state(state, *arguments)
    assert kept_by()
    (model / "weights").write_text("other")
    assert not kept_by() and kept_by()
    assert not kept_by({"a": 1}, 4, *arguments[2:])
