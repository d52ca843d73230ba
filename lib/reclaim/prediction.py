"""Predictions by prompting: zero-shot and in-context scores of a task's candidates, calibrated or not, and generated
answers.

Sources: Malladi et al. 2023 (MeZO), section 3 and its official code (`predict`, `generate_answers`); Holtzman et al.
2021 for surface-form calibration; `calibrate_median` is this project's own control. Training and prompting share the
templates (`reclaim.prompting`), the batches come from `reclaim.scoring`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reclaim.errors import InputError
from reclaim.prompting import CausalTemplate, EncodedOption, MaskedTemplate, Row
from reclaim.scoring import (
    Request,
    evaluating,
    pad_right,
    position_limit,
    score_continuations,
    score_label_words,
    split_batches,
)

log = logging.getLogger(__name__)


def predict(
    model,
    tokenizer,
    template: CausalTemplate | MaskedTemplate,
    rows: Sequence[Row],
    demonstrations: Sequence[Row] | Sequence[Sequence[Row]] = (),
    *,
    calibration: str | None = None,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> np.ndarray:
    """Zero-shot and in-context scores of every candidate: float64 (rows, candidates), the higher the likelier.

    `demonstrations` are the same for all rows, or one list per row (MeZO draws a set for every row:
    `sampling.icl_seeds`). Causal models: the mean log-probability of the option's tokens; with `calibration` "sfc"
    (or "icl_sfc", which keeps the demonstrations) their sum minus that under the content-free prompt. Rows with fewer
    candidates than others end in -inf. Masked models: the label words' logits; with "sfc" minus those of the template
    with empty sentences (official MeZO has this for causal models only). `max_length` defaults to 2,048 or the
    model's limit, and to the template's for masked models. How many prompts were cut is logged.
    """
    shown = _per_row(demonstrations, len(rows))
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "progress": progress}
    if isinstance(template, MaskedTemplate):
        if calibration not in (None, "sfc"):
            raise InputError("calibration", repr(calibration), "None or 'sfc' for a masked model")
        prompts = [template.encode(tokenizer, row, few, max_length) for row, few in zip(rows, shown, strict=True)]
        _log_cut(sum(prompt.cut for prompt in prompts), len(prompts))
        prompts += [template.encode_content_free(tokenizer)] if calibration else []
        words = template.label_word_ids(tokenizer)
        scores = score_label_words(model, prompts, words, tokenizer.pad_token_id, **options)
        return calibrate_surface_form(scores[:-1], scores[-1]) if calibration else scores
    max_length = max_length or int(min(2048, position_limit(model)))
    encoded = [template.encode(tokenizer, row, few, max_length) for row, few in zip(rows, shown, strict=True)]
    _log_cut(sum(option.cut for row in encoded for option in row), sum(map(len, encoded)))
    if calibration is None:
        return _option_scores(model, encoded, np.mean, options)
    content_free = [
        template.encode(tokenizer, row, few, max_length, calibration) for row, few in zip(rows, shown, strict=True)
    ]
    sums = _option_scores(model, encoded + content_free, np.sum, options)
    with np.errstate(invalid="ignore"):  # -inf minus -inf where a row has fewer candidates
        calibrated = calibrate_surface_form(sums[: len(rows)], sums[len(rows) :])
    return np.where(np.isnan(calibrated), -np.inf, calibrated)


def _per_row(demonstrations, n_rows: int) -> Sequence[Sequence[Row]]:
    if demonstrations and not isinstance(demonstrations[0], Mapping):
        if len(demonstrations) != n_rows:
            raise InputError("demonstrations", f"{len(demonstrations)} lists", f"one for each of the {n_rows} rows")
        return demonstrations
    return [demonstrations] * n_rows


def _log_cut(cut: int, total: int) -> None:
    if cut:
        log.warning("%d of %d prompts lost tokens to truncation", cut, total)


def _option_scores(model, encoded: Sequence[Sequence[EncodedOption]], aggregate, options: dict[str, Any]) -> np.ndarray:
    requests = [Request(option.context_ids, option.continuation_ids) for row in encoded for option in row]
    values = iter(score_continuations(model, requests, **options))
    scores = np.full((len(encoded), max(map(len, encoded))), -np.inf)
    for number, row in enumerate(encoded):
        for candidate in range(len(row)):
            scores[number, candidate] = aggregate(next(values))
    return scores


def calibrate_surface_form(scores: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Surface-form calibration: summed log-probabilities (rows, candidates) minus those under the content-free prompt."""
    return scores - content_free


def calibrate_median(scores: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Move the decision threshold to the median, for a model that knows the direction but not the offset.

    With two labels: row i is given label 1 where scores[i, 1] - scores[i, 0] is above the median of that difference
    over the `reference` rows (rows, labels), by default over `scores` itself. No label is looked at; the median is
    the right threshold where the classes are about equally frequent. With more labels each row's mean is subtracted
    and then each label's median, which for two is the same. Differences, and so the AUC, are only shifted.
    """
    reference = scores if reference is None else reference
    offsets = np.median(reference - reference.mean(axis=1, keepdims=True), axis=0)
    return scores - offsets


def generate_answers(
    model,
    tokenizer,
    template: CausalTemplate,
    rows: Sequence[Row],
    demonstrations: Sequence[Row] | Sequence[Sequence[Row]] = (),
    *,
    max_length: int | None = None,
    max_new_tokens: int = 50,
    batch_tokens: int = 4096,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[str]:
    """Greedy answers of a causal model, one per row, cut at the first newline or end of sequence and stripped."""
    shown, max_length = _per_row(demonstrations, len(rows)), max_length or int(min(2048, position_limit(model)))
    prompts = [
        template.encode_generation(tokenizer, row, few, max_length, max_new_tokens)
        for row, few in zip(rows, shown, strict=True)
    ]
    _log_cut(sum(prompt.cut for prompt in prompts), len(prompts))
    ids = [prompt.input_ids for prompt in prompts]
    return generate_texts(model, tokenizer, ids, max_new_tokens, batch_tokens=batch_tokens, progress=progress)


def generate_texts(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    batch_tokens: int = 8192,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[str]:
    """Greedy continuations of token ids, each cut at the first newline or end of sequence and stripped."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]), reverse=True)
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1:]
    stops = [*newline, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    texts = [""] * len(prompts)
    costs = [(len(prompts[row]) + max_new_tokens,) for row in order]
    with evaluating(model):
        for batch in progress(list(split_batches(costs, (batch_tokens,)))):
            ids, mask = pad_right([prompts[order[i]][::-1] for i in batch], pad_id, model.device)
            generated = model.generate(
                input_ids=ids.flip(1), attention_mask=mask.flip(1), do_sample=False, num_beams=1,
                max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=pad_id,
            )  # fmt: skip
            answers = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, answers, strict=True):
                texts[order[i]] = text.split("\n")[0].strip()
    return texts
