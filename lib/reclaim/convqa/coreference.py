"""Is a question still valid under the reader's own answers, and what did it mean under the person's?

Source: EvalConvQA (Li et al. 2022), section on Auto-Rewrite and the official code: the coreference model reads the last
turns twice, once with the human answers and once with the reader's. A question is invalid when its mentions come to mean
something else. The rewritten question has every mention replaced by what it means under the human answers.

Differences from the official code: where it takes the first element of an unordered set of names, so that a decision
depends on the hash seed, the first name in document order is taken. Two equal texts are valid without a call. Texts of
many questions are resolved together, each distinct one once. `strict_names` leaves articles, punctuation and pronouns
with a capital letter out of account (off: as in the original, where any shared token makes two names match).
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from reclaim.convqa.history import CorefText
from reclaim.convqa.pronouns import DETERMINERS, PRONOUNS
from reclaim.convqa.substitution import Clusters, resolve

QUESTION_MARK = ("<", "Q", ">")


@dataclass(frozen=True)
class Document:
    """A text as the coreference model sees it: tokens, and clusters of inclusive token spans."""

    tokens: tuple[str, ...]
    clusters: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, tokens: Iterable[str], clusters: Clusters) -> Document:
        """Build a document from lists, as JSON has them."""
        return cls(tuple(tokens), tuple(tuple((first, last) for first, last in cluster) for cluster in clusters))


class Resolver(Protocol):
    """A coreference model: any object with this method plugs in.

    The text `str(text)` holds `<Q>` before the question, which becomes the three tokens `<`, `Q`, `>`; the parts of the
    text are there for resolvers that can use them.
    """

    def resolve(self, texts: Sequence[CorefText]) -> list[Document]: ...


class TableResolver:
    """A look-up table, text -> document, for tests and recorded runs; raises KeyError for other texts."""

    def __init__(self, table: dict[str, Document]):
        self.table = table

    def resolve(self, texts: Sequence[CorefText]) -> list[Document]:
        return [self.table[str(text)] for text in texts]


class CachedResolver:
    """A resolver that is asked for each distinct text once. `calls` counts the texts that reached it."""

    def __init__(self, resolver: Resolver):
        self.resolver, self.calls = resolver, 0
        self.known: dict[CorefText, Document] = {}

    def resolve(self, texts: Sequence[CorefText]) -> list[Document]:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.resolver.resolve(new), strict=True))
            self.calls += len(new)
        return [self.known[text] for text in texts]


@dataclass(frozen=True)
class Decision:
    """`scores`: best F1 of each name that the question has under the reader's answers with one under the human's."""

    scores: tuple[float, ...]
    invalid_f1: bool
    invalid_em: bool
    rewritten: str

    def invalid(self, match: str = "f1") -> bool:
        """The decision under `f1` (the default) or `em`, which compares the two resolved questions."""
        return self.invalid_f1 if match == "f1" else self.invalid_em


def decide(gold: Document, predicted: Document, *, skip_entity: bool = True, strict_names: bool = False) -> Decision:
    """Compare a question's mentions in the document of human answers with those in the document of predictions."""
    scores = name_scores(
        names(gold, skip_entity=skip_entity, strict=strict_names),
        names(predicted, skip_entity=skip_entity, strict=strict_names),
        strict=strict_names,
    )
    rewritten = resolved_question(gold)
    return Decision(
        scores,
        any(not score > 0 for score in scores),
        rewritten != resolved_question(predicted),
        rewritten,
    )


def names(document: Document, *, skip_entity: bool, strict: bool = False) -> list[str]:
    """What the mentions of the question stand for, one name a cluster, in the order of the clusters' last spans."""
    start = question_start(document.tokens)
    found = [cluster for cluster in document.clusters if any(first >= start for first, _ in cluster)]
    result = []
    for cluster in sorted(found, key=lambda cluster: cluster[-1][0]):
        mentions = [" ".join(document.tokens[first : last + 1]) for first, last in cluster]
        if skip_entity and _is_entity(mentions[-1]) and not (strict and mentions[-1].lower() in PRONOUNS):
            continue
        result.append(next((text for text in mentions if text.lower() not in PRONOUNS), mentions[0]))
    return result


def name_scores(gold: Sequence[str], predicted: Sequence[str], *, strict: bool = False) -> tuple[float, ...]:
    """For each predicted name the best token F1 with a gold one; zeros where the numbers of names differ."""
    if not gold or not predicted or len(gold) != len(predicted):
        return (0.0,) * max(len(gold), len(predicted))
    return tuple(max(_token_f1(one, other, strict) for other in gold) for one in predicted)


def question_start(tokens: Sequence[str]) -> int:
    """Position after the last `>`; 0 where there is none."""
    return next((place + 1 for place in range(len(tokens) - 1, -1, -1) if tokens[place] == ">"), 0)


def resolved_question(document: Document) -> str:
    """The question with its mentions replaced: what follows the last `< Q >` of the resolved document."""
    text = " ".join(resolve(document.tokens, document.clusters))
    return text.split(" ".join(QUESTION_MARK))[-1].strip()


def _is_entity(mention: str) -> bool:
    """Whether every word but articles and demonstratives begins with an upper-case letter; true for none left."""
    return all(word[:1].isupper() for word in mention.split(" ") if word not in DETERMINERS)


def _token_f1(one: str, other: str, strict: bool) -> float:
    left, right = (_words(text, strict) for text in (one, other))
    overlap = sum((Counter(left) & Counter(right)).values())
    if not overlap:
        return 0.0
    precision, recall = overlap / len(left), overlap / len(right)
    return 2 * precision * recall / (precision + recall)


def _words(text: str, strict: bool) -> list[str]:
    words = text.lower().split()
    return [word for word in words if word not in DETERMINERS and word.strip(string.punctuation)] if strict else words
