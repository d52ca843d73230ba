"""Generating answers: by a causal model through `generate`, or behind an endpoint, with the same interface.

A generator is called with prompts and a key for each, and gives a text for each. Sampling is a function of the seed and of the
keys of a batch, so that a run that was interrupted and goes on gives the same texts. The limits are those of the official
code (Gao et al. 2023, ALCE): temperature 1.0 and top_p 0.95 for open models, an answer ends at a line break, and has at most
300 tokens and what room the prompt leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.alce.prompts import Item, Room, clean_output
from reclaim.errors import InputError
from reclaim.seeding import derive

TOO_LONG = ("empty", "refuse")


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn, under the names of `generate`. `temperature` 0 takes the most probable token."""

    temperature: float = 1.0
    top_p: float = 0.95
    max_new_tokens: int = 300
    max_length: int = 2048
    stop_at_newline: bool = True
    too_long: str = "empty"

    def __post_init__(self):
        if self.too_long not in TOO_LONG:
            raise InputError("generation: too_long", repr(self.too_long), f"one of {', '.join(TOO_LONG)}")


class TextGenerator(Protocol):
    """Prompts and their keys -> texts; `room` counts prompts that leave little or no room."""

    room: Room

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], stop: Sequence[str] = ()) -> list[str]: ...


class ModelGenerator:
    """A causal model of transformers."""

    def __init__(
        self,
        model,
        tokenizer,
        sampling: Sampling,
        seed: int,
        batch_size: int = 32,
        progress: Callable[[Sequence[Any]], Any] = iter,
    ):
        self.model, self.tokenizer, self.sampling, self.seed = model.eval(), tokenizer, sampling, seed
        self.batch_size, self.progress = batch_size, progress
        self.room = Room(sampling.max_length, sampling.max_new_tokens, lambda text: len(self._ids(text)))
        self.newline = _newline_tokens(tokenizer)

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], stop: Sequence[str] = ()) -> list[str]:
        """Texts without the prompts. A prompt without room gives "" (`too_long: empty`) or an InputError (`refuse`)."""
        rooms = [self.room(prompt) for prompt in prompts]
        if self.sampling.too_long == "refuse" and min(rooms, default=1) <= 0:
            worst = min(range(len(rooms)), key=lambda row: rooms[row])
            found = f"a prompt of {self.room.prompts[worst - len(rooms)]} tokens ({keys[worst]})"
            remedy = "Show fewer documents or demonstrations, or use a model with a longer context."
            raise InputError("prompt", found, f"fewer than max_length ({self.sampling.max_length})", remedy)
        texts = [""] * len(prompts)
        order = sorted((row for row in range(len(prompts)) if rooms[row] > 0), key=lambda row: (rooms[row], row))
        starts = range(0, len(order), self.batch_size)
        for start in self.progress(starts) if len(starts) > 1 else starts:
            rows = order[start : start + self.batch_size]
            written = self._generate(
                [prompts[row] for row in rows], min(rooms[row] for row in rows), [keys[row] for row in rows]
            )
            for row, text in zip(rows, written, strict=True):
                texts[row] = _cut(text, stop)
        return texts

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[str], room: int, keys: Sequence[str]) -> list[str]:
        ids = [self._ids(prompt) for prompt in prompts]
        longest, pad = max(map(len, ids)), self.tokenizer.pad_token_id
        if pad is None:
            pad = self.tokenizer.eos_token_id
        padded = [[pad] * (longest - len(row)) + row for row in ids]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        device, sampling = self.model.device, self.sampling
        options: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_new_tokens": room, "pad_token_id": pad}
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        if sampling.stop_at_newline:
            options["eos_token_id"] = [self.tokenizer.eos_token_id, *self.newline]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "generate", *keys))
            found = self.model.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                **options,
            )
        return self.tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]


def _newline_tokens(tokenizer) -> list[int]:
    """Tokens that are a line break and nothing else."""
    ids = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return ids[-1:] if ids else []


def _cut(text: str, stop: Sequence[str]) -> str:
    places = [place for place in (text.find(mark) for mark in stop) if place >= 0]
    return text[: min(places)] if places else text


def answer(items: Sequence[Item], generate: TextGenerator, key: str, num_samples: int = 1) -> list[Item]:
    """Give copies of the items (with `prompt`) with `output`: a text, or a list of `num_samples` texts.

    All samples of all items go to the generator in one call.
    """
    prompts = [item["prompt"] for item in items for _ in range(num_samples)]
    keys = [f"{key}/{item['id']}/{sample}" for item in items for sample in range(num_samples)]
    texts = iter(map(clean_output, generate(prompts, keys)))
    outputs = [[next(texts) for _ in range(num_samples)] for _ in items]
    return [
        {**item, "output": output if num_samples > 1 else output[0]}
        for item, output in zip(items, outputs, strict=True)
    ]
