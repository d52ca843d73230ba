"""Pairs of a premise and a statement that it supports or not, from a world of facts, for a judge of citations.

Premises are what judges of ALCE (Gao et al. 2023) get: one to three passages with their titles, or, for claims, the sentences
of an answer. Statements are true of the first one, or wrong in one respect: value, type, name, attribute, or the passage
cited. Labels come from the exact judge, so a wrong draw that happens to be right is labelled right.
"""

from __future__ import annotations

import numpy as np

from reclaim.errors import InputError
from reclaim.world.lexicon import FACT_ATTRIBUTES, FACT_VALUES
from reclaim.world.passages import TASKS, FactWorld, Passage, entails, sentence
from reclaim.world.tables import check_count

CHANGES = ("none", "value", "neighbour", "type", "name", "attribute", "passage")
"""What is wrong: nothing; a random value; the value of another fact of the passage; ...; another passage of the same thing."""

MOST_PASSAGES = 3


def draw_pairs(
    world: FactWorld, count: int, rng: np.random.Generator, task: str = "asqa"
) -> tuple[list[tuple[str, str]], list[bool]]:
    """Draw `count` pairs in the form of a task, and whether each premise entails its hypothesis.

    About a third is entailed. Raises InputError for an unknown task and a count below 1.
    """
    check_count("count", count)
    if task not in TASKS:
        raise InputError("task", repr(task), f"one of {', '.join(TASKS)}")
    of_thing: dict[tuple[str, str], list[Passage]] = {}
    for passage in world.passages:
        of_thing.setdefault((passage.name, passage.type), []).append(passage)
    pairs = [_pair(world, of_thing, rng, task) for _ in range(count)]
    return pairs, [entails(*pair) for pair in pairs]


def _pair(world: FactWorld, of_thing: dict, rng: np.random.Generator, task: str) -> tuple[str, str]:
    passages = world.passages
    cited = passages[rng.integers(len(passages))]
    attribute, _, value = cited.facts[rng.integers(len(cited.facts))]
    name, kind = cited.name, cited.type
    change = CHANGES[rng.integers(len(CHANGES))]
    if change == "value":
        value = FACT_VALUES[rng.integers(len(FACT_VALUES))]
    elif change == "neighbour":
        value = cited.facts[rng.integers(len(cited.facts))][2]
    elif change == "type":
        kind = world.types[rng.integers(len(world.types))]
    elif change == "name":
        name = world.names[rng.integers(len(world.names))]
    elif change == "attribute":
        attribute = int(rng.integers(len(FACT_ATTRIBUTES)))
    elif change == "passage":
        same = of_thing[cited.name, cited.type]
        cited = same[rng.integers(len(same))]
    shown = [cited, *(passages[rng.integers(len(passages))] for _ in range(rng.integers(MOST_PASSAGES)))]
    shown = [shown[place] for place in rng.permutation(len(shown))]
    word = _word(attribute, rng)
    if task == "qampari":
        return _passages(shown), f"What is each {word} of {name}? {value}"
    hypothesis = sentence(word, name, kind, value)
    return (_answer(shown, rng) if task == "eli5" else _passages(shown)), hypothesis


def _word(attribute: int, rng: np.random.Generator) -> str:
    return FACT_ATTRIBUTES[attribute][rng.integers(len(FACT_ATTRIBUTES[attribute]))]


def _passages(shown: list[Passage]) -> str:
    return "\n".join(f"Title: {passage.title}\n{passage.text}" for passage in shown)


def _answer(shown: list[Passage], rng: np.random.Generator) -> str:
    """The facts of passages as the sentences of an answer."""
    return " ".join(
        sentence(_word(attribute, rng), passage.name, passage.type, value)
        for passage in shown
        for attribute, _, value in passage.facts
    )
