"""Pairs of household sentences: inference with three classes or two, and graded similarity.

`inference` has the label order of MNLI on the Hub (0 entailment, 1 neutral, 2 contradiction), `entailment` that of RTE
(0 entailment, 1 not_entailment), `similarity` scores from 0 to 5 as STS-B. Labels are exact: judged by
`household.judge`, or counted. No first sentence occurs twice, in one split or in two; the short second ones do.
"""

from __future__ import annotations

import numpy as np

from reclaim.world.household import Fact, another, draw_facts, draw_hypothesis, judge, word_fact, word_passage
from reclaim.world.lexicon import HOUSEHOLD_WORDS, KEEPING
from reclaim.world.tables import Generator, Tables, balanced, disjoint_splits, table


def generate_inference(split_sizes: dict[str, int], seed: int) -> Tables:
    """Make premise and hypothesis (kind `pair_classification`, 3 classes, balanced)."""
    return _pairs("inference", split_sizes, seed, 3)


def generate_entailment(split_sizes: dict[str, int], seed: int) -> Tables:
    """Make premise and hypothesis (kind `pair_classification`, 2 classes, balanced; half of class 1 contradicts)."""
    return _pairs("entailment", split_sizes, seed, 2)


def _pairs(name: str, split_sizes: dict[str, int], seed: int, num_classes: int) -> Tables:
    def draw(rng: np.random.Generator, labels: np.ndarray) -> list[tuple[str, str]]:
        rows = []
        for label in labels:
            (fact,) = draw_facts(rng, 1)
            exact = label if num_classes == 3 or label == 0 else rng.integers(1, 3)
            premise, hypothesis = word_passage(rng, [fact]), draw_hypothesis(rng, fact, int(exact))
            rows.append((premise, hypothesis))
        return rows

    splits = disjoint_splits(split_sizes, seed, name, lambda rng, size: balanced(rng, size, num_classes), draw)
    return {
        split: table(
            split,
            text=[premise for premise, _ in rows],
            text_pair=[hypothesis for _, hypothesis in rows],
            label=np.array([min(judge(*row), num_classes - 1) for row in rows], dtype=np.int64),
        )
        for split, (rows, _) in splits.items()
    }


def generate_similarity(split_sizes: dict[str, int], seed: int) -> Tables:
    """Make pairs of facts with the number of parts they share as their score (kind `regression`, 0.0 to 5.0, balanced).

    Both sentences have the first wording of `household.word_fact`.
    """

    def draw(rng: np.random.Generator, scores: np.ndarray) -> list[tuple[str, str]]:
        rows = []
        for score in scores:
            first, other = draw_facts(rng, 2)
            other = other._replace(verb=another(rng, KEEPING, first.verb))
            shared = rng.permutation(5)[:score]
            second = Fact(*(first[part] if part in shared else other[part] for part in range(5)))
            rows.append((word_fact(first, 0), word_fact(second, 0)))
        return rows

    splits = disjoint_splits(split_sizes, seed, "similarity", lambda rng, size: balanced(rng, size, 6), draw)
    return {
        split: table(
            split,
            text=[first for first, _ in rows],
            text_pair=[second for _, second in rows],
            label=scores.astype(np.float64),
        )
        for split, (rows, scores) in splits.items()
    }


INFERENCE = Generator(
    generate_inference, "pair_classification", HOUSEHOLD_WORDS, labels=("entailment", "neutral", "contradiction")
)
ENTAILMENT = Generator(
    generate_entailment, "pair_classification", HOUSEHOLD_WORDS, labels=("entailment", "not_entailment")
)
SIMILARITY = Generator(generate_similarity, "regression", HOUSEHOLD_WORDS)
