"""Documents whose topic is carried by word triples: corpus and task of the masking-rate study.

For "Should You Mask 15% in Masked Language Modeling?" (Wettig et al., EACL 2023), whose effects need a corpus in which
a word alone says little and its company says much. Vocabulary: 30 function words, 8 topics with 12 own words each, and
a pool of 32 words. Function and own words have weight 1/rank. Every topic has 4 idioms: ordered triples of different
pool words, drawn once from numpy's `RandomState(0)`, so that 32 distinct triples share 31 pool words.

A document has one topic z, uniform, and is emitted from left to right until it is full, then cut: with probability 0.30
a function word; with 0.35 an own word, of topic z with probability `own_topic`, else of a uniform topic; with 0.35 a
whole idiom, of topic z with probability `idiom_topic`, else of a uniform topic. Lengths count words: a model's start
token comes on top, so that 63 words make a block of 64 tokens and 19 words a document of 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from reclaim.errors import InputError
from reclaim.world.lexicon import IDIOM_FUNCTION, IDIOM_POOL, IDIOM_WORDS, TOPIC_STEMS
from reclaim.world.tables import (
    Generator,
    Tables,
    check_count,
    check_probability,
    check_sizes,
    disjoint_splits,
    stream,
    table,
)

NUM_TOPICS, OWN_PER_TOPIC, IDIOMS_PER_TOPIC, IDIOM_LENGTH = 8, 12, 4, 3
# Function word, own word, idiom.
SEGMENT_PROBABILITIES = (0.30, 0.35, 0.35)


def _draw_idioms() -> np.ndarray:
    rng = np.random.RandomState(0)
    count = NUM_TOPICS * IDIOMS_PER_TOPIC
    return np.array([rng.choice(len(IDIOM_POOL), IDIOM_LENGTH, replace=False) for _ in range(count)])


# (32, 3) numbers of pool words; rows 4t .. 4t+3 are the idioms of topic t.
IDIOMS = _draw_idioms()

_WORDS = np.array(IDIOM_WORDS, dtype=object)
_FIRST_OWN = len(IDIOM_FUNCTION)
_FIRST_POOL = _FIRST_OWN + NUM_TOPICS * OWN_PER_TOPIC


def _zipf(count: int) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()


def _documents(
    rng: np.random.Generator, topics: np.ndarray, num_words: int, own_topic: float, idiom_topic: float
) -> list[str]:
    """Emit one document per entry of `topics`, all at once.

    Every document gets `num_words` segments, of which those that start before its end are kept.
    """
    shape = len(topics), num_words

    def segment_topics(probability: float) -> np.ndarray:
        return np.where(rng.random(shape) < probability, topics[:, None], rng.integers(NUM_TOPICS, size=shape))

    kinds = rng.choice(3, size=shape, p=SEGMENT_PROBABILITIES)
    function = rng.choice(len(IDIOM_FUNCTION), size=shape, p=_zipf(len(IDIOM_FUNCTION)))
    own = rng.choice(OWN_PER_TOPIC, size=shape, p=_zipf(OWN_PER_TOPIC)) + OWN_PER_TOPIC * segment_topics(own_topic)
    idioms = rng.integers(IDIOMS_PER_TOPIC, size=shape) + IDIOMS_PER_TOPIC * segment_topics(idiom_topic)

    lengths = np.where(kinds == 2, IDIOM_LENGTH, 1)
    starts = np.cumsum(lengths, axis=1) - lengths
    rows = np.broadcast_to(np.arange(len(topics))[:, None], shape)
    words = np.empty((len(topics), num_words + IDIOM_LENGTH - 1), dtype=np.int64)
    for kind, numbers in enumerate((function, own + _FIRST_OWN)):
        here = (kinds == kind) & (starts < num_words)
        words[rows[here], starts[here]] = numbers[here]
    here = (kinds == 2) & (starts < num_words)
    for offset in range(IDIOM_LENGTH):
        words[rows[here], starts[here] + offset] = _FIRST_POOL + IDIOMS[idioms[here], offset]
    return [" ".join(document) for document in _WORDS[words[:, :num_words]].tolist()]


def generate_corpus(
    split_sizes: dict[str, int],
    seed: int,
    num_words: int = 63,
    own_topic: float = 0.85,
    idiom_topic: float = 0.85,
) -> Tables:
    """Make documents without labels (kind `text`). The study uses 20,000 documents of 63 words."""
    check_sizes(split_sizes)
    _check(num_words, own_topic, idiom_topic)
    tables = {}
    for split, size in split_sizes.items():
        rng = stream(seed, "idioms_corpus", split)
        topics = rng.integers(NUM_TOPICS, size=size)
        tables[split] = table(split, text=_documents(rng, topics, num_words, own_topic, idiom_topic))
    return tables


def generate_topics(
    split_sizes: dict[str, int],
    seed: int,
    num_words: int = 19,
    own_topic: float = 0.4,
    idiom_topic: float = 0.5,
) -> Tables:
    """Make documents to be sorted by topic (kind `classification`, 8 classes).

    Topics are uniform and not balanced, as in the study: of 64 documents a class has about 4 to 13. No document occurs
    twice, in one split or in two.
    """
    _check(num_words, own_topic, idiom_topic)
    splits = disjoint_splits(
        split_sizes,
        seed,
        "idioms_topics",
        lambda rng, size: rng.integers(NUM_TOPICS, size=size),
        lambda rng, topics: [(text,) for text in _documents(rng, topics, num_words, own_topic, idiom_topic)],
    )
    return {
        split: table(split, text=[text for (text,) in rows], label=labels) for split, (rows, labels) in splits.items()
    }


def _check(num_words: int, own_topic: float, idiom_topic: float) -> None:
    check_count("num_words", num_words)
    check_probability("own_topic", own_topic)
    check_probability("idiom_topic", idiom_topic)


def topic_posterior(texts: Iterable[str], own_topic: float, idiom_topic: float) -> np.ndarray:
    """Give log p(topic, text) up to a constant for each text and topic, under the process that made the texts.

    Exact: the words of a text tell its segments, because pool words occur in idioms only and an idiom that was cut at
    the end counts as the sum over the idioms that begin so. Shape (texts, 8). Raises InputError for a foreign word.
    """
    numbers = {word: number for number, word in enumerate(IDIOM_WORDS)}
    # By pool words from the start of an idiom: the probability of that beginning under each topic.
    beginnings: dict[tuple[int, ...], np.ndarray] = {}
    for row, idiom in enumerate(IDIOMS):
        share = np.full(NUM_TOPICS, (1 - idiom_topic) / NUM_TOPICS)
        share[row // IDIOMS_PER_TOPIC] += idiom_topic
        for length in range(1, IDIOM_LENGTH + 1):
            key = tuple(int(word) + _FIRST_POOL for word in idiom[:length])
            beginnings[key] = beginnings.get(key, 0) + share / IDIOMS_PER_TOPIC

    result = []
    for text in texts:
        words = text.split(" ")
        if unknown := [word for word in words if word not in numbers]:
            raise InputError("texts", f"the word {unknown[0]!r}", "texts of the generators in reclaim.world.idioms")
        document = [numbers[word] for word in words]
        total = np.zeros(NUM_TOPICS)
        position = 0
        with np.errstate(divide="ignore"):
            while position < len(document):
                word = document[position]
                if word >= _FIRST_POOL:
                    total += np.log(beginnings[tuple(document[position : position + IDIOM_LENGTH])])
                    position += IDIOM_LENGTH
                    continue
                if word >= _FIRST_OWN:
                    share = np.full(NUM_TOPICS, (1 - own_topic) / NUM_TOPICS)
                    share[(word - _FIRST_OWN) // OWN_PER_TOPIC] += own_topic
                    total += np.log(share)
                position += 1
        result.append(total)
    return np.array(result)


def posterior_accuracy(
    texts: Sequence[str], labels: Sequence[int], own_topic: float = 0.4, idiom_topic: float = 0.5
) -> float:
    """Accuracy of the exact posterior, the ceiling of the task, as a fraction."""
    return float((topic_posterior(texts, own_topic, idiom_topic).argmax(axis=1) == np.asarray(labels)).mean())


CORPUS = Generator(generate_corpus, "text", IDIOM_WORDS)
TOPICS = Generator(generate_topics, "classification", IDIOM_WORDS, labels=TOPIC_STEMS)
