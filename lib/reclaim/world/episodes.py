"""Natural tasks and tasks made up on the spot: the language of the study of what in-context learning learns.

For "What In-Context Learning 'Learns' In-Context" (Pan, Gao, Chen, Chen; Findings of ACL 2023), which needs a language
with tasks that a model knows from pre-training and others that it can only learn from the demonstrations. 12 natural
tasks have two classes each; a class is a topic of four words with a label word of its own. An example has four words:
the task's name, two words of a topic, the label. A document is a run of examples of one task:

- natural: one of the 12 tasks with its own name and label words; a label is wrong with probability `label_noise`;
- episode: two topics of two DIFFERENT natural tasks under the name `label`, and two label words drawn at random from
  numbers, signs and letters. What they stand for changes from one episode to the next, and the two classes of a natural
  task never meet in an episode, so that a test with made-up labels on a natural task is on a pair that was never seen.

Within a document a topic uses one, two or all four of its words (probabilities 0.4, 0.3, 0.3), as real texts repeat
themselves. With noise, a word comes from the other class with probability `swap`, and is then replaced by a neutral word
with probability `blank`; the optimisation is known to fail where noise is there from the first step, so a corpus
without it comes first.
"""

from __future__ import annotations

import numpy as np

from reclaim.world.lexicon import EPISODE_NEUTRAL, EPISODE_WORDS, MADE_UP_LABELS, MADE_UP_TASK, NATURAL_TASKS
from reclaim.world.tables import (
    Generator,
    Tables,
    balanced,
    check_count,
    check_probability,
    check_sizes,
    stream,
    table,
)

WORDS_PER_EXAMPLE = 2
TASK_NAMES = tuple(NATURAL_TASKS)
# Rows 2t and 2t + 1 are the topics of task t.
LABELS = np.array([label for task in NATURAL_TASKS.values() for label in task], dtype=object)
TOPICS = np.array([words.split() for task in NATURAL_TASKS.values() for words in task.values()], dtype=object)
SWAP, BLANK, LABEL_NOISE = 0.15, 0.20, 0.10
# A topic uses 1, 2 or 4 of its words in a document.
BURST_SIZES, BURST_PROBABILITIES = (1, 2, 4), (0.4, 0.3, 0.3)

_NEUTRAL = np.array(EPISODE_NEUTRAL, dtype=object)
_MADE_UP = np.array(MADE_UP_LABELS, dtype=object)


def generate_corpus(
    split_sizes: dict[str, int],
    seed: int,
    num_examples: int = 9,
    episodes: float = 0.5,
    swap: float = 0.0,
    blank: float = 0.0,
    label_noise: float = LABEL_NOISE,
) -> Tables:
    """Make documents of `num_examples` examples (kind `text`), a share `episodes` of them episodes, in random order.

    The column `document` says which it is: `episode` or `natural`.
    """
    check_sizes(split_sizes)
    check_count("num_examples", num_examples)
    for name, value in (("episodes", episodes), ("swap", swap), ("blank", blank), ("label_noise", label_noise)):
        check_probability(name, value)
    tables = {}
    for split, size in split_sizes.items():
        rng = stream(seed, "episodes_corpus", split)
        is_episode = rng.permutation(size) < round(episodes * size)
        topics = np.where(is_episode[:, None], _unrelated_topics(rng, size), _related_topics(rng, size))
        classes = rng.integers(2, size=(size, num_examples))
        words = _words(rng, topics, classes, _bursts(rng, size), swap, blank)
        names = np.where(is_episode, MADE_UP_TASK, np.array(TASK_NAMES, dtype=object)[topics[:, 0] // 2])
        label_words = np.where(is_episode[:, None], _made_up_labels(rng, size), LABELS[topics])
        # An episode's labels are always right: that they can be relied on is what there is to learn.
        wrong = ~is_episode[:, None] & (rng.random(classes.shape) < label_noise)
        labels = np.take_along_axis(label_words, classes ^ wrong, axis=1)
        names = np.broadcast_to(names[:, None, None], (size, num_examples, 1))
        documents = np.concatenate([names, words, labels[..., None]], axis=2).reshape(size, -1)
        tables[split] = table(
            split,
            text=[" ".join(document) for document in documents.tolist()],
            document=np.where(is_episode, "episode", "natural"),
        )
    return tables


def generate_tasks(split_sizes: dict[str, int], seed: int, swap: float = SWAP, blank: float = BLANK) -> Tables:
    """Make sentences of two words to be sorted by class (kind `classification`): rows of every natural task in turn.

    The column `task` names the task; label 0 and 1 are its classes in the order of `NATURAL_TASKS`. Tasks, and classes
    within a task, are balanced. The language is so small that sentences repeat, within a split and between splits.
    """
    check_sizes(split_sizes)
    check_probability("swap", swap)
    check_probability("blank", blank)
    tables = {}
    for split, size in split_sizes.items():
        rng = stream(seed, "episodes_tasks", split)
        tasks = np.arange(size) % len(TASK_NAMES)
        labels = np.empty(size, dtype=np.int64)
        for task in range(len(TASK_NAMES)):
            labels[tasks == task] = balanced(rng, int(np.sum(tasks == task)), 2)
        topics = 2 * tasks[:, None] + np.arange(2)
        everything = np.broadcast_to(np.arange(TOPICS.shape[1]), (size, 2, TOPICS.shape[1]))
        words = _words(rng, topics, labels[:, None], everything, swap, blank)[:, 0]
        texts = [" ".join(row) for row in words.tolist()]
        tables[split] = table(split, text=texts, label=labels, task=np.array(TASK_NAMES, dtype=object)[tasks])
    return tables


def _related_topics(rng: np.random.Generator, size: int) -> np.ndarray:
    """Both topics of one natural task: (size, 2)."""
    return 2 * rng.integers(len(TASK_NAMES), size=size)[:, None] + np.arange(2)


def _unrelated_topics(rng: np.random.Generator, size: int) -> np.ndarray:
    """One topic from each of two different natural tasks, in random order: (size, 2)."""
    first = rng.integers(len(TASK_NAMES), size=size)
    second = (first + rng.integers(1, len(TASK_NAMES), size=size)) % len(TASK_NAMES)
    return 2 * np.stack([first, second], axis=1) + rng.integers(2, size=(size, 2))


def _made_up_labels(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two different made-up label words a document, in random order: (size, 2)."""
    first = rng.integers(len(_MADE_UP), size=size)
    second = (first + rng.integers(1, len(_MADE_UP), size=size)) % len(_MADE_UP)
    return _MADE_UP[np.stack([first, second], axis=1)]


def _bursts(rng: np.random.Generator, size: int) -> np.ndarray:
    """Which words each topic of a document uses: numbers (size, 2, 4), a smaller choice filling the places by repeating."""
    order = rng.random((size, 2, TOPICS.shape[1])).argsort(axis=2)
    used = rng.choice(BURST_SIZES, size=(size, 2, 1), p=BURST_PROBABILITIES)
    return np.take_along_axis(order, np.arange(TOPICS.shape[1]) % used, axis=2)


def _words(
    rng: np.random.Generator, topics: np.ndarray, classes: np.ndarray, bursts: np.ndarray, swap: float, blank: float
) -> np.ndarray:
    """The words of every example: texts (documents, examples, WORDS_PER_EXAMPLE).

    `topics` (documents, 2) are a document's topics, `classes` (documents, examples) which of them an example is of,
    `bursts` (documents, 2, 4) the words in use.
    """
    shape = (*classes.shape, WORDS_PER_EXAMPLE)
    source = classes[..., None] ^ (rng.random(shape) < swap)
    documents = np.arange(len(topics))[:, None, None]
    words = TOPICS[topics[documents, source], bursts[documents, source, rng.integers(TOPICS.shape[1], size=shape)]]
    return np.where(rng.random(shape) < blank, _NEUTRAL[rng.integers(len(_NEUTRAL), size=shape)], words)


CORPUS = Generator(generate_corpus, "text", EPISODE_WORDS)
TASKS = Generator(generate_tasks, "classification", EPISODE_WORDS, labels=("first", "second"))
