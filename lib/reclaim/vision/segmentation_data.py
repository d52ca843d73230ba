"""Images with masks: sources turned into one canonical form, as `reclaim.data` does for texts.

    kind: segmentation
    source: world, generator: lesions, splits, seed, parameters
    source: local, format, files: {train: FOLDER, ...}, where a folder holds
        isic2016      the official ISBI2016_ISIC_Part1_Training_Data and ..._Training_GroundTruth (test: ..._Test_...)
        isic2018      the official ISIC2018_Task1-2_Training_Input and ISIC2018_Task1_Training_GroundTruth (dev: Validation)
        image_mask    two folders named by the keys `images` and `masks`; UNeXt's layout has `masks: masks/0`
    source: hub, id, revision | path, splits: {train: train, ...}, image and mask (names of the columns)

`split: {dev: 0.1, test: 0.2, seed: 0}` takes shares of train (or of `all`), `invert: true` makes the dark part of the masks the
foreground, `max_side: 512` shrinks larger images, so that a set of photographs stays small.

A canonical folder has one `<split>.parquet` (id; image, a PNG or JPEG file as bytes; mask, an 8-bit PNG of the same size, 0
background and 255 foreground) and `dataset.json`. An image that stands in two splits is left out of train (and of dev if it
stands in test). A mask is found by the name of its image, with or without an ending such as `_segmentation`. Rows come in the
order of their ids and not in that of the file system, on which UNeXt's split depends. Images are RGB (UNeXt's code reads BGR).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reclaim.data_hub import HubSource
from reclaim.data_local import expand_path
from reclaim.data_spec import check_keys
from reclaim.errors import InputError
from reclaim.io import atomic_path, sha256, write_json
from reclaim.seeding import derive
from reclaim.vision.images import ROWS_PER_GROUP, encode_png, open_image, read_mask, resize, resize_mask
from reclaim.world.lesions import draw_lesions
from reclaim.world.tables import check_sizes

KIND = "segmentation"
SCHEMA = pa.schema({"id": pa.string(), "image": pa.binary(), "mask": pa.binary()})
SPLITS = ("test", "dev", "train")  # in this order, an image yields to the splits before its own
# Keys that each source needs, and those it may have, beside kind and source.
SOURCES = {
    "world": ({"generator", "splits"}, {"seed", "parameters"}),
    "local": ({"format", "files"}, {"images", "masks", "invert", "max_side", "split"}),
    "hub": ({"splits", "image", "mask"}, {"id", "revision", "path", "name", "invert", "max_side", "split"}),
}

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_ENDINGS = ("", "_segmentation", "_Segmentation", "_mask", "_label", "_gt")
# Names of the official archives by split: images, masks.
ISIC: dict[str, dict[str, tuple[str, str]]] = {
    "isic2016": {
        "train": ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
        "test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
    },
    "isic2018": {
        "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
        "dev": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
        "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    },
}
FORMATS = (*ISIC, "image_mask")


def check_spec(spec: Mapping[str, Any], place: str) -> None:
    """Check an entry of `data:` whose kind is `segmentation` without touching a file; raises InputError."""
    if spec.get("kind") != KIND:
        raise InputError(f"{place}.kind", repr(spec.get("kind")), KIND)
    check_keys(spec, place, SOURCES)
    if spec["source"] == "world":
        if spec["generator"] != "lesions":
            raise InputError(f"{place}.generator", repr(spec["generator"]), "lesions")
        for key in sorted(set(spec.get("parameters", {})) - {"side", "max_distractors"}):
            raise InputError(f"{place}.parameters.{key}", "an unknown key", "side or max_distractors")
    if spec["source"] == "local":
        if spec["format"] not in FORMATS:
            raise InputError(f"{place}.format", repr(spec["format"]), f"one of {', '.join(FORMATS)}")
        if spec["format"] in ISIC and set(spec) & {"images", "masks"}:
            raise InputError(place, "the keys images or masks", "format: image_mask, whose folders they name")
    side = spec.get("max_side", 1)
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise InputError(f"{place}.max_side", repr(side), "a whole number of pixels from 1")
    pools, shares = spec.get("files", spec.get("splits")), spec.get("split", {})
    names = {"train", "dev", "test"} if spec["source"] == "world" else {"train", "dev", "test", "all"}
    if not isinstance(pools, Mapping) or not pools or not set(pools) <= names or "all" in pools and len(pools) > 1:
        raise InputError(
            f"{place}.files or splits", repr(pools), f"entries among {', '.join(sorted(names))}; `all` alone"
        )
    for split in sorted(set(shares) - {"seed"}):
        if split not in ("dev", "test") or split in pools or not {"train", "all"} & set(pools):
            raise InputError(
                f"{place}.split.{split}", f"beside {sorted(pools)}", "dev or test, taken from train or all"
            )
    if not all(0 < share < 1 for split, share in shares.items() if split != "seed") or _share(shares) >= 1:
        raise InputError(f"{place}.split", repr(shares), "shares above 0 that leave something for train")


def materialize(spec: Mapping[str, Any], out_dir: str | Path) -> None:
    """Write the images and masks that `spec` describes as a canonical folder.

    Raises InputError for a wrong spec, folders and files that are not there, an image without a mask, a mask without an
    image, sizes that differ, and files that are no images; `out_dir` is then as before.
    """
    place = f"data.{Path(out_dir).name}"
    check_spec(spec, place)
    sources: dict[str, type[WorldSource] | type[HubImages] | type[FolderSource]]
    sources = {"world": WorldSource, "local": FolderSource, "hub": HubImages}
    reader = sources[spec["source"]](spec, place)
    parts = _assign(spec, reader)
    seen: dict[bytes, str] = {}
    rows, shared = {}, {}
    with atomic_path(out_dir, directory=True) as folder:
        for split in sorted(parts, key=SPLITS.index):
            pool, chosen = parts[split]
            rows[split] = shared[split] = 0
            with pq.ParquetWriter(folder / f"{split}.parquet", SCHEMA) as writer:
                group: list[dict[str, Any]] = []
                for index, (where, key, image, mask) in enumerate(reader.rows(pool)):
                    if index not in chosen:
                        continue
                    if seen.setdefault(hashlib.sha256(image).digest(), split) != split:
                        shared[split] += 1
                        continue
                    group.append({"id": key, **_row(image, mask, where, spec)})
                    rows[split] += 1
                    if len(group) == ROWS_PER_GROUP:
                        writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                        group = []
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
            if not rows[split]:
                raise InputError(f"{place}, split {split}", "no image that no other split has", "at least one")
        info = {
            "kind": KIND,
            "label_names": [],
            "source": {"spec": dict(spec), "files": reader.files()},
            "rows": rows,
            "shared_between_splits": shared,
            "sha256": {f"{split}.parquet": sha256(folder / f"{split}.parquet") for split in rows},
        }
        write_json(info, folder / "dataset.json")


def _share(shares: Mapping[str, Any]) -> float:
    return sum(share for split, share in shares.items() if split != "seed")


def _assign(spec: Mapping[str, Any], reader: WorldSource | HubImages | FolderSource) -> dict[str, tuple[str, set[int]]]:
    """Give for each split the pool it comes from and the positions of its rows there."""
    parts = {name: (name, set(range(count))) for name, count in reader.counts.items() if name != "all"}
    shares = spec.get("split", {})
    pool = "all" if "all" in reader.counts else "train"
    if pool == "all" or shares:
        order = np.random.default_rng(derive(shares.get("seed", 0), "split")).permutation(reader.counts[pool]).tolist()
        for split in ("test", "dev"):
            if split in shares:
                count = round(shares[split] * reader.counts[pool])
                parts[split], order = (pool, set(order[:count])), order[count:]
        parts["train"] = (pool, set(order))
    return parts


def _row(image: bytes, mask: bytes, where: str, spec: Mapping[str, Any]) -> dict[str, bytes]:
    """Check a pair and bring it into canonical form."""
    photograph, foreground = open_image(image, f"{where}: image"), read_mask(mask, f"{where}: mask")
    if foreground.shape != photograph.size[::-1]:
        raise InputError(
            f"{where}: mask",
            f"{foreground.shape[0]} x {foreground.shape[1]} pixels",
            f"{photograph.size[1]} x {photograph.size[0]}, the size of the image",
        )
    if spec.get("invert"):
        foreground = ~foreground
    limit = spec.get("max_side")
    if limit and max(photograph.size) > limit:
        scale = limit / max(photograph.size)
        size = tuple(max(1, round(side * scale)) for side in photograph.size)
        photograph, foreground = resize(photograph.convert("RGB"), size), resize_mask(foreground, size)
        image = encode_png(np.asarray(photograph))
    elif photograph.format not in ("PNG", "JPEG"):
        image = encode_png(np.asarray(photograph.convert("RGB")))
    return {"image": image, "mask": encode_png(255 * foreground.astype(np.uint8))}


class WorldSource:
    """Images of the embedded world; `rows` gives (place, id, image, mask) as the other sources do."""

    def __init__(self, spec: Mapping[str, Any], place: str):
        self.seed, self.parameters, self.counts = spec.get("seed", 0), spec.get("parameters", {}), spec["splits"]
        check_sizes(self.counts)

    def rows(self, name: str) -> Iterator[tuple[str, str, bytes, bytes]]:
        """Give (place, id, image file, mask file) of a split."""
        drawn = draw_lesions(self.counts[name], self.seed, name, **self.parameters)
        for index, (image, mask) in enumerate(zip(drawn.images, drawn.masks, strict=True)):
            key = f"{name}-{index}"
            yield key, key, encode_png(image), encode_png(255 * mask.astype(np.uint8))

    def files(self) -> dict[str, str]:
        """No file stands behind the world."""
        return {}


class HubImages:
    """Images of a data set of the Hub, or of a downloaded copy of one."""

    def __init__(self, spec: Mapping[str, Any], place: str):
        self.image, self.mask = spec["image"], spec["mask"]
        self.source = HubSource(dict(spec), place, [self.image, self.mask], None)
        self.counts = {name: len(dataset) for name, dataset in self.source.splits.items()}
        self.files = self.source.files

    def rows(self, name: str) -> Iterator[tuple[str, str, bytes, bytes]]:
        """Give (place, id, image file, mask file) of a split."""
        for number, row in self.source.rows(name):
            where = self.source.place(name, number)
            image, mask = (_file_of(row[column], f"{where}: {column}") for column in (self.image, self.mask))
            yield where, f"{name}-{number}", image, mask


def _file_of(value: Any, where: str) -> bytes:
    """Give the file of a Hub image, which holds its bytes or a path below the downloaded copy."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or (Path(value["path"]).read_bytes() if value.get("path") else None)
    if not isinstance(value, bytes):
        raise InputError(where, f"a value of type {type(value).__name__}", "an image")
    return value


class FolderSource:
    """Files of one of the local layouts, in the order of their ids."""

    def __init__(self, spec: Mapping[str, Any], place: str):
        self.spec, self.place = spec, place
        self.pairs = {split: self._pairs(split) for split in spec["files"]}
        self.counts = {split: len(pairs) for split, pairs in self.pairs.items()}

    def rows(self, name: str) -> Iterator[tuple[str, str, bytes, bytes]]:
        """Give (place, id, image file, mask file) of a split."""
        for key, (image_path, mask_path) in self.pairs[name].items():
            yield str(image_path), key, image_path.read_bytes(), mask_path.read_bytes()

    def paths(self) -> list[Path]:
        """Give every image and mask file."""
        return [path for pairs in self.pairs.values() for pair in pairs.values() for path in pair]

    def files(self) -> dict[str, str]:
        """Give the SHA-256 of every file, under its split, its folder's name and its own."""
        return {
            f"{split}/{path.parent.name}/{path.name}": sha256(path)
            for split, pairs in self.pairs.items()
            for pair in pairs.values()
            for path in pair
        }

    def _root(self, split: str) -> Path:
        return expand_path(self.spec["files"][split], f"{self.place}.files.{split}")

    def _folders(self, split: str) -> tuple[Path, Path]:
        root, form = self._root(split), self.spec["format"]
        if form == "image_mask":
            names = (self.spec.get("images", "images"), self.spec.get("masks", "masks"))
        else:
            # All of a set is its official training part: only that has masks for everybody.
            official = ISIC[form]
            part = "train" if split == "all" else split
            if part not in official:
                raise InputError(
                    f"{self.place}.files.{split}", f"a {split} part of {form}", f"parts among {', '.join(official)}"
                )
            names = official[part]
        for name in names:
            if not (root / name).is_dir():
                raise InputError(
                    f"{self.place}.files.{split}",
                    f"no folder {root / name}",
                    f"the folders {names[0]} and {names[1]} in {root}",
                    "Unpack the official archives there." if form in ISIC else "Name them with `images` and `masks`.",
                )
        return root / names[0], root / names[1]

    def _pairs(self, split: str) -> dict[str, tuple[Path, Path]]:
        """Match images with masks by name."""
        image_folder, mask_folder = self._folders(split)
        images, masks = _by_stem(image_folder), _by_stem(mask_folder)
        # ISIC 2017 and 2018 put superpixels beside the photographs.
        images = {stem: path for stem, path in images.items() if not stem.endswith("_superpixels")}
        if not images:
            raise InputError(str(image_folder), "no image", f"files that end in {', '.join(SUFFIXES)}")
        pairs, used = {}, set()
        for stem in sorted(images, key=_natural):
            found = [stem + ending for ending in MASK_ENDINGS if stem + ending in masks]
            if len(found) != 1:
                raise InputError(
                    str(images[stem]),
                    f"{'several masks' if found else 'no mask'} in {mask_folder}",
                    f"one mask named {stem}, with an ending among {', '.join(MASK_ENDINGS[1:])} or none",
                )
            used.add(found[0])
            pairs[stem] = (images[stem], masks[found[0]])
        left = sorted(set(masks) - used)
        if left:
            raise InputError(
                str(masks[left[0]]), f"a mask without an image in {image_folder}", "an image for each mask"
            )
        return pairs


def source_files(spec: Mapping[str, Any], place: str) -> list[str]:
    """Paths of the user's own images and masks ([] for other sources); raises InputError for a folder that is not there."""
    return [str(path) for path in FolderSource(spec, place).paths()] if spec["source"] == "local" else []


def _by_stem(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in paths:
                raise InputError(str(path), f"a second image named {path.stem}", "names once each")
            paths[path.stem] = path
    return paths


def _natural(stem: str) -> tuple:
    """Order 2 before 10."""
    return (0, int(stem), stem) if stem.isdecimal() else (1, 0, stem)
