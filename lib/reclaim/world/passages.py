"""Passages of facts about things that share a name, and questions whose answers lie in several of them.

For "Enabling Large Language Models to Generate Text with Citations" (ALCE; Gao, Yen, Yu and Chen, EMNLP 2023), which
needs ambiguous questions, passages that each support a part of the answer, and distractors. A name stands for one thing of
each type (`Balen (lake)`, `Balen (town)`); a thing has one value for each attribute, and each of its passages states some of
its facts. An attribute has three names; passages and questions choose one at random, so that words alone do not find a fact.

Three kinds of questions, with the fields of the three data sets of the study:

- `asqa`: `What is the hue of Balen?` has one answer for each type, in different passages;
- `qampari`: `What is each hue of Balen?` wants the same values as a list;
- `eli5`: `What is there to know about Balen (lake)?` wants sentences, and names three of the facts as claims.

Because a fact has one form in passages and one in answers, `entails` is an exact judge of whether a text supports a
sentence, synonyms included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reclaim.errors import InputError
from reclaim.world.lexicon import FACT_ATTRIBUTES, FACT_NAMES, FACT_TYPES, FACT_VALUES, distinct
from reclaim.world.tables import Generator, Tables, check_count, check_sizes, stream, table

TASKS = ("asqa", "qampari", "eli5")
ATTRIBUTE_OF = {name: number for number, names in enumerate(FACT_ATTRIBUTES) for name in names}
PASSAGE_FACTS = 2
CLAIMS = 3
NO_ANSWER = "The passages do not say."

_TITLE = re.compile(r"Title: (\w+) \((\w+)\)")
_IN_PASSAGE = re.compile(r"\bIts (\w+) is (\w+)")
_IN_ANSWER = re.compile(r"\b[Tt]he (\w+) of (\w+) \((\w+)\) is (\w+)")
_IN_LIST = re.compile(r"\bWhat is each (\w+) of (\w+)\? +(\w+)")

Fact = tuple[str, str | None, int, str]
"""Name, type (None: any), attribute's number, value."""


@dataclass(frozen=True)
class Passage:
    """`facts`: (attribute's number, the word that the text has for it, value)."""

    name: str
    type: str
    facts: tuple[tuple[int, str, str], ...]

    @property
    def title(self) -> str:
        """`Name (type)`."""
        return f"{self.name} ({self.type})"

    @property
    def text(self) -> str:
        """The sentences of the facts."""
        return " ".join(f"Its {word} is {value}." for _, word, value in self.facts)


@dataclass(frozen=True)
class FactWorld:
    """`values` [name, type, attribute]: numbers into `FACT_VALUES`; passages thing by thing, in random order within one."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    values: np.ndarray
    passages: tuple[Passage, ...]

    def value(self, name: int, kind: int, attribute: int) -> str:
        """The value of a thing's attribute."""
        return FACT_VALUES[self.values[name, kind, attribute]]


def draw_world(rng: np.random.Generator, num_names: int = 60, num_types: int = 3) -> FactWorld:
    """Draw the values of every thing and its passages; raises InputError for more names or types than there are."""
    check_count("num_names", num_names, most=len(FACT_NAMES))
    check_count("num_types", num_types, most=len(FACT_TYPES))
    names, types, size = FACT_NAMES[:num_names], FACT_TYPES[:num_types], len(FACT_ATTRIBUTES)
    values = rng.integers(len(FACT_VALUES), size=(num_names, num_types, size))
    order = rng.permuted(np.broadcast_to(np.arange(size), values.shape), axis=2)
    words = rng.integers(len(FACT_ATTRIBUTES[0]), size=values.shape)
    passages = []
    for name, kind in np.ndindex(num_names, num_types):
        facts = [
            (
                attribute,
                FACT_ATTRIBUTES[attribute][words[name, kind, attribute]],
                FACT_VALUES[values[name, kind, attribute]],
            )
            for attribute in order[name, kind].tolist()
        ]
        for start in range(0, size, PASSAGE_FACTS):
            passages.append(Passage(names[name], types[kind], tuple(facts[start : start + PASSAGE_FACTS])))
    return FactWorld(names, types, values, tuple(passages))


def draw_questions(world: FactWorld, task: str, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Draw questions of a task, all different, as items with the official fields but without `docs`.

    Raises InputError for an unknown task and for more questions than the world has.
    """
    if task not in TASKS:
        raise InputError("task", repr(task), f"one of {', '.join(TASKS)}")
    names, types, attributes = world.values.shape
    possible = names * (types if task == "eli5" else attributes)
    if count > possible:
        raise InputError("questions", f"{count} of the task {task}", f"at most {possible} in a world of {names} names")
    items = []
    for number in rng.choice(possible, count, replace=False).tolist():
        if task == "eli5":
            name, kind = divmod(number, types)
            items.append(_eli5(world, name, kind, rng))
        else:
            name, attribute = divmod(number, attributes)
            word = FACT_ATTRIBUTES[attribute][rng.integers(len(FACT_ATTRIBUTES[attribute]))]
            items.append((_asqa if task == "asqa" else _qampari)(world, name, attribute, word))
    return items


def _asqa(world: FactWorld, name: int, attribute: int, word: str) -> dict[str, Any]:
    pairs, sentences = [], []
    for kind, type_name in enumerate(world.types):
        value, title = world.value(name, kind, attribute), f"{world.names[name]} ({type_name})"
        sentences.append(sentence(word, world.names[name], type_name, value))
        pairs.append(
            {
                "question": f"What is the {word} of {title}?",
                "short_answers": [value],
                "context": f"Title: {title}\nIts {word} is {value}.",
                "wikipage": title,
            }
        )
    long_answer = " ".join(sentences)
    notes = [{"long_answer": long_answer, "knowledge": []}, {"long_answer": " ".join(sentences[::-1]), "knowledge": []}]
    question = f"What is the {word} of {world.names[name]}?"
    return {"question": question, "answer": long_answer, "qa_pairs": pairs, "annotations": notes}


def _qampari(world: FactWorld, name: int, attribute: int, word: str) -> dict[str, Any]:
    values = list(dict.fromkeys(world.value(name, kind, attribute) for kind in range(len(world.types))))
    question = f"What is each {word} of {world.names[name]}?"
    return {"question": question, "answer": ", ".join(values) + ".", "answers": [[value] for value in values]}


def _eli5(world: FactWorld, name: int, kind: int, rng: np.random.Generator) -> dict[str, Any]:
    title = (world.names[name], world.types[kind])
    facts = [
        sentence(synonyms[rng.integers(len(synonyms))], *title, world.value(name, kind, attribute))
        for attribute, synonyms in enumerate(FACT_ATTRIBUTES)
    ]
    claims = [facts[place] for place in rng.choice(len(facts), CLAIMS, replace=False).tolist()]
    question = f"What is there to know about {title[0]} ({title[1]})?"
    return {"question": question, "answer": " ".join(facts), "claims": claims}


def sentence(word: str, name: str, type_name: str, value: str) -> str:
    """The sentence in which answers state a fact."""
    return f"The {word} of {name} ({type_name}) is {value}."


# -------------------------------------------------------------------------------------------------------- the exact judge


def stated_facts(text: str) -> set[Fact]:
    """Every fact that a text states: documents (`Title: ...` and a passage), answers, or a list question with one entry."""
    facts: set[Fact] = set()
    parts = re.split(r"(?=Title: )", text)
    for part in parts:
        title = _TITLE.match(part)
        found = [(title[1], title[2], *pair) for pair in _IN_PASSAGE.findall(part)] if title else []
        found += [(name, kind, word, value) for word, name, kind, value in _IN_ANSWER.findall(part)]
        found += [(name, None, word, value) for word, name, value in _IN_LIST.findall(part)]
        facts |= {(name, kind, ATTRIBUTE_OF[word], value) for name, kind, word, value in found if word in ATTRIBUTE_OF}
    return facts


def entails(premise: str, hypothesis: str) -> bool:
    """Whether the premise states every fact of the hypothesis, which must have at least one, or has its very words."""
    if hypothesis.strip() and hypothesis.strip() in premise:
        return True
    asked = stated_facts(hypothesis)
    known = stated_facts(premise)
    any_type = {(name, None, attribute, value) for name, _, attribute, value in known}
    return bool(asked) and all(fact in known or fact in any_type for fact in asked)


# --------------------------------------------------------------------------------------------------------------- data sets


def world_of(seed: int, world: int, num_names: int, num_types: int) -> FactWorld:
    """The world of a number, the same for its passages and its questions."""
    return draw_world(stream(seed, "facts", world), num_names, num_types)


def generate_passages(
    split_sizes: dict[str, int], seed: int, worlds: Sequence[int] = (0,), num_types: int = 3
) -> Tables:
    """Make the passages of several worlds (kind `text`, with the columns `title` and `world`), all in the split `train`.

    The number of names follows from the number of passages. Raises InputError for a number that no whole number of names
    gives, and for other splits.
    """
    check_sizes(split_sizes)
    check_count("num_types", num_types, most=len(FACT_TYPES))
    per_name = len(worlds) * num_types * -(-len(FACT_ATTRIBUTES) // PASSAGE_FACTS)
    if list(split_sizes) != ["train"] or split_sizes["train"] % per_name:
        raise InputError("split_sizes", str(split_sizes), f"one split `train` with a multiple of {per_name} passages")
    passages = [
        (world, passage)
        for world in worlds
        for passage in world_of(seed, world, split_sizes["train"] // per_name, num_types).passages
    ]
    return {
        "train": table(
            "train",
            text=[passage.text for _, passage in passages],
            title=[passage.title for _, passage in passages],
            world=[int(world) for world, _ in passages],
        )
    }


FACT_WORDS = distinct(FACT_NAMES, FACT_TYPES, *FACT_ATTRIBUTES, FACT_VALUES, "Its is . ( ) ?".split())
PASSAGES = Generator(generate_passages, "text", FACT_WORDS)
