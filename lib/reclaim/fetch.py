"""Models of the Hub, at a pinned commit, as folders that `from_pretrained` reads; and how large a run's downloads are.

Pickled weights are read as tensors only and rewritten as safetensors, one file at a time, so that neither memory nor disk
has to hold a model twice. A download that was broken off goes on from its files in the state folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from reclaim.data_local import expand_path
from reclaim.errors import InputError
from reclaim.io import read_json, write_json

PROJECTION = "2_Dense"
"""Folder of the layer that sentence-transformers put behind an encoder (GTR's projection)."""

DATA_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".gz", ".zip", ".zst")


def fetch(source: Mapping[str, Any], out_dir: str | Path, state_dir: str | Path | None = None) -> None:
    """Bring a model and its tokenizer into `out_dir`: from the Hub at a commit hash, or from a local folder.

    `state_dir` keeps what is downloaded until all of it is there (default: inside `out_dir`). A local path may hold
    environment variables.

    Raises `InputError` when the folder holds no model or one of another family than `source` says, and when the Hub cannot be
    reached or refuses.
    """
    out_dir = Path(out_dir)
    state = Path(state_dir) if state_dir else out_dir / ".download"
    if source["source"] == "local":
        folder = expand_path(source["path"], "models: path")
        if not (folder / "config.json").exists():
            raise InputError(str(folder), "no config.json", "a model folder written by save_pretrained")
        _check_family(source, folder, str(folder))
        if any(folder.glob("*.safetensors")):
            shutil.copytree(folder, out_dir, dirs_exist_ok=True)
            return
        shutil.copytree(folder, state, dirs_exist_ok=True)
        _settle(state, out_dir)
        return
    from huggingface_hub import HfApi, snapshot_download

    state.mkdir(parents=True, exist_ok=True)
    try:
        names = model_files(HfApi().list_repo_files(source["id"], revision=source["revision"]))
        snapshot_download(source["id"], revision=source["revision"], local_dir=state, allow_patterns=names)
    except _hub_errors() as error:
        raise InputError(
            f"model {source['id']} at revision {source['revision']}",
            str(error).strip().splitlines()[0],
            "a public or granted model on the Hub",
            "Check the network, the id, and HF_TOKEN for gated weights.",
        ) from error
    _check_family(source, state, f"model {source['id']} at revision {source['revision']}")
    _settle(state, out_dir)


def _check_family(source: Mapping[str, Any], folder: Path, place: str) -> None:
    """Refuse a model whose architecture is of another family than the configuration says; any may be read as a classifier."""
    if source.get("family", "classification") == "classification":
        return
    from reclaim.models import model_family

    if (family := model_family(folder)) != source["family"]:
        architecture = read_json(folder / "config.json")["model_type"]
        found = f"the architecture {architecture!r}, which is {family}"
        raise InputError(place, found, f"a {source['family']} model, as its `family` says")


def model_source_files(source: Mapping[str, Any], place: str) -> list[str]:
    """The user's own files behind a local model ([] for one of the Hub); raises `InputError` for a folder without a model."""
    if source["source"] != "local":
        return []
    folder = expand_path(source["path"], f"{place}.path")
    if not (folder / "config.json").is_file():
        raise InputError(f"{place}.path", f"no {folder / 'config.json'}", "a model folder written by save_pretrained")
    return sorted(str(path) for part in (folder, folder / PROJECTION) for path in part.glob("*") if path.is_file())


def _settle(state: Path, out_dir: Path) -> None:
    """Move the files of a model to their place, weights as safetensors."""
    for folder in (state, state / PROJECTION):
        target = out_dir / folder.relative_to(state)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            target.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.suffix == ".bin":
                rewrite_weights(path, target)
                path.unlink()
            elif path.is_file() and not path.name.endswith(".bin.index.json"):
                shutil.move(path, target / path.name)
    for path in state.glob("*.bin.index.json"):
        index = read_json(path)
        index["weight_map"] = {name: _safe_name(file) for name, file in index["weight_map"].items()}
        write_json(index, out_dir / _safe_name(path.name))
    shutil.rmtree(state)


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises where there is no network, no such repository or no right to read it."""
    import httpx2  # the HTTP client of huggingface_hub 2
    from huggingface_hub.errors import LocalEntryNotFoundError

    return httpx2.HTTPError, LocalEntryNotFoundError, OSError


def model_files(names: Sequence[str]) -> list[str]:
    """Of the files of a repository, those that make a model: configuration, tokenizer, and one format of the weights.

    Of an encoder with a projection behind it, that of the projection, too.
    """
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.startswith("model") and name.endswith(".safetensors")]
    old = [] if weights else [name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")]
    indexes = () if weights else ("pytorch_model.bin.index.json",)
    others = [name for name in top if name.endswith((".json", ".txt", ".model"))]
    kept = [name for name in others if not name.endswith(".bin.index.json") or name in indexes]
    dense = [f"{PROJECTION}/{name}" for name in ("model.safetensors", "pytorch_model.bin")]
    projection = [name for name in dense if name in names][:1]
    return sorted([*kept, *weights, *old, *projection])


def rewrite_weights(path: Path, out_dir: Path) -> None:
    """Write the tensors of a pickled file as safetensors; those that share memory get copies of their own."""
    import torch
    from safetensors.torch import save_file

    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone().contiguous() if storage in seen else tensor.contiguous()
        seen.add(storage)
    save_file(tensors, out_dir / _safe_name(path.name), metadata={"format": "pt"})


def _safe_name(name: str) -> str:
    """`pytorch_model-00001-of-00002.bin` -> `model-00001-of-00002.safetensors`, and so for the index."""
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")


# --------------------------------------------------------------------------------------------------------------- sizes


def download_bytes(section: str, spec: Mapping[str, Any]) -> int:
    """Bytes that a model (`section` models) or data set (data) of the Hub takes to download; asks the Hub.

    For a data set with configurations this counts the data files of the one that is named.
    """
    from huggingface_hub import HfApi

    if "path" in spec:
        return 0
    ask = HfApi().model_info if section == "models" else HfApi().dataset_info
    files = ask(spec["id"], revision=spec["revision"], files_metadata=True).siblings
    sizes = {file.rfilename: file.size or 0 for file in files or ()}
    if section == "models":
        return sum(sizes[name] for name in model_files(list(sizes)))
    if "file" in spec:
        return sizes[spec["file"]]
    data = {name: size for name, size in sizes.items() if name.endswith(DATA_SUFFIXES)}
    own = {name: size for name, size in data.items() if spec.get("name") in name.split("/")}
    return sum((own or data).values())


def print_sizes(specs: Mapping[str, Mapping[str, Any]], stream: TextIO) -> None:
    """Print what each folder (`.../models/NAME` or `.../data/NAME`) takes to download, and the sum of those still missing.

    Raises `InputError` when the Hub cannot be reached or lacks one.
    """
    missing = 0
    for path, spec in specs.items():
        try:
            size = download_bytes(Path(path).parent.name, spec)
        except _hub_errors() as error:
            place = f"{spec['id']} at revision {spec['revision']}"
            raise InputError(place, str(error).strip().splitlines()[0], "an answer of the Hub") from error
        missing += 0 if Path(path).exists() else size
        state = "there" if Path(path).exists() else "missing"
        print(f"{size / 1e9:10.3f} GB  {state:8} {path}  ({spec.get('id', spec.get('path'))})", file=stream)
    print(f"{missing / 1e9:10.3f} GB to download", file=stream)
