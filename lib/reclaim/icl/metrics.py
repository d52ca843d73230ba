"""Metrics of the in-context study from the table of predictions alone; no model, no data.

Source: Pan et al. 2023 and its official code, which reports accuracy only. Beside it stand here what the imbalanced sets
need: macro-F1, the rate of the majority class, chance (1 / classes) and normalised accuracy
(accuracy - chance) / (1 - chance), the only one that may be averaged over sets with different numbers of classes.

Scorers of ours beside the official one: whole words, also divided by their number of tokens (`word_mean`), or calibrated for
the context (`word_calibrated`; Zhao et al. 2021, whose ratio of probabilities is a difference of logarithms here).

Differences from the official code: `valid_output` asks whether an answer is one of the words that were OFFERED (there:
of the natural words, so that made-up labels never are); an answer that cannot be read is wrong and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reclaim.errors import InputError
from reclaim.icl.prompts import clean_answer
from reclaim.metrics.classification import f1

SCORERS = ("word", "word_mean", "word_calibrated", "official_last")
CELL_KEYS = ("setting", "num_demonstrations", "label_space", "template_kind", "template", "draws", "fixed_map")


def predictions(table: pd.DataFrame, scorer: str) -> list[str]:
    """The label word that a scorer chooses in each row of a scored table, of the first class where two are equal.

    `word`: sum of the log-probabilities of all its tokens; `word_mean`: that divided by their number; `word_calibrated`: that
    less what it is where the query says nothing; `official_last`: its last token at the prompt's end. Raises `InputError` for
    another name, and for a table without content-free prompts that is to be calibrated.
    """
    if scorer not in SCORERS:
        raise InputError("scorer", repr(scorer), f"one of {', '.join(SCORERS)}")
    columns = [table["logprob_last" if scorer == "official_last" else "logprob_word"]]
    if scorer == "word_mean":
        columns.append(table["label_pieces"])
    elif scorer == "word_calibrated":
        if "logprob_free" not in table:
            raise InputError("table of predictions", "no column 'logprob_free'", "prompts with `content_free`")
        columns.append(table["logprob_free"])
    adjust = {"word_mean": np.divide, "word_calibrated": np.subtract}.get(scorer, np.asarray)
    return [
        words[int(np.argmax(adjust(*scores)))] for words, *scores in zip(table["label_words"], *columns, strict=True)
    ]


def correct(targets: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Which answers are the target word: compared as strings, blanks around them aside; bool (rows,)."""
    return np.array([clean_answer(str(a)) == str(t) for t, a in zip(targets, answers, strict=True)], dtype=bool)


def valid_output(answers: Sequence[str], offered: Sequence[Sequence[str]]) -> float:
    """Share of answers that are among the words offered with them."""
    return float(np.mean([clean_answer(str(a)) in words for a, words in zip(answers, offered, strict=True)]))


def cell_metrics(table: pd.DataFrame, scorer: str | None = None) -> list[dict]:
    """Metric rows of a table that holds one cell on one data set, in one or more parts (the column `part`).

    With `scorer` the predictions are made anew from the log-probabilities. Metrics: accuracy, above_chance (accuracy -
    1 / classes), normalised_accuracy, macro_f1, majority_rate, degenerate (share of rows). Parts are averaged, each counting
    once.
    """
    answers = table["prediction"] if scorer is None else pd.Series(predictions(table, scorer), index=table.index)
    each = [_of_one_set(part, answers[part.index]) for _, part in table.groupby("part", sort=True)]
    return [
        {
            "metric": name,
            "value": float(np.mean([values[name] for values in each])),
            "n": len(table),
            "unit": "fraction",
        }
        for name in each[0]
    ]


def _of_one_set(table: pd.DataFrame, answers: pd.Series) -> dict[str, float]:
    n_classes = len(table["label_words"].iloc[0])
    accuracy, chance = float(correct(table["target"], answers).mean()), 1 / n_classes
    labels = table["label"].to_numpy()
    # With equal labels (a duplicate symbol) the word stands for the class that is asked for.
    chosen = np.array([
        label if words[label] == answer else words.index(answer)
        for answer, words, label in zip(answers, map(list, table["label_words"]), labels, strict=True)
    ])  # fmt: skip
    by_class = [f1(chosen, labels, positive=label) for label in range(n_classes)]
    return {
        "accuracy": accuracy,
        "above_chance": accuracy - chance,
        "normalised_accuracy": (accuracy - chance) / (1 - chance),
        "macro_f1": float(np.mean([each.value for each in by_class if not each.degenerate])),
        "majority_rate": float(np.bincount(labels, minlength=n_classes).max() / len(labels)),
        "degenerate": float((table["degenerate"] != "").mean()),
    }


def paired_variance_ratio(first: np.ndarray, second: np.ndarray, independent: np.ndarray) -> float:
    """Variance of a paired difference over that with independent draws: below 1, pairing saves rows.

    All three are right-or-wrong values of the same rows (n,): of two settings that saw the same demonstrations, and of the
    second one with demonstrations of its own. NaN where the independent difference does not vary.
    """
    paired, unpaired = np.var(second - first), np.var(independent - first)
    return float(paired / unpaired) if unpaired > 0 else float("nan")


def average_episodes(results: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and POPULATION standard deviation of each metric over episodes, as the original reports them."""
    return {name: (float(np.mean(v)), float(np.std(v))) for name in results[0] if (v := [r[name] for r in results])}
