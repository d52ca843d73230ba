"""The systems of ALCE: each turns questions and retrieved passages into answers with citations.

Source: Gao et al. 2023 (ALCE), section 4 and its analysis. Systems of one retriever, number of passages and prompt that choose
among samples share these samples, so that RERANK, its control and VANILLA differ in the choice alone.

    vanilla           the prompt with passages in full; several samples are averaged
    rerank            of the samples the one with the best citation recall by the judge
    rerank_official   by the official script's score (all passages as premise)
    rerank_exact      by the exact judge of the world: what reranking could reach
    random_pick       one of the samples at random: the control of rerank, no better than vanilla
    shuffled          vanilla with each citation replaced by that of another passage: a control, whose recall must collapse
    summary, snippet  passages shortened; interact, interact_snippet: so, and the model may look at some in full
    inline_search     no passages, the model searches those retrieved while it writes, and what it saw is cited
    post_hoc          closed book, each statement with the passage that the encoder finds for it
    vanilla_post_hoc  vanilla with its own citations replaced in this way
    top_passage       the first passage as the answer, citing itself; top_sentences: its first sentences
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reclaim.alce.generation import TextGenerator, answer
from reclaim.alce.interactive import STOP, Interaction, interact
from reclaim.alce.judge import CachedJudge
from reclaim.alce.post_hoc import cite_post_hoc
from reclaim.alce.prompts import Item, PromptSettings, build_prompts, load_prompts
from reclaim.alce.rerank import by_official_score, by_recall
from reclaim.alce.search import EncoderSearch, Search, TfidfSearch
from reclaim.alce.world_data import add_short_texts, world_demos
from reclaim.errors import InputError
from reclaim.io import read_json, write_json
from reclaim.metrics.citations import first_line
from reclaim.metrics.sentences import Splitter
from reclaim.seeding import derive

KEYS = ("system", "retriever", "ndoc", "shot", "prompt")
SHORTER = {"summary": "summary", "snippet": "extraction", "interact": "summary", "interact_snippet": "extraction"}
INTERACTIVE = {"interact": "doc_id", "interact_snippet": "doc_id", "inline_search": "search"}
GENERATED = ("vanilla", "summary", "snippet", *INTERACTIVE)
CHOSEN = ("rerank", "rerank_official", "rerank_exact", "random_pick")
CHANGED = ("shuffled", "vanilla_post_hoc")
SYSTEMS = (*GENERATED, *CHOSEN, *CHANGED, "post_hoc", "top_passage", "top_sentences")
SHORT_DEPTH = 20


@dataclass(frozen=True)
class Arm:
    """One arm; `samples`: answers drawn for each question. Keys of `systems` in the configuration."""

    system: str
    retriever: str
    ndoc: int = 5
    shot: int = 2
    prompt: str = "default"
    samples: int = 1
    sentences: int = 2

    @property
    def variant(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in KEYS}


def arms_of(entries: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """The arms of a list of entries, each with every combination of its listed values; raises InputError for unknown names."""
    arms: list[Arm] = []
    for entry in entries:
        listed = {key: value if isinstance(value, list) else [value] for key, value in entry.items()}
        arms += [Arm(**dict(zip(listed, values, strict=True))) for values in itertools.product(*listed.values())]
    for arm in arms:
        if arm.system not in SYSTEMS:
            raise InputError("systems: system", repr(arm.system), f"one of {', '.join(SYSTEMS)}")
    return list(dict.fromkeys(arms))


@dataclass
class Answered:
    """The answers of an arm: items with the documents that citations refer to, and for each its outputs (samples)."""

    arm: Arm
    items: list[Item]
    outputs: list[list[str]]

    def flat(self) -> Iterator[Item]:
        """Every sample as an item."""
        for item, outputs in zip(self.items, self.outputs, strict=True):
            yield from ({**item, "output": output} for output in outputs)


@dataclass
class Desk:
    """What systems work with. `short`: how passages are shortened (`docs`: they come so, `world`); `miss`: see `world_data`;
    `prompts`: folder of official prompt files; `demos`: whether prompts show demonstrations of the world; `exact`: the exact
    judge, where there is one."""

    task: str
    seed: int
    items: Sequence[Item]
    documents: Mapping[str, list[list[Item]]]
    generator: TextGenerator
    closed_book: TextGenerator | None
    encode: Callable[[Sequence[str]], np.ndarray] | None
    judge: CachedJudge
    exact: CachedJudge | None
    split: Splitter
    state_dir: Path
    prompts: Path | None = None
    world: Mapping[str, int] | None = None
    miss: float = 0.0
    known: dict[tuple, Answered] = field(default_factory=dict)

    @property
    def lists(self) -> bool:
        return self.task == "qampari"

    def answer(self, arm: Arm) -> Answered:
        """The answers of an arm."""
        if arm.system in GENERATED:
            return self._generated(arm, self.generator)
        if arm.system in CHOSEN:
            return self._chosen(arm)
        if arm.system == "shuffled":
            return self._shuffled(arm)
        if arm.system in ("post_hoc", "vanilla_post_hoc"):
            return self._post_hoc(arm)
        return self._top(arm)

    # -------------------------------------------------------------------------------------------------------- generation

    def _generated(self, arm: Arm, generator: TextGenerator, mode: str | None = None) -> Answered:
        key = (arm.system, arm.retriever, arm.ndoc, arm.shot, arm.prompt, arm.samples, mode)
        if key not in self.known:
            self.known[key] = self._generate(arm, generator, mode)
        found = self.known[key]
        return Answered(arm, found.items, found.outputs)

    def _generate(self, arm: Arm, generator: TextGenerator, mode: str | None) -> Answered:
        """Generate the answers of an arm, or find them in the state folder."""
        name = "-".join(map(str, (arm.system, arm.retriever, arm.ndoc, arm.shot, arm.prompt, arm.samples, mode or "")))
        path = self.state_dir / "answers" / f"{name}.json"
        if path.exists():
            kept = read_json(path)
            items = [{**item, **more} for item, more in zip(self.items, kept["items"], strict=True)]
            return Answered(arm, items, kept["outputs"])
        items = [{**item, "docs": docs} for item, docs in zip(self.items, self.documents[arm.retriever], strict=True)]
        made = self._write(arm, items, generator, name, mode)
        outputs = [item["output"] if isinstance(item["output"], list) else [item["output"]] for item in made]
        kept = [{"docs": item["docs"], "doc_history": item.get("doc_history", [])} for item in made]
        write_json({"items": kept, "outputs": outputs}, path)
        return Answered(arm, made, outputs)

    def _write(self, arm: Arm, items: list[Item], generator: TextGenerator, name: str, mode: str | None) -> list[Item]:
        shorter, query = SHORTER.get(arm.system), INTERACTIVE.get(arm.system)
        mode = mode or (f"interact_{query}" if query else "sum_or_ext" if shorter else arm.prompt)
        if shorter and self.world is not None:
            rng = np.random.default_rng(derive(self.seed, "short texts", arm.retriever))
            items = add_short_texts(items, SHORT_DEPTH, self.miss, rng)
        searching = query == "search"
        settings = PromptSettings(
            shot=arm.shot,
            ndoc=0 if searching or mode == "closedbook" else arm.ndoc,
            seed=self.seed,
            use_shorter=shorter,
            retrieve_in_all_docs=searching,
        )
        demos = [] if self.world is None else world_demos(self.task, mode, **_sizes(self.world))
        prompts = load_prompts(self.task, mode, self.prompts, demos)
        built = build_prompts(items, prompts, settings)
        if query is None:
            return answer(built, generator, name, arm.samples)
        interaction = Interaction(query, force_cite_show=searching, lists=self.lists)
        return interact(
            built,
            lambda texts, keys: generator(texts, keys, STOP),
            prompts.doc_prompt,
            interaction,
            split=self.split,
            make_search=self._search,
            keys=[f"{name}/{item['id']}" for item in items],
        )

    def _search(self, documents: Sequence[Mapping[str, Any]]) -> Search:
        """GTR's place within the documents of a question: the job's encoder, or TF-IDF where there is none."""
        return TfidfSearch(documents) if self.encode is None else EncoderSearch(documents, self.encode)

    # ------------------------------------------------------------------------------------------- what is made of answers

    def _vanilla(self, arm: Arm) -> Answered:
        vanilla = Arm("vanilla", arm.retriever, arm.ndoc, arm.shot, arm.prompt, arm.samples)
        return self._generated(vanilla, self.generator)

    def _chosen(self, arm: Arm) -> Answered:
        base = self._vanilla(arm)
        cleaned = [[first_line(output) for output in outputs] for outputs in base.outputs]
        if arm.system == "random_pick":
            rng = np.random.default_rng(derive(self.seed, "random pick", arm.retriever, arm.ndoc))
            picked = [outputs[rng.integers(len(outputs))] for outputs in base.outputs]
        elif arm.system == "rerank_official":
            picked = by_official_score(base.items, cleaned, self.judge.probabilities, self.split, lists=self.lists)
        else:
            judge = self.judge if arm.system == "rerank" else self.exact
            if judge is None:
                raise InputError("systems: rerank_exact", "no exact judge", "questions of the world")
            numbers, _ = by_recall(base.items, cleaned, judge, self.split, lists=self.lists)
            picked = [outputs[number] for outputs, number in zip(base.outputs, numbers, strict=True)]
        return Answered(arm, base.items, [[output] for output in picked])

    def _shuffled(self, arm: Arm) -> Answered:
        base = self._vanilla(arm)
        rng = np.random.default_rng(derive(self.seed, "shuffled", arm.retriever, arm.ndoc))
        outputs = [
            [_with_other_citations(output, len(item["docs"]), rng) for output in each]
            for item, each in zip(base.items, base.outputs, strict=True)
        ]
        return Answered(arm, base.items, outputs)

    def _post_hoc(self, arm: Arm) -> Answered:
        closed = arm.system == "post_hoc"
        if closed:
            base = self._generated(arm, self.closed_book or self.generator, "closedbook")
        else:
            base = self._vanilla(arm)
        flat = [
            {"question": item["question"], "output": output, "docs": docs}
            for item, outputs, docs in zip(base.items, base.outputs, self.documents[arm.retriever], strict=True)
            for output in map(first_line, outputs)
        ]
        cited = iter(cite_post_hoc(flat, self._search, self.split, overwrite=not closed, lists=self.lists))
        outputs = [[next(cited)["output"] for _ in each] for each in base.outputs]
        documents = self.documents[arm.retriever]
        return Answered(
            arm, [{**item, "docs": docs} for item, docs in zip(base.items, documents, strict=True)], outputs
        )

    def _top(self, arm: Arm) -> Answered:
        """The first passage, every sentence citing it."""
        items, outputs = [], []
        for item, docs in zip(self.items, self.documents[arm.retriever], strict=True):
            sentences = self.split(docs[0]["text"]) if docs else []
            if arm.system == "top_sentences":
                sentences = sentences[: arm.sentences]
            ends = [(text[:-1], text[-1]) if text[-1:] in ".!?" else (text, ".") for text in sentences]
            outputs.append([" ".join(f"{text} [1]{end}" for text, end in ends)])
            items.append({**item, "docs": docs[: arm.ndoc]})
        return Answered(arm, items, outputs)


def _with_other_citations(output: str, documents: int, rng: np.random.Generator) -> str:
    """The output with each citation of a document that is there replaced by that of another one."""

    def other(match: re.Match) -> str:
        number = int(match[1])
        if documents < 2 or not 1 <= number <= documents:
            return match[0]
        return f"[{(number - 1 + int(rng.integers(1, documents))) % documents + 1}"

    return re.sub(r"\[(\d+)", other, output)


def _sizes(world: Mapping[str, int]) -> dict[str, int]:
    return {key: world[key] for key in ("num_names", "num_types")}
