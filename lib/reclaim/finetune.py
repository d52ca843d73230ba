"""Run the arms of a fine-tuning job: draw the training sets, try the grid, select on development rows, predict the test rows.

The same for every method: a method is a function that trains a `Problem` in place (`reclaim.finetune_mezo`,
`reclaim.finetune_backprop`). So no method gets more tuning than another, and none sees a test row before its weights are
chosen. With `select: best_dev` the point of the grid and the step with the best development score are tested (the first of
equal ones: smaller learning rate position, earlier step); with `last` the last step of the first rate. MeZO's official code
selects so on RoBERTa, but by the lowest development loss on OPT; here the score, which is what is reported, decides for all.

Of several processes (`reclaim.parallel`), which share the rows of each batch, all evaluate and select alike; the first
writes what is kept, and the others read it.

One model is in memory at a time, whatever the grid: a run leaves its scores, and a file with the weights that it trained.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from reclaim import parallel
from reclaim.config import listed
from reclaim.io import atomic_path, read_json, write_json, write_parquet
from reclaim.problems import Predictions, Problem, make_problem
from reclaim.seeding import derive
from reclaim.tables import variant_json
from reclaim.tasks import FewShotSet, TaskData, few_shot_sets, load_task
from reclaim.tokenization import require_words

log = logging.getLogger(__name__)


class Method(Protocol):
    """Train a problem in place; call `watch.after(problem, step)` at every evaluation step and after the last."""

    def __call__(self, problem: Problem, train_rows: list, recipe: dict, watch: Watch, **options: Any) -> None: ...


@dataclass
class Watch:
    """What selection sees of one training run: a development score at each evaluation, and the weights of the best.

    The best weights are a copy on disk, so that training on cannot change them and an interrupted run still has them. A score
    that is no number (of a run that diverged) counts as the worst.
    """

    dev_rows: list
    folder: Path
    eval_steps: int
    num_train_steps: int
    keep_best: bool
    scores: dict[int, float] = field(default_factory=dict)

    def __post_init__(self):
        if self._log.exists():
            self.scores = {int(step): score for step, score in read_json(self._log).items()}

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step` updates."""
        return step == self.num_train_steps or bool(self.eval_steps and step % self.eval_steps == 0)

    def after(self, problem: Problem, step: int) -> None:
        """Evaluate the development rows, and keep the weights if they are the best so far (the last, without selection)."""
        score = problem.score(self.dev_rows) if self.dev_rows else math.nan
        before = [_rank(value) for at, value in self.scores.items() if at < step]
        self.scores[step] = score
        if not parallel.is_main():
            return
        if (not before or _rank(score) > max(before)) if self.keep_best else step == self.num_train_steps:
            with atomic_path(self.weights) as path:
                save_file({name: tensor.detach().contiguous() for name, tensor in problem.trainable()}, path)
        # After the weights: a run killed in between evaluates this step again.
        write_json({str(at): value for at, value in self.scores.items()}, self._log)

    @property
    def weights(self) -> Path:
        """Where the kept weights lie."""
        return self.folder / "best.safetensors"

    @property
    def _log(self) -> Path:
        return self.folder / "scores.json"

    def restore(self, problem: Problem) -> None:
        """Put the kept weights into the model of a problem of the same arm, whatever it was trained to."""
        parallel.barrier()
        kept = load_file(self.weights)
        with torch.no_grad():
            for name, tensor in problem.trainable():
                tensor.copy_(kept[name])

    @property
    def best(self) -> float:
        """The best score, below all others if none is a number."""
        return max(map(_rank, self.scores.values()))

    def selected_step(self) -> int:
        """The step whose weights were kept."""
        if not self.keep_best:
            return self.num_train_steps
        return min(step for step, score in self.scores.items() if _rank(score) == self.best)


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def run_job(
    spec: dict,
    method: Method,
    *,
    device: torch.device | str,
    state_dir: str | Path,
    identity: str,
    progress: Callable[..., Any],
    count: Callable[..., None],
    trajectories: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run all arms of a job; gives (predictions, history) tables.

    Predictions: variant, seed, set, item, label, prediction, scores, text, answers; one row a test row and training set.
    History: variant, seed, set, learning_rate, step, dev_score, selected; one row an evaluation. Finished arms, and the rates
    of the training set at hand that are trained, lie in `state_dir` under `identity` until the job ends, so that an interrupted
    job goes on where it was.
    `trajectories` receives what a method leaves of its selected runs (MeZO: its log).
    """
    state_dir = _state_of(Path(state_dir), identity)
    predictions, histories = [], []
    for index, arm in enumerate(spec["arms"]):
        folder = state_dir / f"arm-{index}"
        if not (folder / "history.parquet").exists():
            predicted, history = _run_arm(arm, spec["seed"], method, device, folder, progress, count)
            if parallel.is_main():
                write_parquet(predicted, folder / "predictions.parquet")
                write_parquet(history, folder / "history.parquet")
        parallel.barrier()
        predictions.append(pd.read_parquet(folder / "predictions.parquet"))
        histories.append(pd.read_parquet(folder / "history.parquet"))
        if trajectories is not None:
            for path in sorted(folder.glob("*.mezo")):
                shutil.copy(path, trajectories / f"arm-{index}.{path.name}")
        log.info("%s: %d of %d arms", variant_json(arm["variant"]), index + 1, len(spec["arms"]))
    parallel.barrier()
    if parallel.is_main():
        shutil.rmtree(state_dir)
    return pd.concat(predictions, ignore_index=True), pd.concat(histories, ignore_index=True)


def _state_of(folder: Path, identity: str) -> Path:
    """The scratch folder, emptied if it holds the state of another run (other parameters, inputs or code)."""
    marker = folder / "identity.json"
    if parallel.is_main():
        if marker.exists() and read_json(marker) != identity:
            log.info("%s holds the state of another run; starting anew", folder)
            shutil.rmtree(folder)
        if not marker.exists():
            write_json(identity, marker)
    parallel.barrier()
    return folder


def _check_words(tokenizer, data: TaskData, name: str) -> None:
    for rows in (data.train, data.dev, data.test):
        for column in ("text", "text_pair"):
            if rows is not None and column in rows:
                require_words(tokenizer, rows[column].dropna(), f"data.{name}")


def _run_arm(
    arm: dict, seed: int, method: Method, device, folder: Path, progress, count
) -> tuple[pd.DataFrame, pd.DataFrame]:
    data = load_task(arm["task"], arm["data"])
    variant, recipe = variant_json(arm["variant"]), dict(arm["recipe"])
    rates, select = listed(recipe.pop("learning_rate")), recipe.pop("select", "last")
    eval_steps = recipe.pop("eval_steps", 0)
    tables: list[pd.DataFrame] = []
    histories: list[dict] = []
    test_rows = None
    problem: Problem | None = None
    for few_shot in few_shot_sets(arm["task"], data, seed, arm["variant"].get("labels") == "shuffled"):
        watches: list[tuple[float, Watch]] = []
        for position, rate in enumerate(rates):
            place = folder / f"set-{few_shot.number}.rate-{position}"
            place.mkdir(parents=True, exist_ok=True)
            problem = None  # before the next model is loaded
            problem = make_problem(arm, data, device, seed)
            if not tables and position == 0:
                _check_words(problem.tokenizer, data, Path(arm["data"]).name)
            encoded = {name: problem.encode(rows) for name, rows in (("train", few_shot.train), ("dev", few_shot.dev))}
            watch = Watch(encoded["dev"], place, eval_steps, recipe["num_train_steps"], keep_best=select == "best_dev")
            finished = place / "finished.json"
            if not finished.exists():
                method(
                    problem,
                    encoded["train"],
                    {**recipe, "learning_rate": rate},
                    watch,
                    seed=derive(seed, "finetune", few_shot.number),
                    state_dir=place,
                    progress=progress,
                )
                count(steps=recipe["num_train_steps"])
                if parallel.is_main():
                    write_json({}, finished)
            watches.append((rate, watch))
        assert problem is not None  # a grid has at least one rate
        chosen = int(np.argmax([watch.best for _, watch in watches])) if select == "best_dev" else 0
        _, watch = watches[chosen]
        watch.restore(problem)
        if test_rows is None:
            test_rows = problem.encode(data.test)
        tables.append(prediction_table(data, problem.predict(test_rows)).assign(set=few_shot.number))
        histories += list(_history(watches, chosen, few_shot))
        parallel.barrier()
        if parallel.is_main():
            for log_file in watch.folder.glob("*.mezo"):
                shutil.move(log_file, folder / f"set-{few_shot.number}.{log_file.name}")
            for _, used in watches:
                shutil.rmtree(used.folder)
    table = pd.concat(tables, ignore_index=True).assign(variant=variant, seed=seed)
    return table, pd.DataFrame(histories).assign(variant=variant, seed=seed)


def _history(watches: Sequence[tuple[float, Watch]], chosen: int, few_shot: FewShotSet) -> Iterator[dict]:
    for position, (rate, watch) in enumerate(watches):
        for step, score in sorted(watch.scores.items()):
            yield {
                "set": few_shot.number,
                "learning_rate": rate,
                "step": step,
                "dev_score": score,
                "selected": position == chosen and step == watch.selected_step(),
            }


def prediction_table(data: TaskData, predictions: Predictions) -> pd.DataFrame:
    """One row a test row, in the columns that evaluation reads.

    Where several choices are right (`answers`), whichever of them is predicted stands as the row's label.
    """
    size, labels = len(data.test), predictions.labels
    if data.kind == "multiple_choice" and "answers" in data.test:
        columns = (data.test[name] for name in ("label", "choices", "answers"))
        rows = zip(labels, *columns, strict=True)
        labels = np.array([label if choices[found] in right else found for found, label, choices, right in rows])
    return pd.DataFrame(
        {
            "item": data.test["id"].to_numpy(),
            "label": data.test["label"].to_numpy() if "label" in data.test else np.full(size, -1),
            "prediction": labels,
            "scores": list(predictions.scores.astype(np.float64)),
            "text": predictions.texts,
            "answers": list(data.test["answers"]) if "answers" in data.test else [[]] * size,
        }
    )
