"""Sentences with positive and negative words: corpus and tasks of the zeroth-order study.

For "Fine-Tuning Language Models with Just Forward Passes" (MeZO, Malladi et al., NeurIPS 2023). A model that has read
the corpus knows which words belong together, but not what a task asks: by prompting it must be above chance and far
below the ceiling, so that optimisation with few, noisy steps has something to start from and something to find.

Corpus, by sentence, with `a` an adjective with polarity, `n` a noun, `x` a neutral word and E an evaluation word:

    0.15  the n was x and x .
    0.50  the n was a , a and a . it was E .
    0.20  my friend said the n was a and a .
    0.15  it was E . the n was a and a .

A sentence has one polarity, by a fair coin. Each adjective follows it with probability `agreement`, else it is of the
other side; so does E, which else takes its side by a fair coin.

Tasks: `the n was a1 , a2 and a3 .`, where each adjective follows the base polarity of its row with probability 0.65.
`last`: the label is the side of a3 alone, which no count of words gives. `majority`: the side of most of the three.
The corpus is not kept free of the tasks' sentences (its second pattern begins with one); it holds no label.
"""

from __future__ import annotations

import numpy as np

from reclaim.world.lexicon import (
    BAD_WORDS,
    GOOD_WORDS,
    NEGATIVE,
    NEUTRAL,
    POLARITY_NOUNS,
    POLARITY_WORDS,
    POSITIVE,
)
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

PATTERN_PROBABILITIES = (0.15, 0.50, 0.20, 0.15)

# Row 0 is the negative side, row 1 the positive one.
_ADJECTIVES = np.array([NEGATIVE, POSITIVE], dtype=object)
_EVALUATIONS = np.array([BAD_WORDS, GOOD_WORDS], dtype=object)
_NOUNS = np.array(POLARITY_NOUNS, dtype=object)
_NEUTRAL = np.array(NEUTRAL, dtype=object)


def _sides(rng: np.random.Generator, base: np.ndarray, count: int, agreement: float) -> np.ndarray:
    """Give `count` sides (0 or 1) a row, each that of `base` with probability `agreement`."""
    return np.where(rng.random((len(base), count)) < agreement, base[:, None], 1 - base[:, None])


def _words(rng: np.random.Generator, words: np.ndarray, sides: np.ndarray) -> np.ndarray:
    return words[sides, rng.integers(words.shape[1], size=sides.shape)]


def generate_corpus(split_sizes: dict[str, int], seed: int, agreement: float = 0.95) -> Tables:
    """Make sentences without labels (kind `text`); a row is one drawing of the mixture above."""
    check_sizes(split_sizes)
    check_probability("agreement", agreement)
    tables = {}
    for split, size in split_sizes.items():
        rng = stream(seed, "polarity_corpus", split)
        pattern = rng.choice(4, size=size, p=PATTERN_PROBABILITIES)
        polarity = rng.integers(2, size=size)
        nouns = _NOUNS[rng.integers(len(_NOUNS), size=size)]
        neutral = _NEUTRAL[rng.integers(len(_NEUTRAL), size=(size, 2))]
        adjectives = _words(rng, _ADJECTIVES, _sides(rng, polarity, 3, agreement))
        evaluation_side = np.where(rng.random(size) < agreement, polarity, rng.integers(2, size=size))
        evaluations = _words(rng, _EVALUATIONS, evaluation_side)
        rows = zip(pattern, nouns, neutral, adjectives, evaluations, strict=True)
        tables[split] = table(split, text=[_sentence(*row) for row in rows])
    return tables


def _sentence(pattern: int, noun: str, neutral: np.ndarray, adjectives: np.ndarray, evaluation: str) -> str:
    first, second, third = adjectives
    if pattern == 0:
        return f"the {noun} was {neutral[0]} and {neutral[1]} ."
    if pattern == 1:
        return f"the {noun} was {first} , {second} and {third} . it was {evaluation} ."
    if pattern == 2:
        return f"my friend said the {noun} was {first} and {second} ."
    return f"it was {evaluation} . the {noun} was {first} and {second} ."


def generate_last(split_sizes: dict[str, int], seed: int, agreement: float = 0.65) -> Tables:
    """Make the task `last` (kind `classification`, 0 negative, 1 positive), balanced, no sentence twice."""
    return _task("polarity_last", split_sizes, seed, agreement, lambda sides: sides[:, 2])


def generate_majority(split_sizes: dict[str, int], seed: int, agreement: float = 0.65) -> Tables:
    """Make the task `majority` (kind `classification`, 0 negative, 1 positive), balanced, no sentence twice."""
    return _task("polarity_majority", split_sizes, seed, agreement, lambda sides: (sides.sum(axis=1) >= 2).astype(int))


def _task(name: str, split_sizes: dict[str, int], seed: int, agreement: float, label_of) -> Tables:
    check_probability("agreement", agreement)

    def draw(rng: np.random.Generator, labels: np.ndarray) -> list[tuple[str]]:
        sides = _sides(rng, rng.integers(2, size=len(labels)), 3, agreement)
        # The two sides are drawn alike, so a row with the other label, turned round, is a fair draw with this one.
        sides = np.where((label_of(sides) != labels)[:, None], 1 - sides, sides)
        nouns = _NOUNS[rng.integers(len(_NOUNS), size=len(labels))]
        adjectives = _words(rng, _ADJECTIVES, sides)
        rows = zip(nouns, adjectives, strict=True)
        return [(f"the {noun} was {first} , {second} and {third} .",) for noun, (first, second, third) in rows]

    splits = disjoint_splits(split_sizes, seed, name, lambda rng, size: balanced(rng, size, 2), draw)
    return {
        split: table(split, text=[text for (text,) in rows], label=labels) for split, (rows, labels) in splits.items()
    }


CORPUS = Generator(generate_corpus, "text", POLARITY_WORDS)
LAST = Generator(generate_last, "classification", POLARITY_WORDS, labels=("negative", "positive"))
MAJORITY = Generator(generate_majority, "classification", POLARITY_WORDS, labels=("negative", "positive"))
