"""The experiment of the CRINGE loss: one iteration of every arm, from one seed.

Source: Adolphs et al., ACL 2023. Iteration 0 trains each arm from the same language model on unlabelled text and labelled
replies. Each later iteration takes the models that the one before left, lets them reply to training prompts, has a trained
judge label the replies, adds as many good as bad ones to the mixture, and trains on from those models. Arms are paired by the
seed: same model, same rows, same prompts.

Difference from the paper: the judge that labels and the one that evaluates are two, each with rows of its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from reclaim import models
from reclaim.cringe.decoding import reply
from reclaim.cringe.director import as_director, director_class
from reclaim.cringe.judges import make_judge
from reclaim.cringe.measures import evaluate, judged, reply_options
from reclaim.cringe.parts import (
    Part,
    arm_parts,
    choose_rows,
    judged_rows,
    require_held_out,
    row_polarity,
    weighted_parts,
)
from reclaim.cringe.rows import Rows, encode_rows, mixture_batches
from reclaim.cringe.training import check_output_layer, fit
from reclaim.cringe.utterances import Reply, balanced_replies
from reclaim.errors import InputError
from reclaim.io import atomic_path, read_json, write_json, write_parquet
from reclaim.outcome import stretches
from reclaim.seeding import derive
from reclaim.state import begin_state
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe

LAST_STEPS = 20
KEPT, SHOWN = 40, 3
"""How many replies of an arm are kept, and how many of them are rows of the metric `example` (1 where unwanted)."""
GENERATED_COLUMNS = ("text", "text_pair", "label", "arm", "iteration", "lineage")


def run(
    spec: Mapping[str, Any],
    seed: int,
    *,
    iteration: int,
    previous: Path | None,
    into: Path,
    data: Mapping[str, Path],
    device: torch.device | str = "cpu",
    state_dir: Path,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Run one iteration of all its arms; gives `metrics`, `curves`, `costs` and `predictions` (some replies of each arm).

    `spec`: `model` (`config` of a GPT-2 made and trained here by `pretraining`, or `name` of one in `data`), `mixture`
    (part -> an entry of `parts` with its `weight`), `generated_weight`, `prompts` (of the generated replies), `judges`
    (`labeller`, `evaluator`), `tests` (`provoking`, `benign`), `world` (the task whose rule judges exactly; absent for real
    text), `recipe`, `evaluation`, `arms`. `previous` is what the iteration before left, None for iteration 0; `into` gets
    the models (`models/ARM`) and the generated and judged rows (`generated.parquet`, with the arm that has seen them as
    `lineage`) of this one. Finished arms stay in `state_dir`, so that a job that was stopped goes on with the next arm. All
    but `costs` depends on spec, data, seed and code only.

    Raises `InputError` for an arm that starts from a model that the iteration before did not make, and for data that does
    not fit the spec.
    """
    study = _Study(spec, seed, iteration, previous, data, device, Path(state_dir), progress)
    arms = [arm for arm in spec["arms"] if iteration in iterations_of(arm)]
    if not arms:
        raise InputError(f"arms of iteration {iteration}", "none", "at least one")
    study.prepare()
    generated = study.generate(arms)
    rows, curves, costs, tables = study.language_rows(), [], [], []
    for arm in arms:
        record, replies = study.train_and_measure(arm, generated.get(start_of(arm)))
        variant = {"arm": arm["name"], "iteration": iteration}
        rows += [{"variant": variant, **row} for row in record["metrics"]]
        curves += [{"variant": variant, **point} for point in record["curve"]]
        costs += [{"variant": variant, **cost} for cost in record["costs"]]
        tables.append(replies.head(KEPT).assign(arm=arm["name"], iteration=iteration))
        for number, row in enumerate(replies.head(SHOWN).to_dict("records")):
            shown = {**variant, "number": number, "prompt": row["prompt"], "reply": row["reply"]}
            rows.append({"variant": shown, "metric": "example", "value": float(row["bad"]), "n": 1, "unit": "1"})
    study.leave(Path(into), arms, generated)
    return {
        "metrics": pd.DataFrame(rows),
        "curves": pd.DataFrame(curves, columns=["variant", "step", "measure", "value", "unit"]),
        "costs": pd.DataFrame(costs),
        "predictions": pd.concat(tables, ignore_index=True),
    }


def iterations_of(arm: Mapping[str, Any]) -> list[int]:
    """The iterations that an arm takes part in."""
    found = arm.get("iteration", 0)
    return found if isinstance(found, list) else [found]


def start_of(arm: Mapping[str, Any]) -> str:
    """The arm of the iteration before that an arm of a later one goes on from: itself, unless it says otherwise."""
    return arm.get("start", arm["name"])


@dataclass
class _Study:
    """One iteration at one seed: where things are, and its steps."""

    spec: Mapping[str, Any]
    seed: int
    iteration: int
    previous: Path | None
    data: Mapping[str, Path]
    device: torch.device | str
    state_dir: Path
    progress: Callable[[Sequence[Any]], Iterable[Any]]
    encoded: dict[Any, tuple[pd.DataFrame, Rows]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the state folder, or empty one of another job; get the language model, judges, tests and mixture ready."""
        spec, data = {**self.spec, "iteration": self.iteration}, dict(self.data)
        if self.previous is not None:
            data["what the iteration before left"] = self.previous
        begin_state(self.state_dir, spec, self.seed, data, __name__, device=self.device)
        source = self.spec["model"]
        self.family = "causal" if "config" in source else models.model_family(self.data[source["name"]])
        self.tests = {name: self.rows_of(entry, name) for name, entry in self.spec["tests"].items()}
        frames = {name: self.rows_of(entry, name) for name, entry in self.spec["mixture"].items()}
        for name in ("positive", "negative"):
            require_held_out(self.spec["tests"][name], name, self.tests[name], self.spec["mixture"], frames)
        self.parts: dict[str, Part] = weighted_parts(self.spec["mixture"], frames)
        self.folder = self._language_model()
        self.tokenizer = models.load_tokenizer(self.folder)
        self.judges = {}
        for name, entry in self.spec["judges"].items():
            rows = None if "model" in entry else judged_rows(entry, name, self.data, self.seed)
            self.judges[name] = make_judge(entry, rows, self.data, self.device)
        limits = {key: source[key] for key in ("max_prompt", "max_reply") if key in source}
        start = read_json(self.folder / "config.json").get("decoder_start_token_id")
        self.encoding = {"seq2seq": self.family == "seq2seq", "start": start, **limits}

    def rows_of(self, entry: Mapping[str, Any], name: str) -> pd.DataFrame:
        return choose_rows(entry, name, self.data, self.seed)

    def load(self, folder: Path):
        """The model of a folder, with its second head if it is a DIRECTOR."""
        if "director_gamma" not in read_json(folder / "config.json"):
            return models.load(folder, self.family).to(self.device)
        base: Any = type(models.load(self.folder, self.family))
        return director_class(base).from_pretrained(str(folder), local_files_only=True).to(self.device).eval()

    def _language_model(self) -> Path:
        """The folder of the language model that arms start from: given, made by iteration 0, or to be made now."""
        if "name" in self.spec["model"]:
            return Path(self.data[self.spec["model"]["name"]])
        if self.previous is not None:
            return self.previous / "models" / "pretrained"
        folder = self.state_dir / "models" / "pretrained"
        if not folder.exists():
            from reclaim.world.replies import CORPUS

            tokenizer = train_tokenizer("gpt2", [], words=CORPUS.words)
            model = models.build("gpt2", tokenizer, dict(self.spec["model"]["config"]), self.seed).to(self.device)
            entry = self.spec["pretraining"]
            frame = self.rows_of(entry, "pretraining")
            rows = encode_rows(tokenizer, frame["text"], frame["text_pair"], frame["polarity"])
            recipe = Recipe.from_config(dict(entry["recipe"]), "pretraining.recipe")
            loss, _ = self._fit(model, "ce", {"all": (rows, 1.0)}, recipe, {}, "pretraining", tokenizer.pad_token_id)
            with atomic_path(folder, directory=True) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                write_json(loss, temporary / "loss.json")
        return folder

    def _fit(
        self, model, method: str, parts, recipe: Recipe, settings, name: str, pad: int, at: int = 0
    ) -> tuple[list[float], list[float]]:
        """Train on a mixture; the draws of rows depend on the seed and `at`, not on the arm.

        Gives the loss of each step, and the time (s) at which each was done: time of the processor where that computes, so
        that other work on the machine does not show.
        """
        now = time.perf_counter if str(self.device).startswith("cuda") else time.process_time
        clock: list[float] = []
        if not recipe.num_train_steps:
            return [], clock
        rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        batches = mixture_batches(parts, rows, pad, derive(self.seed, "mixture", at))
        history = fit(
            model, method, batches, recipe, settings, seed=derive(self.seed, "arm", at),
            state_path=self.state_dir / f"{name}.train", run=name, progress=self.progress,
            after_step=lambda step: clock.append(now()),
        )  # fmt: skip
        return history.loss, clock

    def language_rows(self) -> list[dict]:
        """Iteration 0: check the language model's output layer, and give the loss that it ended its training with."""
        if self.iteration:
            return []
        frame = self.tests["benign"].head(8)
        rows = encode_rows(self.tokenizer, frame["text"], frame["text_pair"], frame["polarity"], **self.encoding)
        check_output_layer(self.load(self.folder), rows.to(self.device), str(self.folder))
        path = self.folder / "loss.json"
        if not path.exists():
            return []
        loss = read_json(path)
        value = float(np.mean(loss[-LAST_STEPS:]))
        row = {"metric": "pretrain_loss", "value": value, "n": len(loss), "unit": "nats"}
        return [{"variant": {"arm": "pretrained", "iteration": 0}, **row}]

    def generate(self, arms: Sequence[Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
        """Start -> the generated rows of arms that go on from it: those it has seen itself, and new ones.

        New: its replies to the training prompts, labelled by the judge, as many good as bad; empty ones are left out.
        """
        if self.iteration == 0:
            return {}
        if self.previous is None:
            raise InputError("previous", "None", f"the folder that iteration {self.iteration - 1} left")
        frame = self.rows_of(self.spec["prompts"], "prompts")
        earlier = pd.read_parquet(self.previous / "generated.parquet")
        found = {}
        for start in dict.fromkeys(map(start_of, arms)):
            path = self.state_dir / f"generated.{start}.parquet"
            if not path.exists():
                seed = derive(self.seed, "generate", start, self.iteration)
                settings = self.spec["evaluation"]
                said = reply(
                    self.load(self._start_folder(start)), self.tokenizer, frame["text"].tolist(), seed=seed,
                    sample=settings.get("sample", True), **reply_options(settings, self.encoding),
                )  # fmt: skip
                table = judged(frame, said, self.judges, None)
                good = np.where(table["labeller"] >= 0.5, "pos", "neg")
                rows = [Reply(*row) for row in zip(table["prompt"], table["reply"], good, strict=True) if row[1]]
                kept = pd.DataFrame(balanced_replies(rows, seed), columns=list(GENERATED_COLUMNS[:3]), dtype=str)
                write_parquet(kept.assign(arm=start, iteration=self.iteration), path)
            before = earlier[earlier["lineage"] == start].drop(columns="lineage")
            found[start] = pd.concat([before, pd.read_parquet(path)], ignore_index=True)
        return found

    def _start_folder(self, start: str) -> Path:
        if self.previous is None:
            raise InputError("previous", "None", f"the folder that iteration {self.iteration - 1} left")
        folder = self.previous / "models" / start
        if not folder.exists():
            known = sorted(path.name for path in (self.previous / "models").iterdir())
            place = f"arms: start of iteration {self.iteration}"
            raise InputError(place, repr(start), f"an arm of the iteration before: {', '.join(known)}")
        return folder

    def train_and_measure(
        self, arm: Mapping[str, Any], generated: pd.DataFrame | None
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """Train an arm and measure it, or find that done: metric rows, curve and costs, and its replies."""
        name = arm["name"]
        record_path, replies_path = self.state_dir / f"{name}.json", self.state_dir / f"{name}.parquet"
        if record_path.exists():
            return read_json(record_path), pd.read_parquet(replies_path)
        started = time.perf_counter()
        model = self.load(self._start_folder(start_of(arm)) if self.iteration else self.folder)
        if arm["method"] == "director" and not hasattr(model, "director_head"):
            model = as_director(model, arm.get("gamma", 1.0))
        parts = arm_parts(arm, self.parts, generated, self.spec.get("generated_weight", 1.0), self.seed)
        recipe = Recipe.from_config({**self.spec["recipe"], **arm.get("recipe", {})}, "recipe")
        rows = {part: (self._encode(frame, arm), weight) for part, (frame, weight) in parts.items()}
        loss, clock = self._fit(
            model, arm["method"], rows, recipe, arm, name, self.tokenizer.pad_token_id, self.iteration + 1
        )
        trained = time.perf_counter()
        found, replies = evaluate(
            model, self.tokenizer, self.tests, self.judges, self.spec["evaluation"], task=self.spec.get("world"),
            how=arm.get("decoding", {}), seed=derive(self.seed, "evaluate"), encoding=self.encoding,
            first=self.load(self.folder),
        )  # fmt: skip
        found += [
            {"metric": f"rows_{part}", "value": float(len(frame)), "n": len(frame), "unit": "count"}
            for part, (frame, _) in parts.items()
        ]
        with atomic_path(self.state_dir / "models" / name, directory=True) as temporary:
            model.save_pretrained(temporary)
        write_parquet(replies, replies_path)
        record = {
            "metrics": found,
            "curve": [{"step": step, "measure": "loss", "value": mean, "unit": "nats"} for step, mean in stretches(loss)],
            "costs": [{"measure": "train_s", "value": trained - started, "unit": "s"},
                      {"measure": "evaluate_s", "value": time.perf_counter() - trained, "unit": "s"}],
        }  # fmt: skip
        if len(clock) > 1:
            # The median, as a step now and then is a long one (saving state, the first).
            record["costs"].append({"measure": "step_s", "value": float(np.median(np.diff(clock))), "unit": "s"})
        write_json(record, record_path)
        return record, replies

    def _encode(self, frame: pd.DataFrame, arm: Mapping[str, Any]) -> Rows:
        """The rows of a part as tensors; parts that arms share are encoded once."""
        per_token = arm.get("polarity") == "token"
        key = (id(frame), per_token)
        if key not in self.encoded or self.encoded[key][0] is not frame:
            signs = row_polarity(frame, per_token)
            rows = encode_rows(self.tokenizer, frame["text"], frame["text_pair"], signs, **self.encoding)
            self.encoded[key] = (frame, rows)
        return self.encoded[key][1]

    def leave(self, into: Path, arms: Sequence[Mapping[str, Any]], generated: Mapping[str, pd.DataFrame]) -> None:
        """Write what the next iteration needs: models that it starts from, generated rows by the arm that has seen them."""
        needed = [start_of(arm) for arm in self.spec["arms"] if self.iteration + 1 in iterations_of(arm)]
        (into / "models").mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(needed):
            if (self.state_dir / "models" / name).exists():
                shutil.copytree(self.state_dir / "models" / name, into / "models" / name)
        if "config" in self.spec["model"]:
            shutil.copytree(self.folder, into / "models" / "pretrained")
        tables = [generated[start_of(arm)].assign(lineage=arm["name"]) for arm in arms if generated]
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(GENERATED_COLUMNS))
        types = {name: "int64" if name == "iteration" else "str" for name in GENERATED_COLUMNS}
        write_parquet(table[list(GENERATED_COLUMNS)].astype(types), into / "generated.parquet")
