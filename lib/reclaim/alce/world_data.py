"""What the world adds to questions and passages: demonstrations for prompts, and passages shortened for a question.

For the embedded runs of Gao et al. 2023 (ALCE). Demonstrations are questions of a world of their own with answers that cite.
Short passages stand for the summaries and snippets that a language model makes (SUMM, SNIPPET): what the passage says about the
question, or `irrelevant`; with probability `miss` a passage that says something is called irrelevant, because such models err.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reclaim.alce.prompts import Item
from reclaim.world.passages import ATTRIBUTE_OF, FactWorld, Passage, draw_questions, draw_world, sentence
from reclaim.world.tables import stream

DEMOS = 4
IRRELEVANT = "irrelevant"


def world_demos(task: str, mode: str, *, ndoc: int = 5, num_names: int = 60, num_types: int = 3) -> list[Item]:
    """Demonstrations of a task in the form of a prompt mode; always the same ones."""
    rng = stream(0, "alce demos", task)
    world = draw_world(rng, num_names, num_types)
    return [_demo(world, item, mode, ndoc, rng) for item in draw_questions(world, task, DEMOS, rng)]


def _demo(world: FactWorld, item: Item, mode: str, ndoc: int, rng: np.random.Generator) -> Item:
    scored = [(len(_answers(item["question"], passage)), number) for number, passage in enumerate(world.passages)]
    right = [number for score, number in scored if score][:ndoc]
    others = [
        number
        for score, number in scored
        if not score and f"{world.passages[number].name}" in item["question"].replace("?", "").split()
    ]
    chosen = [*right, *rng.permutation(others)[: ndoc - len(right)].tolist()]
    passages = [world.passages[number] for number in rng.permutation(chosen).tolist()]
    documents = [document_of(passage) for passage in passages]
    for document in documents:
        document |= {"summary": shorten(item["question"], document), "extraction": shorten(item["question"], document)}
    lines = [
        (number, text) for number, passage in enumerate(passages, 1) for text in _answers(item["question"], passage)
    ]
    lists = "answers" in item
    cited = [f"{text.removesuffix('.')} [{number}]" + ("" if lists else ".") for number, text in lines]
    if mode.startswith("interact"):
        asked = "Check: Document [{}]" if mode == "interact_doc_id" else "Search: {}"
        words = item["question"].removeprefix("What is ").rstrip("?")
        answer: Any = [
            line
            for (number, _), text in zip(lines, cited, strict=True)
            for line in (asked.format(number if mode == "interact_doc_id" else words), f"Output: {text}" + "," * lists)
        ] + ["End"]
    elif mode == "closedbook":
        answer = item["answer"]
    else:
        answer = " " + (", ".join(cited) + "." if lists else " ".join(cited))
    return {"question": item["question"], "docs": documents, "answer": answer}


def document_of(passage: Passage) -> Item:
    """A passage as a document of an item."""
    return {"title": passage.title, "text": passage.text}


def _answers(question: str, passage: Passage) -> list[str]:
    """What a passage answers to a question: sentences, or values for a list."""
    words = question.replace("?", "").replace("(", "").replace(")", "").split()
    if passage.name not in words or ("know" in words and passage.type not in words):
        return []
    asked = [ATTRIBUTE_OF[word] for word in words if word in ATTRIBUTE_OF]
    facts = [(word, value) for number, word, value in passage.facts if not asked or number in asked]
    if "each" in words:
        return [value for _, value in facts]
    return [sentence(word, passage.name, passage.type, value) for word, value in facts]


def shorten(question: str, document: Mapping[str, Any]) -> str:
    """The sentences of a document that answer a question, on their own, or `irrelevant`."""
    name, _, kind = document["title"].partition(" (")
    parts = [text.split() for text in document["text"].rstrip(".").split(". ")]
    facts = tuple((ATTRIBUTE_OF[part[1]], part[1], part[3]) for part in parts)
    found = _answers(question.replace("each", "the"), Passage(name, kind.rstrip(")"), facts))
    return " ".join(found) or IRRELEVANT


def add_short_texts(items: Sequence[Item], depth: int, miss: float, rng: np.random.Generator) -> list[Item]:
    """Copies of the items whose first `depth` documents have `summary` and `extraction`."""
    shortened = []
    for item in items:
        documents = [dict(document) for document in item["docs"]]
        for document in documents[:depth]:
            for key in ("summary", "extraction"):
                text = shorten(item["question"], document)
                document[key] = IRRELEVANT if rng.random() < miss else text
        shortened.append({**item, "docs": documents})
    return shortened
