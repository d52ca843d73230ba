"""The words of the world's prompts as a small generator sees them: which token is which word, and what a prompt says.

For the embedded runs of Gao et al. 2023 (ALCE). The generators of these runs (`reclaim.alce.pointer`, `closed_book`) know the
form of prompts and answers and learn which words belong together. `Language` maps token ids to words and their classes;
`read_prompt` takes a prompt's token ids apart into the question, the facts of the documents shown, and what was written
already. It reads the last question of the prompt only; demonstrations stand before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import reclaim.torchvision_shim  # noqa: F401

from reclaim.alce.prompts import own_templates
from reclaim.errors import InputError
from reclaim.tokenization import train_tokenizer
from reclaim.world.lexicon import FACT_ATTRIBUTES, FACT_NAMES, FACT_TYPES, FACT_VALUES
from reclaim.world.passages import NO_ANSWER

OTHER, ATTRIBUTE, NAME, TYPE, VALUE, NUMBER = range(6)
MOST_DOCUMENTS = 100

# Pieces of prompts and answers that the generators know, each with a text in which the piece is the last token.
PIECES = {
    "question": "\nQuestion",
    "answer": "\nAnswer",
    "output": "\nOutput",
    "document": "\nDocument",
    "newline": ".\n",
    "each": " is each",
    "there": " is there",
    "check": "Check",
    "search": "Search",
    "end": "End",
    "colon": "Answer:",
    "a_document": ": Document",
    "the": ". The",
    "of": " hue of",
    "open": " Bala (",
    "close": " (lake)",
    "is": ") is",
    "cite": " bado [",
    "and_cite": " [1][",
    "cited": " [1].",
    "cited_comma": " [1],",
    "bracket": " [1]",
    "stop": " bado.",
    "comma": " bado,",
}


@dataclass(frozen=True)
class Language:
    """words[token]: the word's number (0: none), whatever stands before it; classes[token]; numbers[token]: the number that a
    token writes (0: none); spaced[word], plain[word]: its token behind a space, and without one; digits[n]: the token of n;
    pieces: name -> token; refusal: the tokens of the answer that there is none."""

    words: tuple[int, ...]
    classes: tuple[int, ...]
    numbers: tuple[int, ...]
    spaced: tuple[int, ...]
    plain: tuple[int, ...]
    digits: tuple[int, ...]
    pieces: dict[str, int]
    refusal: tuple[int, ...]

    @property
    def num_words(self) -> int:
        return len(self.spaced)


def language_texts() -> list[str]:
    """Texts with every token that prompts and answers of the world have, for a tokenizer."""
    words = [*FACT_NAMES, *FACT_TYPES, *(word for names in FACT_ATTRIBUTES for word in names), *FACT_VALUES]
    own = own_templates()
    texts = [f"Its {word} is {word}. ({word})" for word in words]
    texts += [
        f"\nDocument [{n}](Title: Bala (lake)): Its hue is bado. [{n}][{n}]. [{n}],"
        for n in range(1, MOST_DOCUMENTS + 1)
    ]
    texts += [
        "\nQuestion: What is the hue of Bala?\n\n",
        "What is each hue of Bala?",
        "What is there to know about Bala (lake)?",
    ]
    texts += [
        "\nAnswer: The hue",
        "\nCheck: Document [1]\nOutput: The",
        "\nSearch: hue of Bala\nEnd",
        "End.",
        NO_ANSWER,
        ",",
    ]
    texts += [f" {NO_ANSWER}", *PIECES.values()]
    return texts + [text for modes in own["instructions"].values() for text in modes.values()]


def make_tokenizer():
    """A GPT-2 tokenizer with one token for each word and sign of the world's prompts; always the same one."""
    return train_tokenizer("gpt2", language_texts(), vocab_size=20000)


def make_language(tokenizer) -> Language:
    """Map the tokens of a tokenizer; raises InputError for one that cuts a word of the world."""

    def last(text: str) -> int:
        return tokenizer(text, add_special_tokens=False)["input_ids"][-1]

    def one(text: str) -> int:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError("tokenizer", f"{text!r} as {len(ids)} tokens", "one token for each word of the world")
        return ids[0]

    size = len(tokenizer)
    words, classes, numbers = np.zeros(size, int), np.zeros(size, int), np.zeros(size, int)
    spaced, plain = [0], [0]
    attributes = [word for names in FACT_ATTRIBUTES for word in names]
    for kind, group in ((ATTRIBUTE, attributes), (NAME, FACT_NAMES), (TYPE, FACT_TYPES), (VALUE, FACT_VALUES)):
        for word in group:
            for known, text in ((spaced, f" {word}"), (plain, word)):
                token = one(text)
                words[token], classes[token] = len(spaced) - (known is plain), kind
                known.append(token)
    digits = [0] + [one(str(number)) for number in range(1, MOST_DOCUMENTS + 1)]
    for number, token in enumerate(digits[1:], 1):
        classes[token], numbers[token] = NUMBER, number
    pieces = {name: last(text) for name, text in PIECES.items()}
    refusal = tokenizer(f" {NO_ANSWER}", add_special_tokens=False)["input_ids"]
    return Language(
        words=tuple(words.tolist()),
        classes=tuple(classes.tolist()),
        numbers=tuple(numbers.tolist()),
        spaced=tuple(spaced),
        plain=tuple(plain),
        digits=tuple(digits),
        pieces=pieces,
        refusal=tuple(refusal),
    )


@dataclass
class Reading:
    """What a prompt says. Facts are tuples of word numbers (attribute, name, type, value).

    asked: attribute, name and type of the question (0 where it has none); lists: a comma list is wanted; facts, places: facts
    of the documents shown, and the number of each one's document; written: facts of the answer so far; mode: `answer`,
    `output` (one sentence), `check` or `search` (a line of an interactive mode); begun: whether a line of output stands there.
    """

    asked: tuple[int, int, int] = (0, 0, 0)
    lists: bool = False
    facts: list[tuple[int, int, int, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    written: list[tuple[int, int, int, int]] = field(default_factory=list)
    mode: str = "answer"
    begun: bool = False


def read_prompt(ids: Sequence[int], language: Language) -> Reading:
    """Read the token ids of a prompt. Raises InputError for one without a question."""
    pieces, words, classes, numbers = language.pieces, language.words, language.classes, language.numbers
    start = next((place for place in range(len(ids) - 1, -1, -1) if ids[place] == pieces["question"]), None)
    if start is None:
        raise InputError("prompt", "no line `Question:`", "a prompt of reclaim.alce.prompts")
    reading = Reading()
    asked = {ATTRIBUTE: 0, NAME: 0, TYPE: 0}
    size = len(ids)
    end = next((place for place in range(start, size) if ids[place] == pieces["newline"]), size)
    for token in ids[start:end]:
        if classes[token] in asked:
            asked[classes[token]] = words[token]
        reading.lists |= token == pieces["each"]
    reading.asked = (asked[ATTRIBUTE], asked[NAME], asked[TYPE])
    current = {ATTRIBUTE: 0, NAME: 0, TYPE: 0}
    into, number, line = "", 0, -1
    for place in range(end, size):
        token = ids[place]
        if token == pieces["newline"]:
            into, line = "", place
        elif place == line + 1:
            into = {pieces["document"]: "document", pieces["output"]: "output", pieces["answer"]: "answer"}.get(
                token, ""
            )
            number = 0
            reading.begun |= into == "output"
        elif into == "document" and not number and numbers[token]:
            number = numbers[token]
        elif into and classes[token] in current:
            current[classes[token]] = words[token]
        elif into and classes[token] == VALUE:
            fact = (current[ATTRIBUTE], current[NAME], current[TYPE], words[token])
            if into == "document":
                reading.facts.append(fact)
                reading.places.append(number)
            else:
                reading.written.append(fact)
    if line == size - 1:
        # An interactive mode, whose instruction names what may be asked for.
        named = {pieces["check"]: "check", pieces["search"]: "search"}
        modes = [named[token] for token in ids if token in named]
        reading.mode = modes[-1] if modes else "check"
    elif into == "output":
        reading.mode = "output"
    return reading


def config_of(language: Language) -> dict[str, Any]:
    """A language as values that a model's config can hold."""
    return {name: list(value) if isinstance(value, tuple) else dict(value) for name, value in vars(language).items()}


def language_of(values: dict[str, Any]) -> Language:
    """The language that a config holds."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Language(**fields)
