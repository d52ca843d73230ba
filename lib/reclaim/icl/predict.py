"""A causal model over prepared prompts: scores of the label words, and the table of predictions.

Source: Pan et al. 2023 and its official code. One row of the table holds what any metric needs without the model: which
demonstrations were shown with which labels, the label words in the order of the classes, and their log-probabilities
under both scorers.

Differences from the official code: a label word's score is the sum of the log-probabilities of ALL its tokens (scorer
`word`); the official scorer looks at its last token at the prompt's end (`official_last`), so that "no impact" competes
as "impact". Prompts are scored in batches that share what they begin with, and not one by one with four beams; no
answer depends on the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reclaim.errors import InputError
from reclaim.icl.metrics import predictions
from reclaim.icl.prepare import OFFICIAL_LIMIT, Cell, Prepared, prepare
from reclaim.icl.prompts import IclSet, clean_answer
from reclaim.scoring import Request, evaluating, pad_right, position_limit, score_continuations, split_batches

LABEL_ROOM = 16
"""Tokens that a prompt leaves to a label word."""


def run_icl(
    model,
    tokenizer,
    dataset: IclSet,
    cells: Cell | Sequence[Cell],
    seed: int,
    *,
    scorer: str = "word",
    max_length: float | None = None,
    batch_tokens: int | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Evaluate a causal model on a data set under one or more cells; gives the table of predictions.

    `max_length` defaults to `prompt_limit(model)`; `options` go to `prepare`.
    """
    cells = [cells] if isinstance(cells, Cell) else cells
    limit = max_length or prompt_limit(model)
    options = {"content_free": scorer == "word_calibrated", **options}
    prepared = prepare(tokenizer, dataset, cells, seed, scorer=scorer, max_length=limit, **options)
    return score(model, prepared, scorer=scorer, batch_tokens=batch_tokens)


def prompt_limit(model) -> float:
    """How many tokens a prompt may have: the original's limit, or what leaves a small model room for a label word."""
    return min(OFFICIAL_LIMIT, position_limit(model) - LABEL_ROOM)


def score(
    model,
    prepared: Prepared,
    *,
    scorer: str = "word",
    batch_tokens: int | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> pd.DataFrame:
    """Run a causal model over prepared prompts; gives their table with scores and predictions.

    Added columns: `logprob_word` and `logprob_last`, one number a class in nats (sum over the word's tokens; last token
    at the prompt's end); `logprob_free`, the sum where the query says nothing, if there are such prompts; `scorer`;
    `prediction`, its best label word, of the first class where two are equal.

    Raises `InputError` for a token that the model does not have.
    """
    known = model.get_input_embeddings().weight.shape[0]
    highest = max(
        (
            max(tokens)
            for tokens in (*prepared.contexts, *prepared.content_free, *(w for ws in prepared.words for w in ws))
        ),
        default=0,
    )
    if highest >= known:
        raise InputError("prompts", f"the token {highest}", f"tokens below {known}, those of the model", "Texts that a "
                         "tokenizer was not made for, or the tokenizer of another model.")  # fmt: skip
    requests, places = [], []
    for context, words in zip(prepared.content_free, prepared.words, strict=bool(prepared.content_free)):
        requests += [Request(context, word) for word in words]
    for number, (context, words) in enumerate(zip(prepared.contexts, prepared.words, strict=True)):
        for position, word in enumerate(words):
            for tokens in (word, word[-1:])[: len(word)]:
                requests.append(Request(context, tokens))
                places.append((number, position))
    by_word = [[0.0] * len(words) for words in prepared.words]
    by_last = [[0.0] * len(words) for words in prepared.words]
    values = score_continuations(model, requests, batch_tokens=batch_tokens, progress=progress)
    free = iter([float(value.sum()) for value in values[: len(values) - len(places)]])
    values = values[len(values) - len(places) :]
    for (number, position), value in zip(places, values, strict=True):
        # A word's last token alone comes after the whole word, and for a word of one token the two are the same.
        if len(value) == len(prepared.words[number][position]):
            by_word[number][position] = float(value.sum())
        if len(value) == 1:
            by_last[number][position] = float(value[0])
    table = prepared.table.assign(logprob_word=by_word, logprob_last=by_last)
    if prepared.content_free:
        table["logprob_free"] = [[next(free) for _ in words] for words in prepared.words]
    return table.assign(scorer=scorer, prediction=predictions(table, scorer))


def free_answers(
    model, tokenizer, contexts: Sequence[Sequence[int]], *, max_new_tokens: int = 1, batch_tokens: int = 8192
) -> list[str]:
    """What a model says to prompts when nothing is offered to it: greedy answers through `generate`, cleaned."""
    pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    order = sorted(range(len(contexts)), key=lambda number: len(contexts[number]), reverse=True)
    answers = [""] * len(contexts)
    with evaluating(model):
        for places in split_batches([(len(contexts[number]),) for number in order], (batch_tokens,)):
            batch = [order[place] for place in places]
            ids, mask = pad_right([contexts[number][::-1] for number in batch], pad_id, model.device)
            generated = model.generate(
                input_ids=ids.flip(1), attention_mask=mask.flip(1), max_new_tokens=max_new_tokens, do_sample=False,
                num_beams=1, pad_token_id=pad_id,
            )  # fmt: skip
            texts = tokenizer.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
            for number, text in zip(batch, texts, strict=True):
                answers[number] = clean_answer(text)
    return answers


def official_answer(tokenizer, last_ids: Sequence[int], scores: Sequence[float]) -> str:
    """What the original reads out of a constrained answer: the LAST PIECE of the winning word.

    `last_ids` are the last tokens of the label words, `scores` their logits or log-probabilities.
    """
    return clean_answer(tokenizer.decode([last_ids[int(np.argmax(scores))]]))
