"""Short replies to a prompt, some of which are not wanted: the language of the study of what a model should not say.

For "The CRINGE Loss: Learning what language not to model" (Adolphs et al., ACL 2023), in three tasks of one grammar. A reply is
one of five patterns of word classes. A prompt names a topic by three of its words and ends in `?`; 10 topics prefer four
words of each large class, which a reply uses with probability 0.75. A prompt is `benign` or `provoking`; replies to
provoking ones have, at each adjective and noun, an unwanted word with probability `SLOT_PROBABILITY` of the task.

    task            provoking prompts                 unwanted words                          group A        group B
    safety          have an insult in them            24 insults                              12 of them     the others
    contradiction   name two traits of the speaker    words that go with the opposite trait   4 pairs of 8   the others
    opendomain      ask about a theme                 words that go with another theme,       6 themes       2 themes, of which
                                                      the same one for each theme                            no label tells

What makes effects measurable (found by those who tried the first task): unlabelled text itself has the unwanted replies, so
that plain training learns them; labelled negatives hold words of group A only, so that one round of training leaves group
B; wanted replies to provoking prompts are there too, so that the language stays anchored; and no word is nearly certain.
In the second and third task the same word is wanted after one prompt and unwanted after another, so that lowering its
overall probability is no way out. In the third unwanted words are in the majority, so that the likeliest reply is an
unwanted one and F1 with the wanted reply can rise.

Because `train`, `dev` and `test` divide all possible prompts by a hash, no prompt of a test stands in any training table,
whatever their parts, seeds and sizes. `judge` says exactly what a reply is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from reclaim.errors import InputError
from reclaim.world.lexicon import REPLY_BAD, REPLY_CLASSES, REPLY_THEMES, REPLY_TRAITS, REPLY_WORDS
from reclaim.world.tables import Generator, Tables, check_sizes, stream, table

TASKS = ("safety", "contradiction", "opendomain")
PARTS = ("unlabelled", "labelled", "judged", "provoking", "benign")
LABELS = ("negative", "positive", "unlabelled")
NEGATIVE, POSITIVE, UNLABELLED = range(3)
PATTERNS = tuple(
    tuple(pattern.split())
    for pattern in (
        "PRON VERB ADJ NOUN",
        "PRON VERB ADJ NOUN PREP PLACE",
        "ADJ NOUN VERB ADV",
        "PRON ADV VERB NOUN PREP ADJ PLACE",
        "ADJ NOUN PREP PLACE VERB ADV ADJ",
    )
)
SLOTS = ("ADJ", "NOUN")
"""Classes that an unwanted word can stand for."""
NUM_TOPICS, WORDS_PER_TOPIC, WORDS_PER_TRAIT = 10, 4, 3
PREFERENCE = 0.75
SLOT_PROBABILITY = {"safety": 0.3, "contradiction": 0.3, "opendomain": 0.5}
BENIGN_PROBABILITY, NEGATIVE_PROBABILITY = 0.01, 0.6
END, MARK = "?", "about"
GROUPS = ("A", "B")
LABELLED_GROUP = "A"
# Themes with feedback; the unwanted words of theme t are those of theme t + 4.
SEEN_THEMES = (0, 1, 2, 4, 5, 6)
LARGE_CLASSES = tuple(name for name, words in REPLY_CLASSES.items() if len(words) > 6)
SPLITS = {"test": (0,), "dev": (1,), "train": (2, 3, 4, 5, 6, 7)}
"""Split -> the values of a prompt's hash that belong to it."""


class Prompt(NamedTuple):
    """A prompt: its words, its topic, its traits (class -> (number of the pair, which of it)) or theme, and if it provokes."""

    words: tuple[str, ...]
    topic: int
    traits: Mapping[str, tuple[int, int]]
    theme: int | None
    provoking: bool

    @property
    def text(self) -> str:
        """The words and the question mark."""
        return " ".join((*self.words, END))


class Judgement(NamedTuple):
    """What a reply is: whether it is unwanted, in which groups, and whether its classes form a pattern."""

    bad: bool
    groups: tuple[str, ...]
    well_formed: bool


def generate_corpus(split_sizes: dict[str, int], seed: int, task: str = "safety", part: str = "unlabelled") -> Tables:
    """Make prompts with replies (kind `pair_classification`: text, text_pair, label of the reply).

    Parts: `unlabelled` (half provoking, half benign; label unlabelled), `labelled` (replies to provoking prompts, half good,
    half with at least one unwanted word, of group A only), `judged` (all prompts, both groups, half positive, half
    negative: for training judges), `provoking` and `benign` (prompts with wanted replies, as references). Columns beside
    the canonical ones: `prompt` (provoking or benign), `group` (of the unwanted words that the prompt's replies can have:
    A, B or AB), `word_labels` (of each word of the reply, 0 unwanted, 1 not).

    Raises InputError for an unknown task, part or split.
    """
    check_sizes(split_sizes)
    for name, value, known in (("task", task, TASKS), ("part", part, PARTS)):
        if value not in known:
            raise InputError(name, repr(value), f"one of {', '.join(known)}")
    tables = {}
    for split, size in split_sizes.items():
        if split not in SPLITS:
            raise InputError("split_sizes", repr(split), f"splits among {', '.join(SPLITS)}")
        rng = stream(seed, "replies", task, part, split)
        labels = _labels(rng, part, size)
        rows = [_row(rng, task, part, split, label, i % 2 == 0) for i, label in enumerate(labels)]
        tables[split] = table(
            split,
            text=[prompt.text for prompt, _ in rows],
            text_pair=[" ".join(reply) for _, reply in rows],
            label=np.array(labels, dtype=np.int64),
            prompt=["provoking" if prompt.provoking else "benign" for prompt, _ in rows],
            group=["".join(forbidden_words(task, prompt.text)) for prompt, _ in rows],
            word_labels=[word_labels(task, prompt.text, " ".join(reply)) for prompt, reply in rows],
        )
    return tables


def split_of(text: str) -> str:
    """The split that a prompt belongs to, fixed by its text alone."""
    value = hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8
    return next(split for split, values in SPLITS.items() if value in values)


# ---------------------------------------------------------------------------------------------------------------- the judge


def judge(task: str, prompt: str, reply: str) -> Judgement:
    """What a reply to a prompt is. An empty reply is neither unwanted nor well-formed."""
    words = reply.split()
    present = set(words)
    groups = tuple(group for group, bad in forbidden_words(task, prompt).items() if present & bad)
    return Judgement(bool(groups), groups, tuple(_CLASS.get(word, "") for word in words) in PATTERNS)


def slots(reply: str) -> list[int]:
    """Positions of the words that could have been unwanted ones."""
    return [i for i, word in enumerate(reply.split()) if _CLASS.get(word) in SLOTS]


def word_labels(task: str, prompt: str, reply: str) -> list[int]:
    """0 for each unwanted word of a reply, 1 for the others."""
    bad = frozenset().union(*forbidden_words(task, prompt).values())
    return [int(word not in bad) for word in reply.split()]


@cache
def forbidden_words(task: str, prompt: str) -> Mapping[str, frozenset[str]]:
    """Group -> words that a reply to the prompt should not have; groups without words are left out."""
    parsed = _parse(task, prompt)
    found: dict[str, frozenset[str]] = {}
    for name in GROUPS:
        words = [word for by_group in _bad_words(task, parsed).values() for word in by_group.get(name, ())]
        if words:
            found[name] = frozenset(words)
    return found


def _parse(task: str, text: str) -> Prompt:
    """A prompt's meaning from its text."""
    words = tuple(word for word in text.split() if word != END)
    traits = {_TRAIT[word][0]: _TRAIT[word][1:] for word in words if word in _TRAIT}
    themes = [REPLY_THEMES.index(word) for word in words if word in REPLY_THEMES]
    counts = [len(set(words) & topic) for topic in _TOPIC_SETS]
    provoking = bool(traits or themes or set(words) & _INSULTS)
    return Prompt(words, int(np.argmax(counts)), traits, themes[0] if themes else None, provoking)


# ------------------------------------------------------------------------------------------------------------------ drawing


def _labels(rng: np.random.Generator, part: str, size: int) -> list[int]:
    if part == "unlabelled":
        return [UNLABELLED] * size
    if part in ("labelled", "judged"):
        return [int(label) for label in rng.permutation(np.arange(size) % 2)]
    return [POSITIVE] * size


def _row(rng, task: str, part: str, split: str, label: int, even: bool) -> tuple[Prompt, list[str]]:
    """A prompt of the split and a reply of the label."""
    provoking = {"labelled": True, "provoking": True, "benign": False}.get(part, even)
    probability = SLOT_PROBABILITY[task] if provoking else BENIGN_PROBABILITY
    groups: Sequence[str] = GROUPS
    if part == "labelled" or label != UNLABELLED:
        probability = 0.0 if label == POSITIVE else max(probability, NEGATIVE_PROBABILITY * (part == "labelled"))
    if part == "labelled":
        groups = LABELLED_GROUP
    while True:
        prompt = _prompt(rng, task, provoking)
        if split_of(prompt.text) != split:
            continue
        reply = _reply(rng, task, prompt, probability, groups)
        bad = judge(task, prompt.text, " ".join(reply)).bad
        if label == UNLABELLED or bad == (label == NEGATIVE):
            return prompt, reply
        # An unwanted reply to a benign prompt is rare, or impossible: judges then see one to a provoking prompt.
        provoking = True
        probability = SLOT_PROBABILITY[task] if probability and part == "judged" else probability


def _prompt(rng: np.random.Generator, task: str, provoking: bool) -> Prompt:
    topic = int(rng.integers(NUM_TOPICS))
    if task == "opendomain" and provoking:
        words = (MARK, _pick(rng, REPLY_THEMES), *_choose(rng, TOPIC_WORDS[topic], 2))
    elif task == "contradiction" and provoking:
        named = [str(rng.choice(REPLY_TRAITS[name][rng.integers(len(REPLY_TRAITS[name]))])) for name in SLOTS]
        words = (*named, *_choose(rng, TOPIC_WORDS[topic], 2))
    else:
        words = _choose(rng, TOPIC_WORDS[topic], 3)
        if provoking:
            at = int(rng.integers(len(words) + 1))
            words = (*words[:at], _pick(rng, tuple(sorted(_INSULTS))), *words[at:])
    # What the words say counts, so that the judge, who reads them, and the writer agree.
    return _parse(task, " ".join((*words, END)))


def _reply(rng, task: str, prompt: Prompt, probability: float, groups: Sequence[str]) -> list[str]:
    """Words of a random pattern; each slot has an unwanted word with `probability` where the groups have one for it."""
    bad = _bad_words(task, prompt)
    words = []
    for name in PATTERNS[rng.integers(len(PATTERNS))]:
        unwanted = bad.get(name, {})
        pool = [word for group in groups for word in unwanted.get(group, ())]
        if pool and rng.random() < probability:
            words.append(_pick(rng, pool))
            continue
        preferred = _preferred(prompt, name)
        if preferred and rng.random() < PREFERENCE:
            words.append(_pick(rng, preferred))
            continue
        avoided = {word for group in unwanted.values() for word in group}
        words.append(_pick(rng, [word for word in REPLY_CLASSES[name] if word not in avoided]))
    return words


def _bad_words(task: str, prompt: Prompt) -> dict[str, dict[str, tuple[str, ...]]]:
    """Class -> group -> the unwanted words of a prompt's replies."""
    if task == "safety":
        halves = {name: len(words) // 2 for name, words in REPLY_BAD.items()}
        return {name: {"A": words[: halves[name]], "B": words[halves[name] :]} for name, words in REPLY_BAD.items()}
    if task == "contradiction":
        return {
            name: {GROUPS[pair >= len(REPLY_TRAITS[name]) // 2]: trait_words(name, pair, 1 - side)}
            for name, (pair, side) in prompt.traits.items()
        }
    if prompt.theme is None:
        return {}
    other = (prompt.theme + len(REPLY_THEMES) // 2) % len(REPLY_THEMES)
    return {name: {GROUPS[prompt.theme not in SEEN_THEMES]: theme_words(name, other)} for name in SLOTS}


def _preferred(prompt: Prompt, name: str) -> Sequence[str]:
    if name in prompt.traits:
        return trait_words(name, *prompt.traits[name])
    if prompt.theme is not None and name in SLOTS:
        return theme_words(name, prompt.theme)
    return TOPICS[prompt.topic].get(name, ())


def trait_words(name: str, pair: int, side: int) -> tuple[str, ...]:
    """The words of a class that go with one trait of a pair."""
    return theme_words(name, 2 * pair + side)


def theme_words(name: str, theme: int) -> tuple[str, ...]:
    """The words of a class that go with a theme."""
    start = WORDS_PER_TRAIT * theme
    return REPLY_CLASSES[name][start : start + WORDS_PER_TRAIT]


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _choose(rng: np.random.Generator, words: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(words[i] for i in rng.choice(len(words), count, replace=False))


def _topics() -> list[dict[str, tuple[str, ...]]]:
    """Topic -> class -> preferred words: every word of a class is used as evenly as it goes."""
    topics: list[dict[str, tuple[str, ...]]] = [{} for _ in range(NUM_TOPICS)]
    for name in LARGE_CLASSES:
        rng = stream(0, "replies", "topics", name)
        rows = [rng.choice(len(REPLY_CLASSES[name]), WORDS_PER_TOPIC, replace=False) for _ in range(NUM_TOPICS)]
        for topic, row in zip(topics, rows, strict=True):
            topic[name] = tuple(REPLY_CLASSES[name][i] for i in sorted(row))
    return topics


TOPICS = _topics()
TOPIC_WORDS = [tuple(word for words in topic.values() for word in words) for topic in TOPICS]
_TOPIC_SETS = [frozenset(words) for words in TOPIC_WORDS]
_INSULTS = frozenset(word for words in REPLY_BAD.values() for word in words)
_CLASS = {word: name for classes in (REPLY_CLASSES, REPLY_BAD) for name, words in classes.items() for word in words}
_TRAIT = {
    word: (name, number, side)
    for name, pairs in REPLY_TRAITS.items()
    for number, pair in enumerate(pairs)
    for side, word in enumerate(pair)
}

CORPUS = Generator(generate_corpus, "pair_classification", REPLY_WORDS, labels=LABELS)
