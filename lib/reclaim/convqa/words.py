"""Words of passages and questions with their places, and the classes into which a small reader puts them.

For the embedded runs of EvalConvQA (Li et al. 2022). Names, years and numbers are collapsed into one class each, so that a
reader has to find a name by where it occurred before, and cannot know it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

SPECIAL = ("[PAD]", "[UNK]", "[NAME]", "[YEAR]", "[NUMBER]", "[NONE]")
PAD, UNK, NAME, YEAR, NUMBER, NONE = range(len(SPECIAL))
"""Classes that are no word; `[NONE]` is CANNOTANSWER."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:-\w+)*(?:'(?!s\b)\w+)?|'s\b|[^\w\s]")


@lru_cache(maxsize=65536)
def find_words(text: str) -> tuple[tuple[str, int, int], ...]:
    """Words, numbers and signs of a text with their first character and the one after their last."""
    return tuple((match[0], match.start(), match.end()) for match in _WORD.finditer(text))


def make_vocabulary(texts: Iterable[str], least: int = 5) -> list[str]:
    """Lower-cased words that occur at least `least` times, most frequent first, after the special classes.

    A word counts only where it is written in lower case or begins a text or sentence: names stay outside.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        begins = True
        for word, _, _ in find_words(text):
            if begins or not word[0].isupper():
                counts[word.lower()] += 1
            begins = word in ".?!"
    lower = Counter(word for text in texts for word, _, _ in find_words(text) if word[0].islower())
    # A capitalised word that never stands in lower case is a name, but for the question words.
    kept = [word for word, count in counts.most_common() if count >= least and not word[0].isdigit()]
    questions = {"what", "which", "when", "where", "who", "how", "why", "did", "was", "is", "does", "do"}
    return [*SPECIAL, *(word for word in kept if lower[word] or word in questions or not word[0].isalpha())]


class WordClasses:
    """The class of a word under a vocabulary."""

    def __init__(self, vocabulary: Sequence[str]):
        self.index = {word: place for place, word in enumerate(vocabulary)}

    def __call__(self, word: str) -> int:
        if word == "CANNOTANSWER":
            return NONE
        known = self.index.get(word.lower())
        if known is not None:
            return known
        if word[0].isdigit():
            return YEAR if len(word) == 4 and word.isdigit() else NUMBER
        return NAME if word[0].isupper() else UNK
