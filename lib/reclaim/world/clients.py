"""Private sentences of a client, and public ones with the same words: the language of the study of gradient leakage.

For "Recovering Private Text in Federated Learning of Language Models" (FILM; Gupta et al., NeurIPS 2022), which attacks a
model that knows the words of the private text but none of its sentences. Coined words of five classes (adjectives, nouns,
verbs, places, adverbs), drawn with log-uniform rank (so that the share of rank r falls as 1/r, as in real text), fill
templates with determiners: 7 to 14 tokens that begin with a capital letter and end with a full stop.

- `part`: every possible sentence belongs to the public or to the private part, by a hash of its text. So no sentence of the
  one occurs in the other, whatever their seeds and sizes, while words and templates are shared.
- `domain`: `report` has the templates of the public text; `letter` has others with the same words, for a client whose text
  is of another kind than the model's.

The column `names` lists the places and weekdays of a sentence: the named entities of this language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from reclaim.errors import InputError
from reclaim.world.lexicon import (
    CLIENT_ADJECTIVES,
    CLIENT_ADVERBS,
    CLIENT_NOUNS,
    CLIENT_PLACES,
    CLIENT_VERBS,
    CLIENT_WORDS,
    WEEKDAYS,
)
from reclaim.world.tables import Generator, Tables, check_sizes, disjoint_splits, table

PARTS = ("public", "private")
TEMPLATES = {
    "report": (
        "START ADJECTIVE NOUN VERB DETERMINER NOUN in PLACE .",
        "In PLACE , DETERMINER ADJECTIVE NOUN VERB DETERMINER NOUN ADVERB .",
        "START NOUN ADVERB VERB DETERMINER ADJECTIVE NOUN near PLACE .",
        "On WEEKDAY , DETERMINER NOUN of PLACE VERB DETERMINER ADJECTIVE ADJECTIVE NOUN .",
    ),
    "letter": (
        "Dear PLACE , our NOUN VERB ADVERB and DETERMINER NOUN VERB .",
        "We VERB to PLACE with DETERMINER ADJECTIVE NOUN on WEEKDAY .",
        "Our ADJECTIVE NOUN and our NOUN ADVERB VERB for PLACE .",
        "Please VERB DETERMINER NOUN with our ADJECTIVE NOUN before WEEKDAY in PLACE .",
    ),
}
STARTS = ("The", "A", "Some", "Every", "This", "That", "Each", "One")
DETERMINERS = tuple(word.lower() for word in STARTS)
_WORDS = {
    "ADJECTIVE": CLIENT_ADJECTIVES,
    "NOUN": CLIENT_NOUNS,
    "VERB": CLIENT_VERBS,
    "PLACE": CLIENT_PLACES,
    "ADVERB": CLIENT_ADVERBS,
}
_EVEN = {"START": STARTS, "DETERMINER": DETERMINERS, "WEEKDAY": WEEKDAYS}
NAMES = frozenset((*CLIENT_PLACES, *WEEKDAYS))


def generate_corpus(split_sizes: dict[str, int], seed: int, part: str = "public", domain: str = "report") -> Tables:
    """Make sentences of one part and domain (kind `text`, with the column `names`); no two are equal.

    Raises InputError for an unknown part or domain.
    """
    check_sizes(split_sizes)
    if part not in PARTS:
        raise InputError("part", repr(part), f"one of {', '.join(PARTS)}")
    if domain not in TEMPLATES:
        raise InputError("domain", repr(domain), f"one of {', '.join(TEMPLATES)}")

    def draw_rows(rng: np.random.Generator, labels: np.ndarray) -> list[tuple]:
        sentences = _sentences(rng, TEMPLATES[domain])
        return [(next(text for text in sentences if part_of(text) == part),) for _ in labels]

    drawn = disjoint_splits(
        split_sizes, seed, f"clients/{part}/{domain}", lambda rng, size: np.zeros(size, dtype=np.int64), draw_rows
    )
    tables = {}
    for split, (rows, _) in drawn.items():
        texts = [text for (text,) in rows]
        names = [list(dict.fromkeys(word for word in text.split() if word in NAMES)) for text in texts]
        tables[split] = table(split, text=texts, names=names)
    return tables


def part_of(text: str) -> str:
    """The part that a sentence belongs to, fixed by its text alone."""
    return PARTS[hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 2]


def _sentences(rng: np.random.Generator, templates: tuple[str, ...]) -> Iterator[str]:
    """Sentences without end."""
    while True:
        words = templates[rng.integers(len(templates))].split()
        yield " ".join(_word(rng, word) for word in words)


def _word(rng: np.random.Generator, slot: str) -> str:
    if slot in _WORDS:
        words = _WORDS[slot]
        # Log-uniform on [1, len + 1): rank r has a share that falls as 1/r.
        return words[int((len(words) + 1) ** rng.random()) - 1]
    if slot in _EVEN:
        return _EVEN[slot][rng.integers(len(_EVEN[slot]))]
    return slot


CORPUS = Generator(generate_corpus, "text", CLIENT_WORDS)
