"""The extractive reader behind QA-EM and QA-F1: any question-answering model of transformers, batched over chunks.

Source: Gao et al. 2023 (ALCE) ask gaotianyu1350/roberta-large-squad through the question-answering pipeline of transformers 4,
which transformers 5 no longer has; `reclaim.metrics.span_decode` does what it did with the logits. Inputs are the pipeline's:
question and context, 384 tokens, of which 128 are repeated in the next chunk of a longer context.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.errors import InputError
from reclaim.metrics.span_decode import Chunk, best_span
from reclaim.models import load_tokenizer

MAX_LENGTH = 384
STRIDE = 128


class ExtractiveReader:
    """Called with questions and contexts, it gives the answers' texts, "" where the null answer is the best.

    `model` is an `AutoModelForQuestionAnswering`, `tokenizer` a fast one that puts CLS first. Raises InputError for a slow one.
    """

    def __init__(self, model, tokenizer, batch_size: int = 32):
        if not tokenizer.is_fast:
            raise InputError("tokenizer of the reader", type(tokenizer).__name__, "a fast one, which knows offsets")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.max_length = min(MAX_LENGTH, tokenizer.model_max_length)

    def __call__(self, questions: Sequence[str], contexts: Sequence[str]) -> list[str]:
        if not questions:
            return []
        inputs = self.tokenizer(
            list(questions),
            list(contexts),
            truncation="only_second",
            max_length=self.max_length,
            stride=min(STRIDE, self.max_length // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows = len(inputs["input_ids"])
        logits = self._logits(inputs, rows)
        chunks: list[list[Chunk]] = [[] for _ in questions]
        for row in range(rows):
            inside = [number == 1 for number in inputs.sequence_ids(row)]
            offsets = [tuple(o) if i else None for o, i in zip(inputs["offset_mapping"][row], inside, strict=True)]
            words = [word if i else None for word, i in zip(inputs.word_ids(row), inside, strict=True)]
            chunk = Chunk(*logits[row], [int(i) for i in inside], offsets, words)
            chunks[inputs["overflow_to_sample_mapping"][row]].append(chunk)
        return [best_span(parts, context).text for parts, context in zip(chunks, contexts, strict=True)]

    def _logits(self, inputs, rows: int) -> list[tuple[list[float], list[float]]]:
        """Start and end logits of every chunk, cut to its length; chunks of similar length share a batch."""
        names = [name for name in self.tokenizer.model_input_names if name in inputs]
        order = sorted(range(rows), key=lambda row: len(inputs["input_ids"][row]))
        found: list[tuple[list[float], list[float]]] = [([], [])] * rows
        for start in range(0, rows, self.batch_size):
            batch = order[start : start + self.batch_size]
            padded = self.tokenizer.pad(
                {name: [inputs[name][row] for row in batch] for name in names}, padding=True, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                output = self.model(**padded)
            for place, row in enumerate(batch):
                length = len(inputs["input_ids"][row])
                sides = (output.start_logits, output.end_logits)
                first, last = (side[place, :length].float().tolist() for side in sides)
                found[row] = (first, last)
        return found


def load_reader(folder: str | Path, device: torch.device | str = "cpu", batch_size: int = 32) -> ExtractiveReader:
    """The reader in a model folder; raises InputError for a folder without a question-answering model in safetensors."""
    from transformers import AutoModelForQuestionAnswering

    options = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    try:
        model, found = AutoModelForQuestionAnswering.from_pretrained(str(folder), output_loading_info=True, **options)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(str(folder), first_line, "a question-answering model in safetensors") from error
    if found["missing_keys"]:
        missing = f"no weights for {min(found['missing_keys'])}"
        raise InputError(str(folder), missing, "a trained question-answering model")
    return ExtractiveReader(model.to(device), load_tokenizer(folder), batch_size)
