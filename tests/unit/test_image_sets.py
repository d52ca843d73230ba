import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from reclaim.errors import InputError
from reclaim.io import read_json
from reclaim.vision.image_sets import check_spec, load_images, materialize, read_idx

LOCAL = {"kind": "labelled_images", "source": "local"}


def idx(values):
    values = np.asarray(values, dtype=np.uint8)
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_mnist(folder, split, n, seed=0, packed=True):
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 5, 4)), np.arange(n) % 3
    path = folder / f"{split}-images-idx3-ubyte{'.gz' if packed else ''}"
    pack = gzip.compress if packed else bytes
    path.write_bytes(pack(idx(images)))
    path.with_name(path.name.replace("images-idx3", "labels-idx1")).write_bytes(pack(idx(labels)))
    return path, images, labels


def write_faces(folder, subjects=("s1", "s2", "s10"), images=11, size=(6, 4)):
    for number, subject in enumerate(subjects):
        (folder / subject).mkdir(parents=True)
        for i in range(1, images + 1):
            array = np.full(size, 10 * number + i, dtype=np.uint8)
            Image.fromarray(array).save(folder / subject / f"{i}.pgm")
    (folder / "README").write_text("not a subject")
    return folder


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    materialize({"kind": "labelled_images", "source": "world", "generator": "digits"}, tmp_path / "digits")
    found = load_images(tmp_path / "digits", "all")
    np.testing.assert_allclose(found.X, load_digits().data / 16)
    np.testing.assert_array_equal(found.labels, load_digits().target)
    assert found.image_shape == (8, 8, 1) and found.X.dtype == np.float32 and found.X.max() == 1.0
    assert len(set(found.ids)) == 1797


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_of_two_splits(tmp_path, packed):
    train, images, labels = write_mnist(tmp_path, "train", 9, packed=packed)
    test, _, _ = write_mnist(tmp_path, "t10k", 4, seed=1, packed=packed)
    materialize({**LOCAL, "format": "idx", "files": {"train": str(train), "test": str(test)}}, tmp_path / "out")
    found = load_images(tmp_path / "out", "train")
    np.testing.assert_allclose(found.X, images.reshape(9, 20) / 255, rtol=1e-6)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.image_shape == (5, 4, 1) and found.label_names == ["0", "1", "2"]
    info = read_json(tmp_path / "out" / "dataset.json")
    assert info["rows"] == {"train": 9, "test": 4} and info["label_counts"]["test"] == {"0": 2, "1": 1, "2": 1}
    assert set(info["source"]["files"]) == {f.name for f in tmp_path.glob("*ubyte*")}


def test_a_variable_in_a_path_must_be_set(tmp_path, monkeypatch):
    monkeypatch.delenv("FACES", raising=False)
    with pytest.raises(InputError, match="FACES is not set"):
        materialize({**LOCAL, "format": "subject_folders", "files": {"all": "$FACES"}}, tmp_path / "out")
    monkeypatch.setenv("FACES", str(write_faces(tmp_path / "faces")))
    materialize({**LOCAL, "format": "subject_folders", "files": {"all": "$FACES"}}, tmp_path / "out")


def damage(path, how):
    data = path.read_bytes()
    plain = gzip.decompress(data)
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "short":
        path.write_bytes(gzip.compress(plain[:-1]))
    elif how == "long":
        path.write_bytes(gzip.compress(plain + b"x"))
    elif how == "labels":
        path.write_bytes(gzip.compress(idx(np.arange(3))))
    elif how == "header":
        path.write_bytes(gzip.compress(plain[:7]))
    else:
        path.write_bytes(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "a damaged file"),
        ("short", "179 values for the shape"),
        ("long", "181 values for the shape"),
        ("labels", "starts with 00000801"),
        ("header", "starts with 00000803"),
        (b"<html>not found</html>", "starts with 3c68746d"),
        (b"", "starts with nothing"),
    ],
)
def test_a_damaged_idx_file_is_named_and_nothing_is_left(tmp_path, how, message):
    path, _, _ = write_mnist(tmp_path, "train", 9)
    damage(path, how)
    with pytest.raises(InputError, match=message) as caught:
        materialize({**LOCAL, "format": "idx", "files": {"all": str(path)}}, tmp_path / "out")
    assert path.name in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_labels_must_stand_beside_the_images_and_be_as_many(tmp_path):
    path, _, _ = write_mnist(tmp_path, "train", 9)
    spec = {**LOCAL, "format": "idx", "files": {"all": str(path)}}
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.arange(8))))
    with pytest.raises(InputError, match="8 labels; expected 9"):
        materialize(spec, tmp_path / "out")
    labels.unlink()
    with pytest.raises(InputError, match="train-labels-idx1-ubyte.gz: found no such file"):
        materialize(spec, tmp_path / "out")
    path.rename(tmp_path / "mine.gz")
    with pytest.raises(InputError, match="images-idx3"):
        materialize({**spec, "files": {"all": str(tmp_path / "mine.gz")}}, tmp_path / "out")


def test_read_idx_wants_the_kind_it_is_asked_for(tmp_path):
    (tmp_path / "x").write_bytes(idx(np.zeros((2, 3, 3))))
    assert read_idx(tmp_path / "x", 3).shape == (2, 3, 3)
    with pytest.raises(InputError, match="labels"):
        read_idx(tmp_path / "x", 1)


def test_subject_folders_come_in_numeric_order_and_are_counted(tmp_path):
    write_faces(tmp_path / "faces")
    materialize({**LOCAL, "format": "subject_folders", "files": {"all": str(tmp_path / "faces")}}, tmp_path / "out")
    found = load_images(tmp_path / "out", "all")
    assert found.label_names == ["s1", "s2", "s10"] and found.image_shape == (6, 4, 1)
    assert found.ids[:3] == ["s1/1.pgm", "s1/2.pgm", "s1/3.pgm"] and found.ids[-1] == "s10/11.pgm"
    np.testing.assert_array_equal(found.labels, np.repeat([0, 1, 2], 11))
    assert found.X[22 + 9, 0] == pytest.approx((20 + 10) / 255)
    assert read_json(tmp_path / "out" / "dataset.json")["label_counts"]["all"] == {"s1": 11, "s2": 11, "s10": 11}


def test_size_averages_areas(tmp_path):
    folder = tmp_path / "faces" / "s1"
    folder.mkdir(parents=True)
    array = np.arange(24, dtype=np.uint8).reshape(6, 4) * 10
    Image.fromarray(array).save(folder / "1.png")
    spec = {**LOCAL, "format": "subject_folders", "files": {"all": str(tmp_path / "faces")}, "size": [3, 2]}
    materialize(spec, tmp_path / "out")
    expected = array.reshape(3, 2, 2, 2).mean((1, 3))
    np.testing.assert_allclose(load_images(tmp_path / "out", "all").X[0] * 255, expected.ravel(), atol=0.51)


def test_images_of_different_sizes_are_refused_and_can_be_left_out_or_shrunk(tmp_path):
    write_faces(tmp_path / "faces", images=2)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "faces" / "s2" / "s2_Ambient.pgm")
    spec = {**LOCAL, "format": "subject_folders", "files": {"all": str(tmp_path / "faces")}}
    with pytest.raises(InputError, match=r"s2_Ambient.pgm: found an image of \(9, 9, 1\)") as caught:
        materialize(spec, tmp_path / "out")
    assert "size" in caught.value.remedy
    materialize({**spec, "exclude": "*Ambient*"}, tmp_path / "a")
    assert len(load_images(tmp_path / "a", "all").ids) == 6
    materialize({**spec, "size": [3, 3]}, tmp_path / "b")
    assert len(load_images(tmp_path / "b", "all").ids) == 7


def test_subject_files_as_in_yale(tmp_path):
    folder = tmp_path / "yale"
    folder.mkdir()
    for name in ("subject02.happy", "subject01.sad", "subject01.centerlight", "subject10.wink"):
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / name, format="GIF")
    (folder / "Readme.txt").write_text("text")
    materialize({**LOCAL, "format": "subject_files", "files": {"all": str(folder)}}, tmp_path / "out")
    found = load_images(tmp_path / "out", "all")
    assert found.label_names == ["subject01", "subject02", "subject10"] and found.image_shape == (4, 4, 1)
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 2])


def test_colours_are_kept_and_damaged_or_deep_images_named(tmp_path):
    folder = tmp_path / "faces" / "s1"
    folder.mkdir(parents=True)
    Image.fromarray(np.tile(np.array([1, 2, 3], dtype=np.uint8), (4, 4, 1))).save(folder / "1.png")
    spec = {**LOCAL, "format": "subject_folders", "files": {"all": str(tmp_path / "faces")}}
    materialize(spec, tmp_path / "out")
    found = load_images(tmp_path / "out", "all")
    assert found.image_shape == (4, 4, 3)
    np.testing.assert_allclose(found.X[0, :4] * 255, [1, 2, 3, 1], rtol=1e-6)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with pytest.raises(InputError, match="1.png: found an image that cannot be read"):
        materialize(spec, tmp_path / "broken")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(folder / "1.png")
    with pytest.raises(InputError, match="8 bits a channel"):
        materialize(spec, tmp_path / "deep")
    (folder / "1.png").unlink()
    with pytest.raises(InputError, match="no image in"):
        materialize(spec, tmp_path / "none")


def test_a_copy_of_a_hub_repository(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["shirt", "shoe"])})
    pictures = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (0, 51, 255)]
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [1, 0, 1]}, features=features)
    (tmp_path / "copy").mkdir()
    rows.to_parquet(tmp_path / "copy" / "train.parquet")
    spec = {"kind": "labelled_images", "source": "hub", "path": str(tmp_path / "copy"), "splits": {"all": "train"}}
    materialize(spec, tmp_path / "out")
    found = load_images(tmp_path / "out", "all")
    assert found.label_names == ["shirt", "shoe"] and found.labels.tolist() == [1, 0, 1]
    np.testing.assert_allclose(found.X[:, 0], [0, 0.2, 1], rtol=1e-6)
    with pytest.raises(InputError, match="a column of Image"):
        materialize({**spec, "image": "label"}, tmp_path / "wrong")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "text"}, "kind: found 'text'"),
        ({"source": "web"}, "one of world, local, hub"),
        ({"format": "zip"}, "one of idx, subject_folders, subject_files"),
        ({"files": {"test": "x"}}, "train with or without test"),
        ({"files": {"all": "x", "test": "y"}}, "{all: ...}"),
        ({"size": [32]}, r"\[H, W\]"),
        ({"limit": 3}, "an unknown key"),
        ({"exclude": "*.txt"}, "subject_folders, whose files it names"),
        ({"source": "hub", "splits": {"all": "train"}, "format": None}, "an unknown key"),
    ],
)
def test_a_wrong_spec_is_refused_without_touching_files(changes, message):
    with pytest.raises(InputError, match=message):
        check_spec({**LOCAL, "format": "idx", "files": {"all": "/nowhere"}, **changes}, "data.x")


def test_hub_needs_a_pinned_revision_or_a_path_and_the_world_has_digits():
    hub = {"kind": "labelled_images", "source": "hub", "splits": {"all": "train"}}
    for keys in ({"id": "ylecun/mnist"}, {}, {"id": "a", "revision": "b", "path": "c"}):
        with pytest.raises(InputError, match="id with revision, or path"):
            check_spec({**hub, **keys}, "data.x")
    check_spec({**hub, "id": "ylecun/mnist", "revision": "0" * 40}, "data.x")
    with pytest.raises(InputError, match=r"data\.x\.revision: found 'main'"):
        check_spec({**hub, "id": "ylecun/mnist", "revision": "main"}, "data.x")
    with pytest.raises(InputError, match="digits"):
        check_spec({"kind": "labelled_images", "source": "world", "generator": "faces"}, "data.x")


def test_an_unknown_split_or_another_kind_is_refused(tmp_path):
    path, _, _ = write_mnist(tmp_path, "train", 3)
    materialize({**LOCAL, "format": "idx", "files": {"all": str(path)}}, tmp_path / "out")
    with pytest.raises(InputError, match=r"one of \['all'\]"):
        load_images(tmp_path / "out", "test")
    (tmp_path / "out" / "dataset.json").write_text('{"kind": "text"}')
    with pytest.raises(InputError, match="the kind 'text'"):
        load_images(tmp_path / "out", "all")
    with pytest.raises(InputError, match="Run its rule again"):
        load_images(tmp_path / "nothing", "all")
