"""Log-probabilities of continuations and label words under causal, masked and seq2seq language models, in batches.

Sources: Malladi et al. 2023 (MeZO), section 3: a candidate's score is the MEAN log-probability of its tokens, or,
calibrated for surface form (Holtzman et al. 2021), their SUM minus that under a content-free prompt; a masked model
is scored by the logits of the label words at the mask.

Difference from the official code: it runs one forward pass per candidate, with logits at every position. Here
requests of a causal model share what they begin with: their token sequences form a prefix tree, each node is encoded
once, and its keys and values serve all below it (label words, and prompts that begin alike). An encoder reads in both
directions, so that masked and seq2seq models share whole inputs only: each is encoded once for all its label words.
Logits exist only at the positions that are scored. Padding stands on the right, where a causal model never looks, so
that roots of the tree need no mask. A test checks 1e-4 against one-by-one scoring in float32.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reclaim.errors import InputError
from reclaim.models import masked_lm_logits
from reclaim.prefix_tree import Node, Request, prefix_tree
from reclaim.prompting import MaskedPrompt, truncate_left

log = logging.getLogger(__name__)

MIN_SHARED = 16
"""Shorter common beginnings are encoded again: a cache and one more batch cost more."""

LOGITS_PER_BATCH = 2**26
"""Bound on rows x positions x vocabulary of one forward pass (256 MiB in float32)."""

CACHE_BYTES = 2**30
"""Bound on the keys and values that one batch takes over from its parents and leaves to its children."""

BATCH_TOKENS = {"cpu": 1024}
"""Tokens of a batch by kind of device, 16,384 elsewhere: on a CPU small batches are faster, as they stay in its cache."""


# ------------------------------------------------------------------------------------------------------ continuations


def score_continuations(
    model,
    requests: Sequence[Request],
    *,
    max_length: int | None = None,
    keep_first: int = 0,
    batch_tokens: int | None = None,
    min_shared: int = MIN_SHARED,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[np.ndarray]:
    """Log-probability of every continuation token given its context and the tokens before it, in nats.

    Gives one float64 array per request, as long as its continuation. A causal model reads context + continuation, cut
    from the left to `max_length` tokens (default: the model's own limit) except for the first `keep_first`; a seq2seq
    model encodes the context, cut likewise, and decodes the continuation. How many inputs were cut is logged.
    `batch_tokens` bounds rows x tokens of a batch (default: `BATCH_TOKENS` of the device); neither it nor `min_shared`
    changes a result beyond rounding.
    `progress` wraps the list of batches (tqdm or the job's own).

    Raises `InputError` for an empty context or continuation, or a continuation that leaves no room for a context.
    """
    requests = _truncated(model, requests, max_length, keep_first)
    batch_tokens = batch_tokens or default_batch_tokens(model)
    scores = [np.zeros(len(request.continuation)) for request in requests]
    with evaluating(model):
        if model.config.is_encoder_decoder:
            _score_decoded(model, requests, scores, batch_tokens, progress)
        elif requests:
            longest = max(len(request.context) + len(request.continuation) for request in requests)
            roots = prefix_tree(requests, min_shared if _can_share(model, longest) else float("inf"))
            _score_nodes(model, [(0, root) for root in roots], None, scores, batch_tokens, progress)
    return scores


def _truncated(model, requests: Sequence[Request], max_length: int | None, keep_first: int) -> list[Request]:
    limit = max_length or position_limit(model)
    kept, cut = [], 0
    for number, request in enumerate(requests):
        room = limit - (0 if model.config.is_encoder_decoder else len(request.continuation))
        if not len(request.context) or not len(request.continuation) or room < max(1, keep_first):
            found = f"{len(request.context)} tokens of context and {len(request.continuation)} of continuation"
            raise InputError(f"request {number}", found, f"at least one of each, within {limit}")
        if len(request.context) > room:
            cut += 1
            request = Request(truncate_left(request.context, int(room), keep_first), request.continuation)
        kept.append(request)
    if cut:
        log.warning("%d of %d inputs were cut to %d tokens from the left", cut, len(requests), limit)
    return kept


def default_batch_tokens(model) -> int:
    """`BATCH_TOKENS` of the model's device."""
    return BATCH_TOKENS.get(model.device.type, 16384)


def position_limit(model) -> float:
    """How many tokens the model has positions for."""
    return getattr(model.config, "max_position_embeddings", None) or float("inf")


def _can_share(model, longest: int) -> bool:
    """Whether a cache with padding inside is exact: attention everywhere, and no window that an input exceeds."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    allowed = {"full_attention", "sliding_attention"} if window and longest <= window else {"full_attention"}
    return _accepts(model, "past_key_values") and kinds <= allowed


def _accepts(model, argument: str) -> bool:
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(model.forward).parameters


@dataclass(frozen=True)
class _Past:
    """What a batch of nodes leaves to their children."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, (rows, heads, tokens, width)
    attention_mask: torch.Tensor  # (rows, tokens), 0 at padding
    lengths: torch.Tensor  # (rows,), tokens without padding

    def cache_of(self, rows: torch.Tensor):
        """A cache with these rows; the forward pass appends to copies."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache([(keys[rows], values[rows]) for keys, values in self.layers])


def _bytes_per_token(model) -> int:
    """Keys and values that a model keeps of a token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


def _score_nodes(
    model,
    items: list[tuple[int, Node]],
    past: _Past | None,
    scores: list[np.ndarray],
    batch_tokens: int,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> None:
    """Encode nodes, each after its row of `past`, write their scores, then do the same for their children.

    `items` are (row of `past`, node). Batches go depth first, so that only the caches on one path are alive; nodes without
    children come last and leave none.
    """
    items = sorted(items, key=lambda item: (bool(item[1].children), len(item[1].segment)), reverse=True)
    vocabulary, per_token = model.config.get_text_config().vocab_size, _bytes_per_token(model)
    taken = past.attention_mask.shape[1] if past else 0
    costs = [
        (
            len(node.segment),
            len(node.scored) * vocabulary,
            per_token * (taken + (len(node.segment) if node.children else 0)),
        )
        for _, node in items
    ]
    for batch in progress(list(split_batches(costs, (batch_tokens, LOGITS_PER_BATCH, CACHE_BYTES)))):
        parents, nodes = zip(*(items[i] for i in batch), strict=True)
        children = [(row, child) for row, node in enumerate(nodes) for child in node.children]
        logits, new_past = _forward(model, parents, nodes, past, keep_past=bool(children))
        targets = []
        for row, node in enumerate(nodes):
            columns = {position: column for column, position in enumerate(node.scored)}
            targets += [(row, columns[position], *asked) for position, *asked in node.targets]
        _read_scores(logits, targets, scores)
        if children:
            _score_nodes(model, children, new_past, scores, batch_tokens)


def split_batches(costs: Sequence[tuple[int, ...]], limits: tuple[int, ...]) -> Iterator[list[int]]:
    """Split rows into runs whose number times their largest cost stays within each limit (or that hold one row)."""
    batch: list[int] = []
    largest = (0,) * len(limits)
    for row, cost in enumerate(costs):
        grown = tuple(map(max, largest, cost))
        if batch and any((len(batch) + 1) * value > limit for value, limit in zip(grown, limits, strict=True)):
            yield batch
            batch, grown = [], cost
        batch.append(row)
        largest = grown
    if batch:
        yield batch


def _forward(model, parents, nodes, past: _Past | None, keep_past: bool) -> tuple[torch.Tensor, _Past | None]:
    """Run the segments of a batch, each after its row of `past`.

    Gives logits (rows, most scored positions, vocabulary), a row's at its scored positions in order, and, with
    `keep_past`, what the children go on from.
    """
    from transformers.cache_utils import DynamicCache

    input_ids, attention_mask = pad_right([node.segment for node in nodes], 0, model.device)
    scored, _ = pad_right([node.scored for node in nodes], 0, model.device)
    lengths = attention_mask.sum(1)
    arguments: dict[str, Any] = {}
    if past:
        rows = torch.tensor(parents, device=model.device)
        # The cache has padding inside, so that positions and mask are not what a model would take them to be.
        position_ids = past.lengths[rows, None] + attention_mask.cumsum(1) - 1
        attention_mask = torch.cat([past.attention_mask[rows], attention_mask], dim=1)
        lengths = lengths + past.lengths[rows]
        arguments = {"past_key_values": past.cache_of(rows), "attention_mask": attention_mask}
        if _accepts(model, "position_ids"):
            arguments["position_ids"] = position_ids
    elif keep_past:
        arguments["past_key_values"] = DynamicCache()
    if _accepts(model, "use_cache"):
        arguments["use_cache"] = bool(past or keep_past)
    if _accepts(model, "logits_to_keep"):
        output = model(input_ids=input_ids, logits_to_keep=scored, **arguments)
        logits = output.logits
    else:
        output = model(input_ids=input_ids, **arguments)
        logits = output.logits.take_along_dim(scored[..., None], dim=1)
    if not keep_past:
        return logits, None
    layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
    return logits, _Past(layers, attention_mask, lengths)


def _read_scores(
    logits: torch.Tensor, targets: Sequence[tuple[int, int, int, int, int]], scores: list[np.ndarray]
) -> None:
    """Take log-probabilities out of logits: `targets` are (row, column, request, index of its value, token)."""
    if not targets:
        return
    rows, columns, _, _, tokens = torch.tensor(targets, device=logits.device).T
    logits = at_least_float32(logits)
    values = (logits[rows, columns, tokens] - logits.logsumexp(-1)[rows, columns]).double().cpu().numpy()
    for (_, _, request, index, _), value in zip(targets, values, strict=True):
        scores[request][index] = value


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits (...) in float32, or in float64 if they are: a half-precision loss would be rounded to a few digits."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def _score_decoded(model, requests: Sequence[Request], scores: list[np.ndarray], batch_tokens: int, progress) -> None:
    """Encoder-decoder models: each distinct context is encoded once, and what is decoded after it is, too.

    Continuations of a context that differ in their last token only, as label words of one token do, are one row.
    """
    from transformers.modeling_outputs import BaseModelOutput

    by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for number, request in enumerate(requests):
        readers = by_context.setdefault(tuple(request.context), {})
        readers.setdefault(tuple(request.continuation[:-1]), []).append(number)
    contexts = sorted(by_context, key=len, reverse=True)
    start, vocabulary = model.config.decoder_start_token_id, model.config.vocab_size
    for batch in progress(list(split_batches([(len(context),) for context in contexts], (batch_tokens,)))):
        input_ids, mask = pad_right([contexts[i] for i in batch], 0, model.device)
        encoded = model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        inputs = [(row, (start, *read)) for row, i in enumerate(batch) for read in by_context[contexts[i]]]
        inputs.sort(key=lambda pair: len(pair[1]), reverse=True)
        # The encoder's states are repeated for every row of the decoder, so they count as tokens.
        costs = [(encoded.shape[1] + len(ids), len(ids) * vocabulary) for _, ids in inputs]
        for part in split_batches(costs, (batch_tokens, LOGITS_PER_BATCH)):
            rows = torch.tensor([inputs[i][0] for i in part], device=model.device)
            decoder_ids, _ = pad_right([inputs[i][1] for i in part], start, model.device)
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded[rows]),
                attention_mask=mask[rows],
                decoder_input_ids=decoder_ids,
                use_cache=False,
            ).logits
            targets = [
                (place, index, number, index, token)
                for place, (row, ids) in enumerate(inputs[i] for i in part)
                for number in by_context[contexts[batch[row]]][ids[1:]]
                for index, token in enumerate(requests[number].continuation)
            ]
            _read_scores(logits, targets, scores)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as `input_ids` and `attention_mask`, int64 (rows, longest)."""
    input_ids = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = torch.tensor(row)
        attention_mask[number, : len(row)] = 1
    return input_ids.to(device), attention_mask.to(device)


@contextmanager
def evaluating(model) -> Iterator[None]:
    """No gradients, and the model in eval mode, which it leaves as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


# -------------------------------------------------------------------------------------------------------- label words


def label_word_logits(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    mask_positions: torch.Tensor,
    label_word_ids: Sequence[int],
) -> torch.Tensor:
    """(rows, label words): a masked LM's scores of the label words at each row's mask, float32 or wider, differentiable.

    input_ids, attention_mask: (rows, length). mask_positions: (rows,) or (rows, 1). The vocabulary head (`lm_head` or
    `cls`) runs on the mask positions alone.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]
    at_mask = hidden[torch.arange(len(hidden), device=hidden.device), mask_positions.reshape(-1)]
    return at_least_float32(masked_lm_logits(model, at_mask)[:, list(label_word_ids)])


def score_label_words(
    model,
    prompts: Sequence[MaskedPrompt],
    label_word_ids: Sequence[int],
    pad_id: int,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> np.ndarray:
    """`label_word_logits` of any number of prompts in length-sorted batches: float64 (prompts, labels)."""
    batch_tokens = batch_tokens or default_batch_tokens(model)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].input_ids), reverse=True)
    batches = list(split_batches([(len(prompts[row].input_ids),) for row in order], (batch_tokens,)))
    scores = np.zeros((len(prompts), len(label_word_ids)))
    with evaluating(model):
        for batch in progress(batches):
            rows = [order[i] for i in batch]
            input_ids, mask = pad_right([prompts[row].input_ids for row in rows], pad_id, model.device)
            positions = torch.tensor([prompts[row].mask_position for row in rows], device=model.device)
            logits = label_word_logits(model, input_ids, mask, positions, label_word_ids)
            scores[rows] = logits.double().cpu().numpy()
    return scores
