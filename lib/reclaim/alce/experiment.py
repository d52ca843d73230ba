"""The experiment of ALCE: every system's answers to the questions of a data set, evaluated, from one seed.

Source: Gao et al. 2023. A spec names questions, passages and retrievers, the generator, the judge, and the arms. What is made
here (retriever, generator, closed-book model, judge) is trained on worlds of its own; models of the Hub, endpoints, indexes and
official files take the same way. Everything is paired by the seed: all arms answer the same questions.

Correctness does not depend on a judge; citations and claims are judged by the `judge: model`, and, where the questions are of
the world, by the exact one (`judge: exact`), which stands for people. Every arm is scored as the official script does
(`scoring: legacy`) and with its quirks mended (`strict`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from reclaim.alce.data import load_items, task_of
from reclaim.alce.evaluate import Evaluation, Reader, evaluate
from reclaim.alce.judge import CachedJudge, FunctionJudge, agreement
from reclaim.alce.judge_training import prepare_judge
from reclaim.alce.pictures import answers_picture
from reclaim.alce.prepare import RememberingEncoder, Workshop, prepare_encoder, prepare_features, prepare_generator
from reclaim.alce.prompt_files import prompt_folder
from reclaim.alce.retrieve import retrieval_rows, retrieve, world_sizes
from reclaim.alce.systems import Answered, Desk, arms_of
from reclaim.metrics.mauve import Encoder
from reclaim.metrics.sentences import Splitter, sentence_splitter
from reclaim.state import begin_state
from reclaim.world.passages import entails, world_of

SCORINGS = ("legacy", "strict")
# Measured for each item, too: what claims resample.
PER_ITEM = ("str_em", "qampari_recall_5", "claim_recall", "citation_recall", "citation_precision")
JUDGED = ("citations", "claims")


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    data: Mapping[str, Path],
    device: torch.device | str = "cpu",
    state_dir: Path,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Run the experiment at one seed; gives `metrics`, `items`, `costs`, `predictions` and `pictures`.

    `spec`: `questions` and `passages` (data sets; passages are needed for indexes), `retrievers` (`reclaim.alce.retrieve`),
    `encoder`, `generator`, `closed_book` (`reclaim.alce.prepare`), `judge` (`reclaim.alce.judge_training`), `systems`
    (`reclaim.alce.systems.Arm`, lists for several values), `prompts` (a data set of official prompt files), `miss`,
    `measures` (of `reclaim.alce.evaluate`), `reader` (`model`, `batch_size`: of the measure qa), `fluency` (`model`,
    `batch_size`, `dtype`: of MAUVE's features; hashed n-grams without it). Of data with several worlds that of the seed is
    used.

    Trained models, answers and judgements stay in `state_dir`, from which a run that was stopped goes on. All but `costs`
    depends on spec, data, seed and code only; behind an endpoint on what it answers, too.
    """
    state_dir = Path(state_dir)
    prompts = prompt_folder(spec["prompts"], data) if "prompts" in spec else None
    # Answers of an endpoint were paid for; their keys say what they answer.
    begin_state(state_dir, spec, seed, data, __name__, keep=".answers.jsonl")
    items, task = load_items(data[spec["questions"]], seed), task_of(data[spec["questions"]])
    passages = spec.get("passages")
    world = world_sizes(data[passages]) if passages else None
    clock = Clock(task)
    shop = Workshop(task, seed, data, device, state_dir, progress)
    if world is not None:
        shop.num_names, shop.num_types = world["num_names"], world["num_types"]
        shop.world = world_of(world["seed"], seed, world["num_names"], world["num_types"])
    with clock("judge_training"):
        judge, metrics = prepare_judge(
            spec["judge"], seed, data=data, device=device, state_dir=state_dir, progress=progress
        )
    exact = None if world is None else CachedJudge(FunctionJudge(entails, "world"), batch_size=1 << 20)
    encode = None
    if "encoder" in spec:
        with clock("encoder"):
            encode = RememberingEncoder(prepare_encoder(spec["encoder"], shop))
    with clock("retrieval"):
        options: dict[str, Any] = {"data": data, "passages": passages, "encode": encode, "judge": exact or judge}
        documents = retrieve(
            spec["retrievers"], items, **options, world=seed, device=device, state_dir=state_dir, progress=progress
        )
        for name, each in documents.items():
            rows = retrieval_rows(items, each, exact or judge)
            metrics += [{"variant": {"task": task, "retriever": name}, **row} for row in rows]
    with clock("generator"):
        generator = prepare_generator(spec["generator"], shop)
    closed_book = None
    if "closed_book" in spec:
        with clock("closed_book"):
            closed_book = prepare_generator(spec["closed_book"], shop, "closed_book")
    reader = None
    if "reader" in spec:
        from reclaim.alce.reader import load_reader

        reader = load_reader(data[spec["reader"]["model"]], device, spec["reader"].get("batch_size", 32))
    features = prepare_features(spec.get("fluency"), shop)
    split = _remembering(sentence_splitter())
    desk = Desk(
        task, seed, items, documents, generator, closed_book, encode, judge, exact, split, state_dir,
        prompts, world, spec.get("miss", 0.0),
    )  # fmt: skip
    # A model made here has no name; others are compared across experiments.
    common = {"task": task} | ({"generator": spec["generator"]["model"]} if "model" in spec["generator"] else {})
    per_item: list[dict] = []
    answered: list[Answered] = []
    for arm in progress(arms_of(spec["systems"])):
        with clock("generation"):
            answered.append(desk.answer(arm))
        with clock("evaluation"):
            for row in _arm_rows(answered[-1], common, desk, spec.get("measures"), reader, features):
                (per_item if "item" in row else metrics).append(row)
    requests = {"judge_requests": judge.requests, "judge_calls": judge.judged, "judge_batches": judge.batches}
    costs = [
        *clock.rows(),
        *({"variant": {"task": task}, "measure": k, "value": float(v), "unit": "count"} for k, v in requests.items()),
        # Which one split the statements, since the trained one has to be there.
        {
            "variant": {"task": task, "splitter": split.name},
            "measure": "sentence_splitter",
            "value": 1.0,
            "unit": "count",
        },
        *_room_rows(task, {"generator": generator, "closed_book": closed_book}),
    ]
    return {
        "metrics": pd.DataFrame(metrics),
        "items": pd.DataFrame(per_item),
        "costs": pd.DataFrame(costs),
        "predictions": _predictions(answered, task),
        "pictures": {f"answers-{task}.png": answers_picture(answered, desk)},
    }


def _remembering(split: Splitter) -> Splitter:
    """A splitter that splits each text once: arms that choose among the same answers share most of them."""
    remembered = lru_cache(maxsize=100_000)(lambda text: tuple(split(text)))
    return Splitter(split.name, lambda text: list(remembered(text)))


class Clock:
    """Seconds of the parts of a job, summed up by name."""

    def __init__(self, task: str):
        self.task = task
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def rows(self) -> list[dict[str, Any]]:
        variant = {"task": self.task}
        return [{"variant": variant, "measure": f"{k}_s", "value": v, "unit": "s"} for k, v in self.seconds.items()]


# ----------------------------------------------------------------------------------------------------------------- metrics


def _arm_rows(
    answered: Answered,
    common: Mapping[str, str],
    desk: Desk,
    measures: Sequence[str] | None,
    reader: Reader | None,
    features: Encoder,
) -> Iterator[dict[str, Any]]:
    """Metric rows of an arm under both judges and scorings, and rows of its items (legacy scoring only).

    `common` is what the variants of all arms share.
    """
    flat = list(answered.flat())
    variant = {**common, **answered.arm.variant}
    wanted = tuple(measures) if measures else ("correctness", "qa", "claims", "citations", "rouge", "mauve")
    judged: dict[str, Evaluation] = {}
    for name, judge in (("model", desk.judge), ("exact", desk.exact)):
        for scoring in SCORINGS if judge is not None else ():
            chosen: Sequence[str] = wanted
            if name == "exact":
                chosen = [measure for measure in wanted if measure in JUDGED]
            elif scoring == "strict":
                # Its own rule for lists and short answers, and for citations; fluency has no quirks to mend.
                chosen = [measure for measure in wanted if measure not in ("rouge", "mauve")]
            found = evaluate(
                flat, judge, scoring, dataset=desk.task, measures=chosen, split=desk.split, seed=desk.seed,
                reader=reader, encode=features,
            )  # fmt: skip
            key = {**variant, "judge": name, "scoring": scoring}
            yield from ({"variant": key, **row} for row in found.rows)
            yield {"variant": key, "metric": "unsupported_statements", **_unsupported(found)}
            if scoring == "legacy":
                judged[name] = found
                yield from _item_rows(answered, found, key)
    if desk.exact is not None:
        yield from _agreement_rows(judged["model"], desk.exact, {**variant, "judge": "model", "scoring": "legacy"})


def _unsupported(found: Evaluation) -> dict[str, Any]:
    """Share of statements without complete support."""
    statements = [statement for answer in found.answers for statement in answer.statements]
    share = sum(not statement.supported for statement in statements) / max(1, len(statements))
    return {"value": share, "n": len(statements), "unit": "fraction"}


def _item_rows(answered: Answered, found: Evaluation, variant: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Values of each item, the mean of its samples."""
    scores = iter(found.items)
    for item, outputs in zip(answered.items, answered.outputs, strict=True):
        samples = [next(scores) for _ in outputs]
        for metric in PER_ITEM:
            values = [sample[metric] for sample in samples if metric in sample]
            if values:
                yield {"variant": variant, "metric": metric, "item": item["id"], "value": sum(values) / len(values)}


def _agreement_rows(found: Evaluation, exact: CachedJudge, variant: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """How the verdicts of the model agree with the exact ones, for recall (joint premises) and for precision (the others)."""
    statements = [statement for answer in found.answers for statement in answer.statements if statement.asked]
    asked = {
        "recall": [each.asked[0] for each in statements],
        "precision": [pair for each in statements for pair in each.asked[1:]],
    }
    for name, triples in asked.items():
        if triples:
            truth = exact([triple[:2] for triple in triples])
            for measure, value in agreement([triple[2] for triple in triples], truth).items():
                metric = f"agreement_{name}_{measure}"
                yield {"variant": variant, "metric": metric, "value": value, "n": len(triples), "unit": "fraction"}


def _room_rows(task: str, generators: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Prompts written to in this run that left little or no room for an answer, and their mean length in tokens."""
    rows = []
    for name, generator in generators.items():
        if generator is None or not generator.room.prompts:
            continue
        room = generator.room
        values = {
            "prompts_without_room": float(room.empty),
            "prompts_with_little_room": float(room.short),
            "prompt_tokens": sum(room.prompts) / len(room.prompts),
        }
        variant = {"task": task, "generator": name}
        rows += [{"variant": variant, "measure": k, "value": v, "unit": "count"} for k, v in values.items()]
    return rows


def _predictions(answered: Sequence[Answered], task: str) -> pd.DataFrame:
    rows = []
    for each in answered:
        for item, outputs in zip(each.items, each.outputs, strict=True):
            documents = [str(document.get("id", document["title"])) for document in item["docs"]]
            for sample, output in enumerate(outputs):
                row = {"task": task, **each.arm.variant, "item": item["id"], "sample": sample}
                rows.append({**row, "question": item["question"], "output": output, "docs": documents})
    return pd.DataFrame(rows)
