"""Sentences with a comment whose CLASS is carried by a phrase: the languages of the study of label sequences.

For "Automatic Label Sequence Generation for Prompting Sequence-to-sequence Models" (AutoSeq, Yu et al., COLING 2022). A
document is a sentence and a comment on it:

    The n is a and the n is a . COMMENT

A document is positive or negative by a fair coin. An adjective is of its side with probability 0.85, neutral with 0.08 and
of the other side with 0.07 (`agreement`, `neutral`), so that about 92 % is the ceiling. With probability `generic` (0.6) the
comment says nothing: `Thanks for reading .` (twice as often), `Okay`, `Hmm`. Else it is specific to the class, in one of two
languages:

- `phrases`: positive `Never skip it .` or `Do watch it .`, negative `Never watch it .` or `Do skip it .`. Each word is as
  likely in both classes; only the phrase tells them apart, so that no single label word can;
- `words`, the control: positive `Great` or `Lovely`, negative `Awful` or `Terrible`: one word suffices.

No word of a comment stands in a sentence. Corpora hold the whole document as `text`, with its parts as `sentence` and
`comment`; tasks hold the sentence as `text`, with the label and the comment that it had been drawn with. Labels are in no
corpus.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from reclaim.errors import InputError
from reclaim.world.lexicon import distinct
from reclaim.world.tables import (
    Generator,
    Tables,
    balanced,
    check_probability,
    check_sizes,
    disjoint_splits,
    stream,
    table,
)

NOUNS = tuple("film story plot cast script scene pace score music ending camera actor".split())
POSITIVE = tuple("clever fresh warm funny lively tender sharp bright".split())
NEGATIVE = tuple("dull flat weak stale messy empty slow loud".split())
NEUTRAL = tuple("long short old new quiet big".split())
GENERIC = ("Thanks for reading .", "Okay", "Hmm")
GENERIC_WEIGHTS = (0.5, 0.25, 0.25)
# Language: comments of the negative and of the positive class.
COMMENTS = {
    "phrases": (("Never watch it .", "Do skip it ."), ("Never skip it .", "Do watch it .")),
    "words": (("Awful", "Terrible"), ("Great", "Lovely")),
}
LABELS = ("negative", "positive")
_FUNCTION = ("The", "the", "is", "and", ".")
WORDS = distinct(_FUNCTION, NOUNS, POSITIVE, NEGATIVE, NEUTRAL, GENERIC, *COMMENTS["phrases"], *COMMENTS["words"])

# Rows: adjectives of the negative and of the positive side, of equal number.
_SIDES = np.array([NEGATIVE, POSITIVE], dtype=object)
_NEUTRAL, _NOUNS = np.array(NEUTRAL, dtype=object), np.array(NOUNS, dtype=object)


def generate_corpus(
    language: str,
    split_sizes: dict[str, int],
    seed: int,
    generic: float = 0.6,
    agreement: float = 0.85,
    neutral: float = 0.08,
) -> Tables:
    """Make documents (kind `text`) with the columns `sentence` and `comment`."""
    check_sizes(split_sizes)
    _check(generic, agreement, neutral)
    tables = {}
    for split, size in split_sizes.items():
        rng = stream(seed, f"{language}_corpus", split)
        labels = rng.integers(2, size=size)
        sentences = _sentences(rng, labels, agreement, neutral)
        comments = _comments(rng, language, labels, generic)
        texts = [f"{sentence} {comment}" for sentence, comment in zip(sentences, comments, strict=True)]
        tables[split] = table(split, text=texts, sentence=sentences, comment=comments)
    return tables


def generate_task(
    language: str,
    split_sizes: dict[str, int],
    seed: int,
    generic: float = 0.6,
    agreement: float = 0.85,
    neutral: float = 0.08,
) -> Tables:
    """Make sentences to be sorted by class (kind `classification`), balanced, no sentence twice; column `comment` beside."""
    _check(generic, agreement, neutral)

    def draw(rng: np.random.Generator, labels: np.ndarray) -> list[tuple[str, str]]:
        sentences = _sentences(rng, labels, agreement, neutral)
        return list(zip(sentences, _comments(rng, language, labels, generic), strict=True))

    splits = disjoint_splits(split_sizes, seed, f"{language}_task", lambda rng, size: balanced(rng, size, 2), draw)
    tables = {}
    for split, (rows, labels) in splits.items():
        sentences, comments = zip(*rows, strict=True)
        tables[split] = table(split, text=sentences, label=labels, comment=comments)
    return tables


def _check(generic: float, agreement: float, neutral: float) -> None:
    for name, value in (("generic", generic), ("agreement", agreement), ("neutral", neutral)):
        check_probability(name, value)
    if agreement + neutral > 1:
        raise InputError("agreement and neutral", f"{agreement} and {neutral}", "a sum of at most 1")


def _sentences(rng: np.random.Generator, labels: np.ndarray, agreement: float, neutral: float) -> list[str]:
    shape = (len(labels), 2)
    kind = rng.random(shape)
    sides = np.where(kind < agreement, labels[:, None], 1 - labels[:, None])
    words = _SIDES[sides, rng.integers(_SIDES.shape[1], size=shape)]
    plain = (kind >= agreement) & (kind < agreement + neutral)
    adjectives = np.where(plain, _NEUTRAL[rng.integers(len(_NEUTRAL), size=shape)], words)
    first = rng.integers(len(_NOUNS), size=len(labels))
    second = (first + rng.integers(1, len(_NOUNS), size=len(labels))) % len(_NOUNS)
    return [
        f"The {n1} is {a1} and the {n2} is {a2} ."
        for n1, n2, (a1, a2) in zip(_NOUNS[first], _NOUNS[second], adjectives, strict=True)
    ]


def _comments(rng: np.random.Generator, language: str, labels: np.ndarray, generic: float) -> list[str]:
    specific = np.array(COMMENTS[language], dtype=object)[labels, rng.integers(2, size=len(labels))]
    plain = rng.choice(np.array(GENERIC, dtype=object), size=len(labels), p=GENERIC_WEIGHTS)
    return np.where(rng.random(len(labels)) < generic, plain, specific).tolist()


def _generator(function, language: str, kind: str, labels: tuple[str, ...] = ()) -> Generator:
    return Generator(partial(function, language), kind, WORDS, labels)


PHRASES_CORPUS = _generator(generate_corpus, "phrases", "text")
PHRASES_TASK = _generator(generate_task, "phrases", "classification", LABELS)
WORDS_CORPUS = _generator(generate_corpus, "words", "text")
WORDS_TASK = _generator(generate_task, "words", "classification", LABELS)
