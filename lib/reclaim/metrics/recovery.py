"""How much of private text an attack recovered (Gupta et al. 2022, section 5; the official `eval_utils.py`).

ROUGE-1/2/L with stemming as `rouge_score` counts it, named entities, exact match, edit distance, bags of ids, coverage.
Scores are matrices reference x candidate; the number reported is the best pair of a batch, ties to the first in row-major
order. Candidates are cut behind their first sentence-final mark before, references are not.

`rouge_score` scores one pair at a time; here the longest common subsequences of all pairs are found together. The golden
test compares the two through the official files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

import numpy as np

ROUGE = ("rouge_1", "rouge_2", "rouge_L")
STATISTICS = ("fmeasure", "precision", "recall")
SENTENCE_END = re.compile(r"""( *[.?!]['")\]]* *)""")


def cut(text: str) -> str:
    """The text up to and including its first sentence-final mark and closing quotes; "3.5" is cut behind "3."."""
    return "".join(SENTENCE_END.split(text)[:2])


def best(matrix: np.ndarray) -> tuple[tuple[int, int], float]:
    """Place and value of the largest of the scores (references, candidates), the first in row-major order."""
    place = np.unravel_index(int(np.argmax(matrix)), matrix.shape)
    return (int(place[0]), int(place[1])), float(matrix[place])


# ------------------------------------------------------------------------------------------------------------------ ROUGE


@lru_cache(maxsize=100_000)
def rouge_tokens(text: str) -> tuple[str, ...]:
    """Lower-case runs of letters and digits, those longer than three letters reduced to their Porter stem."""
    return tuple(_stem(word) for word in re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return _stemmer().stem(word) if len(word) > 3 else word


@lru_cache(maxsize=1)
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def rouge(references: Sequence[str], candidates: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """`rouge_1`, `rouge_2`, `rouge_L` -> `fmeasure`, `precision`, `recall` -> float64 (references, candidates)."""
    sides = [[rouge_tokens(text) for text in texts] for texts in (references, candidates)]
    scores = {}
    for n in (1, 2):
        grams = [[Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in side] for side in sides]
        common = np.array([[sum((a & b).values()) for b in grams[1]] for a in grams[0]], dtype=float)
        totals = [np.array([sum(counts.values()) for counts in side], dtype=float) for side in grams]
        scores[f"rouge_{n}"] = _statistics(common.reshape(len(references), len(candidates)), *totals)
    lengths = [np.array([len(words) for words in side], dtype=float) for side in sides]
    scores["rouge_L"] = _statistics(_common_subsequences(*sides), *lengths)
    return scores


def rouge_l(references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
    """F measure of ROUGE-L alone, float64 (references, candidates)."""
    sides = [[rouge_tokens(text) for text in texts] for texts in (references, candidates)]
    lengths = [np.array([len(words) for words in side], dtype=float) for side in sides]
    return _statistics(_common_subsequences(*sides), *lengths)["fmeasure"]


def _statistics(common: np.ndarray, in_references: np.ndarray, in_candidates: np.ndarray) -> dict[str, np.ndarray]:
    """Precision and recall are 0 where there is nothing to divide by, and so is F where both are 0."""
    recall = common / np.maximum(in_references, 1)[:, None]
    precision = common / np.maximum(in_candidates, 1)[None, :]
    total = precision + recall
    fmeasure = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return {"fmeasure": fmeasure, "precision": precision, "recall": recall}


def _common_subsequences(references: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]) -> np.ndarray:
    """Length of the longest common subsequence of every pair, float64 (references, candidates)."""
    numbers: dict[str, int] = {}
    left, right = (_padded(side, numbers, filler) for side, filler in ((references, -1), (candidates, -2)))
    row = np.zeros((len(left), len(right), right.shape[1] + 1), dtype=np.int32)
    for i in range(left.shape[1]):
        same = left[:, i][:, None, None] == right[None]
        before = row
        row = np.zeros_like(before)
        for j in range(right.shape[1]):
            # A filler equals nothing, so that what lies behind a text's end passes the lengths on.
            row[..., j + 1] = np.where(same[..., j], before[..., j] + 1, np.maximum(before[..., j + 1], row[..., j]))
    return row[..., -1].astype(float)


def _padded(side: Sequence[Sequence[str]], numbers: dict[str, int], filler: int) -> np.ndarray:
    longest = max((len(words) for words in side), default=0)
    table = np.full((len(side), longest), filler, dtype=np.int64)
    for row, words in enumerate(side):
        table[row, : len(words)] = [numbers.setdefault(word, len(numbers)) for word in words]
    return table


# --------------------------------------------------------------------------------------------------------- named entities


class EntityRuler:
    """Finds given names in texts: whole words, case-sensitive, the longest where several begin at one place."""

    def __init__(self, names: Iterable[str]):
        ordered = sorted(set(names), key=lambda name: (-len(name), name))
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, ordered))})(?!\w)") if ordered else None

    def __call__(self, text: str) -> list[str]:
        return self._pattern.findall(text) if self._pattern else []


def spacy_entities(model: str):
    """The tagger of the official evaluation (`en_core_web_sm`) as a function of a text; needs spaCy and its model."""
    import spacy

    pipeline = spacy.load(model)
    return lambda text: [entity.text for entity in pipeline(text).ents]


def entity_f1(reference: Collection[str], candidate: Collection[str]) -> float:
    """F1 of two sets of names; 0 where either is empty, also where both are."""
    reference, candidate = set(reference), set(candidate)
    common = len(reference & candidate)
    return 2 * common / (len(reference) + len(candidate)) if common else 0.0


def entity_matrix(references: Sequence[Collection[str]], candidates: Sequence[Collection[str]]) -> np.ndarray:
    """F1 of the names of every pair, float64 (references, candidates)."""
    return np.array([[entity_f1(a, b) for b in candidates] for a in references]).reshape(
        len(references), len(candidates)
    )


# ------------------------------------------------------------------------------------------------- bags, exactness, cover


def bag_scores(truth: Iterable[int], found: Iterable[int]) -> dict[str, float]:
    """Precision, recall and F1 of a bag as a set of ids; an empty bag has precision 0."""
    truth, found = set(truth), set(found)
    common = len(truth & found)
    precision = common / len(found) if found else 0.0
    recall = common / len(truth) if truth else 0.0
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    return {"bag_precision": precision, "bag_recall": recall, "bag_f1": f1}


def exact_matches(references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
    """Whether texts are equal but for outer spaces, bool (references, candidates)."""
    left, right = ([text.strip() for text in texts] for texts in (references, candidates))
    return np.array([[a == b for b in right] for a in left], dtype=bool).reshape(len(left), len(right))


def edit_distance(reference: Sequence, candidate: Sequence) -> float:
    """Levenshtein distance of two sequences of tokens divided by the longer length; 0 for two empty ones."""
    row = list(range(len(candidate) + 1))
    for i, a in enumerate(reference, 1):
        before, row = row, [i]
        for j, b in enumerate(candidate, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    return row[-1] / max(len(reference), len(candidate), 1)


def coverage(rouge_l_matrix: np.ndarray, threshold: float = 0.6) -> float:
    """Share of the references whose best ROUGE-L (references, candidates) over all candidates reaches the threshold."""
    if not rouge_l_matrix.size:
        return 0.0
    return float((rouge_l_matrix.max(axis=1) >= threshold).mean())
