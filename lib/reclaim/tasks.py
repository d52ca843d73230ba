"""Few-shot tasks: which rows a run trains, selects and tests on, all functions of the task and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from reclaim.data import load_info, load_split
from reclaim.errors import InputError
from reclaim.sampling import balanced, evaluation_sample, kshot, mezo_split
from reclaim.seeding import derive


@dataclass(frozen=True)
class FewShotSet:
    """One training set of a task with its development rows; `number` counts the sets of a seed from 0."""

    number: int
    train: pd.DataFrame
    dev: pd.DataFrame


@dataclass(frozen=True)
class TaskData:
    """A task's canonical rows. `train` is what few-shot sets are drawn from, `test` what every arm is tested on."""

    kind: str
    label_names: list[str]
    train: pd.DataFrame | None
    dev: pd.DataFrame | None
    test: pd.DataFrame


def load_task(task: dict, folder: str | Path) -> TaskData:
    """Read a task's data; `test_rows` keeps a sample of the test rows by LM-BFF's rule, the same for every arm and seed.

    MeZO's official code for OPT draws its evaluation rows anew at each seed; the same rows can be resampled with the seeds.
    """
    info = load_info(folder)
    train, dev = (load_split(folder, split) if split in info["rows"] else None for split in ("train", "dev"))
    test = load_split(folder, "test")
    if "test_rows" in task:
        chosen = np.sort(evaluation_sample(len(test), size=task["test_rows"]))
        test = test.iloc[chosen].reset_index(drop=True)
    return TaskData(info["kind"], info["label_names"], train, dev, test)


def few_shot_sets(task: dict, data: TaskData, seed: int, shuffle_labels: bool = False) -> Iterator[FewShotSet]:
    """Draw the training sets that a task asks for at a seed.

    `random`: `size` rows without regard to class. `per_class`: `k` rows a class. `kshot`: LM-BFF's rule, with as many dev rows.
    `subset`: MeZO's rule for OPT. Development rows come from the training split and are disjoint from the training rows.
    With `shuffle_labels` the labels of training and development rows are permuted: a null control, in which nothing that is
    learnt or selected can come from the labels. Test labels are never touched.

    Raises `InputError` where there are no training rows, too few, or no labels though the rule or the control needs them.
    """
    rule, train = task["few_shot"], data.train
    if train is None:
        raise InputError("tasks.*.few_shot", "a data set without a train split", "training rows to draw from")
    if "label" not in train and (shuffle_labels or rule["sampling"] in ("per_class", "kshot")):
        what = "shuffled labels" if shuffle_labels else f"sampling {rule['sampling']}"
        raise InputError("tasks.*.few_shot", f"{what} with data of kind {data.kind}", "data with labels")
    for number in range(rule.get("sets", 1)):
        # Official rules take the seed as it is, so that their draws are the original's; they have one set a seed.
        set_seed = derive(seed, "few_shot", number)
        n_dev = rule.get("dev", 0)
        if rule["sampling"] == "random":
            order = np.random.default_rng(set_seed).permutation(len(train))
            rows, dev_rows = order[: rule["size"]], order[rule["size"] : rule["size"] + n_dev]
        elif rule["sampling"] == "per_class":
            rows, dev_rows = balanced(train["label"].tolist(), rule["k"], set_seed, n_dev)
        elif rule["sampling"] == "kshot":
            rows, dev_rows = kshot(train["label"].tolist(), rule["k"], seed)
        else:
            rows, dev_rows = mezo_split(len(train), rule["size"], n_dev, seed)
        chosen, held = train.iloc[rows].reset_index(drop=True), train.iloc[dev_rows].reset_index(drop=True)
        if shuffle_labels:
            rng = np.random.default_rng(derive(seed, "shuffled labels", number))
            chosen = chosen.assign(label=rng.permutation(chosen["label"].to_numpy()))
            held = held.assign(label=rng.permutation(held["label"].to_numpy()))
        yield FewShotSet(number, chosen, held)
