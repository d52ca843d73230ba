"""A small household: who keeps which thing of what colour where. The language of the pair, choice and question tasks.

A fact has five parts (person, verb, colour, object, place) and three wordings. Because every word has one role, a text
can be read back into its facts, and `judge` decides exactly what a passage says about a sentence: it is the judge
against which learned ones are validated. `generate_corpus` makes text for pre-training in which the same relations can
be learned without labels: passages, sentence pairs with a verdict, states with what one does about them, questions with
answers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reclaim.errors import InputError
from reclaim.world.lexicon import (
    COLOURS,
    HOUSEHOLD_WORDS,
    KEEPING,
    OBJECTS,
    PEOPLE,
    PLACES,
    REMEDIES,
    SHE,
    UNSTATED,
    VERDICTS,
)
from reclaim.world.tables import Generator, Tables, check_probability, check_sizes, stream, table

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
# Shares of passages, judged pairs, remedies and questions in the corpus.
CORPUS_SHARES = (0.25, 0.25, 0.20, 0.30)
STATES = tuple(REMEDIES)


class Fact(NamedTuple):
    """One fact; every part is one word."""

    person: str
    verb: str
    colour: str
    object: str
    place: str


def draw_facts(rng: np.random.Generator, count: int) -> list[Fact]:
    """Draw facts that share neither person, colour, object nor place, so that every question has one answer."""
    parts = [rng.permutation(words)[:count] for words in (PEOPLE, COLOURS, OBJECTS, PLACES)]
    verbs = rng.choice(KEEPING, size=count)
    return [
        Fact(str(person), str(verb), str(colour), str(thing), str(place))
        for person, verb, colour, thing, place in zip(parts[0], verbs, *parts[1:], strict=True)
    ]


def word_fact(fact: Fact, wording: int) -> str:
    """Say a fact in one of three wordings (0, 1, 2)."""
    if wording == 0:
        return f"{fact.person} {fact.verb} the {fact.colour} {fact.object} in the {fact.place} ."
    if wording == 1:
        return f"in the {fact.place} {fact.person} {fact.verb} the {fact.colour} {fact.object} ."
    return f"the {fact.colour} {fact.object} of {fact.person} is in the {fact.place} ."


def word_passage(rng: np.random.Generator, facts: list[Fact]) -> str:
    """Say facts one after the other, each in a wording of its own."""
    return " ".join(word_fact(fact, int(rng.integers(3))) for fact in facts)


def read_facts(passage: str) -> list[dict[str, str]]:
    """Read the facts of a passage back, each as a dictionary with person, colour, object and place."""
    facts = []
    for sentence in passage.split(" . "):
        found = {}
        for word in sentence.split():
            for role, words in (("person", PEOPLE), ("colour", COLOURS), ("object", OBJECTS), ("place", PLACES)):
                if word in words:
                    found[role] = word
        if len(found) == 4:
            facts.append(found)
    return facts


def judge(passage: str, sentence: str) -> int:
    """Say what a passage of facts says about a sentence: ENTAILMENT, NEUTRAL or CONTRADICTION.

    Sentences are `the OBJECT is in the PLACE .`, `the OBJECT is COLOUR .`, `the OBJECT is QUALITY .` and
    `PERSON has the OBJECT .`. A thing has one owner, one colour and one place, so another one contradicts; about a
    thing that the passage does not name, and about qualities, it says nothing. Raises InputError for other sentences.
    """
    words = sentence.split()
    match words:
        case ["the", thing, "is", "in", "the", value, "."] if value in PLACES:
            role = "place"
        case ["the", thing, "is", value, "."] if value in COLOURS:
            role = "colour"
        case ["the", thing, "is", value, "."] if value in UNSTATED:
            role = "quality"
        case [value, "has", "the", thing, "."] if value in PEOPLE:
            role = "person"
        case _:
            raise InputError("sentence", repr(sentence), "a sentence of the household, such as 'the lamp is red .'")
    if thing not in OBJECTS:
        raise InputError("sentence", repr(sentence), f"one of the objects {', '.join(OBJECTS)}")
    for fact in read_facts(passage):
        if fact["object"] == thing and role in fact:
            return ENTAILMENT if fact[role] == value else CONTRADICTION
    return NEUTRAL


def draw_hypothesis(rng: np.random.Generator, fact: Fact, label: int) -> str:
    """Draw a sentence of which a passage with `fact` and no other object says what `label` names."""
    if label == NEUTRAL and rng.random() < 0.5:
        return f"the {fact.object} is {rng.choice(UNSTATED)} ."
    if label == NEUTRAL:
        fact = fact._replace(object=another(rng, OBJECTS, fact.object))
    role, words = (("place", PLACES), ("colour", COLOURS), ("person", PEOPLE))[rng.integers(3)]
    value = getattr(fact, role)
    if label == CONTRADICTION:
        value = another(rng, words, value)
    if role == "place":
        return f"the {fact.object} is in the {value} ."
    if role == "colour":
        return f"the {fact.object} is {value} ."
    return f"{value} has the {fact.object} ."


def another(rng: np.random.Generator, words: tuple[str, ...], word: str) -> str:
    """Draw one of `words` other than `word`."""
    return str(rng.choice([other for other in words if other != word]))


def draw_question(fact: Fact, role: str) -> tuple[str, str]:
    """Ask for one part of a fact (`place`, `colour` or `person`); gives question and answer."""
    if role == "place":
        return f"where is the {fact.object} ?", fact.place
    if role == "colour":
        return f"what colour is the {fact.object} ?", fact.colour
    return f"who has the {fact.object} ?", fact.person


def pronoun(person: str) -> str:
    """Give the pronoun of a person."""
    return "she" if person in SHE else "he"


def generate_corpus(split_sizes: dict[str, int], seed: int, agreement: float = 0.9) -> Tables:
    """Make text for pre-training (kind `text`).

    Verdicts, remedies and answers are right with probability `agreement` and else drawn from the wrong ones. Verdicts
    stand between the sentences (`premise ? yes , hypothesis .`, to be masked) or behind them (`premise . question
    hypothesis ? answer yes .`, to be continued), remedies behind `so` or before `because`, answers behind `answer`.
    """
    check_sizes(split_sizes)
    check_probability("agreement", agreement)
    tables = {}
    for split, size in split_sizes.items():
        rng = stream(seed, "household_corpus", split)
        kinds = rng.choice(4, size=size, p=CORPUS_SHARES)
        right = rng.random(size) < agreement
        texts = [_corpus_text(rng, *row) for row in zip(kinds, right, strict=True)]
        tables[split] = table(split, text=texts)
    return tables


def _corpus_text(rng: np.random.Generator, kind: int, right: bool) -> str:
    if kind == 0:
        return word_passage(rng, draw_facts(rng, int(rng.integers(1, 4))))
    if kind == 1:
        (fact,) = draw_facts(rng, 1)
        label = int(rng.integers(3))
        verdict = VERDICTS[label] if right else another(rng, VERDICTS, VERDICTS[label])
        premise, hypothesis = word_passage(rng, [fact]), draw_hypothesis(rng, fact, label)
        if rng.random() < 0.5:
            return f"{premise.removesuffix(' .')} ? {verdict} , {hypothesis}"
        return f"{premise} question {hypothesis.removesuffix(' .')} ? answer {verdict} ."
    if kind == 2:
        state = str(rng.choice(STATES))
        remedy = str(rng.choice(REMEDIES[state if right else another(rng, STATES, state)]))
        person, place = str(rng.choice(PEOPLE)), str(rng.choice(PLACES))
        if rng.random() < 0.5:
            return f"{person} is {state} in the {place} so {pronoun(person)} {remedy} ."
        return f"{person} {remedy} in the {place} because {pronoun(person)} is {state} ."
    facts = draw_facts(rng, int(rng.integers(1, 4)))
    role, words = (("place", PLACES), ("colour", COLOURS), ("person", PEOPLE))[rng.integers(3)]
    question, answer = draw_question(facts[rng.integers(len(facts))], role)
    if not right:
        answer = another(rng, words, answer)
    return f"{word_passage(rng, facts)} question {question} answer {answer} ."


CORPUS = Generator(generate_corpus, "text", HOUSEHOLD_WORDS)
