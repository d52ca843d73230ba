"""Train the small readers of the embedded runs, in the families of which rankings are made.

In the place of the four readers of EvalConvQA (Li et al. 2022). A family says how many turns of history are read, with
which marks, and on what it is trained: gold history; in a share of the batches the reader's own answers as history
(`own_predictions`); or self-contained questions (`self_contained`, as ExCorD's rewrites). Weights are averaged
exponentially over the steps, and a snapshot is the average at a step: readers of a family differ in how long they trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reclaim.convqa.dialogs import Dialog, DialogTurn
from reclaim.convqa.history import Turn
from reclaim.convqa.protocols import run_protocol
from reclaim.convqa.readers import Request
from reclaim.convqa.small_reader import NULL, Encoded, Encoder, SmallAnswerer, SmallReader, build_reader, pad
from reclaim.convqa.words import find_words
from reclaim.errors import InputError
from reclaim.metrics.quac import NO_ANSWER, corpus_scores, score_questions
from reclaim.seeding import derive
from reclaim.train import History, Recipe, train

AVERAGE = 0.97
THRESHOLDS = tuple(np.round(np.arange(0.1, 0.91, 0.05), 2).tolist())


@dataclass(frozen=True)
class Family:
    """How the readers of a family read and train; the shares are of batches, chosen step by step."""

    history_turns: int = 2
    markers: bool = True
    separate_head: bool = False
    own_predictions: float = 0.0
    self_contained: float = 0.0


@dataclass(frozen=True)
class Example:
    """An encoded question with the positions of its answer (from 1; `NULL` twice for none)."""

    encoded: Encoded
    start: int
    end: int


def answer_positions(context: str, turn: DialogTurn) -> tuple[int, int]:
    """First and last word of a turn's own answer, from 1; raises `InputError` where its offset does not fit."""
    if turn.orig_answer == NO_ANSWER:
        return NULL, NULL
    begin, finish = turn.orig_start, turn.orig_start + len(turn.orig_answer)
    inside = [place for place, (_, first, last) in enumerate(find_words(context), 1) if first < finish and last > begin]
    if begin < 0 or context[begin:finish] != turn.orig_answer or not inside:
        raise InputError(
            f"{turn.id}: orig_answer", f"{turn.orig_answer!r} at {begin}", "the text at its offset in the context"
        )
    return inside[0], inside[-1]


def gold_history(dialog: Dialog, number: int) -> list[Turn]:
    """The human questions and answers before a turn."""
    return [(turn.question, turn.orig_answer) for turn in dialog.turns[:number]]


class Examples:
    """Training questions of a set of dialogs under some history, encoded when first needed."""

    def __init__(self, encoder: Encoder, dialogs: Sequence[Dialog]):
        self.encoder, self.dialogs = encoder, dialogs
        self.places = [(d, t) for d, dialog in enumerate(dialogs) for t in range(len(dialog.turns))]
        self.targets = {(d, t): answer_positions(dialogs[d].context, dialogs[d].turns[t]) for d, t in self.places}
        self.known: dict[tuple[int, int, str], Example] = {}
        self.answers: dict[str, str] = {}
        self.answered: list[tuple[int, int]] = []

    def take_answers(self, chosen: Sequence[int], model: SmallReader) -> None:
        """Let the reader answer some dialogs on its own history, for the batches on own predictions."""
        reader = SmallAnswerer(model, self.encoder)
        turns = run_protocol([self.dialogs[d] for d in chosen], reader, "pred")
        self.answers = {turn.question: turn.answer for turn in turns if turn.answer is not None}
        self.answered = [(d, t) for d in chosen for t in range(len(self.dialogs[d].turns))]
        self.known = {key: example for key, example in self.known.items() if key[2] != "own"}

    def get(self, place: tuple[int, int], kind: str) -> Example:
        """The example of a turn: kind `gold`, `own` (own answers as history) or `explicit` (self-contained question)."""
        key = (*place, kind)
        if key not in self.known:
            dialog, number = self.dialogs[place[0]], place[1]
            turn = dialog.turns[number]
            history = gold_history(dialog, number)
            if kind == "own":
                history = [(old.question, self.answers[old.id]) for old in dialog.turns[:number]]
            question = turn.rewrite if kind == "explicit" and turn.rewrite else turn.question
            self.known[key] = Example(self.encoder(dialog.context, question, history), *self.targets[place])
        return self.known[key]


def train_family(
    family: Family,
    vocabulary: Sequence[str],
    dialogs: Sequence[Dialog],
    dev: Sequence[Dialog],
    recipe: Recipe,
    snapshots: Sequence[int],
    seed: int,
    *,
    device: torch.device | str = "cpu",
    sizes: Mapping[str, Any] | None = None,
    refresh: int = 60,
    own_dialogs: int = 100,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> tuple[dict[int, SmallReader], History]:
    """Train one family; gives the averaged reader at each step of `snapshots`, and the loss of each step.

    Own predictions are renewed every `refresh` steps, on `own_dialogs` dialogs; until the first time, batches are gold.
    The threshold of a separate head is the one with the best F1 on `dev` under gold history.
    """
    for step in snapshots:
        if not 0 < step <= recipe.num_train_steps:
            raise InputError("snapshots", str(step), f"steps from 1 to {recipe.num_train_steps}")
    options = {
        "history_turns": family.history_turns, "markers": family.markers, "separate_head": family.separate_head
    }  # fmt: skip
    model = build_reader(derive(seed, "reader"), vocabulary=vocabulary, **options, **(sizes or {})).to(device)
    average = deepcopy(model).eval()
    examples = Examples(Encoder(model.config), dialogs)
    readers: dict[int, SmallReader] = {}

    def batches(step: int):
        rng = np.random.default_rng(derive(seed, "batch", step))
        draw = rng.random()
        own = draw < family.own_predictions and bool(examples.answered)
        kind = "own" if own else "explicit" if draw > 1 - family.self_contained else "gold"
        pool = examples.answered if own else examples.places
        chosen = rng.choice(len(pool), min(len(pool), recipe.per_device_train_batch_size), replace=False)
        yield [examples.get(pool[place], kind) for place in chosen]

    def loss(batch: Sequence[Example]) -> tuple[torch.Tensor, int]:
        starts, ends = (
            torch.tensor([getattr(each, side) for each in batch], device=device) for side in ("start", "end")
        )
        return model.span_loss(pad([each.encoded for each in batch], device), starts, ends)

    @torch.no_grad()
    def after_step(done: int) -> None:
        # A young average follows the weights faster, so that it does not hold the start for long.
        rate = min(AVERAGE, done / (done + 10))
        for kept, new in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(new, 1 - rate)
        if family.own_predictions and done % refresh == 0 and done < recipe.num_train_steps:
            rng = np.random.default_rng(derive(seed, "own", done))
            chosen = np.sort(rng.choice(len(dialogs), min(own_dialogs, len(dialogs)), replace=False))
            examples.take_answers(chosen.tolist(), average)
        if done in snapshots:
            readers[done] = deepcopy(average)

    history = train(model, batches, loss, recipe, seed=seed, after_step=after_step, progress=progress)
    if family.separate_head:
        for reader in readers.values():
            reader.config.threshold = best_threshold(reader, examples.encoder, dev)
    return readers, history


def best_threshold(model: SmallReader, encoder: Encoder, dev: Sequence[Dialog]) -> float:
    """The threshold of the separate head that gives the best F1 under gold history; the lowest of equal ones.

    There no answer is part of a later input, so that the reader has to see each question once: for its best span, and for
    how probable no answer is.
    """
    reader = SmallAnswerer(model, encoder)
    spans: dict[str, str] = {}
    none: dict[str, torch.Tensor] = {}
    for number in range(max((len(dialog.turns) for dialog in dev), default=0)):
        asked = [dialog for dialog in dev if number < len(dialog.turns)]
        requests = [Request(each, each.turns[number].question, tuple(gold_history(each, number))) for each in asked]
        for part, output in reader.outputs(requests):
            ids = [each.dialog.turns[number].id for each in part]
            spans.update(zip(ids, reader.texts(part, output, threshold=math.inf), strict=True))
            assert output.no_answer_logits is not None  # the separate head's
            none.update(zip(ids, output.no_answer_logits.sigmoid(), strict=True))
    questions = [question for dialog in dev for question in dialog.scored_questions()]
    answered = score_questions(questions, spans)
    unanswered = score_questions(questions, dict.fromkeys(spans, NO_ANSWER))
    found = {}
    for threshold in THRESHOLDS:
        scored = [
            left if none[left.question.id] >= threshold else taken
            for taken, left in zip(answered, unanswered, strict=True)
        ]
        found[threshold] = corpus_scores(scored)["f1"][0]
    return max(found, key=lambda threshold: (found[threshold], -threshold))
