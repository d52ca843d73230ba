"""Post-hoc citations: each statement of an answer gets the document that a search finds for it.

Source: Gao et al. 2023 (ALCE), section 4 (POSTCITE), and the official `post_hoc_cite.py`: at most one citation a statement, in
front of it; statements that have citations keep them, unless all are overwritten. Of lists each entry is a statement, and is
searched for behind the question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reclaim.alce.prompts import Item
from reclaim.alce.search import MakeSearch
from reclaim.errors import InputError
from reclaim.metrics.citations import citation_numbers, remove_citations


def cite_post_hoc(
    items: Sequence[Item],
    make_search: MakeSearch,
    split: Callable[[str], list[str]],
    *,
    overwrite: bool = False,
    external: Sequence[Mapping[str, Any]] | None = None,
    lists: bool = False,
) -> list[Item]:
    """Give copies of the items with citations in `output`, and in `docs` the documents that they refer to.

    `external`: other items whose documents are searched (a result file of a retriever). Raises InputError where these are
    not for the same questions.
    """
    cited = []
    for number, item in enumerate(items):
        documents = item["docs"]
        if external is not None:
            if number >= len(external) or external[number]["question"] != item["question"]:
                found = external[number]["question"] if number < len(external) else "none"
                raise InputError(f"external documents of item {number}", repr(found), repr(item["question"]))
            documents = external[number]["docs"]
        text = item["output"].replace("<|im_end|>", "")
        cited.append({**item, "output": _cited(text, item["question"], documents, make_search, split, overwrite, lists),
                      "docs": list(documents)})  # fmt: skip
    return cited


def _cited(text: str, question: str, documents, make_search: MakeSearch, split, overwrite: bool, lists: bool) -> str:
    if lists:
        statements = [f"{question} {entry.strip()}" for entry in text.rstrip(".").split(",")]
    else:
        statements = split(text)
    if overwrite:
        statements = [remove_citations(statement) for statement in statements]
    bare = [place for place, statement in enumerate(statements) if not citation_numbers(statement)]
    if bare and documents:
        for place, best in zip(bare, make_search(documents).best([statements[place] for place in bare]), strict=True):
            statements[place] = f"[{best + 1}] {statements[place]}"
    if lists:
        return ", ".join(statement.replace(question, "").strip() for statement in statements)
    return " ".join(statements)


def file_suffix(retriever: str, overwrite: bool = False, external: bool = False) -> str:
    """What the official script adds to the name of a result file."""
    return f".post_hoc_cite.{retriever}" + ("-overwrite" if overwrite else "") + ("-external" if external else "")
