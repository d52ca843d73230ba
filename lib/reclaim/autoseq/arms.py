"""The arms of one few-shot split of one task: search, label words, training, prediction; what is shared is done once.

Yu et al. 2022. An arm names its `method` and how it is trained:

    autoseq       label sequences found by the search; autoword: single words found by the same search
    manual        the words of a curated prompt
    random_words  a word of the vocabulary for each class, by chance (a control)
    fine_tuning   no sentinel: the label's text is the target, prediction by generation; with `rows: all` on the whole training
                  split, without selection

A regression (STS-B) has two classes, scores below and from the border: label sequences are searched for these, and the
prediction lies between low and high by the probability of the second (`tuning.regression_predictions`).

`trained`: `none` (zero-shot), `full`, `prompt` (soft prompt), `lora`. `selection`: `first`, the best combination by contrast,
or `dev`, the best of the combinations by development score after training each from the same weights. `labels: shuffled`
permutes the labels of training and development rows (a null control; `draw` numbers the permutations of a split). `search`
changes settings of the search. Test rows are predicted and never read otherwise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reclaim.autoseq.prompts import WORD_START, Prompt, encode_prompt, target_ids, task_prompt
from reclaim.autoseq.search import Constraints, SearchResult, SearchSettings, search
from reclaim.autoseq.selection import STS_B_BORDER, official_split, rank_by_dev, selection_score
from reclaim.autoseq.tuning import (
    Examples,
    class_scores,
    fit,
    generated_classes,
    predictions,
    regression_predictions,
)
from reclaim.errors import InputError
from reclaim.prompting.tokens import text_ids
from reclaim.sampling import balanced
from reclaim.seeding import derive
from reclaim.train import Recipe

METHODS = ("autoseq", "autoword", "manual", "random_words", "fine_tuning")
OFFICIAL_SEEDS = (100, 13, 21, 42, 87)


@dataclass(frozen=True)
class Task:
    """A task's name, classes (names as the prompts have them), prompts, columns of its sentences, and rows.

    `search` changes settings of the search for this task (TREC: 10 candidates a class enter combinations, not 20), and
    `few_shot` how its rows are drawn (CoLA and SuperGLUE: `in_place`). `metrics` names its official metrics (see
    `selection.task_metrics`; "" where accuracy is all), `groups` the columns by which they group rows. `tests` names the parts
    of `test` in their order, with the number of rows and the metrics of each: "" is the task's own, others are further test
    sets (MNLI-mm). Rows of a regression have their class as `label` and their value as `score`.
    """

    name: str
    classes: Sequence[str]
    prompts: str | Mapping[str, Any]
    sentences: Sequence[str]
    train: pd.DataFrame
    test: pd.DataFrame
    search: Mapping[str, Any]
    few_shot: Mapping[str, Any]
    metrics: str
    groups: Sequence[str]
    tests: Mapping[str, tuple[int, str]]

    @property
    def is_regression(self) -> bool:
        """Whether what is predicted is a number."""
        return "score" in self.train

    def groups_of(self, rows: pd.DataFrame) -> list[tuple] | None:
        """The group of each row, None where the metrics know no groups."""
        return list(map(tuple, rows[list(self.groups)].to_numpy())) if self.groups else None

    def form(self, name: str) -> Mapping[str, Any]:
        """The keys of one form of the prompt."""
        if isinstance(self.prompts, str):
            return task_prompt(self.prompts, name)
        if name not in self.prompts:
            raise InputError(f"prompts of {self.name}", repr(name), f"one of {', '.join(self.prompts)}")
        return self.prompts[name]


@dataclass(frozen=True)
class Models:
    """The model that is searched, the one that is trained and predicts (often the same), and their tokenizer."""

    searched: Any
    tuned: Any
    tokenizer: Any


@dataclass(frozen=True)
class Result:
    """What an arm predicted on the test rows (-1: no class), its label texts, and what it is selected by (nan: nothing).

    `dev_score` is the metric `selection.objective` of the task on the development rows.
    """

    predicted: np.ndarray
    dev_score: float
    labels: tuple[str, ...]


def border_classes(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a regression with their value as `score` and, as `label`, 1 from the border on and 0 below it."""
    return rows.assign(score=rows["label"], label=(rows["label"] >= STS_B_BORDER).astype("int64"))


def few_shot_rows(
    rule: Mapping[str, Any], labels: Sequence[int], seed: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training and development rows of a split: `kshot` (official, by the seed itself) or `per_class` (by derived seeds).

    `in_place`: the official rule of CoLA and SuperGLUE, where a split depends on the seeds that ran before.
    """
    k = rule["k"]
    if rule["sampling"] == "per_class":
        return balanced(labels, k, derive(seed, "few_shot", number), rule.get("dev", k))
    if rule["sampling"] != "kshot":
        raise InputError("few_shot.sampling", repr(rule["sampling"]), "kshot or per_class")
    before: tuple[int, ...] = ()
    if rule.get("in_place"):
        if seed + number not in OFFICIAL_SEEDS:
            raise InputError("few_shot.in_place", f"the seed {seed + number}", f"one of {OFFICIAL_SEEDS}")
        before = OFFICIAL_SEEDS[: OFFICIAL_SEEDS.index(seed + number)]
    return official_split(labels, k, seed + number, seeds_before=before, n_dev=rule.get("dev", k))


def encode_rows(tokenizer, task: Task, form: str, rows: pd.DataFrame) -> list[Prompt]:
    """The rows of a task in a form of its prompt; the search's own form knows no limits, fine-tuning's no sentinel.

    Where a long text would push the sentinel out, it is cut further (the official code goes on without a sentinel).
    """
    keys = task.form(form)
    limits = {} if form == "generation" else keys.get("limits", {})
    sentinel = not form.startswith("fine_tuning")
    sentences = rows[list(task.sentences)].to_numpy().tolist()
    options = {**limits, "require_sentinel": sentinel, "keep_sentinel": sentinel}
    return [encode_prompt(tokenizer, keys["template"], texts, **options) for texts in sentences]


def _draw(arm: Mapping[str, Any]) -> int | None:
    """Which permutation of the labels an arm has, None for the true ones."""
    if arm.get("labels", "true") not in ("true", "shuffled"):
        raise InputError("arms.labels", repr(arm["labels"]), "true or shuffled")
    return arm.get("draw", 0) if arm.get("labels") == "shuffled" else None


class Split:
    """One split of one task with everything that its arms share.

    A training on all rows, which takes hours, keeps its state in `state_path`.
    """

    def __init__(
        self,
        task: Task,
        models: Models,
        spec: Mapping[str, Any],
        seed: int,
        number: int,
        state_path: Path | None = None,
    ):
        self.task, self.models, self.spec, self.number, self.state_path = task, models, spec, number, state_path
        self.seed = derive(seed, task.name, number)
        self._few_shot = {**spec["few_shot"], **task.few_shot}
        rows, dev_rows = few_shot_rows(self._few_shot, task.train["label"].tolist(), seed, number)
        self._rows = {
            "train": task.train.iloc[rows], "dev": task.train.iloc[dev_rows], "test": task.test, "all": task.train,
        }  # fmt: skip
        self.settings = SearchSettings(**{**spec["search"], **task.search})
        self.costs: list[tuple[dict, str, float, str]] = []
        self._searches: dict[Any, SearchResult] = {}
        self._results: dict[Any, Result] = {}
        self._prompts: dict[Any, list[Prompt]] = {}

    # ---------------------------------------------------------------------------------------------------------- arms

    def variant(self, arm: Mapping[str, Any]) -> dict[str, Any]:
        """The keys that name an arm in the tables."""
        method = arm["method"]
        variant = {
            "task": self.task.name, "split": self.number, "k": self._few_shot["k"], "method": method,
            "trained": arm.get("trained", "none"), "labels": arm.get("labels", "true"),
        }  # fmt: skip
        if method in ("autoseq", "autoword"):
            variant |= {"selection": arm.get("selection", "first"), **asdict(self._settings(arm))}
        if method == "manual":
            variant["prompt"] = arm.get("prompt", "manual")
        if "draw" in arm:
            variant["draw"] = arm["draw"]
        if "rows" in arm:
            variant["rows"] = arm["rows"]
        if "recipe" in arm:
            recipe = self.spec["recipes"][arm["recipe"]]
            keys = {"num_train_steps": "steps", "num_train_epochs": "epochs"}
            variant |= {"recipe": arm["recipe"], **{ours: recipe[key] for key, ours in keys.items() if key in recipe}}
        return variant

    def run(self, arm: Mapping[str, Any]) -> Result:
        """Run an arm; raises `InputError` for an arm that does not exist."""
        method, trained = arm["method"], arm.get("trained", "none")
        if method not in METHODS:
            raise InputError("arms.method", repr(method), f"one of {', '.join(METHODS)}")
        if (trained == "none") == ("recipe" in arm) or (method == "fine_tuning" and trained != "full"):
            raise InputError(f"arm {dict(arm)}", f"trained: {trained}", "a recipe for what is trained, else none")
        if "rows" in arm and method != "fine_tuning":
            raise InputError(f"arm {dict(arm)}", "rows", "the method fine_tuning: all others are few-shot")
        plain = "fine_tuning_full" if "rows" in arm else "fine_tuning_k_shot"
        form = {"manual": arm.get("prompt", "manual"), "fine_tuning": plain}.get(method, "auto")
        if method in ("manual", "fine_tuning"):
            words = self.task.form(form)["labels"]
            return self.tuned(form, tuple(words[name] for name in self.task.classes), arm)
        if method == "random_words":
            return self.tuned(form, self._random_words(), arm)
        found = self.search(arm)
        candidates = [
            tuple(combination[y] for y in range(len(self.task.classes))) for combination in found.combinations
        ]
        if arm.get("selection", "first") == "first":
            return self.tuned(form, candidates[0], arm)
        reranking = {**arm, "trained": "full", "recipe": self.spec["rerank_recipe"]}
        scored = [(i, self.tuned(form, labels, reranking).dev_score) for i, labels in enumerate(candidates)]
        return self.tuned(form, candidates[rank_by_dev(scored)[0]], arm)

    def search(self, arm: Mapping[str, Any]) -> SearchResult:
        """The search of an arm, from the training rows of each class alone."""
        settings, words = self._settings(arm), arm["method"] == "autoword"
        key = (words, settings, _draw(arm))
        if key not in self._searches:
            prompts, labels = self.prompts(self._search_form(), "train"), self._labels("train", arm)
            by_class = {
                y: [prompt.input_ids for prompt, label in zip(prompts, labels, strict=True) if label == y]
                for y in range(len(self.task.classes))
            }
            for y, rows in by_class.items():
                if not rows:
                    raise InputError(
                        f"{self.task.name}, class {self.task.classes[y]!r}", "no training row", "at least one"
                    )
            started = time.process_time()
            self._searches[key] = search(self.models.searched, self.models.tokenizer, by_class, settings, words=words)
            spent = time.process_time() - started
            self.costs.append((self.variant({**arm, "selection": "first"}), "search_cpu_s", spent, "s"))
        return self._searches[key]

    def tuned(self, form: str, labels: tuple[str, ...], arm: Mapping[str, Any]) -> Result:
        """Train (or not) on label texts and predict; the best by dev where the recipe has a grid, the first winning ties."""
        trained, recipe = arm.get("trained", "none"), arm.get("recipe")
        terminator = self._settings(arm).terminator
        key = (form, labels, trained, recipe, terminator, _draw(arm), arm.get("rows"))
        if key in self._results:
            return self._results[key]
        plain = form.startswith("fine_tuning")
        tokenizer = self.models.tokenizer
        targets = [
            [*text_ids(tokenizer, text), tokenizer.eos_token_id] if plain else target_ids(tokenizer, text, terminator)
            for text in labels
        ]
        chosen = "all" if arm.get("rows") == "all" else "train"
        values = self._rows[chosen]["score"].tolist() if self.task.is_regression else None
        examples = Examples(self.prompts(form, chosen), self._labels(chosen, arm), targets, values)
        test = self.prompts(form, "test")

        def predict(model, prompts: Sequence[Prompt]) -> np.ndarray:
            if self.task.is_regression:
                return regression_predictions(class_scores(model, prompts, targets))
            if plain:
                return generated_classes(model, tokenizer, prompts, labels)
            return predictions(class_scores(model, prompts, targets))

        def on_dev(model) -> float:
            rows = self._rows["dev"]
            true = rows["score"].to_numpy() if self.task.is_regression else np.array(self._labels("dev", arm))
            found = predict(model, self.prompts(form, "dev"))
            return selection_score(self.task.metrics, found, true, self.task.groups_of(rows))

        if trained == "none":
            result = Result(predict(self.models.tuned, test), on_dev(self.models.tuned), labels)
        else:
            best = None
            for setting, eval_steps in self._grid(arm["recipe"], len(examples.prompts)):
                model, _, _ = fit(
                    self.models.tuned, examples, setting, seed=self.seed, trained=trained,
                    dev=on_dev if chosen == "train" else None, eval_steps=eval_steps,
                    state_path=self.state_path if chosen == "all" else None, run=f"{self.seed} {key}",
                )  # fmt: skip
                score = on_dev(model) if chosen == "train" else float("nan")
                if best is None or score > best[0]:
                    best = (score, model)
            assert best is not None  # a grid has at least one setting
            result = Result(predict(best[1], test), best[0], labels)
        self._results[key] = result
        return result

    # -------------------------------------------------------------------------------------------------------- details

    def prompts(self, form: str, part: str) -> list[Prompt]:
        """The rows of a part in a form of the prompt."""
        if (form, part) not in self._prompts:
            self._prompts[form, part] = encode_rows(self.models.tokenizer, self.task, form, self._rows[part])
        return self._prompts[form, part]

    @property
    def n_dev(self) -> int:
        return len(self._rows["dev"])

    def test_labels(self) -> np.ndarray:
        """The classes of the test rows; of a regression their values."""
        return self.task.test["score" if self.task.is_regression else "label"].to_numpy()

    def _search_form(self) -> str:
        """The template of the search, where the prompts have one of its own."""
        if isinstance(self.task.prompts, str) or "generation" in self.task.prompts:
            return "generation"
        return "auto"

    def _labels(self, part: str, arm: Mapping[str, Any]) -> list[int]:
        labels = self._rows[part]["label"].to_numpy()
        if (draw := _draw(arm)) is not None:
            labels = np.random.default_rng(derive(self.seed, "shuffled labels", part, draw)).permutation(labels)
        return labels.tolist()

    def _settings(self, arm: Mapping[str, Any]) -> SearchSettings:
        changes = dict(arm.get("search", {}))
        if arm["method"] == "autoword":
            # The official word search keeps four times the candidates of the sequences' beam.
            changes = {"beam": 4 * self.settings.beam} | changes
        return replace(self.settings, **changes)

    def _grid(self, name: str, num_rows: int):
        """Every setting of a recipe whose learning rate or batch size is a list, with its steps between evaluations.

        Its length may be given as `num_train_epochs` over `num_rows` rows.
        """
        values = dict(self.spec["recipes"][name])
        eval_steps = values.pop("eval_steps", None)
        epochs = values.pop("num_train_epochs", None)
        keys = ("learning_rate", "per_device_train_batch_size")
        lists = [values[key] if isinstance(values.get(key), list) else [values[key]] for key in keys]
        for chosen in itertools.product(*lists):
            setting = values | dict(zip(keys, chosen, strict=True))
            if epochs is not None:
                setting["num_train_steps"] = epochs * max(1, num_rows // setting["per_device_train_batch_size"])
            yield Recipe.from_config(setting, f"recipes.{name}"), eval_steps

    def _random_words(self) -> tuple[str, ...]:
        """Different words of the vocabulary, one a class: tokens that start a word, of letters only."""
        tokenizer = self.models.tokenizer
        banned = Constraints.of(tokenizer).banned
        words = sorted(
            piece[1:]
            for piece, number in tokenizer.get_vocab().items()
            if number not in banned and piece.startswith(WORD_START) and piece[1:].isalpha()
        )
        rng = np.random.default_rng(derive(self.seed, "random words"))
        return tuple(words[i] for i in rng.choice(len(words), size=len(self.task.classes), replace=False))
