"""BERT as a reader of the chain: inputs, training and answers, with turns of history or without.

Source: EvalConvQA (Li et al. 2022), its BERT reader. The question with its last turns is segment 0, oldest first with a
separator after each turn, cut from the left; the passage is segment 1 in overlapping windows.

Differences from the official code: history has the order of training when it tests, too; an answer is the passage's own
text between offsets; history in training is the dialog's own answer; weight decay falls on all weights; batches are drawn
anew at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import AutoTokenizer

from reclaim.convqa.bert import SPAN, UNKNOWN, BertForQuac
from reclaim.convqa.decoding import Window, bert_answer
from reclaim.convqa.dialogs import Dialog
from reclaim.convqa.history import bert_history
from reclaim.convqa.readers import Request
from reclaim.convqa.training import gold_history
from reclaim.errors import InputError
from reclaim.io import read_json, write_json
from reclaim.metrics.quac import NO_ANSWER
from reclaim.seeding import derive
from reclaim.train import Recipe, train

SETTINGS_FILE = "reader.json"
BATCH = 16


@dataclass(frozen=True)
class Settings:
    """How text becomes inputs; lengths in word pieces. The defaults are the paper's."""

    history_turns: int = 2
    max_seq_length: int = 512
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30


@dataclass(frozen=True)
class Piece:
    """One window of one question: ids and segments; `first` is the passage piece at `offset` in the window."""

    request: int
    input_ids: list[int]
    token_type_ids: list[int]
    offset: int
    first: int
    length: int


class Windows:
    """Cuts questions and passages into windows."""

    def __init__(self, tokenizer, settings: Settings):
        self.tokenizer, self.settings = tokenizer, settings
        self.passages: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}

    def passage(self, context: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of a passage; the CANNOTANSWER at its end is left out."""
        if context not in self.passages:
            text = context.removesuffix(NO_ANSWER)
            coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            self.passages[context] = (coded["input_ids"], coded["offset_mapping"])
        return self.passages[context]

    def cut(self, number: int, context: str, question: str, history: Sequence[tuple[str, str]]) -> list[Piece]:
        """The windows of a question."""
        tokenizer, settings = self.tokenizer, self.settings
        asked = " ".join(bert_history(history, question, settings.history_turns, separator=tokenizer.sep_token))
        query = tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"][-settings.max_query_length :]
        ids, _ = self.passage(context)
        room = settings.max_seq_length - len(query) - 3
        if room < 1:
            raise InputError(
                "max_seq_length", str(settings.max_seq_length), f"more than {len(query) + 3}, for a question"
            )
        pieces = []
        for first in range(0, max(1, len(ids)), settings.doc_stride):
            shown = ids[first : first + room]
            front = [tokenizer.cls_token_id, *query, tokenizer.sep_token_id]
            segments = [0] * len(front) + [1] * (len(shown) + 1)
            pieces.append(
                Piece(number, [*front, *shown, tokenizer.sep_token_id], segments, len(front), first, len(shown))
            )
            if first + room >= len(ids):
                break
        return pieces


def _stack(pieces: Sequence[Piece], pad_id: int, device) -> dict[str, torch.Tensor]:
    length = max(len(piece.input_ids) for piece in pieces)
    ids = np.full((len(pieces), length), pad_id, dtype=np.int64)
    segments, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece.input_ids)] = piece.input_ids
        segments[row, : len(piece.input_ids)] = piece.token_type_ids
        mask[row, : len(piece.input_ids)] = 1
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


class BertAnswerer:
    """A `BatchReader` over `BertForQuac`."""

    def __init__(self, model: BertForQuac, tokenizer, settings: Settings, batch_size: int = BATCH):
        self.model, self.settings, self.batch_size = model.eval(), settings, batch_size
        self.windows = Windows(tokenizer, settings)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> BertAnswerer:
        """Load a saved reader with its tokenizer and settings."""
        settings = Settings(**read_json(Path(folder) / SETTINGS_FILE))
        return cls(BertForQuac.from_pretrained(folder).to(device), AutoTokenizer.from_pretrained(folder), settings)

    @torch.no_grad()
    def answer(self, requests: Sequence[Request]) -> list[str]:
        """The answer to each request, as the official decoding has it."""
        cuts = [
            self.windows.cut(number, each.dialog.context, each.question, each.history)
            for number, each in enumerate(requests)
        ]
        pieces = [piece for own in cuts for piece in own]
        found: list[list[Window]] = [[] for _ in requests]
        pad_id = self.windows.tokenizer.pad_token_id
        for start in range(0, len(pieces), self.batch_size):
            part = pieces[start : start + self.batch_size]
            output = self.model(**_stack(part, pad_id, self.model.device))
            for row, piece in enumerate(part):
                # The classes come as (rows, 1), the span's logits as (rows, tokens).
                yes, no, unk = (float(each[row]) for each in (output.yes_logits, output.no_logits, output.unk_logits))
                places = {piece.offset + place: piece.first + place for place in range(piece.length)}
                starts, ends = (each[row].tolist() for each in (output.start_logits, output.end_logits))
                best = {token: _best_here(place, piece, cuts[piece.request]) for token, place in places.items()}
                found[piece.request].append(Window(starts, ends, places, best, yes, no, unk))
        return [
            bert_answer(own, self._text(each.dialog.context), max_answer_length=self.settings.max_answer_length)
            for each, own in zip(requests, found, strict=True)
        ]

    def _text(self, context: str):
        _, offsets = self.windows.passage(context)
        return lambda first, last: context[offsets[first][0] : offsets[last][1]]


def _best_here(position: int, piece: Piece, own: Sequence[Piece]) -> bool:
    """Whether no other window of the question shows a piece of the passage with more context."""
    scores = {
        other.first: min(position - other.first, other.first + other.length - 1 - position) + 0.01 * other.length
        for other in own
        if other.first <= position < other.first + other.length
    }
    return max(scores, key=lambda first: (scores[first], -first)) == piece.first


def train_bert(
    entry: Mapping[str, Any],
    splits: Mapping[str, Sequence[Dialog]],
    recipe: Recipe,
    seed: int,
    data: Mapping[str, Path],
    device: torch.device | str,
    state_path: Path,
    folder: Path,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Fine-tune BERT from the model `entry["model"]` on gold history and save it as `folder/STEPS`; gives its record."""
    entry = dict(entry)
    source = data[entry.pop("model")]
    settings = Settings(**entry)
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "head"))
        model = BertForQuac.from_pretrained(source).to(device)
    windows = Windows(tokenizer, settings)
    examples = [example for dialog in splits["train"] for example in _examples(windows, dialog)]

    def batches(step: int):
        rng = np.random.default_rng(derive(seed, "batch", step))
        size = recipe.per_device_train_batch_size
        for _ in range(recipe.gradient_accumulation_steps):
            yield [examples[place] for place in rng.choice(len(examples), min(size, len(examples)), replace=False)]

    def loss(batch):
        inputs = _stack([piece for piece, _, _, _ in batch], tokenizer.pad_token_id, device)
        labels, starts, ends = (torch.tensor([each[place] for each in batch], device=device) for place in (1, 2, 3))
        output = model(**inputs, class_labels=labels, start_positions=starts, end_positions=ends)
        return output.loss * len(batch), len(batch)

    history = train(model, batches, loss, recipe, seed=seed, state_path=state_path, progress=progress)
    target = folder / str(recipe.num_train_steps)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_json(vars(settings), target / SETTINGS_FILE)
    variant = {"history": settings.history_turns > 0}
    return {"loss": history.loss, "snapshots": [recipe.num_train_steps], "variant": variant}


def _examples(windows: Windows, dialog: Dialog) -> Iterable[tuple[Piece, int, int, int]]:
    """Windows of a dialog's questions with class, start and end; a window without the whole answer is unknown."""
    for number, turn in enumerate(dialog.turns):
        _, offsets = windows.passage(dialog.context)
        begin, finish = turn.orig_start, turn.orig_start + len(turn.orig_answer)
        inside = [
            place for place, (first, last) in enumerate(offsets) if first < finish and last > begin
        ] if turn.orig_answer != NO_ANSWER else []  # fmt: skip
        for piece in windows.cut(number, dialog.context, turn.question, gold_history(dialog, number)):
            if inside and piece.first <= inside[0] and inside[-1] < piece.first + piece.length:
                shift = piece.offset - piece.first
                yield piece, SPAN, inside[0] + shift, inside[-1] + shift
            else:
                yield piece, UNKNOWN, 0, 0
