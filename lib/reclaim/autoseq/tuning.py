"""Training and prediction with given label sequences: all weights, a soft prompt, or adapters; and without a prompt.

Yu et al. 2022; official `src/models.py` and `src/trainer.py`. A class's score is the summed log-probability of the target
[first sentinel, label sequence, terminator], without normalising for length (`class_scores`); training is the ordinary
language-model loss on the target of the right class, the mean over all target tokens of a batch (`fit`).

Soft prompt tuning (Lester et al. 2021, as the repository does it): the literal words of a manual template become trainable
vectors that start from those words' embeddings; all else is frozen. Difference from the official code: they are a tensor of
their own, not rows of the embedding with its gradient masked. Adapter tuning is named by the paper and has no code; here it
is LoRA on the query and value projections (`reclaim.adapters`), said wherever it is shown.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reclaim.adapters import add_lora
from reclaim.autoseq.prompts import Prompt
from reclaim.batches import epoch_batches
from reclaim.errors import InputError
from reclaim.scoring import Request, evaluating, pad_right, score_continuations
from reclaim.seeding import derive
from reclaim.train import History, Recipe, train

TRAINED = ("full", "prompt", "lora")


def class_scores(model, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]], *, batch_tokens: int = 8192):
    """Summed log-probability of every class's target given every prompt: float64 (prompts, classes), nats.

    The encoder runs once for each prompt, whatever the number of classes. Prediction is the argmax, the lowest class first
    among equals.
    """
    if isinstance(model, SoftPromptModel):
        return model.class_scores(prompts, targets)
    requests = [Request(prompt.input_ids, target) for prompt in prompts for target in targets]
    values = score_continuations(model, requests, batch_tokens=batch_tokens)
    return np.array([value.sum() for value in values]).reshape(len(prompts), len(targets))


def predictions(scores: np.ndarray) -> np.ndarray:
    """The likeliest class of each row; ties give the lowest class."""
    return scores.argmax(1)


# ------------------------------------------------------------------------------------------------ a regression (STS-B)


def regression_predictions(scores: np.ndarray, low: float = 0.0, high: float = 5.0) -> np.ndarray:
    """Two sequences, low and high: low + P(high) (high - low), with P from a softmax over the two scores."""
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return low + (high - low) * shifted[:, 1] / shifted.sum(1)


def regression_loss(
    scores: torch.Tensor, labels: torch.Tensor, low: float = 0.0, high: float = 5.0, official: bool = False
) -> torch.Tensor:
    """KL divergence of the label, as a share of high, from the model's two probabilities: nats, mean over rows.

    `official` gives the original's value: it says that the target is given as logarithms and passes probabilities (a bug
    inherited from LM-BFF), and takes the mean over rows and columns.
    """
    share = (labels - low) / (high - low)
    target = torch.stack([1 - share, share], dim=1)
    log_p = scores.log_softmax(1)
    if official:
        return (target.exp() * (target - log_p)).mean()
    return F.kl_div(log_p, target, reduction="batchmean")


# --------------------------------------------------------------------------------------------------------- soft prompts


class SoftPromptModel(torch.nn.Module):
    """A frozen model with trainable vectors in place of the literal words of the template; see the module's docstring.

    Dropout of the frozen model follows `train` and `eval`, as in the official code. `prompt` is one of the prompts: literal
    text is the same in all. Raises `InputError` for a template without literal text.
    """

    def __init__(self, model, prompt: Prompt):
        super().__init__()
        if not prompt.literals:
            raise InputError("soft prompt tuning", "a template without literal text", "words to start from")
        self.model = model.requires_grad_(False)
        words = torch.tensor([prompt.input_ids[position] for position in prompt.literals], device=model.device)
        self.soft_prompt = torch.nn.Parameter(model.get_input_embeddings()(words).detach().clone())

    def logits(self, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (rows, longest, vocabulary) of a target for each prompt, and the labels, -100 where padded."""
        device = self.soft_prompt.device
        input_ids, mask = pad_right([prompt.input_ids for prompt in prompts], self.model.config.pad_token_id, device)
        embedded = self.model.get_input_embeddings()(input_ids)
        rows = torch.tensor([row for row, prompt in enumerate(prompts) for _ in prompt.literals], device=device)
        columns = torch.tensor([position for prompt in prompts for position in prompt.literals], device=device)
        numbers = torch.tensor([i for prompt in prompts for i in range(len(prompt.literals))], device=device)
        embedded = embedded.index_put((rows, columns), self.soft_prompt[numbers])
        labels = _labels(targets, device)
        return self.model(inputs_embeds=embedded, attention_mask=mask, labels=labels).logits, labels

    def class_scores(self, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]], batch_size: int = 64):
        """As the function `class_scores`."""
        scores = np.zeros((len(prompts), len(targets)))
        with evaluating(self):
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                for y, target in enumerate(targets):
                    logits, labels = self.logits(prompts[part], [target] * len(prompts[part]))
                    values = -F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(1)
                    scores[part, y] = values.double().cpu().numpy()
        return scores


# -------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Examples:
    """Prompts with the number of their class and, by class, the target; of a regression also the value of each."""

    prompts: Sequence[Prompt]
    labels: Sequence[int]
    targets: Sequence[Sequence[int]]
    values: Sequence[float] | None = None


def fit(
    model,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    trained: str = "full",
    dev: Callable[[Any], float] | None = None,
    eval_steps: int | None = None,
    state_path: Path | None = None,
    run: str = "",
) -> tuple[Any, History, list[tuple[int, float]]]:
    """Train a copy of `model` on the targets of the right classes, in a regression on the share of the second of the two.

    trained: `full`, `prompt` (soft prompt) or `lora`. With `dev`, which scores a model on development rows, and `eval_steps`
    the weights with the strictly best score are kept (the first wins ties); else the last ones. `state_path` and `run`: see
    `reclaim.train.train`. Gives the trained model, the record of its training, and (step, dev score) of each evaluation.

    Raises `InputError` for another `trained`, and as `reclaim.train.train` does.
    """
    if trained not in TRAINED:
        raise InputError("trained", repr(trained), f"one of {', '.join(TRAINED)}")
    tuned: Any = copy.deepcopy(model)
    if trained == "lora":
        tuned = add_lora(tuned, seed=derive(seed, "lora"))
    elif trained == "prompt":
        # Truncation may have cut literal words off some of the prompts.
        tuned = SoftPromptModel(tuned, max(examples.prompts, key=lambda prompt: len(prompt.literals)))
    rows_per_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    take = epoch_batches(len(examples.prompts), rows_per_step, derive(seed, "tuning"))

    def batches(step: int):
        _, rows = take(step)
        return np.array_split(rows, recipe.gradient_accumulation_steps)

    def loss(rows: np.ndarray) -> tuple[torch.Tensor, int]:
        if examples.values is not None:
            prompts = [examples.prompts[row] for row in rows]
            scores = torch.stack([_target_scores(tuned, prompts, target) for target in examples.targets], dim=1)
            values = torch.tensor([examples.values[row] for row in rows], device=scores.device)
            return regression_loss(scores, values) * len(rows), len(rows)
        logits, labels = target_logits(
            tuned, [examples.prompts[row] for row in rows], [examples.targets[examples.labels[row]] for row in rows]
        )
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum"), int((labels != -100).sum())

    evaluations: list[tuple[int, float]] = []
    best: dict[str, torch.Tensor] = {}

    def evaluate(step: int) -> None:
        if dev is None or not eval_steps or step % eval_steps:
            return
        value = dev(tuned)
        if not evaluations or value > max(score for _, score in evaluations):
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    best[name] = parameter.detach().clone()
        evaluations.append((step, value))

    history = train(tuned, batches, loss, recipe, seed=seed, state_path=state_path, run=run, after_step=evaluate)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name in best:
                parameter.copy_(best[name])
    return tuned, history, evaluations


def target_logits(model, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]]):
    """Logits (rows, longest, vocabulary) of a target for each prompt, and the labels, -100 where padded; differentiable."""
    if isinstance(model, SoftPromptModel):
        return model.logits(prompts, targets)
    input_ids, mask = pad_right([prompt.input_ids for prompt in prompts], model.config.pad_token_id, model.device)
    labels = _labels(targets, model.device)
    return model(input_ids=input_ids, attention_mask=mask, labels=labels).logits.float(), labels


def _target_scores(model, prompts: Sequence[Prompt], target: Sequence[int]) -> torch.Tensor:
    """Summed log-probability of one target given each prompt: (rows,), nats; differentiable."""
    logits, labels = target_logits(model, prompts, [target] * len(prompts))
    return -F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)


def generated_classes(model, tokenizer, prompts: Sequence[Prompt], names: Sequence[str], batch_size: int = 64):
    """Standard fine-tuning's prediction: greedy generation, compared with the classes' texts; -1 for any other text."""
    found = np.full(len(prompts), -1)
    longest = max(len(tokenizer.encode(name)) for name in names) + 1
    with evaluating(model):
        for start in range(0, len(prompts), batch_size):
            part = [prompt.input_ids for prompt in prompts[start : start + batch_size]]
            input_ids, mask = pad_right(part, model.config.pad_token_id, model.device)
            output = model.generate(
                input_ids=input_ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, num_beams=1
            )
            for row, text in enumerate(tokenizer.batch_decode(output, skip_special_tokens=True), start):
                if text.strip() in names:
                    found[row] = list(names).index(text.strip())
    return found


def _labels(targets: Sequence[Sequence[int]], device) -> torch.Tensor:
    ids, mask = pad_right(targets, 0, device)
    return ids.masked_fill(mask == 0, -100)
