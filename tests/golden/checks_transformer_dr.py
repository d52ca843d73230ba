"""Checks of the Transformer-DR vectors: metrics of scikit-learn and scikit-image, PCA on real images, patches, parameter
counts, and one forward pass of the reference model. Tolerances are the vectors' own: see their README.

The images of MNIST and ORL are looked for in the folders `mnist` and `orl_faces` of RECLAIM_DATA.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from reclaim.errors import InputError
from reclaim.metrics import embedding, image
from reclaim.vision import image_sets
from reclaim.vision.reducers import METHODS, count_parameters
from reclaim.vision.reduction_splits import per_subject_split
from reclaim.vision.transformer_dr import TransformerAutoencoder, patchify, unpatchify

# Names of the vectors' weights and ours.
MODULES = {"embed": "embed", "code": "to_code", "expand": "from_code", "pixel": "to_pixels"}
for short, side in (("enc", "encoder"), ("dec", "decoder")):
    MODULES |= {f"{short}_{name}": f"{side}.0.{name}" for name in ("qkv", "proj", "fc1", "fc2")}
    MODULES |= {f"{short}_ln{number}": f"{side}.0.norm{number}" for number in (1, 2)}
    MODULES[f"{short}_lnf"] = f"{side}.1"


def close(found: float, expected: float, tolerance: float, what: str) -> None:
    assert abs(found - expected) <= tolerance, f"{what}: {found} is not {expected} within {tolerance}"


def read(path: Path):
    return json.loads(path.read_text())


# ---------------------------------------- metrics


def check_embedding_metrics(path: Path) -> int:
    cases = read(path)
    for number, case in enumerate(cases):
        X, Y = np.array(case["X"]), np.array(case["Y"])
        for name, function in (("trustworthiness", embedding.trustworthiness), ("continuity", embedding.continuity)):
            for k, expected in case[name].items():
                close(function(X, Y, int(k)), expected, 1e-9, f"case {number}, {name} {k}")
        close(embedding.silhouette(Y, case["labels"]), case["silhouette_Y"], 1e-9, f"case {number}, silhouette")
        small = embedding.silhouette(Y, case["labels_with_small_classes"])
        close(small, case["silhouette_small_classes"], 1e-9, f"case {number}, silhouette of small classes")
    return len(cases)


def check_image_metrics(path: Path) -> int:
    cases = read(path)
    for number, case in enumerate(cases):
        if case.get("identical"):
            same = np.random.default_rng(0).random((1, 16, 16))
            assert image.ssim(same, same)[0] == case["ssim"] and image.mse(same, same) == case["mse"]
            assert image.psnr(same, same)[0] == float(case["psnr"])
            continue
        a, b = np.array(case["a"])[None], np.array(case["b"])[None]
        close(image.mse(a, b), case["mse_unclipped"], 1e-6, f"case {number}, MSE")
        close(image.psnr(a, b)[0], case["psnr"], 1e-6, f"case {number}, PSNR")
        close(image.ssim(a, np.full_like(a, 0.5))[0], case["ssim_constant_image"], 1e-6, f"case {number}, SSIM of 0.5")
        for window, key in (("uniform", "ssim_uniform7"), ("gaussian", "ssim_gaussian")):
            if case[key] is None:
                with pytest.raises(InputError):
                    image.ssim(a, b, window)
            else:
                close(image.ssim(a, b, window)[0], case[key], 1e-6, f"case {number}, SSIM {window}")
    return len(cases)


# ---------------------------------------- PCA on images


def check_digits_pca(path: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        image_sets.materialize(
            {"kind": image_sets.KIND, "source": "world", "generator": "digits"}, Path(folder) / "digits"
        )
        digits = image_sets.load_images(Path(folder) / "digits", "all")
    return _check_pca(read(path), digits.X, digits.labels, digits.image_shape[:2])


def check_mnist_pca(path: Path) -> int:
    return _check_pca(read(path), *_mnist(), (28, 28))


def check_mnist_knn(path: Path) -> int:
    case, (X, labels) = read(path), _mnist()
    train, test = _rows(case["train_rows"]), _rows(case["test_rows"])
    for k in (k for k in case if re.fullmatch(r"knn\d+", k)):
        found = embedding.knn_accuracy(X[train], labels[train], X[test], labels[test], int(k[3:]))
        close(found, case[k], 1.001 / len(X[test]), f"raw pixels, {k}")
    return sum(key.startswith("knn") for key in case)


def _check_pca(case: dict, X: np.ndarray, labels: np.ndarray, shape: Sequence[int]) -> int:
    X = X.astype(np.float64)
    train, test = _rows(case["train_rows"]), _rows(case["test_rows"])
    for d, expected in case["by_dimension"].items():
        pca = METHODS["pca"].build(int(d), 0, {}).fit(X[train])
        codes, train_codes = pca.transform(X[test]), pca.transform(X[train])
        rebuilt = pca.inverse_transform(codes)
        originals, shown = X[test].reshape(-1, *shape), rebuilt.reshape(-1, *shape)
        psnr = image.mean_psnr(originals, shown)
        found = {
            "mse": image.mse(originals, shown),
            "train_mse": float(np.mean((X[train] - pca.inverse_transform(train_codes)) ** 2)),
            "psnr_mean": psnr.value,
            "psnr_of_mean_clipped_mse": image.psnr_of_mean_error(originals, shown),
            "infinite": psnr.infinite,
            "ssim_mean": float(image.ssim(originals, shown).mean()),
            "continuity5": embedding.continuity(X[test], codes, 5),
            "silhouette": embedding.silhouette(codes, labels[test]),
            "knn1_leave_one_out_test": embedding.leave_one_out_accuracy(codes, labels[test]),
        }
        for key, value in expected.items():
            if key.startswith("trustworthiness"):
                found[key] = embedding.trustworthiness(X[test], codes, int(key.removeprefix("trustworthiness")))
            elif re.fullmatch(r"knn\d+", key):
                sides = train_codes, labels[train], codes, labels[test]
                found[key] = embedding.knn_accuracy(*sides, k=int(key[3:]))
            elif key == "outside_unit_interval":
                # Pixels that are always black come back as 0 up to rounding, on either side.
                sure = int(((rebuilt < -1e-9) | (rebuilt > 1 + 1e-9)).sum())
                most = int(((rebuilt < 1e-9) | (rebuilt > 1 - 1e-9)).sum())
                assert sure <= value <= most, f"d {d}, {key}: {value} is not from {sure} to {most}"
                continue
            tolerance = 1.001 / len(codes) if key.startswith("knn") else 1e-4
            close(found[key], value, tolerance, f"d {d}, {key}")
    return len(case["by_dimension"])


def _rows(given: str | Sequence[int]) -> slice:
    """Rows are written as [first, end] or as "first:end"."""
    first, end = given.split(":") if isinstance(given, str) else given
    return slice(int(first), int(end))


# ---------------------------------------- images that are not in the repository


def data_folder(name: str) -> Path | None:
    """A folder of RECLAIM_DATA, or None where it is not there."""
    root = os.environ.get("RECLAIM_DATA")
    return Path(root) / name if root and (Path(root) / name).is_dir() else None


def needs(name: str, check: Callable[[Path], int]) -> Callable[[Path], int]:
    """Run a check where its images are; else say so and count nothing."""

    def checked(path: Path) -> int:
        if data_folder(name):
            return check(path)
        print(f"golden transformer_dr/{path.name}: not checked, no folder {name} in RECLAIM_DATA")
        return 0

    return checked


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    folder = data_folder("mnist")
    images = image_sets.read_idx(folder / "t10k-images-idx3-ubyte.gz", 3)
    labels = image_sets.read_idx(folder / "t10k-labels-idx1-ubyte.gz", 1)
    return images.reshape(len(images), -1) / 255, labels.astype(np.int64)


def check_orl_pca(path: Path) -> int:
    case = read(path)
    spec = {"kind": image_sets.KIND, "source": "local", "format": "subject_folders"}
    with tempfile.TemporaryDirectory() as folder:
        image_sets.materialize({**spec, "files": {"all": str(data_folder("orl_faces"))}}, Path(folder) / "orl")
        faces = image_sets.load_images(Path(folder) / "orl", "all")
    assert len(faces.label_names) == case["subjects"]
    assert list(faces.image_shape[:2]) == case["image_shape"]
    X, number = faces.X.astype(np.float64), [int(Path(name).stem) for name in faces.ids]
    for key, expected in case["results"].items():
        count, seed = (int(part) for part in re.fullmatch(r"l(\d+)_seed(\d+)", key).groups())
        split = per_subject_split(faces, count, seed)
        drawn = [number[row] for row in split.train]
        assert drawn[:count] == expected["first_subject_train_images"], f"{key}: first subject {drawn[:count]}"
        assert drawn[-count:] == expected["last_subject_train_images"], f"{key}: last subject {drawn[-count:]}"
        assert (len(split.train), len(split.test)) == (expected["n_train"], expected["n_test"]), key
        train, test, one = X[split.train], X[split.test], 1.001 / len(split.test)
        names = faces.labels[split.train], faces.labels[split.test]
        raw = embedding.knn_accuracy(train, names[0], test, names[1])
        close(raw, expected["raw_1nn"], one, f"{key}, raw")
        for d, accuracy in expected["pca_1nn"].items():
            pca = METHODS["pca"].build(int(d), 0, {}).fit(train)
            codes = pca.transform(test)
            found = embedding.knn_accuracy(pca.transform(train), names[0], codes, names[1])
            close(found, accuracy, one, f"{key}, PCA {d}")
            error = float(np.mean((pca.inverse_transform(codes) - test) ** 2))
            close(error, expected["pca_test_mse"][d], 1e-6, f"{key}, PCA {d}, MSE")
    return len(case["results"])


# ---------------------------------------- the model


def check_patches(path: Path) -> int:
    cases = read(path)
    for case in cases:
        shape, size = tuple(case["shape"]), case["P"]
        images = torch.arange(int(np.prod(shape))).reshape(1, *shape)
        tokens = patchify(images, size)
        assert tokens[0].tolist() == case["tokens"], f"{shape}, P {size}"
        assert torch.equal(unpatchify(tokens, size, shape), images)
    return len(cases)


def check_param_counts(path: Path) -> int:
    cases = read(path)
    for case in cases:
        shape = (case["image"], case["image"], case["C"])
        with torch.device("meta"):
            network = TransformerAutoencoder(
                shape, case["d"], patch_size=case["P"], embed_dim=case["D"], depth=case["L"], mlp_ratio=case["r"]
            )
        assert count_parameters(network) == case["params"], f"{case}: {count_parameters(network)}"
    return len(cases)


def check_forward(path: Path) -> int:
    vectors = np.load(path, allow_pickle=False)
    width, heads, ratio, d, side, size, channels = vectors["config"].tolist()
    network = TransformerAutoencoder(
        (side, side, channels), d, patch_size=size, embed_dim=width, depth=1, num_heads=heads, mlp_ratio=ratio
    )
    state = {"encoder_positions": vectors["p_pos_enc"], "decoder_positions": vectors["p_pos_dec"]}
    for theirs, ours in MODULES.items():
        state |= {f"{ours}.weight": vectors[f"p_{theirs}_w"], f"{ours}.bias": vectors[f"p_{theirs}_b"]}
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        network.to(dtype).load_state_dict(state)
        x = torch.from_numpy(vectors["x"]).to(dtype)
        with torch.inference_mode():
            code = network.encode(x)
            found = {
                "encoder_tokens": network.encoder_tokens(x),
                "code": code,
                "reconstruction": network.decode(code),
            }
        for name, value in found.items():
            difference = np.abs(value.numpy() - vectors[name]).max()
            assert difference <= tolerance, f"{name} in {dtype}: differs by {difference}"
    return len(vectors["x"])


CHECKS = [
    ("small_embedding_metrics*.json", check_embedding_metrics),
    ("small_image_metrics*.json", check_image_metrics),
    ("digits_pca*.json", check_digits_pca),
    ("mnist_pca*.json", needs("mnist", check_mnist_pca)),
    ("mnist_raw_knn*.json", needs("mnist", check_mnist_knn)),
    ("orl_pca*.json", needs("orl_faces", check_orl_pca)),
    ("patches*.json", check_patches),
    ("param_counts*.json", check_param_counts),
    ("forward*.npz", check_forward),
]
