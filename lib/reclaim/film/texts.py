"""The sentences of an experiment at a seed: public ones, the client's own in two halves, others of its kind; batches of them.

Attacked batches come from one half of what the client trains on, decoys of equal size from the other: a decoy's sentences
were trained on just as long, and what is recovered beyond them came out of the gradient. No sentence that is attacked may
occur in the public text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclaim.data import load_split
from reclaim.errors import InputError
from reclaim.seeding import derive


@dataclass(frozen=True)
class ClientTexts:
    """Sentences of one seed. `attacked` and `decoys` are the halves of what the client trains on; `held_out` is its kind.

    `names`: the named entities that the data set lists, None where it has no column `names`.
    """

    public: list[str]
    attacked: list[str]
    decoys: list[str]
    held_out: list[str]
    names: frozenset[str] | None

    @property
    def private(self) -> list[str]:
        """What the client trains on."""
        return self.attacked + self.decoys

    @property
    def every(self) -> list[str]:
        """All sentences, for a tokenizer that has each word."""
        return self.public + self.private + self.held_out


@dataclass(frozen=True)
class Batch:
    """Sentences of one attacked step and as many decoys; `item` names it within its seed."""

    item: str
    sentences: list[str]
    decoys: list[str]


def client_texts(
    public: Path,
    private: Path,
    seed: int,
    *,
    private_rows: int,
    held_out_rows: int,
    public_rows: int | None = None,
    public_split: str = "train",
    max_words: int | None = None,
) -> ClientTexts:
    """Draw the sentences of a seed from a split of a public data set and the train split of a private one.

    `public_rows` None: the whole corpus. `max_words`: texts are longer pieces of which the sentences of 4 to so many words
    are taken, those of the public text left out of the private ones; None: each text is a sentence.

    Raises InputError for too few private sentences, an odd number of them, and attacked sentences that are public.
    """
    table = load_split(private, "train")
    corpus = load_split(public, public_split)["text"].tolist()
    if max_words is not None:
        table = table.assign(text=[sentences_of(text, max_words) for text in table["text"]]).explode("text").dropna()
        corpus = [sentence for text in corpus for sentence in sentences_of(text, max_words)]
    known = set(corpus)
    if max_words is not None:  # some sentences stand in many texts: public ones are nobody's secret
        table = table[~table["text"].isin(known)]
    table = table.drop_duplicates("text")
    wanted = private_rows + held_out_rows
    if len(table) < wanted or private_rows % 2:
        found = f"{len(table)} different sentences for {private_rows} private and {held_out_rows} held out"
        raise InputError(str(private), found, "enough of them, and an even number of private ones")
    rng = np.random.default_rng(derive(seed, "film", "private"))
    texts = table["text"].to_numpy()[rng.permutation(len(table))[:wanted]].tolist()
    if shared := [text for text in texts if text in known]:
        found = f"{len(shared)} sentences that are also public ({shared[0]!r})"
        raise InputError(str(private), found, "private sentences that occur in no public text")
    names = frozenset(name for each in table["names"] for name in each) if "names" in table else None
    half = private_rows // 2
    return ClientTexts(corpus[:public_rows], texts[:half], texts[half:private_rows], texts[private_rows:], names)


def sentences_of(text: str, max_words: int) -> list[str]:
    """Pieces of a text that end in a sentence-final mark and begin with a capital letter, of 4 to `max_words` words."""
    pieces = (piece.strip() for piece in re.split(r"(?<=[.?!])\s+(?=[A-Z])", text))
    return [
        piece
        for piece in pieces
        if piece[:1].isupper() and piece[-1:] in ".?!" and 4 <= len(piece.split()) <= max_words
    ]


def draw_batches(texts: ClientTexts, batch_size: int, number: int, seed: int) -> Iterator[Batch]:
    """`number` disjoint batches of a size, and disjoint decoys of the same size.

    Raises InputError where the halves have too few sentences.
    """
    if batch_size * number > len(texts.attacked):
        found = f"{number} batches of {batch_size}"
        raise InputError("film batches", found, f"no more than {len(texts.attacked)} sentences, half of the client's")
    rng = np.random.default_rng(derive(seed, "film", "batches", batch_size))
    orders = [rng.permutation(len(half))[: number * batch_size] for half in (texts.attacked, texts.decoys)]
    for place in range(number):
        rows = [order[place * batch_size : (place + 1) * batch_size] for order in orders]
        yield Batch(f"b{batch_size}-{place}", _take(texts.attacked, rows[0]), _take(texts.decoys, rows[1]))


def _take(texts: Sequence[str], rows: np.ndarray) -> list[str]:
    return [texts[row] for row in rows]
