"""Few-shot prompts with documents, built as the official `run.py` builds them.

Source: Gao et al. 2023 (ALCE), section 4 and appendix; the string rules are those of the official code. A prompt is a number
of demonstrations, each an instruction, a question, documents and an answer, and the same form for the question at hand, open
behind `Answer:`. Instructions are in our own words (`reclaim/templates/alce.yaml`) unless a folder of the official prompt files
is given (`reclaim.alce.prompt_files`); demonstrations come with those files, or from the data.

Placeholders are replaced in the official order, {INST}, {Q}, {D}, then {A} everywhere, so that one inside a question or a
document is replaced, too. An answer is glued to `Answer:` without a blank, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reclaim.errors import InputError
from reclaim.io import read_json

MODES = ("default", "light_inst", "sum_or_ext", "interact_doc_id", "interact_search", "closedbook")
SHORTER = ("summary", "extraction")
Item = dict[str, Any]
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """What prompts are made of: instruction, the forms of a demonstration and of a document, and the demonstrations."""

    instruction: str
    demo_sep: str
    demo_prompt: str
    doc_prompt: str
    demos: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def from_official(cls, content: Mapping[str, Any], place: str) -> Prompts:
        """Read the content of an official prompt file; raises InputError for one without the keys."""
        keys = ("instruction", "demo_sep", "demo_prompt", "doc_prompt", "demos")
        if missing := [key for key in keys if key not in content]:
            raise InputError(place, f"no {', '.join(missing)}", f"a prompt file with {', '.join(keys)}")
        return cls(*(content[key] for key in keys))


@dataclass(frozen=True)
class PromptSettings:
    """How prompts are built, under the names of the official options.

    `seed` draws the demonstrations; `use_shorter`: `summary` or `extraction` in place of the text; `ndoc_in_demo`: documents of
    a demonstration (None: as many as of the question, 0: none); `retrieve_in_all_docs`: keep all documents of an item, not
    only those shown (search while writing).
    """

    shot: int = 2
    ndoc: int = 5
    seed: int = 42
    use_shorter: str | None = None
    ndoc_in_demo: int | None = None
    retrieve_in_all_docs: bool = False


def load_prompts(
    task: str, mode: str, folder: str | Path | None = None, demos: Sequence[Mapping[str, Any]] = ()
) -> Prompts:
    """The prompts of a task and mode: in our words with `demos`, or those of a folder with the official files.

    Raises InputError for an unknown task or mode and for a folder without the file.
    """
    if folder is not None:
        path = Path(folder) / f"{task}_{mode}.json"
        if not path.exists():
            remedy = "Leave the key `prompts` out for prompts in our words."
            raise InputError(str(path), "no such file", "an official prompt file", remedy)
        return Prompts.from_official(read_json(path), str(path))
    templates = own_templates()
    if task not in templates["instructions"] or mode not in templates["instructions"][task]:
        known = ", ".join(f"{name}/{each}" for name, modes in templates["instructions"].items() for each in modes)
        raise InputError("prompts", f"{task}/{mode}", f"one of {known}")
    form = "closed_prompt" if mode == "closedbook" else "demo_prompt"
    instruction = templates["instructions"][task][mode]
    return Prompts(instruction, templates["demo_sep"], templates[form], templates["doc_prompt"], tuple(demos))


@cache
def own_templates() -> dict[str, Any]:
    """The content of `reclaim/templates/alce.yaml`."""
    text = (resources.files("reclaim") / "templates" / "alce.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


# ---------------------------------------------------------------------------------------------------------------- strings


def document_prompt(document: Document, number: int, template: str, key: str = "text") -> str:
    """A document as a prompt shows it; `number` counts from 1."""
    return template.replace("{T}", document["title"]).replace("{P}", document[key]).replace("{ID}", str(number))


def short_documents(documents: Sequence[Document], ndoc: int, key: str) -> list[Item]:
    """The first `ndoc` documents whose short text does not call itself irrelevant, up to the first without one.

    If that is the first of all, it stands with its full text.
    """
    found: list[Item] = []
    for document in documents:
        if key not in document:
            if not found:
                found.append({**document, key: document["text"]})
            break
        if "irrelevant" in document[key] or "Irrelevant" in document[key]:
            continue
        found.append(dict(document))
        if len(found) >= ndoc:
            break
    return found


def shown_documents(documents: Sequence[Document], ndoc: int, use_shorter: str | None) -> list[Item]:
    """The documents that a prompt shows."""
    if use_shorter is not None:
        return short_documents(documents, ndoc, use_shorter)
    return [dict(document) for document in documents[:ndoc]]


def fill(item: Mapping[str, Any], prompts: Prompts, ndoc: int, use_shorter: str | None, answered: bool) -> str:
    """The demonstration or, without its answer, the open prompt of an item."""
    text = prompts.demo_prompt.replace("{INST}", prompts.instruction).replace("{Q}", item["question"])
    if "{D}" in text:
        if ndoc == 0:
            text = text.replace("{D}\n", "")
        else:
            documents = shown_documents(item["docs"], ndoc, use_shorter)
            key = use_shorter or "text"
            parts = [document_prompt(each, number, prompts.doc_prompt, key) for number, each in enumerate(documents, 1)]
            text = text.replace("{D}", "".join(parts))
    text = text.replace("{A}", "").rstrip()
    if not answered:
        return text
    answer = item["answer"]
    return text + ("\n" + "\n".join(answer) if isinstance(answer, list) else answer)


def demo_numbers(seed: int, pool: int, shot: int, quick_test: int | None = None, items: int = 0):
    """Which demonstrations a seed draws, in the order of the prompt; with `quick_test` also which of `items` are tried.

    The official code draws both from NumPy's global stream, seeded once; this has the same numbers from a stream of its own.
    Raises InputError for more demonstrations than there are.
    """
    if shot > pool:
        raise InputError("shot", str(shot), f"at most {pool}, the demonstrations there are")
    stream = np.random.RandomState(seed)
    # The official code draws even where nothing is to be drawn, which moves no stream.
    demos = stream.choice(pool, shot, replace=False).tolist() if pool else []
    if quick_test is None:
        return demos
    return demos, stream.choice(items, quick_test, replace=False).tolist()


def build_prompts(items: Sequence[Item], prompts: Prompts, settings: PromptSettings) -> list[Item]:
    """Give copies of the items with their `prompt` and, in `docs`, the documents that citations refer to."""
    if settings.use_shorter not in (None, *SHORTER):
        raise InputError("use_shorter", repr(settings.use_shorter), f"null, {' or '.join(SHORTER)}")
    ndoc_in_demo = settings.ndoc if settings.ndoc_in_demo is None else settings.ndoc_in_demo
    head = "".join(
        fill(prompts.demos[number], prompts, ndoc_in_demo, settings.use_shorter, True) + prompts.demo_sep
        for number in demo_numbers(settings.seed, len(prompts.demos), settings.shot)
    )
    built = []
    for item in items:
        documents = item["docs"]
        if not settings.retrieve_in_all_docs:
            documents = shown_documents(documents, settings.ndoc, settings.use_shorter)
        prompt = head + fill(item, prompts, settings.ndoc, settings.use_shorter, False)
        built.append({**item, "prompt": prompt, "docs": documents})
    return built


# ----------------------------------------------------------------------------------------------------- lengths and outputs


@dataclass
class Room:
    """How many tokens an answer may have, and how often that was few: `empty` answers (no room), `short` ones (below 50)."""

    max_length: int
    max_new_tokens: int
    count: Callable[[str], int]
    empty: int = 0
    short: int = 0
    prompts: list[int] = field(default_factory=list)

    def __call__(self, prompt: str) -> int:
        length = self.count(prompt)
        room = min(self.max_new_tokens, self.max_length - length)
        self.prompts.append(length)
        self.empty += room <= 0
        self.short += 0 < room < 50
        return room


def context_length(model: str, default: int = 2048) -> int:
    """The context of a model by its name, as the official code has it."""
    name = model.lower()
    for part, length in (("16k", 16384), ("32k", 32768), ("turbo", 4096), ("gpt-4", 8192)):
        if part in name:
            return length
    return 4096 if "llama-2" in name or "llama2" in name else default


def clean_output(text: str) -> str:
    """What is kept of a generated text: without end-of-turn marks and blanks at the end, and one `End.` there."""
    text = text.replace("<|im_end|>", "").rstrip()
    return text.removesuffix("End.")


def result_name(
    dataset: str,
    model: str,
    tag: str,
    settings: PromptSettings,
    *,
    quick_test: int | None = None,
    num_samples: int = 1,
    force_cite_show: bool = False,
) -> str:
    """The official name of a result file, without `.json`."""
    name = f"{dataset}-{model.split('/')[-1]}-{tag}-shot{settings.shot}-ndoc{settings.ndoc}-{settings.seed}"
    name += f"-quick_test{quick_test}" if quick_test is not None else ""
    if settings.ndoc_in_demo is not None:
        name += "-no_doc_in_demo" if settings.ndoc_in_demo == 0 else f"-{settings.ndoc_in_demo}_doc_in_demo"
    name += f"-sample{num_samples}" if num_samples > 1 else ""
    return name + ("-forceciteshow" if force_cite_show else "")
