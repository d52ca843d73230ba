"""Correctness and length of long answers: short answers found in them, extractive QA, lists, claims, ROUGE-L.

Source: Gao et al. 2023 (ALCE), section 3.2, and the official `eval.py`. All take answers without citations and give
fractions (the papers print them times 100).

- STR-EM (ASQA): share of the disambiguated questions of which an alias is a substring of the answer, both normalised.
  "art" is thus found in "party"; an alias that normalises to nothing is found everywhere in `legacy`, nowhere in `strict`.
- QA-EM, QA-F1 (ASQA): a reader answers each disambiguated question from the answer alone.
- QAMPARI: a comma list against groups of aliases; recall-5 counts at most five.
- Claim recall (ELI5): share of the claims that the answer entails; the judge is in `reclaim.alce.judge`.
- ROUGE-Lsum: the better of two references. The official value is the median of 1,000 bootstrap means, unseeded there;
  here the resamples have a seed (that of numpy's legacy generator, which the original would draw from). `strict` reports
  the plain mean.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from reclaim.errors import InputError
from reclaim.metrics.citations import list_entries
from reclaim.metrics.qa import exact_match, normalize_answer, token_f1

BOOTSTRAP = 1000


def contains_answer(aliases: Sequence[str], text: str, mode: str = "legacy") -> bool:
    """Whether an alias is a substring of the text, both normalised."""
    text = normalize_answer(text)
    found = (normalize_answer(alias) for alias in aliases)
    return any(alias in text for alias in found if alias or mode == "legacy")


def short_answers_found(groups: Sequence[Sequence[str]], text: str, mode: str = "legacy") -> list[bool]:
    """For each group of aliases whether the text contains one; its mean is STR-EM, its minimum STR-HIT."""
    return [contains_answer(aliases, text, mode) for aliases in groups]


def squad2_f1(prediction: str, gold: str) -> float:
    """Token F1 as SQuAD 2.0 has it: 1 where both normalise to nothing, 0 where one does."""
    empty = [not normalize_answer(text) for text in (prediction, gold)]
    return float(all(empty)) if any(empty) else token_f1(prediction, gold)


def reader_scores(predictions: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """`qa_em`, `qa_f1` (means over the questions of an item of the best alias) and `qa_hit` (all EM) of one item."""
    pairs = list(zip(predictions, groups, strict=True))
    exact = [exact_match(prediction, aliases) for prediction, aliases in pairs]
    f1 = [max(squad2_f1(prediction, alias) for alias in aliases) for prediction, aliases in pairs]
    return {"qa_em": float(np.mean(exact)), "qa_f1": float(np.mean(f1)), "qa_hit": float(min(exact))}


def list_scores(output: str, groups: Sequence[Sequence[str]], cot: bool = False) -> dict[str, float]:
    """QAMPARI's scores of one comma list: num_preds (count), precision, recall, recall-5, F1 and F1-5.

    `cot`: the list is what follows the first colon, nothing where there is none. Raises InputError without gold answers.
    """
    if not groups:
        raise InputError("answers", "no gold answer", "at least one group of aliases")
    if cot:
        output = output.partition(":")[2]
    entries = [entry for entry in map(normalize_answer, list_entries(output)) if entry]
    wanted = [[normalize_answer(alias) for alias in group] for group in groups]
    known = {alias for group in wanted for alias in group}
    precision = sum(entry in known for entry in entries) / len(entries) if entries else 0.0
    hits = sum(any(alias in entries for alias in group) for group in wanted)
    recall, recall_5 = hits / len(wanted), min(5, hits) / min(5, len(wanted))
    return {
        "num_preds": float(len(entries)),
        "qampari_precision": precision,
        "qampari_recall": recall,
        "qampari_recall_5": recall_5,
        "qampari_f1": _harmonic(precision, recall),
        "qampari_f1_5": _harmonic(precision, recall_5),
    }


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def word_count(text: str) -> int:
    """Length of an answer: its words between blanks."""
    return len(text.split())


def rouge_lsum(output: str, references: Sequence[str], split: Callable[[str], list[str]]) -> float:
    """ROUGE-Lsum F of an answer against the best reference: lower case, Porter stems, one sentence a line."""
    scorer = _rouge_scorer()
    hypothesis = "\n".join(split(output.lower()))
    found = (scorer.score("\n".join(split(text.lower())), hypothesis)["rougeLsum"].fmeasure for text in references)
    return max(found)


@cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeLsum"], use_stemmer=True)


def bootstrap_median(values: Sequence[float], seed: int = 0) -> float:
    """The median of BOOTSTRAP means of resamples, as the official ROUGE is reported."""
    sample = np.asarray(values, dtype=float)
    rng = np.random.RandomState(seed)
    means = [sample[rng.choice(np.arange(len(sample)), size=len(sample))].mean() for _ in range(BOOTSTRAP)]
    return float(np.percentile(means, 50))


def fluency_text(question: str, text: str) -> str:
    """The text that MAUVE sees: question and answer, their first 100 words, without trailing ASCII punctuation."""
    return " ".join(f"{question} {text.strip()}".split()[:100]).rstrip(string.punctuation)
