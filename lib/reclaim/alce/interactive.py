"""Interactive modes: a model checks or searches documents while it writes.

Source: Gao et al. 2023 (ALCE), section 4 (INTERACT, INLINESEARCH), and the loop of the official `run.py`. Each turn the model
writes one line: `Check: Document [1][3]` or `Search: words` shows documents in full, for the next turn only, which has to be an
`Output:`; `Output: ...` adds to the answer; `End`, a refusal, or anything else ends it. All items take their turns together,
so that a turn is one batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reclaim.alce.prompts import Item, clean_output, document_prompt
from reclaim.alce.search import MakeSearch
from reclaim.errors import InputError
from reclaim.metrics.citations import remove_citations

STOP = ("\n", "\n\n")
QUERIES = ("doc_id", "search")

Write = Callable[[Sequence[str], Sequence[str]], Sequence[str]]
"""Prompts and their keys -> the line that each goes on with (it stops at `STOP`)."""


@dataclass(frozen=True)
class Interaction:
    """`query`: `doc_id` (Check) or `search`; `max_doc_show` documents at most are shown (Check); `force_cite_show` replaces
    citations by the documents that were shown last; `lists`: answers are comma lists."""

    query: str = "doc_id"
    max_turn: int = 10
    max_doc_show: int = 3
    force_cite_show: bool = False
    lists: bool = False

    def __post_init__(self):
        if self.query not in QUERIES:
            raise InputError("interactive query", repr(self.query), f"one of {', '.join(QUERIES)}")


@dataclass
class _Dialogue:
    """One item's state: `prompt` grows by each line; `shown` goes behind it for one turn."""

    key: str
    documents: Sequence[Mapping[str, Any]]
    prompt: str
    shown: str = ""
    answer: str = ""
    history: list[list[int]] = field(default_factory=list)
    done: bool = False


def interact(
    items: Sequence[Item],
    write: Write,
    doc_prompt: str,
    settings: Interaction,
    *,
    split: Callable[[str], list[str]],
    make_search: MakeSearch | None = None,
    keys: Sequence[str] | None = None,
) -> list[Item]:
    """Give copies of the items (with `prompt` and `docs`) with `output`, `doc_history` and the prompt that grew.

    `make_search`: documents -> search, for the query `search`. `keys` name the items to the generator (default: numbers).
    """
    keys = [str(number) for number in range(len(items))] if keys is None else keys
    dialogues = [
        _Dialogue(key, item["docs"], item["prompt"].rstrip() + "\n") for key, item in zip(keys, items, strict=True)
    ]
    searches: dict[str, Any] = {}
    for turn in range(settings.max_turn):
        going = [dialogue for dialogue in dialogues if not dialogue.done]
        if not going:
            break
        lines = write([each.prompt + each.shown for each in going], [f"{each.key} turn {turn}" for each in going])
        for dialogue, line in zip(going, lines, strict=True):
            if dialogue.shown:
                line, dialogue.shown = f"Output: {line}", ""
            dialogue.prompt += line + "\n"
            _act(dialogue, line, doc_prompt, settings, split, make_search, searches)
    finished = []
    for item, dialogue in zip(items, dialogues, strict=True):
        answer = dialogue.answer.rstrip().rstrip(",") if settings.lists else dialogue.answer
        finished.append(
            {**item, "prompt": dialogue.prompt, "output": clean_output(answer), "doc_history": dialogue.history}
        )
    return finished


def _act(dialogue: _Dialogue, line: str, doc_prompt: str, settings: Interaction, split, make_search, searches) -> None:
    """Do what a line says."""
    lowered = line.strip().lower()
    if lowered.startswith("end") or _refuses(line.lower()):
        dialogue.done = True
    elif lowered.startswith(("check", "search")):
        if settings.query == "search":
            chosen = _search(
                dialogue, line.replace("Search:", "").replace("search:", "").strip(), make_search, searches
            )
        else:
            numbers = [int(found[1:]) - 1 for found in re.findall(r"\[\d+", line)]
            chosen = [number for number in numbers if 0 <= number < len(dialogue.documents)][: settings.max_doc_show]
        parts = [document_prompt(dialogue.documents[number], number + 1, doc_prompt) for number in chosen]
        dialogue.shown = "".join(parts) + "Output:"
        dialogue.history.append(chosen)
    elif lowered.startswith("output"):
        text = line.strip().replace("Output:", "").strip()
        if settings.force_cite_show:
            text = _cite_shown(remove_citations(text), dialogue.history, settings.lists, split)
        dialogue.answer += " " + text
    else:
        dialogue.done = True


def _refuses(lowered: str) -> bool:
    apology = "sorry" in lowered and ("relevant document" in lowered or "relevant information" in lowered)
    return apology or "none of the documents" in lowered


def _search(dialogue: _Dialogue, query: str, make_search: MakeSearch | None, searches: dict[str, Any]) -> list[int]:
    if make_search is None:
        raise InputError("interactive query", "search without a searcher", "make_search", "Name a retriever.")
    if not dialogue.documents:
        return []
    if dialogue.key not in searches:
        searches[dialogue.key] = make_search(dialogue.documents)
    return searches[dialogue.key].best([query])


def _cite_shown(text: str, history: Sequence[Sequence[int]], lists: bool, split: Callable[[str], list[str]]) -> str:
    """The text with the documents that were shown last in front of every sentence or entry (official: `..` at the end)."""
    if not history:
        return text
    marks = "".join(f"[{number + 1}]" for number in history[-1])
    if lists:
        return ", ".join(f"{marks} {entry.strip()}" for entry in text.rstrip().rstrip(",").split(",")) + ", "
    return " ".join(f"{marks} {sentence}" for sentence in split(text)) + "."
