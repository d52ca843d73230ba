"""Predictions without fine-tuning: zero-shot, calibrated zero-shot, in-context learning, linear probing.

Malladi et al. 2023 (MeZO), section 3 and appendix E, compare these with fine-tuning: probing sees the training rows of a
few-shot set, demonstrations too, or, under MeZO's own rule for OPT (`subset`), all training rows, as in its code. Nothing sees
test labels. Zero-shot predictions are those of a fine-tuned model (`Problem.predict`) before its first step.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from reclaim.errors import InputError
from reclaim.finetune import prediction_table
from reclaim.prediction import calibrate_median, generate_answers, predict
from reclaim.problems import (
    GenerationProblem,
    MaskedPromptProblem,
    OptionProblem,
    Predictions,
    Problem,
    evaluation_batches,
    make_problem,
)
from reclaim.sampling import icl_seeds, mezo_subset
from reclaim.scoring import evaluating
from reclaim.tables import variant_json
from reclaim.tasks import FewShotSet, TaskData, few_shot_sets, load_task


def run_prompt_job(spec: dict, device: torch.device | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict the test rows in every arm of a job; gives (predictions, history) as `reclaim.finetune.run_job` does.

    There is nothing to select, so the history has no rows.
    """
    tables = [table for arm in spec["arms"] for table in _tables(arm, spec["seed"], device)]
    history = pd.DataFrame(
        {"set": [], "learning_rate": [], "step": [], "dev_score": [], "selected": [], "variant": [], "seed": []}
    ).astype({"set": int, "step": int, "selected": bool, "variant": str, "seed": int, "learning_rate": float})
    return pd.concat(tables, ignore_index=True), history


def _tables(arm: dict, seed: int, device: torch.device | str) -> list[pd.DataFrame]:
    """The predictions of an arm, a table a few-shot set; its model goes with this function's end."""
    data = load_task(arm["task"], arm["data"])
    problem = make_problem(arm, data, device, seed)
    keys = {"variant": variant_json(arm["variant"]), "seed": seed}
    return [
        prediction_table(data, _predict(arm, problem, data, few_shot, seed)).assign(set=few_shot.number, **keys)
        for few_shot in _sets(arm, data, seed)
    ]


def _sets(arm: dict, data: TaskData, seed: int):
    """The task's few-shot sets; one without rows where nothing is sampled or looked at."""
    if arm["method"] == "zero_shot" or "few_shot" not in arm["task"]:
        empty = data.test.iloc[:0]
        return [FewShotSet(0, empty, empty)]
    return few_shot_sets(arm["task"], data, seed)


def _predict(arm: dict, problem: Problem, data: TaskData, few_shot: FewShotSet, seed: int) -> Predictions:
    method = arm["method"]
    if method == "zero_shot":
        return problem.predict(problem.encode(data.test))
    if method == "calibrated":
        scores = problem.predict(problem.encode(data.test)).scores
        # The threshold comes from unlabelled development rows, not from the test rows themselves.
        reference = problem.predict(problem.encode(few_shot.dev)).scores
        return _from_scores(calibrate_median(scores, reference))
    if method == "linear_probing":
        return linear_probing(problem, few_shot.train, data.test)
    if method == "icl":
        if not isinstance(problem, OptionProblem | MaskedPromptProblem):
            raise InputError("arms[*]", "icl without a prompt", "prompt: true")
        rows = data.test.to_dict("records")
        train = data.train if arm["task"]["few_shot"]["sampling"] == "subset" else few_shot.train
        demonstrations = draw_demonstrations(train, len(rows), arm["variant"]["num_demonstrations"], seed)
        if isinstance(problem, GenerationProblem):
            texts = generate_answers(
                problem.model, problem.tokenizer, problem.template, rows, demonstrations,
                max_new_tokens=problem.max_new_tokens,
            )  # fmt: skip
            return Predictions(np.full(len(rows), -1), np.zeros((len(rows), 0), dtype=np.float32), texts)
        return _from_scores(predict(problem.model, problem.tokenizer, problem.template, rows, demonstrations))
    raise InputError("arms[*].method", repr(method), "zero_shot, calibrated, icl or linear_probing")


def _from_scores(scores: np.ndarray) -> Predictions:
    return Predictions(scores.argmax(axis=1), scores.astype(np.float32), [""] * len(scores))


def draw_demonstrations(train: pd.DataFrame, num_rows: int, count: int, seed: int) -> list[list[dict]]:
    """A demonstration set of its own for every test row, drawn without replacement: MeZO's rule, and its draws at seed 0.

    Raises `InputError` where there are fewer training rows.
    """
    if count > len(train):
        raise InputError("arms[*].num_demonstrations", str(count), f"at most the {len(train)} training rows")
    drawn = [mezo_subset(len(train), count, each) for each in icl_seeds(num_rows, seed)]
    return [train.iloc[rows].to_dict("records") for rows in drawn]


def linear_probing(problem: Problem, train: pd.DataFrame, test: pd.DataFrame) -> Predictions:
    """Logistic regression on what the vocabulary head sees: the hidden state at the mask, or before the option.

    scikit-learn's `LogisticRegressionCV` as in the official code: an intercept for masked models only, max_iter 5000. The
    official code writes the coefficients back into the head's rows; predicting with them is the same without changing a tied
    embedding.
    """
    from sklearn.linear_model import LogisticRegressionCV

    features = {name: _features(problem, problem.encode(rows)) for name, rows in (("train", train), ("test", test))}
    probe = LogisticRegressionCV(
        fit_intercept=isinstance(problem, MaskedPromptProblem), max_iter=5000, tol=1e-4, random_state=0
    ).fit(features["train"], train["label"])
    probabilities = probe.predict_log_proba(features["test"])
    scores = np.full((len(test), int(max(probe.classes_)) + 1), -np.inf)
    scores[:, probe.classes_] = probabilities
    return _from_scores(scores)


def _features(problem: Problem, rows: list) -> np.ndarray:
    """(rows, hidden) states that the vocabulary head would read to predict the label."""
    features = []
    with evaluating(problem.model):
        for part in evaluation_batches([row.size for row in rows]):
            batch = [rows[i] for i in part]
            if isinstance(problem, MaskedPromptProblem):
                input_ids, attention_mask = problem.pad([row.input_ids for row in batch])
                positions = torch.tensor([row.mask_position for row in batch], device=problem.device)
            elif isinstance(problem, OptionProblem):
                # All options follow the same prompt; its last token predicts their first.
                input_ids, attention_mask = problem.pad([row.options[0].context_ids for row in batch])
                positions = attention_mask.sum(1) - 1
            else:
                raise InputError("arms[*]", "linear_probing without a prompt", "prompt: true")
            hidden = problem.model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]
            features.append(hidden[torch.arange(len(batch), device=problem.device), positions].float().cpu())
    return torch.cat(features).numpy()
