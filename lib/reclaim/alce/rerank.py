"""Reranking: of several answers to a question keep the one whose citations support it best.

Source: Gao et al. 2023 (ALCE), section 4 (RERANK): the best automatic citation recall wins. `by_recall` is that, the first
answer where several are best. The official `tools/rerank_outputs.py` (`by_official_score`) asks something else: whether ALL
documents of the item, and not those cited, entail a statement that has citations, and it gives "" where nothing scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reclaim.alce.prompts import Item
from reclaim.errors import InputError
from reclaim.metrics.citations import (
    AskJudge,
    Pair,
    citation_numbers,
    premise,
    remove_citations,
    score_citations,
)

OFFICIAL_SCORES = ("prob", "discrete")


def by_recall(
    items: Sequence[Item],
    candidates: Sequence[Sequence[str]],
    judge: AskJudge,
    split: Callable[[str], list[str]],
    *,
    lists: bool = False,
    mode: str = "legacy",
) -> tuple[list[int], list[list[float]]]:
    """For each item the number of the chosen candidate, and the citation recall of all of them (0 where there is none).

    All candidates of all items are judged in one call, as they are: whoever scores first lines only passes these.
    """
    flat = [{**item, "output": output} for item, outputs in zip(items, candidates, strict=True) for output in outputs]
    answers = iter(score_citations(flat, judge, split, lists=lists, mode=mode))
    recalls = [[next(answers).recall or 0.0 for _ in outputs] for outputs in candidates]
    return [max(range(len(values)), key=lambda place: values[place]) for values in recalls], recalls


def by_official_score(
    items: Sequence[Item],
    candidates: Sequence[Sequence[str]],
    probabilities: Callable[[Sequence[Pair]], Sequence[float]],
    split: Callable[[str], list[str]],
    *,
    score: str = "prob",
    lists: bool = False,
) -> list[str]:
    """The official script's choice for each item. `score`: `prob` sums probabilities, `discrete` those of at least 0.5."""
    if score not in OFFICIAL_SCORES:
        raise InputError("rerank score", repr(score), f"one of {', '.join(OFFICIAL_SCORES)}")
    pairs: list[Pair] = []
    counts: list[list[tuple[int, int]]] = []
    for item, outputs in zip(items, candidates, strict=True):
        joint = premise(item["docs"], range(len(item["docs"])))
        counts.append([])
        for output in outputs:
            statements = _statements(output, item["question"], split, lists)
            asked = [text for text in statements if _cites_documents(text, len(item["docs"]))]
            pairs += [(joint, remove_citations(text).strip()) for text in asked]
            counts[-1].append((len(asked), len(statements)))
    found = iter(probabilities(pairs))
    chosen = []
    for outputs, sizes in zip(candidates, counts, strict=True):
        best, answer = 0.0, ""
        for output, (num_asked, num_statements) in zip(outputs, sizes, strict=True):
            values = [next(found) for _ in range(num_asked)]
            if score == "discrete":
                values = [float(value > 0.5) for value in values]
            if num_statements and sum(values) / num_statements > best:
                best, answer = sum(values) / num_statements, output
        chosen.append(answer)
    return chosen


def _statements(output: str, question: str, split: Callable[[str], list[str]], lists: bool) -> list[str]:
    if not lists:
        return split(output)
    return [f"{question} {entry.strip()}" for entry in output.rstrip().rstrip(".").split(",")]


def _cites_documents(statement: str, documents: int) -> bool:
    numbers = citation_numbers(statement)
    return bool(numbers) and all(number < documents for number in numbers)
