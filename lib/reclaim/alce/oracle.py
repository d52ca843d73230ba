"""Which answers a set of passages has (recall@k), and the oracle's five passages.

Source: Gao et al. 2023 (ALCE), section 2 and the oracle of section 5; there is no official code. Recall@k bounds what an answer
from the first k passages can reach: the share of the short answers (ASQA), of the answers with a cap (QAMPARI, recall-5), or
of the claims (ELI5) that a passage has. The oracle takes the best passages of the hundred by their own recall, then replaces
the passage whose replacement by another gains most, as long as something is gained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reclaim.errors import InputError
from reclaim.metrics.citations import AskJudge, document_text
from reclaim.metrics.qa import normalize_answer

RECALL_CAP = {"qampari": 5}


def recall(found: np.ndarray, k: int | None = None, cap: int | None = None) -> float:
    """Share of the answers that the first `k` passages have; with `cap`, min(cap, hits) / min(cap, answers).

    `found` (passages, answers): whether a passage has an answer. NaN without answers.
    """
    found = np.asarray(found, dtype=bool)
    total = found.shape[1]
    if not total:
        return float("nan")
    hits = int(found[:k].any(axis=0).sum()) if len(found) else 0
    return hits / total if cap is None else min(cap, hits) / min(cap, total)


def oracle_passages(found: np.ndarray, size: int = 5, cap: int | None = None) -> list[int]:
    """The numbers of the oracle's passages, those first that were best alone.

    Ties go to the passage ranked higher.
    """
    found = np.asarray(found, dtype=bool)
    alone = [recall(found[[number]], cap=cap) for number in range(len(found))]
    chosen = sorted(range(len(found)), key=lambda number: (-alone[number], number))[:size]
    while True:
        current = recall(found[chosen], cap=cap)
        best, swap = current, None
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            for other in range(len(found)):
                if other not in chosen and recall(found[[*rest, other]], cap=cap) > best:
                    best, swap = recall(found[[*rest, other]], cap=cap), (place, other)
        if swap is None:
            return chosen
        chosen[swap[0]] = swap[1]


def answers_found(
    item: Mapping[str, Any], documents: Sequence[Mapping[str, Any]], judge: AskJudge | None
) -> np.ndarray:
    """Which documents have which gold answers of an item: bool (documents, answers).

    Short answers are searched for in the normalised title and text; claims are put to the `judge`.
    """
    if "claims" in item:
        if judge is None:
            raise InputError("answers_found(judge=...)", "None", "a judge, for an item with claims")
        return claims_found([item], [documents], judge)[0]
    aliases = [pair["short_answers"] for pair in item["qa_pairs"]] if "qa_pairs" in item else item["answers"]
    texts = [normalize_answer(f"{document['title']} {document['text']}") for document in documents]
    groups = [[normalize_answer(alias) for alias in group] for group in aliases]
    found = [[any(alias in text for alias in group) for group in groups] for text in texts]
    return np.array(found, dtype=bool).reshape(len(documents), len(groups))


def claims_found(
    items: Sequence[Mapping[str, Any]], documents: Sequence[Sequence[Mapping[str, Any]]], judge: AskJudge
) -> list[np.ndarray]:
    """The same for the claims of several items, in one call of the judge."""
    pairs = [
        (document_text(document), claim)
        for item, docs in zip(items, documents, strict=True)
        for document in docs
        for claim in item["claims"]
    ]
    verdicts = iter(judge(pairs))
    return [
        np.array([[next(verdicts) for _ in item["claims"]] for _ in docs], dtype=bool).reshape(len(docs), -1)
        for item, docs in zip(items, documents, strict=True)
    ]
