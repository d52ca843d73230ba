"""Labelled images for Transformer-DR: sources turned into one canonical form, as `reclaim.data` does for texts.

    kind: labelled_images
    source: world, generator: digits                 scikit-learn's 1,797 digits of 8 x 8 pixels, in one pool `all`
    source: local, format: idx, files: {...}         MNIST and Fashion-MNIST: images-idx3-ubyte.gz (or unpacked), with
                                                     the labels-idx1-ubyte file of the same name beside each
    source: local, format: subject_folders           one folder a subject (ORL, cropped Yale B): files: {all: FOLDER}
    source: local, format: subject_files             files SUBJECT.rest or SUBJECT__rest in one folder (Yale:
                                                     subject01.glasses; COIL: obj1__0.png)
    source: hub, id, revision | path, splits: {...}  a repository of the Hub with an image and a label column

A canonical folder has one `<split>.parquet` (id, pixels: the bytes of H x W x C values, label) for each of train and
test, or for the pool `all`, which the experiments divide by seed, and `dataset.json` with the shape of the images, the
value that counts as 1, the names and counts of the labels (subjects are counted, not believed) and checksums.

`size: [H, W]` shrinks images by averaging areas; `exclude: PATTERN` leaves out files (the ambient images of Yale B).
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reclaim.data import load_split
from reclaim.data_local import expand_path
from reclaim.data_spec import check_keys
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, sha256, write_json

KIND = "labelled_images"
SUFFIXES = (".pgm", ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")
# Keys that each source needs, and those it may have, beside kind and source.
SOURCES = {
    "world": ({"generator"}, set()),
    "local": ({"format", "files"}, {"size", "exclude"}),
    "hub": ({"splits"}, {"id", "revision", "path", "name", "image", "label", "size"}),
}
FORMATS = ("idx", "subject_folders", "subject_files")
SPLITS = {"train", "test"}
IDX_BYTES, IDX_NAMES = 0x08, {1: "labels (idx1)", 3: "images (idx3)"}


@dataclass(frozen=True)
class ImageSet:
    """One split: X (n, H * W * C) float32 in [0, 1], rows channels last; labels (n,) int64; ids; names of the labels."""

    X: np.ndarray
    labels: np.ndarray
    ids: list[str]
    image_shape: tuple[int, int, int]
    label_names: list[str]


@dataclass
class Part:
    """A split as it comes from its source: images (n, H, W, C) uint8, label positions, ids."""

    images: np.ndarray
    labels: np.ndarray
    ids: list[str]


def check_spec(spec: Mapping[str, Any], place: str) -> None:
    """Check an entry of `data:` whose kind is `labelled_images` without touching a file; raises InputError."""
    if spec.get("kind") != KIND:
        raise InputError(f"{place}.kind", repr(spec.get("kind")), KIND)
    check_keys(spec, place, SOURCES)
    if spec["source"] == "world" and spec["generator"] != "digits":
        raise InputError(f"{place}.generator", repr(spec["generator"]), "digits (scikit-learn's)")
    if spec["source"] == "local" and spec["format"] not in FORMATS:
        raise InputError(f"{place}.format", repr(spec["format"]), f"one of {', '.join(FORMATS)}")
    if spec["source"] == "local" and spec["format"] != "subject_folders" and "exclude" in spec:
        raise InputError(f"{place}.exclude", "the key", "format: subject_folders, whose files it names")
    splits = spec.get("files", spec.get("splits", {"all": ""}))
    if not isinstance(splits, Mapping) or not (set(splits) == {"all"} or "train" in splits and set(splits) <= SPLITS):
        raise InputError(f"{place}.files or splits", repr(splits), "{all: ...}, or train with or without test")
    size = spec.get("size", [1, 1])
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise InputError(f"{place}.size", repr(size), "[H, W], two whole numbers from 1")


def materialize(spec: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write the images that `spec` describes as a canonical folder.

    Raises InputError for a wrong spec, an unreadable or damaged file and images of different sizes; `out_dir` is then
    as before.
    """
    out_dir = Path(out_dir)
    place = f"data.{out_dir.name}"
    check_spec(spec, place)
    reader = {"world": _digits, "local": _local, "hub": _hub}[spec["source"]]
    parts, label_names, scale, files = reader(spec, place)
    shapes = {part.images.shape[1:] for part in parts.values()}
    if len(shapes) > 1:
        raise InputError(place, f"images of different shapes: {sorted(shapes)}", "one shape", "Set `size: [H, W]`.")
    with atomic_path(out_dir, directory=True) as folder:
        for split, part in parts.items():
            pixels = [image.tobytes() for image in part.images]
            columns = {"id": pa.array(part.ids, pa.string()), "pixels": pa.array(pixels, pa.binary())}
            pq.write_table(
                pa.table({**columns, "label": pa.array(part.labels, pa.int64())}), folder / f"{split}.parquet"
            )
        counts = {name: Counter(part.labels.tolist()) for name, part in parts.items()}
        info = {
            "kind": KIND,
            "image_shape": list(shapes.pop()),
            "scale": scale,
            "label_names": label_names,
            "rows": {split: len(part.ids) for split, part in parts.items()},
            "label_counts": {
                split: {label_names[label]: count for label, count in sorted(found.items())}
                for split, found in counts.items()
            },
            "source": {"spec": dict(spec), "files": files},
            "sha256": {f"{split}.parquet": sha256(folder / f"{split}.parquet") for split in parts},
        }
        write_json(info, folder / "dataset.json")


def source_files(spec: Mapping[str, Any], place: str) -> list[str]:
    """Paths of the user's own files ([] for other sources); raises InputError for one that is not there."""
    if spec["source"] != "local":
        return []
    files: list[str] = []
    for split, text in spec["files"].items():
        path = expand_path(text, f"{place}.files.{split}")
        if not path.exists():
            raise InputError(f"{place}.files.{split}", f"no file or folder {path}", "images", "Correct the path.")
        files += [str(path)] if path.is_file() else sorted(str(each) for each in path.rglob("*") if each.is_file())
    return files


def load_images(folder: str | Path, split: str) -> ImageSet:
    """Read one split of a canonical folder; raises InputError if it has none, is damaged or is not one of images."""
    info, frame = load_image_info(folder), load_split(folder, split)
    pixels = np.frombuffer(b"".join(frame["pixels"]), dtype=np.uint8)
    X = pixels.reshape(len(frame), -1).astype(np.float32) / np.float32(info["scale"])
    return ImageSet(X, frame["label"].to_numpy(), frame["id"].tolist(), tuple(info["image_shape"]), info["label_names"])


def load_image_info(folder: str | Path) -> dict[str, Any]:
    """Read `dataset.json` of a canonical folder of images."""
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise InputError(str(path), "no such file", "a folder of images made by its rule", "Run its rule again.")
    info = read_json(path)
    if info["kind"] != KIND:
        raise InputError(str(path), f"the kind {info['kind']!r}", KIND)
    return info


# ---------------------------------------- sources: parts by split, label names, the value of 1, checksums


def _digits(spec, place):
    from sklearn.datasets import load_digits

    digits = load_digits()
    ids = [f"digits-{row}" for row in range(len(digits.target))]
    images = digits.images.astype(np.uint8)[..., None]
    return {"all": Part(images, digits.target.astype(np.int64), ids)}, [str(n) for n in range(10)], 16, {}


def _local(spec, place):
    paths = {split: expand_path(text, f"{place}.files.{split}") for split, text in spec["files"].items()}
    if spec["format"] == "idx":
        parts: dict[str, Part] = {}
        files: dict[str, str] = {}
        for split, path in paths.items():
            labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
            if labels == path:
                raise InputError(
                    f"{place}.files.{split}", path.name, "a name with `images-idx3`, as MNIST's files have"
                )
            parts[split] = _idx_part(path, labels, split, spec.get("size"))
            files |= {each.name: sha256(each) for each in (path, labels)}
        most = max(int(part.labels.max()) for part in parts.values())
        return parts, [str(number) for number in range(most + 1)], 255, files
    reader = _subject_folders if spec["format"] == "subject_folders" else _subject_files
    names: dict[str, None] = {}
    found: dict[str, list[tuple[str, Path]]] = {}
    for split, path in paths.items():
        if not path.is_dir():
            raise InputError(f"{place}.files.{split}", f"no folder {path}", "a folder of images")
        found[split] = list(reader(path, spec.get("exclude", "")))
        if not found[split]:
            raise InputError(f"{place}.files.{split}", f"no image in {path}", f"the layout of {spec['format']}")
        names |= dict.fromkeys(name for name, _ in found[split])
    label_names = sorted(names, key=_natural)
    parts, files = {}, {}
    for split, images in found.items():
        loaded = [_read_image(path, spec.get("size")) for _, path in images]
        _same_shape([path for _, path in images], loaded)
        classes = np.array([label_names.index(name) for name, _ in images])
        parts[split] = Part(np.stack(loaded), classes, [f"{name}/{path.name}" for name, path in images])
        files |= {str(path.relative_to(paths[split])): sha256(path) for _, path in images}
    return parts, label_names, 255, files


def _hub(spec, place):
    import datasets

    from reclaim.data_hub import HubSource

    image, label = spec.get("image", "image"), spec.get("label", "label")
    source = HubSource(dict(spec), place, [image, label], label)
    parts, names = {}, []
    for split in spec["splits"]:
        rows = source.splits[split]
        for column, wanted in ((image, datasets.Image), (label, datasets.ClassLabel)):
            if not isinstance(rows.features[column], wanted):
                raise InputError(
                    f"{place}, column {column}", type(rows.features[column]).__name__, f"a column of {wanted.__name__}"
                )
        names = rows.features[label].names
        images = [_as_array(picture, f"{place}, split {split}", spec.get("size")) for picture in rows[image]]
        _same_shape([f"{split}, row {row}" for row in range(len(images))], images)
        parts[split] = Part(np.stack(images), np.array(rows[label]), [f"{split}-{row}" for row in range(len(images))])
    return parts, names, 255, source.files()


# ---------------------------------------- files


def _idx_part(images_path: Path, labels_path: Path, split: str, size: list[int] | None) -> Part:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise InputError(
            str(labels_path), f"{len(labels)} labels", f"{len(images)}, one for each of {images_path.name}"
        )
    if size:
        from PIL import Image

        images = np.stack([_as_array(Image.fromarray(image), str(images_path), size)[..., 0] for image in images])
    return Part(images[..., None], labels.astype(np.int64), [f"{split}-{row}" for row in range(len(labels))])


def read_idx(path: str | Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes (LeCun's MNIST format), gzipped or not, as an array of so many dimensions.

    Raises InputError for a file that is absent, damaged, of another type, or longer or shorter than its header says.
    """
    path, expected = Path(path), f"an IDX file of {IDX_NAMES[dimensions]}, gzipped or not"
    if not path.is_file():
        raise InputError(str(path), "no such file", expected)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"a damaged file ({error})", expected, "Fetch it again.") from None
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, IDX_BYTES, dimensions]):
        raise InputError(str(path), f"a file that starts with {data[:4].hex() or 'nothing'}", expected)
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    values = np.frombuffer(data, dtype=np.uint8, offset=header)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise InputError(
            str(path), f"{len(values)} values for the shape {shape} of its header", "as many as the header says"
        )
    return values.reshape(shape)


def _subject_folders(folder: Path, exclude: str) -> Iterator[tuple[str, Path]]:
    for subject in sorted((each for each in folder.iterdir() if each.is_dir()), key=lambda each: _natural(each.name)):
        for path in sorted(subject.iterdir(), key=lambda each: _natural(each.name)):
            if path.suffix.lower() in SUFFIXES and not (exclude and fnmatch(path.name, exclude)):
                yield subject.name, path


def _subject_files(folder: Path, _exclude: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((each for each in folder.iterdir() if each.is_file()), key=lambda each: _natural(each.name)):
        subject, *rest = re.split(r"__|\.", path.name, maxsplit=1)
        if subject and rest and path.suffix.lower() not in (".txt", ".md", ".zip"):
            yield subject, path


def _read_image(path: Path, size: list[int] | None) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return _as_array(picture, str(path), size)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), f"an image that cannot be read ({error})", "a whole image file") from None


def _as_array(picture, place: str, size: list[int] | None) -> np.ndarray:
    """Bytes (H, W, C) of a PIL image: 1 channel if it is grey, else 3."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        raise InputError(place, f"an image of mode {picture.mode}", "8 bits a channel")
    if picture.mode == "P":  # a palette, as in GIF files, of greys or of colours
        colours = np.asarray(picture.convert("RGB"))
        grey = bool((colours == colours[..., :1]).all())
    else:
        grey = picture.mode in ("1", "L", "LA")
    picture = picture.convert("L" if grey else "RGB")
    if size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BOX)
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[..., None]


def _same_shape(places: list, images: list[np.ndarray]) -> None:
    for place, image in zip(places, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(
                str(place), f"an image of {image.shape}", f"{images[0].shape}, as {places[0]}", "Set `size: [H, W]`."
            )


def _natural(name: str) -> list:
    """Sort s2 before s10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
