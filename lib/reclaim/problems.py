"""A fine-tuning problem: a model, what of it is trained, how rows become inputs, the loss, and predictions.

Three kinds, after MeZO (Malladi et al. 2023, section 3 and appendix E) and LM-BFF (Gao et al. 2021):

- `HeadProblem`: a fresh classification head on the first token, no prompt.
- `MaskedPromptProblem`: label words at the mask of a template.
- `OptionProblem`: options after a prompt, for causal models. Classification trains on the cross entropy over the options' mean
  log-probabilities (`train_as_classification`), multiple choice and questions on the right option's tokens
  (`only_train_option`); questions are answered by greedy generation.

`loss` is differentiable and summed, for backprop; `objective` is the number that MeZO perturbs for: the mean loss, minus the
accuracy, or minus the F1 of greedy generations (the last two have no gradient).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from reclaim.adapters import add_lora, add_prefix, train_head_only
from reclaim.errors import InputError
from reclaim.metrics.qa import mean_answer_f1
from reclaim.models import load, load_tokenizer, model_family
from reclaim.objectives import minus_accuracy, option_scores, option_token_logprobs
from reclaim.prediction import generate_texts
from reclaim.prompting import EncodedOption, MaskedTemplate, encode_plain, get_template
from reclaim.scoring import evaluating, label_word_logits, pad_right, split_batches
from reclaim.seeding import derive
from reclaim.tasks import TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATION_ROWS, EVALUATION_TOKENS = 256, 2**16
"""Bounds on a batch of predictions: rows, and tokens with padding, all options counted."""


@dataclass(frozen=True)
class Predictions:
    """Of each row: label (int64, -1 for a generated answer), scores (rows, labels) float32, text ("" for a label)."""

    labels: np.ndarray
    scores: np.ndarray
    texts: list[str]


class Problem:
    """What all problems share: the model, what of it is trained, batching, the accuracy objective."""

    def __init__(self, model: PreTrainedModel, tokenizer, pad_token_id: int):
        self.model, self.tokenizer, self.pad_token_id = model, tokenizer, pad_token_id
        self.objective_name = "loss"
        self.device = next(model.parameters()).device

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and parameters that training changes, each once."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def encode(self, rows: pd.DataFrame) -> list[Any]:
        """Token ids of each row, as `logits` and `loss` take them in lists."""
        raise NotImplementedError

    def logits(self, batch: Sequence[Any]) -> torch.Tensor:
        """(rows, labels) scores of a batch of encoded rows, float32."""
        raise NotImplementedError

    def loss(self, batch: Sequence[Any]) -> tuple[torch.Tensor, int]:
        """Summed cross entropy (nats) over the rows' labels, and how many there are."""
        return F.cross_entropy(self.logits(batch), self.labels(batch), reduction="sum"), len(batch)

    def labels(self, batch: Sequence[Any]) -> torch.Tensor:
        """(rows,) right labels of a batch."""
        return torch.tensor([row.label for row in batch], device=self.device)

    def objective(self, batch: Sequence[Any]) -> torch.Tensor | float:
        """The scalar that a zeroth-order method minimises: the mean `loss`, or minus the `accuracy` of the batch."""
        if self.objective_name == "accuracy":
            return minus_accuracy(self.logits(batch), self.labels(batch))
        if self.objective_name == "loss":
            loss, count = self.loss(batch)
            return loss / count
        raise InputError("arms[*].objective", repr(self.objective_name), "loss or accuracy for a task with labels")

    def size(self, batch: Sequence[Any]) -> int:
        """What `objective` is a mean over: the batch's rows, or the tokens that are trained on."""
        return len(batch)

    def predict(self, rows: Sequence[Any]) -> Predictions:
        """Predict encoded rows, the longest together, whatever their order."""
        order = sorted(range(len(rows)), key=lambda row: -rows[row].length)
        parts = evaluation_batches([rows[i].size for i in order])
        with evaluating(self.model):
            found = [self.logits([rows[order[i]] for i in part]).float().cpu() for part in parts]
        width = max(each.shape[-1] for each in found)  # rows may have different numbers of options
        scores = torch.cat([F.pad(each, (0, width - each.shape[-1]), value=-torch.inf) for each in found])
        restored = torch.empty_like(scores)
        restored[order] = scores
        return Predictions(restored.argmax(-1).numpy(), restored.numpy(), [""] * len(rows))

    def score(self, rows: Sequence[Any]) -> float:
        """What selection maximises on development rows: accuracy; minus the squared error; answer F1."""
        return float(np.mean(self.predict(rows).labels == np.array([row.label for row in rows])))

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids and attention_mask (rows, longest), padded on the right.

        Raises `InputError` for a token that the model has no row for (a word that a world's vocabulary lacks).
        """
        input_ids, attention_mask = pad_right(sequences, self.pad_token_id, self.device)
        rows = self.model.get_input_embeddings().num_embeddings
        if int(input_ids.max()) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(int(input_ids.max()))
            raise InputError(
                f"a text of the task, as tokenized for a vocabulary of {rows}", f"the token {token!r}",
                "words that the tokenizer was trained on", "Add the word under `tokenizers.*.words`, or change the template.",
            )  # fmt: skip
        return input_ids, attention_mask


def evaluation_batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Split rows that need `sizes` tokens each into runs within `EVALUATION_ROWS` and `EVALUATION_TOKENS`."""
    return split_batches([(1, size) for size in sizes], (EVALUATION_ROWS, EVALUATION_TOKENS))


@dataclass(frozen=True)
class Encoded:
    """A row as token ids with its label; `mask_position` where the template has a mask."""

    input_ids: list[int]
    label: int
    mask_position: int = 0

    @property
    def length(self) -> int:
        """Tokens of the longest sequence of the row, by which rows are put together."""
        return len(self.input_ids)

    @property
    def size(self) -> int:
        """Tokens of all its sequences, padded to the longest."""
        return len(self.input_ids)


class HeadProblem(Problem):
    """Sequence classification by a fresh head on the first token (BERT, RoBERTa) or the last (causal models)."""

    def __init__(self, model, tokenizer, max_length: int):
        super().__init__(model, tokenizer, tokenizer.pad_token_id)
        self.max_length = max_length

    def encode(self, rows: pd.DataFrame) -> list[Encoded]:
        """Texts with `sep` behind each, cut at `max_length`."""
        columns = ["text", "text_pair"] if "text_pair" in rows else ["text"]
        return [
            Encoded(encode_plain(self.tokenizer, texts, self.max_length), label)
            for texts, label in zip(rows[columns].itertuples(index=False), rows["label"], strict=True)
        ]

    def logits(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """(rows, labels) of the fresh head, float32."""
        input_ids, attention_mask = self.pad([row.input_ids for row in batch])
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float().to(self.device)


class RegressionProblem(HeadProblem):
    """One output trained by squared error on the raw score (STS-B: 0..5)."""

    def loss(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, int]:
        """Summed squared error of the raw scores, and their number."""
        return F.mse_loss(self.logits(batch)[:, 0], self.labels(batch), reduction="sum"), len(batch)

    def predict(self, rows: Sequence[Encoded]) -> Predictions:
        """The raw scores as labels, (rows,)."""
        scores = super().predict(rows).scores
        return Predictions(scores[:, 0], scores, [""] * len(rows))

    def score(self, rows: Sequence[Encoded]) -> float:
        """Minus the mean squared error."""
        return -float(np.mean((self.predict(rows).labels - np.array([row.label for row in rows])) ** 2))


class MaskedPromptProblem(Problem):
    """Label words at the mask of a template; the vocabulary head is evaluated at the masks only."""

    def __init__(self, model, tokenizer, template, max_length: int):
        super().__init__(model, tokenizer, tokenizer.pad_token_id)
        self.template, self.max_length = template, max_length
        self.label_word_ids = template.label_word_ids(tokenizer)

    def encode(self, rows: pd.DataFrame) -> list[Encoded]:
        """The template filled with each row; raises `InputError` where the mask would be cut off."""
        encoded = []
        for row in rows.to_dict("records"):
            prompt = self.template.encode(self.tokenizer, row, max_length=self.max_length)
            encoded.append(Encoded(prompt.input_ids, self.template.correct(row)[0], prompt.mask_position))
        return encoded

    def logits(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """(rows, label words) at the masks, float32."""
        input_ids, attention_mask = self.pad([row.input_ids for row in batch])
        positions = torch.tensor([row.mask_position for row in batch], device=self.device)
        logits = label_word_logits(self.model, input_ids, attention_mask, positions, self.label_word_ids)
        return logits.float().to(self.device)


@dataclass(frozen=True)
class EncodedOptions:
    """A row's options, each prompt and option as token ids; `prompt` and `answers` where an answer is generated.

    `right`: the positions of all right options, of which `label` is the first.
    """

    options: list[EncodedOption]
    label: int
    right: tuple[int, ...] = ()
    prompt: Sequence[int] = ()
    answers: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """As of `Encoded`."""
        return max(len(option.input_ids) for option in self.options)

    @property
    def size(self) -> int:
        """As of `Encoded`."""
        return len(self.options) * self.length


class OptionProblem(Problem):
    """Options after a prompt, for a causal model; `train_as_classification` as in the official scripts.

    False trains on the right option's tokens, averaged over all option tokens of the batch.
    """

    def __init__(self, model, tokenizer, template, max_length: int, train_as_classification: bool):
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        super().__init__(model, tokenizer, pad)
        self.template, self.max_length = template, max_length
        self.train_as_classification = train_as_classification

    def encode(self, rows: pd.DataFrame) -> list[EncodedOptions]:
        """Every option of each row in its prompt."""
        encoded = []
        for row in rows.to_dict("records"):
            options = self.template.encode(self.tokenizer, row, max_length=self.max_length)
            right = self.template.correct(row)
            encoded.append(EncodedOptions(options, right[0], tuple(right)))
        return encoded

    def logits(self, batch: Sequence[EncodedOptions]) -> torch.Tensor:
        """(rows, most options) mean log-probabilities (nats) of the options, -inf where a row has fewer."""
        options = [option for row in batch for option in row.options]
        return option_scores(self.model, *self.padded(options), [len(row.options) for row in batch])

    def score(self, rows: Sequence[EncodedOptions]) -> float:
        """Share of rows whose likeliest option is a right one."""
        found = self.predict(rows).labels
        return float(np.mean([label in row.right for label, row in zip(found, rows, strict=True)]))

    def loss(self, batch: Sequence[EncodedOptions]) -> tuple[torch.Tensor, int]:
        """As of `Problem`; or minus the summed log-probability of the right options' tokens, and their number."""
        if self.train_as_classification:
            return super().loss(batch)
        right = [row.options[row.label] for row in batch]
        logprobs, mask = option_token_logprobs(self.model, *self.padded(right))
        return -(logprobs * mask).sum(), int(mask.sum())

    def size(self, batch: Sequence[EncodedOptions]) -> int:
        """Rows, or the tokens of the right options."""
        if self.train_as_classification or self.objective_name != "loss":
            return len(batch)
        return sum(row.options[row.label].option_length for row in batch)

    def padded(self, options: Sequence[EncodedOption]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """input_ids, attention_mask (left-padded) and option lengths of a batch of options."""
        lengths = torch.tensor([option.option_length for option in options], device=self.device)
        input_ids, attention_mask = self.pad([option.input_ids[::-1] for option in options])
        return input_ids.flip(1), attention_mask.flip(1), lengths


class GenerationProblem(OptionProblem):
    """A generated answer: trained on the first gold answer's tokens, tested by greedy generation and answer F1."""

    def __init__(self, model, tokenizer, template, max_length: int, max_new_tokens: int):
        super().__init__(model, tokenizer, template, max_length, train_as_classification=False)
        self.max_new_tokens = max_new_tokens

    def encode(self, rows: pd.DataFrame) -> list[EncodedOptions]:
        """The first gold answer as the one option, and the prompt to generate from."""
        encoded = []
        for row in rows.to_dict("records"):
            prompt = self.template.encode_generation(
                self.tokenizer, row, max_length=self.max_length, max_new_tokens=self.max_new_tokens
            )
            options = self.template.encode(self.tokenizer, row, max_length=self.max_length)
            answers = tuple(row["answers"])
            encoded.append(EncodedOptions(options, 0, prompt=prompt.input_ids, answers=answers))
        return encoded

    def objective(self, batch: Sequence[EncodedOptions]) -> torch.Tensor | float:
        """As of `Problem`; minus the mean F1 of generated answers for `f1`."""
        if self.objective_name == "f1":
            return -self.score(batch)
        if self.objective_name == "accuracy":
            raise InputError("arms[*].objective", "'accuracy'", "loss or f1 for a task with generated answers")
        return super().objective(batch)

    def predict(self, rows: Sequence[EncodedOptions]) -> Predictions:
        """Greedy answers as texts; no labels, no scores."""
        return Predictions(np.full(len(rows), -1), np.zeros((len(rows), 0), dtype=np.float32), self._generate(rows))

    def score(self, rows: Sequence[EncodedOptions]) -> float:
        """Mean F1 of greedy answers."""
        return mean_answer_f1(self._generate(rows), [row.answers for row in rows])

    def _generate(self, rows: Sequence[EncodedOptions]) -> list[str]:
        return generate_texts(self.model, self.tokenizer, [row.prompt for row in rows], self.max_new_tokens)


def make_problem(arm: dict, data: TaskData, device: torch.device | str, seed: int) -> Problem:
    """Load an arm's model, put its adapter in, freeze what is not trained, and wrap it with its task.

    `arm` has model (a folder), dtype, perhaps a device_map (then the model lies where that says, not on `device`), task, and
    in its variant prompt, parameters and objective. `parameters`: `full`; `lora` (query and value projections, r 8, alpha 16);
    `prefix` (5 key and value rows a layer, from real activations); `head` (the vocabulary head, untied from the embeddings, or
    the classification head). What is drawn is a function of `seed`.
    """
    variant = arm["variant"]
    problem = _bare_problem(arm, data, device, seed)
    parameters = variant.get("parameters", "full")
    if parameters == "lora":
        add_lora(problem.model, seed=derive(seed, "lora"))
    elif parameters == "prefix":
        add_prefix(problem.model, seed=derive(seed, "prefix"))
    elif parameters == "head":
        train_head_only(problem.model)
    problem.objective_name = variant.get("objective", "loss")
    return problem


def _bare_problem(arm: dict, data: TaskData, device: torch.device | str, seed: int) -> Problem:
    task, folder = arm["task"], arm["model"]
    tokenizer = load_tokenizer(folder)
    dtype, device_map = getattr(torch, arm["dtype"]), arm.get("device_map")
    max_length = task.get("max_length", 128)
    if not arm["variant"]["prompt"]:
        if data.kind not in ("classification", "pair_classification", "regression"):
            found = f"false for the task {task['data']}, of kind {data.kind}"
            raise InputError("arms[*].prompt", found, "true: a fresh head is for labels of a fixed set, or a score")
        regression = data.kind == "regression"
        num_labels = 1 if regression else len(data.label_names)
        model = _placed(load(folder, "classification", seed, num_labels, dtype, device_map), device)
        return (RegressionProblem if regression else HeadProblem)(model, tokenizer, max_length)
    family = model_family(folder)
    model = _placed(load(folder, family, dtype=dtype, device_map=device_map), device)
    template = get_template(task["templates"][family], family, "tasks.*.templates")
    if isinstance(template, MaskedTemplate):
        return MaskedPromptProblem(model, tokenizer, template, max_length)
    if template.generation:
        return GenerationProblem(model, tokenizer, template, max_length, task.get("max_new_tokens", 50))
    return OptionProblem(model, tokenizer, template, max_length, train_as_classification=data.kind != "multiple_choice")


def _placed(model, device: torch.device | str):
    """The model on a device; where accelerate has spread it over several, as it is."""
    return model if hasattr(model, "hf_device_map") else model.to(device)
