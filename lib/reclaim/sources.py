"""Data sets of every kind: tables of texts (`reclaim.data`), and kinds whose rows are made by a module of their own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from reclaim.errors import InputError
from reclaim.world.generators import GENERATORS, module_name

MODULES = {
    "segmentation": "vision.segmentation_data",
    "labelled_images": "vision.image_sets",
    "cited_qa": "alce.data",
    "answer_judgements": "alce.human_data",
    "prompt_files": "alce.prompt_files",
    "conversations": "convqa.data",
    "dialogues": "cringe.dialogues",
    "judgements": "convqa.data",
    "quac_predictions": "convqa.data",
}
"""Kind -> module of this package with its `check_spec`, `materialize` and `source_files`; other kinds: `reclaim.data`."""


def modules_of(spec: dict[str, Any]) -> list[str]:
    """Names of the modules that make a data set and are imported by a computed name, for its code fingerprint."""
    if spec.get("kind") in MODULES:
        return [f"reclaim.{MODULES[spec['kind']]}"]
    return [module_name(spec["generator"])] if spec["source"] == "world" else []


def check_spec(spec: dict[str, Any], place: str) -> None:
    """Check an entry of `data:` without touching files; raises `InputError` that names the key under `place`."""
    _module(spec).check_spec(spec, place)
    if spec["source"] == "world" and spec.get("kind") not in MODULES and spec["generator"] not in GENERATORS:
        raise InputError(f"{place}.generator", repr(spec["generator"]), f"one of {', '.join(GENERATORS)}")


def materialize(spec: dict[str, Any], out_dir: str | Path) -> None:
    """Write the canonical folder of a data set."""
    _module(spec).materialize(spec, out_dir)


def source_files(spec: dict[str, Any], place: str) -> list[str]:
    """Paths of the user's own files behind a data set ([] for other sources); raises `InputError` for a missing one."""
    return _module(spec).source_files(spec, place)


def _module(spec: dict[str, Any]) -> ModuleType:
    kind = str(spec.get("kind"))  # not yet checked: it may be anything
    return import_module(f"reclaim.{MODULES[kind]}" if kind in MODULES else "reclaim.data")
