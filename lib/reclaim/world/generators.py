"""The register of the world's data sets: a name of the config to its generator, imported when asked for."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from reclaim.errors import InputError
from reclaim.world.tables import Generator, Tables

# Name in the config: module of this package, and the Generator in it.
GENERATORS = {
    "idioms_corpus": ("idioms", "CORPUS"),
    "idioms_topics": ("idioms", "TOPICS"),
    "polarity_corpus": ("polarity", "CORPUS"),
    "polarity_last": ("polarity", "LAST"),
    "polarity_majority": ("polarity", "MAJORITY"),
    "household_corpus": ("household", "CORPUS"),
    "inference": ("inference", "INFERENCE"),
    "entailment": ("inference", "ENTAILMENT"),
    "similarity": ("inference", "SIMILARITY"),
    "causes": ("choice", "CAUSES"),
    "questions": ("qa", "QUESTIONS"),
    "phrases_corpus": ("phrases", "PHRASES_CORPUS"),
    "phrases_task": ("phrases", "PHRASES_TASK"),
    "words_corpus": ("phrases", "WORDS_CORPUS"),
    "words_task": ("phrases", "WORDS_TASK"),
    "episodes_corpus": ("episodes", "CORPUS"),
    "episodes_tasks": ("episodes", "TASKS"),
    "clients_corpus": ("clients", "CORPUS"),
    "replies_corpus": ("replies", "CORPUS"),
    "passages": ("passages", "PASSAGES"),
}


def module_name(name: str) -> str:
    """Give the full name of the module that makes a data set, for its code fingerprint."""
    if name not in GENERATORS:
        raise InputError("generator", repr(name), f"one of {', '.join(GENERATORS)}")
    return f"reclaim.world.{GENERATORS[name][0]}"


def get(name: str) -> Generator:
    """Give the generator of a data set; raises InputError for an unknown name."""
    return getattr(importlib.import_module(module_name(name)), GENERATORS[name][1])


def info(name: str) -> dict[str, Any]:
    """Describe a data set: its kind, the names of its classes, and all words of its language."""
    generator = get(name)
    return {"kind": generator.kind, "label_names": list(generator.labels), "words": list(generator.words)}


def generate(name: str, split_sizes: dict[str, int], seed: int, **parameters: Any) -> Tables:
    """Make a data set: one canonical table per split. Raises InputError for unknown names, parameters and values."""
    function = get(name).generate
    known = [name for name in inspect.signature(function).parameters if name not in ("split_sizes", "seed")]
    for parameter in parameters:
        if parameter not in known:
            raise InputError(f"parameters of generator {name}", repr(parameter), ", ".join(known) or "no parameter")
    return function(split_sizes, seed, **parameters)
