"""The models of a job: made here from scratch, taken from a folder, or behind an endpoint; from there on all go the same way.

What is made here is trained once, saved in the job's state folder, and loaded as any other model is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.alce.generation import ModelGenerator, Sampling, TextGenerator
from reclaim.encoders import TextEncoder, load_encoder
from reclaim.errors import InputError
from reclaim.io import atomic_path
from reclaim.metrics.mauve import Encoder, hashed_ngrams
from reclaim.models import load, load_tokenizer
from reclaim.seeding import derive
from reclaim.world.passages import FactWorld


@dataclass
class Workshop:
    """Where models of a job come from: its task, seed, folders, and the sizes of the world (None for data of other sources).

    `world`: the world that questions are asked about, for the closed-book model, which learns its facts.
    """

    task: str
    seed: int
    data: Mapping[str, Path]
    device: torch.device | str
    state_dir: Path
    progress: Callable[[Sequence[Any]], Any]
    num_names: int | None = None
    num_types: int | None = None
    world: FactWorld | None = None

    def __post_init__(self):
        self._language = None

    def language(self):
        """The tokenizer of the world's prompts and what its tokens are."""
        if self._language is None:
            from reclaim.alce.language import make_language, make_tokenizer

            tokenizer = make_tokenizer()
            self._language = tokenizer, make_language(tokenizer)
        return self._language

    def make(self, name: str, build: Callable[[Any, Any, int], Any], train: Callable[..., Any]) -> Path:
        """The folder of a model that is made here: built and trained unless it is there."""
        folder = self.state_dir / name
        if not folder.exists():
            if self.num_names is None:
                raise InputError(f"{name}: source", "scratch", "a model, for questions that are not of the world")
            tokenizer, language = self.language()
            seed = derive(self.seed, name)
            model = build(tokenizer, language, seed).to(self.device)
            train(model, seed, state_path=self.state_dir / f"{name}.train", progress=self.progress)
            with atomic_path(folder, directory=True) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
        return folder


def prepare_encoder(spec: Mapping[str, Any], shop: Workshop) -> TextEncoder:
    """The encoder of dense retrieval: `source: scratch` (`hidden_size`, `pairs`, `temperature`, `recipe`) or `model`."""
    if spec["source"] == "scratch":
        from reclaim.alce.bag_encoder import PREFIX, build_bag_encoder, train_bag_encoder

        sizes: dict[str, Any] = {"num_names": shop.num_names, "num_types": shop.num_types}
        folder = shop.make(
            "encoder",
            lambda tokenizer, _, seed: build_bag_encoder(tokenizer, seed, spec["hidden_size"]),
            lambda model, seed, **options: train_bag_encoder(
                model, shop.language()[0], shop.task, spec, seed, **sizes, **options
            ),
        )
        return load_encoder(folder, shop.device, prefix=PREFIX)
    options = {key: spec[key] for key in ("pooling", "normalize", "max_length", "batch_size") if key in spec}
    return load_encoder(shop.data[spec["model"]], shop.device, getattr(torch, spec.get("dtype", "float32")), **options)


def prepare_generator(spec: Mapping[str, Any], shop: Workshop, name: str = "generator") -> TextGenerator:
    """The generator of answers. `source: scratch`: the pointer model, or, named `closed_book`, the closed-book model;
    `model`: a causal model in a folder (`model`, `dtype`); `endpoint`: `url`, `model` and settings of `EndpointGenerator`.

    `sampling`: keys of `Sampling`; `batch_size`.
    """
    sampling = Sampling(**spec.get("sampling", {}))
    seed = derive(shop.seed, name)
    if spec["source"] == "endpoint":
        from reclaim.alce.endpoint import EndpointGenerator

        options = {key: value for key, value in spec.items() if key not in ("source", "sampling", "answers")}
        answers = Path(spec["answers"]) if "answers" in spec else shop.state_dir / f"{name}.answers.jsonl"
        return EndpointGenerator(sampling=sampling, seed=seed, answers=answers, progress=shop.progress, **options)
    if spec["source"] == "scratch":
        folder = _closed_book(spec, shop) if name == "closed_book" else _pointer(spec, shop)
    else:
        folder = shop.data[spec["model"]]
    model = load(folder, "causal", dtype=getattr(torch, spec.get("dtype", "float32"))).to(shop.device)
    return ModelGenerator(model, load_tokenizer(folder), sampling, seed, spec.get("batch_size", 32), shop.progress)


def _pointer(spec: Mapping[str, Any], shop: Workshop) -> Path:
    from reclaim.alce.pointer import build_pointer
    from reclaim.alce.pointer_training import train_pointer

    training = {"num_names": shop.num_names, "num_types": shop.num_types, **spec["training"]}
    return shop.make(
        "generator",
        lambda tokenizer, language, seed: build_pointer(tokenizer, seed, language, **spec.get("config", {})),
        lambda model, seed, **options: train_pointer(model, shop.task, training, seed, **options),
    )


def _closed_book(spec: Mapping[str, Any], shop: Workshop) -> Path:
    from reclaim.alce.closed_book import build_closed_book
    from reclaim.alce.pointer_training import train_closed_book

    world = shop.world
    if world is None:
        raise InputError("closed_book: source", "scratch", "a model, for questions that are not of the world")
    config = {"num_things": shop.num_types, **spec.get("config", {})}
    return shop.make(
        "closed_book",
        lambda tokenizer, language, seed: build_closed_book(tokenizer, seed, language, **config),
        lambda model, seed, **options: train_closed_book(model, world, spec["training"], seed, **options),
    )


def prepare_features(spec: Mapping[str, Any] | None, shop: Workshop) -> Encoder:
    """MAUVE's features: of a causal model (`model`, `dtype`, `batch_size`) the last token's, of at most 512 tokens.

    Hashed n-grams where there is no spec.
    """
    if spec is None:
        return hashed_ngrams
    options: dict[str, Any] = {"pooling": "last", "normalize": False, "max_length": 512}
    dtype = getattr(torch, spec.get("dtype", "float32"))
    return load_encoder(shop.data[spec["model"]], shop.device, dtype, **options, batch_size=spec.get("batch_size", 16))


class RememberingEncoder:
    """An encoder that encodes each text once: the passages of many questions are the same."""

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray]):
        self.encode = encode
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known.update(zip(missing, self.encode(missing), strict=True))
        return np.stack([self._known[text] for text in texts])
