"""From data sets and cells to prompts: what each test row is shown, as tokens, with the checks that stop a run.

Source: Pan et al. 2023, section 2 of its method and its official code. A cell is a setting at one number of
demonstrations. `prepare` gives the table of predictions without the scores, and what a model has to read.

Differences from the official code: the seeds of a row depend on the run's seed, the data set and the row alone; what
makes a row worthless (`CHECKS`) stops a paired run, where the original goes on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from reclaim.errors import InputError
from reclaim.icl.draws import (
    official_label_map,
    official_random_labels,
    paired_demos,
    paired_label_map,
    raw_demos,
    sample_demos,
    shown_classes,
)
from reclaim.icl.metrics import SCORERS
from reclaim.icl.prompts import IclSet, Row, join_official, join_prompt, shorten
from reclaim.prompting.tokens import leading_ids, text_ids
from reclaim.seeding import derive

DRAWS = ("paired", "independent", "raw", "reordered", "official")
ABSTRACT = ("abstract", "abstract_shuffled")
OFFICIAL_LIMIT = 2048 - 128
"""Tokens that the original allows a prompt: its longest sequence less the room it keeps for an answer."""

CHECKS = {
    "duplicate labels": "two classes have the same label",
    "shared token": "two labels cannot be told apart by the scorer",
    "dropped demonstrations": "the prompt is too long for all demonstrations",
    "missing class": "a class has no demonstration",
}
"""What makes a row degenerate. All but a missing class stop a paired run."""


@dataclass(frozen=True)
class Cell:
    """One setting of the study at one number of demonstrations.

    `template_kind` is minimal for ABSTRACT and natural for the others unless it is given. `draws`: paired, official, or a
    control: independent (as paired, but with demonstrations that no other cell has), raw (whatever their classes) or
    reordered (the paired ones in another order). `fixed_map`: one map to made-up labels for the whole run instead of one
    a row.

    Raises `InputError` for values that do not go together.
    """

    setting: str
    num_demonstrations: int
    label_space: str = "natural"
    template_kind: str = ""
    template: int = 1
    draws: str = "paired"
    fixed_map: bool = False

    def __post_init__(self) -> None:
        if self.draws not in DRAWS:
            raise InputError("draws of a cell", repr(self.draws), f"one of {', '.join(DRAWS)}")
        if (self.setting in ABSTRACT) == (self.label_space == "natural"):
            expected = "number, letter or symbol with abstract settings, natural with the others"
            raise InputError(f"label space of setting {self.setting}", repr(self.label_space), expected)
        if not self.template_kind:
            object.__setattr__(self, "template_kind", "minimal" if self.setting in ABSTRACT else "natural")


@dataclass(frozen=True)
class Drawn:
    """What a row is shown under a cell: rows of the pool with their labels, and the label word of each class."""

    demonstrations: list[int]
    labels: list[str]
    label_words: list[str]
    rng: random.Random | None = None  # official draws: the stream, which also shortens a prompt that is too long


class Drawer:
    """Draws what rows of a data set are shown; `longest` is the largest number of demonstrations that is asked for."""

    def __init__(self, dataset: IclSet, seed: int, longest: int):
        self.dataset, self.seed, self.longest = dataset, seed, longest
        self.pool_labels = np.array([row["label"] for row in dataset.pool], dtype=np.int64)
        self.lists: dict[int, list[int]] = {}

    def draw(self, row: Row, cell: Cell) -> Drawn:
        """Draw for a test row, as a function of the run's seed, the data set, the row and the cell."""
        name, k = self.dataset.name, cell.num_demonstrations
        words = self.dataset.template(cell.template_kind, cell.template).label_words(self.dataset.label_words)
        place = derive(self.seed, "icl", name, row["id"])
        own = derive(place, *asdict(cell).values()) if cell.draws in ("independent", "official") else place
        if cell.draws == "official":
            # The original has no seeds; here each row and cell has a stream of its own.
            rng = random.Random(own)
            return draw_official(self.pool_labels.tolist(), words, cell.setting, cell.label_space, k, rng)
        if cell.draws == "raw":
            demonstrations = raw_demos(len(self.pool_labels), k, own)
        else:
            if own not in self.lists:
                longest = k if cell.draws == "independent" else self.longest
                self.lists[own] = paired_demos(self.pool_labels, longest, len(words), derive(own, "demonstrations"))
            demonstrations = self.lists[own][:k]
        if cell.draws == "reordered":
            order = np.random.default_rng(derive(own, "order", k)).permutation(k)
            demonstrations = [demonstrations[i] for i in order]
        classes = [int(self.pool_labels[i]) for i in demonstrations]
        classes = shown_classes(cell.setting, classes, len(words), own)
        if cell.setting in ABSTRACT:
            map_seed = derive(self.seed, "icl", name, "map") if cell.fixed_map else place
            made_up = self.dataset.made_up.get(cell.label_space)
            words = tuple(paired_label_map(cell.label_space, len(words), map_seed, made_up))
        return Drawn(demonstrations, [words[label] for label in classes], list(words))


def draw_official(
    pool_labels: Sequence[int], label_words: Sequence[str], setting: str, label_space: str, k: int, rng: random.Random
) -> Drawn:
    """The draws of the original for one row, in its order: demonstrations, random labels, label map.

    Raises `InputError` for settings that the original does not have.
    """
    demonstrations = sample_demos(pool_labels, k, len(label_words), rng)
    words = list(label_words)
    if setting == "random":
        return Drawn(demonstrations, official_random_labels(words, len(demonstrations), rng), words, rng)
    if setting == "abstract":
        words = official_label_map(label_space, len(words), rng)
    elif setting != "gold":
        raise InputError("setting with official draws", repr(setting), "gold, random or abstract")
    return Drawn(demonstrations, [words[pool_labels[row]] for row in demonstrations], words, rng)


class PromptWriter:
    """Puts drawn demonstrations and a query into one prompt of at most `max_length` tokens.

    Filled templates are kept, because demonstrations recur.
    """

    def __init__(self, tokenizer, max_length: float = OFFICIAL_LIMIT):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.opening = leading_ids(tokenizer)
        self.filled: dict[tuple, str] = {}
        self.label_tokens: dict[str, tuple[int, ...]] = {}

    def write(self, dataset: IclSet, cell: Cell, drawn: Drawn, query: int) -> tuple[str, list[int]]:
        """A prompt, and which of the drawn demonstrations it has.

        Where it is too long, official draws try smaller and smaller random subsets, paired ones drop the last
        demonstrations. Raises `InputError` where not even the query fits.
        """
        official = cell.draws == "official"
        shown = [
            (self._text(dataset, cell, "pool", i), label)
            for i, label in zip(drawn.demonstrations, drawn.labels, strict=True)
        ]
        asked = self._text(dataset, cell, "test", query)
        place = f"prompt for row {dataset.test[query]['id']} of {dataset.name}"
        if official:
            assert drawn.rng is not None  # set by every official draw
            kept = shorten(
                len(shown),
                lambda kept: self.fits(join_official(dataset.separator, [shown[i] for i in kept], asked)),
                drawn.rng,
                place,
            )
            return join_official(dataset.separator, [shown[i] for i in kept], asked).strip(), kept
        for count in range(len(shown), -1, -1):
            prompt = join_prompt(dataset.separator, shown[:count], asked)
            if self.fits(prompt):
                return prompt, list(range(count))
        raise InputError(place, f"more than {self.max_length:g} tokens in the query alone", "a shorter text")

    def write_content_free(self, dataset: IclSet, cell: Cell, drawn: Drawn, kept: Sequence[int], query: int) -> str:
        """The prompt that `write` gave, with texts that say nothing in the place of the query's."""
        shown = [(self._text(dataset, cell, "pool", drawn.demonstrations[i]), drawn.labels[i]) for i in kept]
        asked = self._text(dataset, cell, "content_free", query)
        join = join_official if cell.draws == "official" else join_prompt
        return join(dataset.separator, shown, asked).strip()

    def _text(self, dataset: IclSet, cell: Cell, part: str, position: int) -> str:
        """The text before the label of a row of the pool or of the test rows, or of a test row that says nothing."""
        official = cell.draws == "official"
        key = dataset.name, cell.template_kind, cell.template, official, part, position
        if key not in self.filled:
            template = dataset.template(cell.template_kind, cell.template)
            row = (dataset.pool if part == "pool" else dataset.test)[position]
            if part == "content_free":
                row = {**row, "text": dataset.content_free, "text_pair": dataset.content_free}
            self.filled[key] = template.fill(row, official)
        return self.filled[key]

    def fits(self, prompt: str) -> bool:
        """Whether a prompt is within `max_length` tokens."""
        # No token is shorter than a byte, so a short text need not be counted.
        if len(self.opening) + len(prompt.encode()) < self.max_length:
            return True
        return len(self.opening) + len(text_ids(self.tokenizer, prompt)) <= self.max_length

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts, after the special tokens that the tokenizer begins with."""
        encoded = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"] if prompts else []
        return [self.opening + ids for ids in encoded]

    def label(self, word: str) -> tuple[int, ...]:
        """Token ids of a label word behind a text, as they stand there: with the space before it.

        A piece for the space alone is among them only where the tokenizer has none for both, as that of LLaMA for digits.
        """
        if word not in self.label_tokens:
            before, both = text_ids(self.tokenizer, "a"), text_ids(self.tokenizer, f"a {word}")
            ids = both[len(before) :] if both[: len(before)] == before else text_ids(self.tokenizer, f" {word}")
            if not ids:
                raise InputError(f"label word {word!r}", "no token", "a word that the tokenizer knows")
            self.label_tokens[word] = tuple(ids)
        return self.label_tokens[word]


@dataclass
class Prepared:
    """Prompts ready to be scored: the table without scores, the tokens of each prompt and of its label words.

    `content_free`: the tokens of each prompt with a query that says nothing, or none.
    """

    table: pd.DataFrame
    contexts: list[list[int]]
    words: list[list[tuple[int, ...]]]
    content_free: list[list[int]] = field(default_factory=list)


def prepare(
    tokenizer,
    dataset: IclSet,
    cells: Sequence[Cell],
    seed: int,
    *,
    rows: Sequence[int] | None = None,
    scorer: str = "word",
    max_length: float = OFFICIAL_LIMIT,
    degenerate: str = "stop",
    content_free: bool = False,
) -> Prepared:
    """Draw and write the prompts of every cell for the test rows at positions `rows` (default: all).

    `content_free`: with prompts whose query says nothing beside them, for the scorer `word_calibrated`.
    `degenerate`: "stop" raises `InputError` for what `CHECKS` names (paired draws; a missing class is only noted), "note"
    notes it in the table. A query among its own demonstrations always stops.
    """
    if scorer not in SCORERS or degenerate not in ("stop", "note"):
        raise InputError("scorer, degenerate", f"{scorer!r}, {degenerate!r}", f"one of {SCORERS}; stop or note")
    writer = PromptWriter(tokenizer, max_length)
    drawer = Drawer(dataset, seed, max((cell.num_demonstrations for cell in cells), default=0))
    records, prompts, words, free = [], [], [], []
    for cell in cells:
        keys = asdict(cell)
        for query in range(len(dataset.test)) if rows is None else rows:
            row = dataset.test[query]
            drawn = drawer.draw(row, cell)
            _refuse_leak(dataset, row, drawn)
            prompt, kept = writer.write(dataset, cell, drawn, query)
            ids = [writer.label(word) for word in drawn.label_words]
            shown = [drawn.demonstrations[i] for i in kept]
            noted = _noted(drawn, ids, scorer, kept, len({int(drawer.pool_labels[i]) for i in shown}))
            stopping = [name for name in noted if name != "missing class"]
            if degenerate == "stop" and cell.draws != "official" and stopping:
                place = (
                    f"row {row['id']} of {dataset.name}, {cell.setting} with {cell.num_demonstrations} demonstrations"
                )
                found = f"{CHECKS[stopping[0]]} (labels {drawn.label_words}, {len(kept)} demonstrations kept)"
                raise InputError(place, found, "a sound prompt", "`degenerate: note` goes on and marks such rows.")
            records.append(
                {
                    "data_set": dataset.name,
                    "row": str(row["id"]),
                    **keys,
                    "num_kept": len(kept),
                    "demonstrations": [str(dataset.pool[i]["id"]) for i in shown],
                    "demonstration_labels": [drawn.labels[i] for i in kept],
                    "label_words": drawn.label_words,
                    "label_pieces": [len(tokens) for tokens in ids],
                    "label": row["label"],
                    "target": drawn.label_words[row["label"]],
                    "degenerate": ", ".join(noted),
                }
            )
            prompts.append(prompt)
            words.append(ids)
            if content_free:
                free.append(writer.write_content_free(dataset, cell, drawn, kept, query))
    contexts = writer.encode(prompts)
    table = pd.DataFrame(records).assign(num_tokens=[len(context) for context in contexts])
    return Prepared(table, contexts, words, writer.encode(free))


def _refuse_leak(dataset: IclSet, row: Row, drawn: Drawn) -> None:
    """Stop where a query is among its demonstrations: by its text, or where texts recur by text and id."""
    for i in drawn.demonstrations:
        shown = dataset.pool[i]
        same = all(shown.get(column) == row.get(column) for column in ("text", "text_pair"))
        if same and (not dataset.repeats or shown["id"] == row["id"]):
            found = f"row {shown['id']} of the pool, which is the query itself"
            raise InputError(f"demonstrations of row {row['id']} of {dataset.name}", found, "rows of another split")


def _noted(drawn: Drawn, ids: Sequence[tuple[int, ...]], scorer: str, kept: Sequence[int], shown: int) -> list[str]:
    """Which of `CHECKS` a prompt fails; `shown` counts the classes that its demonstrations have."""
    tokens = {word[-1:] if scorer == "official_last" else word for word in ids}
    failed = {
        "duplicate labels": len(set(drawn.label_words)) < len(ids),
        "shared token": len(tokens) < len(set(drawn.label_words)),
        "dropped demonstrations": len(kept) < len(drawn.demonstrations),
        "missing class": 0 < len(kept) and shown < len(ids),
    }
    return [name for name, failure in failed.items() if failure]
