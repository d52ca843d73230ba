"""Passages for questions: from indexes, from an encoder of the job, as they come with the items, or the oracle's.

Source: Gao et al. 2023 (ALCE), section 3 and 4: the best 100 passages of each retriever, of which a prompt shows some; the
oracle chooses among the 100 of another retriever by the gold answers (`reclaim.alce.oracle`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reclaim.alce.oracle import RECALL_CAP, answers_found, claims_found, oracle_passages, recall
from reclaim.alce.prompts import Item
from reclaim.data import iter_split, load_info
from reclaim.encoders import index_encoder
from reclaim.errors import InputError
from reclaim.metrics.citations import AskJudge
from reclaim.metrics.retrieval import ndcg_at_k
from reclaim.retrieval import build_index, open_index

DEPTH = 100
CUTS = (1, 3, 5, 20, 100)
SOURCES = ("index", "encoder", "docs", "oracle")
Documents = list[list[Item]]
"""Of each item its passages, best first."""


def retrieve(
    spec: Mapping[str, Any],
    items: Sequence[Item],
    *,
    data: Mapping[str, Path],
    passages: str | None,
    world: int,
    encode,
    judge: AskJudge,
    device,
    state_dir: Path,
    progress,
) -> dict[str, Documents]:
    """The documents of each retriever of `spec` (name -> `source` and its settings), at most 100 for an item.

    Sources: `index` (`index`: a name in `data`, `model` for a dense one), `encoder` (a dense index made here with the job's
    encoder `encode` over the data set `passages`), `docs` (as the items have them), `oracle` (`of` another retriever, `size`).
    Where passages have worlds, those of `world` are searched. The oracle of claims asks the `judge`.
    """
    queries = {item["id"]: item["question"] for item in items}
    allowed = None if passages is None else passage_ids(data[passages], world)
    found: dict[str, Documents] = {}
    for name, entry in spec.items():
        source = entry["source"]
        if source == "docs":
            found[name] = [[dict(document) for document in item.get("docs", [])[:DEPTH]] for item in items]
            if not all(found[name]):
                raise InputError(f"retriever {name}", "items without docs", "items that come with passages")
        elif source == "oracle":
            size = entry.get("size", 5)
            found[name] = oracle(items, found[entry["of"]], judge, size)
        elif passages is None:
            raise InputError(f"retriever {name}", f"source {source!r} without `passages`", "a data set of passages")
        else:
            if source == "index":
                folder = data[entry["index"]]
                encoder = index_encoder(entry, data[entry["model"]], device) if "model" in entry else None
            else:
                folder, encoder = state_dir / f"index-{name}", encode
                if not folder.exists():
                    options = {"state_dir": state_dir / f"index-{name}.state", "encode": encode, "progress": progress}
                    build_index(data[passages], {"backend": "dense"}, folder, **options)
            table = open_index(folder, encoder).search(queries, DEPTH, allowed)
            found[name] = _documents(table, list(queries), data[passages])
    return found


def passage_ids(folder: Path, world: int) -> list[str] | None:
    """Ids of the passages of a world; None where passages have no worlds, which then are all searched."""
    split = "train"
    ids: list[str] = []
    for frame in iter_split(folder, split):
        if "world" not in frame:
            return None
        ids += frame.loc[frame["world"] == world, "id"].tolist()
    if not ids:
        raise InputError(f"{folder}", f"no passages of world {world}", "passages for every seed of the experiment")
    return ids


def _documents(table: pd.DataFrame, queries: Sequence[str], folder: Path) -> Documents:
    """Rankings as documents with id, title, text and score."""
    texts = _passages(folder, set(table["passage"]))
    documents: dict[str, list[Item]] = {query: [] for query in queries}
    for query, passage, score in zip(table["query"], table["passage"], table["score"], strict=True):
        title, text = texts[passage]
        documents[query].append({"id": passage, "title": title, "text": text, "score": float(score)})
    return [documents[query] for query in queries]


def _passages(folder: Path, wanted: set[str]) -> dict[str, tuple[str, str]]:
    """Title and text of some passages, read once through the data set."""
    texts: dict[str, tuple[str, str]] = {}
    for frame in iter_split(folder, "train"):
        chosen = frame[frame["id"].isin(wanted)]
        titles = chosen["title"] if "title" in chosen else [""] * len(chosen)
        texts.update(zip(chosen["id"], zip(titles, chosen["text"], strict=True), strict=True))
    return texts


def found_answers(items: Sequence[Item], documents: Documents, judge: AskJudge) -> list[np.ndarray]:
    """Which documents have which gold answers, an array (documents, answers) for each item."""
    if "claims" in items[0]:
        return claims_found(items, documents, judge)
    return [answers_found(item, docs, judge) for item, docs in zip(items, documents, strict=True)]


def oracle(items: Sequence[Item], documents: Documents, judge: AskJudge, size: int) -> Documents:
    """The oracle's passages among those of a retriever."""
    cap = _cap(items[0])
    chosen = []
    for docs, found in zip(documents, found_answers(items, documents, judge), strict=True):
        chosen.append([docs[number] for number in oracle_passages(found, size, cap)] if docs else [])
    return chosen


def _cap(item: Item) -> int | None:
    return RECALL_CAP["qampari"] if "answers" in item else None


def retrieval_rows(items: Sequence[Item], documents: Documents, judge: AskJudge) -> Iterable[dict[str, Any]]:
    """Metric rows of a retriever: `answer_recall_at_K` for the cuts that it reaches, `answer_ndcg_at_10`."""
    found = found_answers(items, documents, judge)
    cap, deepest = _cap(items[0]), max(map(len, documents))
    for k in (cut for cut in CUTS if cut <= max(deepest, 1)):
        values = [recall(each, k, cap) for each in found]
        yield {
            "metric": f"answer_recall_at_{k}",
            "value": float(np.nanmean(values)),
            "n": len(items),
            "unit": "fraction",
        }
    gains = [{str(row): float(hits) for row, hits in enumerate(each.sum(axis=1)) if hits} for each in found]
    values = [
        ndcg_at_k([str(row) for row in range(len(each))], gain, 10) for each, gain in zip(found, gains, strict=True)
    ]
    if not np.isnan(values).all():
        yield {"metric": "answer_ndcg_at_10", "value": float(np.nanmean(values)), "n": len(items), "unit": "fraction"}


def world_sizes(folder: Path) -> dict[str, int] | None:
    """Names and types of the worlds of a passages data set; None for other sources."""
    spec = load_info(folder)["source"]["spec"]
    if spec["source"] != "world" or spec.get("generator") != "passages":
        return None
    parameters = spec.get("parameters", {})
    types = parameters.get("num_types", 3)
    per_name = len(parameters.get("worlds", (0,))) * types * 5
    return {"seed": spec.get("seed", 0), "num_names": spec["splits"]["train"] // per_name, "num_types": types}
