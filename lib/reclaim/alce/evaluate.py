"""Evaluate answers with citations: correctness by data set, citation quality by a judge, fluency, length.

Source: Gao et al. 2023 (ALCE), section 3, and the official `eval.py`. An item has the official fields (`question`, `answer`,
and `qa_pairs` and `annotations` for ASQA, `answers` for QAMPARI, `claims` for ELI5), the `output` that was generated, and the
`docs` that it may cite (`title`, `text`). Of an output the first line counts.

`legacy` gives the numbers of the official script; `strict` mends its quirks (see `reclaim.metrics.citations` and
`long_answers`; and items without gold answers or claims are left out, where the original stops with an error). A run reports
both: with a judge that remembers its answers (`reclaim.alce.judge`) the second costs hardly more. All values are fractions,
those of the papers are times 100: `official_scores` gives them under the official names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reclaim.errors import InputError
from reclaim.metrics import citations
from reclaim.metrics.citations import AskJudge, CitedAnswer
from reclaim.metrics.long_answers import (
    bootstrap_median,
    fluency_text,
    list_scores,
    reader_scores,
    rouge_lsum,
    short_answers_found,
    word_count,
)
from reclaim.metrics.mauve import Encoder, mauve
from reclaim.metrics.sentences import Splitter, sentence_splitter

DATASETS = {"asqa": "qa_pairs", "qampari": "answers", "eli5": "claims"}
"""Data set -> the field of its gold answers."""

MEASURES = ("correctness", "qa", "claims", "citations", "rouge", "mauve")
OFFICIAL = {
    "length": "length",
    "num_preds": "num_preds",
    "str_em": "str_em",
    "str_hit": "str_hit",
    "rouge_lsum": "rougeLsum",
    "qa_em": "QA-EM",
    "qa_f1": "QA-F1",
    "qa_hit": "QA-Hit",
    "mauve": "mauve",
    "citation_recall": "citation_rec",
    "citation_precision": "citation_prec",
    "claim_recall": "claims_nli",
    "qampari_precision": "qampari_prec",
    "qampari_recall": "qampari_rec",
    "qampari_recall_5": "qampari_rec_top5",
    "qampari_f1": "qampari_f1",
    "qampari_f1_5": "qampari_f1_top5",
}
"""Metric -> its name in the official score file."""

UNITS = {"length": "words", "num_preds": "count"}

Reader = Callable[[Sequence[str], Sequence[str]], Sequence[str]]
"""Questions and their contexts -> answers (extractive QA, see `reclaim.alce.reader`)."""


@dataclass
class Evaluation:
    """What `evaluate` found.

    rows: one mapping a metric (`metric`, `value`, `n` items that it is the mean of, `unit`), counts too; items: for each item
    its value of each metric that it has one of; answers: for each item its judged statements (empty without citations);
    dataset, mode, splitter: what it was evaluated as.
    """

    rows: list[dict[str, Any]]
    items: list[dict[str, float]]
    answers: list[CitedAnswer] = field(default_factory=list)
    dataset: str = ""
    mode: str = "legacy"
    splitter: str = ""

    def value(self, metric: str) -> float:
        """The value of one metric; raises KeyError where it was not measured."""
        return next(row["value"] for row in self.rows if row["metric"] == metric)


def dataset_of(item: Mapping[str, Any]) -> str:
    """The data set whose gold field an item has; raises InputError where it has none or several."""
    found = [name for name, key in DATASETS.items() if key in item]
    if len(found) != 1:
        keys = ", ".join(DATASETS.values())
        raise InputError("item", f"fields {sorted(item)}", f"exactly one of {keys}", "Or name the data set.")
    return found[0]


def evaluate(
    items: Sequence[Mapping[str, Any]],
    judge: AskJudge | None,
    mode: str = "legacy",
    *,
    dataset: str | None = None,
    measures: Sequence[str] = MEASURES,
    reader: Reader | None = None,
    encode: Encoder | None = None,
    split: Splitter | None = None,
    at_most_citations: int | None = 3,
    cot: bool = False,
    seed: int = 0,
) -> Evaluation:
    """Evaluate the outputs of `items`, in one mode.

    Length is always measured; of `measures` those that the data set has and whose means are given: claims and citations need
    the `judge` (pairs -> verdicts), qa a `reader`, mauve an encoder. `dataset` is seen from the first item unless named.
    `split`: sentence splitter, the trained Punkt if it is there by default. `cot`: a list starts after the first colon.
    `seed`: of the bootstrap of ROUGE and the clusters of MAUVE.

    Raises InputError for no items, unknown names, and in `legacy` for items that stop the official script (no gold answers,
    no claims, citations without documents).
    """
    citations.check_mode(mode)
    if not items:
        raise InputError("items", "none", "at least one answer")
    dataset = dataset or dataset_of(items[0])
    for name, value, known in (("dataset", [dataset], DATASETS), ("measures", measures, MEASURES)):
        if unknown := [each for each in value if each not in known]:
            raise InputError(name, repr(unknown[0]), f"one of {', '.join(known)}")
    split = split or sentence_splitter()
    for number, item in enumerate(items):
        _check(item, number, judge is not None and "citations" in measures)
    cleaned = [
        {**item, "output": citations.first_line(item["output"]), "docs": item.get("docs") or []} for item in items
    ]
    plain = [citations.remove_citations(item["output"], mode) for item in cleaned]

    scores: list[dict[str, float]] = [{"length": float(word_count(text))} for text in plain]
    if "correctness" in measures and dataset == "asqa":
        _add(scores, _short_answers(cleaned, plain, mode))
    if "correctness" in measures and dataset == "qampari":
        _add(scores, _lists(cleaned, plain, mode, cot))
    if "qa" in measures and dataset == "asqa" and reader is not None:
        _add(scores, _read_answers(cleaned, plain, reader))
    if "rouge" in measures and dataset != "qampari":
        found = [rouge_lsum(text, _references(item), split) for item, text in zip(cleaned, plain, strict=True)]
        _add(scores, [{"rouge_lsum": value} for value in found])
    if "claims" in measures and dataset == "eli5" and judge is not None:
        _add(scores, _claims(cleaned, plain, judge, mode))
    answers: list[CitedAnswer] = []
    if "citations" in measures and judge is not None:
        lists = dataset == "qampari"
        answers = citations.score_citations(
            cleaned, judge, split, mode=mode, lists=lists, at_most_citations=at_most_citations
        )
        _add(scores, [_of_citations(answer) for answer in answers])
    rows = _rows(scores, mode, seed)
    if answers:
        rows += _citation_rows(answers, plain)
    if "mauve" in measures and encode is not None:
        outputs = [fluency_text(item["question"], text) for item, text in zip(cleaned, plain, strict=True)]
        references = [fluency_text(item["question"], item["answer"]) for item in cleaned]
        likeness = mauve(outputs, references, encode, seed)
        rows.append({"metric": "mauve", "value": likeness, "n": len(items), "unit": "fraction"})
    return Evaluation(rows, scores, answers, dataset, mode, split.name)


def official_scores(evaluation: Evaluation) -> dict[str, float]:
    """Scores under the names of the official score file: percentages, lengths and counts as they are.

    `str_em` and `str_hit` are 0 where there are no short answers, as there; what was not measured, or is a mean of nothing
    (NaN there), is missing.
    """
    found = {row["metric"]: row["value"] for row in evaluation.rows}
    scores = {"str_em": 0.0, "str_hit": 0.0}
    return scores | {
        OFFICIAL[name]: value if name in UNITS else 100 * value for name, value in found.items() if name in OFFICIAL
    }


def _check(item: Mapping[str, Any], number: int, cited: bool) -> None:
    """Raise InputError for an item without the texts that every measure needs, or whose passages cannot be read."""
    for key in ("question", "output"):
        if not isinstance(item.get(key), str):
            remedy = "Choose one of several samples first." if isinstance(item.get(key), list) else ""
            raise InputError(f"item {number}: {key}", f"a {type(item.get(key)).__name__}", "a text", remedy)
    for place, document in enumerate(item.get("docs") or [] if cited else []):
        if "title" not in document or not {"text", "sent"} & set(document):
            raise InputError(f"item {number}: docs[{place}]", f"fields {sorted(document)}", "title and text")


# ---------------------------------------------------------------------------------------------------- one family at a time


def _add(scores: list[dict[str, float]], found: Sequence[Mapping[str, float]]) -> None:
    for values, more in zip(scores, found, strict=True):
        values.update(more)


def _short_answers(items: Sequence[Mapping], plain: Sequence[str], mode: str) -> list[dict[str, float]]:
    if mode == "legacy" and not items[0].get("qa_pairs"):
        return [{} for _ in items]  # The original looks at the first item only.
    found = []
    for item, text in zip(items, plain, strict=True):
        pairs = item.get("qa_pairs") or _missing(item, "qa_pairs", mode)
        hits = short_answers_found([pair["short_answers"] for pair in pairs], text, mode)
        found.append({"str_em": float(np.mean(hits)), "str_hit": float(all(hits))} if hits else {})
    return found


def _lists(items: Sequence[Mapping], plain: Sequence[str], mode: str, cot: bool) -> list[dict[str, float]]:
    found = []
    for item, text in zip(items, plain, strict=True):
        groups = item.get("answers") or _missing(item, "answers", mode)
        found.append(list_scores(text, groups, cot) if groups else {})
    return found


def _read_answers(items: Sequence[Mapping], plain: Sequence[str], reader: Reader) -> list[dict[str, float]]:
    """All disambiguated questions of all items go to the reader in one call."""
    pairs = [item.get("qa_pairs") or [] for item in items]
    contexts = [text or " " for text, asked in zip(plain, pairs, strict=True) for _ in asked]
    predictions = iter(reader([pair["question"] for asked in pairs for pair in asked], contexts))
    groups = [[pair["short_answers"] for pair in asked] for asked in pairs]
    return [reader_scores([next(predictions) for _ in asked], asked) if asked else {} for asked in groups]


def _claims(items: Sequence[Mapping], plain: Sequence[str], judge: AskJudge, mode: str) -> list[dict[str, float]]:
    claims = [item.get("claims") or _missing(item, "claims", mode) for item in items]
    pairs = [(text, claim) for text, asked in zip(plain, claims, strict=True) for claim in asked]
    verdicts = iter(judge(pairs))
    return [{"claim_recall": float(np.mean([next(verdicts) for _ in asked]))} if asked else {} for asked in claims]


def _missing(item: Mapping, key: str, mode: str) -> list:
    """Nothing in `strict`, where the item is then left out; an error in `legacy`."""
    if mode == "strict":
        return []
    raise InputError(f"{key} of {item['question']!r}", "nothing", "at least one", "The strict mode leaves it out.")


def _references(item: Mapping[str, Any]) -> list[str]:
    notes = item.get("annotations")
    if not notes and "answer" not in item:
        raise InputError(f"item {item['question']!r}", "no answer", "a reference, or measures without rouge and mauve")
    return [note["long_answer"] for note in notes] if notes else [item["answer"]]


def _of_citations(answer: CitedAnswer) -> dict[str, float]:
    if answer.recall is None or answer.precision is None:
        return {}
    return {"citation_recall": answer.recall, "citation_precision": answer.precision}


# ------------------------------------------------------------------------------------------------------------------- rows


def _rows(scores: Sequence[Mapping[str, float]], mode: str, seed: int) -> list[dict[str, Any]]:
    rows = []
    for metric in dict.fromkeys(name for values in scores for name in values):
        values = [each[metric] for each in scores if metric in each]
        official_rouge = metric == "rouge_lsum" and mode == "legacy"
        value = bootstrap_median(values, seed) if official_rouge else float(np.mean(values))
        rows.append({"metric": metric, "value": value, "n": len(values), "unit": UNITS.get(metric, "fraction")})
    return rows


def _citation_rows(answers: Sequence[CitedAnswer], plain: Sequence[str]) -> list[dict[str, Any]]:
    statements = sum(len(answer.statements) for answer in answers)
    shares = citations.multiple_citations(answers)
    rows = [{"metric": name, "value": value, "n": statements, "unit": "fraction"} for name, value in shares.items()]
    counted = citations.counts(answers) | {"blank": sum(not text.strip() for text in plain)}
    return rows + [
        {"metric": f"num_{name}", "value": float(value), "n": len(answers), "unit": "count"}
        for name, value in counted.items()
    ]
