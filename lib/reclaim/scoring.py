"""Log-probabilities of continuations and label words under causal, masked and seq2seq language models, in batches.

Sources: Malladi et al. 2023 (MeZO), section 3: a candidate's score is the MEAN log-probability of its tokens, or,
calibrated for surface form (Holtzman et al. 2021), their SUM minus that under a content-free prompt; a masked model
is scored by the logits of the label words at the mask.

Difference from the official code: it runs one forward pass per candidate, with logits at every position. Here
requests share what they begin with: their token sequences form a prefix tree, each node is encoded once, and its keys
and values serve all below it. Logits exist only at the positions that are scored. A test checks 1e-4 against
one-by-one scoring in float32.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from reclaim.errors import InputError
from reclaim.models import masked_lm_logits
from reclaim.prompting import MaskedPrompt, truncate_left

log = logging.getLogger(__name__)

MIN_SHARED = 16
"""Shorter common beginnings are encoded again: a cache and one more batch cost more."""

LOGITS_PER_BATCH = 2**26
"""Bound on rows x positions x vocabulary of one forward pass (256 MiB in float32)."""

CACHE_BYTES = 2**30
"""Bound on the keys and values that one batch takes over from its parents."""


@dataclass(frozen=True)
class Request:
    """Token ids of a context (at least one) and of what may follow it (at least one)."""

    context: Sequence[int]
    continuation: Sequence[int]


# -------------------------------------------------------------------------------------------------------- prefix tree


@dataclass
class _Node:
    """Tokens that follow those of the node's ancestors, and what is asked about them.

    `targets` are (position in segment, request, index, token): the log-probability of `token` after that position is
    value `index` of the request.
    """

    segment: tuple[int, ...]
    targets: list[tuple[int, int, int, int]]
    children: list[_Node] = field(default_factory=list)

    @property
    def scored_tail(self) -> int:
        """How many positions at the end need logits (at least one, because models give no fewer)."""
        return len(self.segment) - min((position for position, *_ in self.targets), default=len(self.segment) - 1)


def _prefix_tree(requests: Sequence[Request], min_shared: float) -> list[_Node]:
    """Roots of the tree of what the model reads; neighbours share a node where it has at least `min_shared` tokens."""
    inputs = [(*request.context, *request.continuation[:-1]) for request in requests]
    order = sorted(range(len(inputs)), key=inputs.__getitem__)
    common = [_common_length(inputs[a], inputs[b]) for a, b in zip(order, order[1:], strict=False)]

    def share(neighbour: int, start: int) -> bool:
        same = common[neighbour] == len(inputs[order[neighbour]]) == len(inputs[order[neighbour + 1]])
        return same or common[neighbour] - start >= min_shared

    def node(first: int, last: int, start: int, end: int) -> _Node:
        """Tokens start..end-1 of the sorted inputs first..last-1, which agree on them."""
        targets = []
        for request in order[first:last]:
            opening = len(requests[request].context) - 1
            for position in range(max(start, opening), min(end, len(inputs[request]))):
                index = position - opening
                targets.append((position - start, request, index, requests[request].continuation[index]))
        return _Node(inputs[order[first]][start:end], targets)

    def grow(first: int, last: int, start: int) -> list[_Node]:
        nodes = []
        while first < last:
            stop = first + 1
            while stop < last and share(stop - 1, start):
                stop += 1
            end = min(common[first : stop - 1], default=len(inputs[order[first]]))
            nodes.append(node(first, stop, start, end))
            # Inputs that end here stand first among those that agree.
            while first < stop and len(inputs[order[first]]) == end:
                first += 1
            nodes[-1].children = grow(first, stop, end)
            first = stop
        return nodes

    return grow(0, len(order), 0)


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


# ------------------------------------------------------------------------------------------------------ continuations


def score_continuations(
    model,
    requests: Sequence[Request],
    *,
    max_length: int | None = None,
    keep_first: int = 0,
    batch_tokens: int = 4096,
    min_shared: int = MIN_SHARED,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[np.ndarray]:
    """Log-probability of every continuation token given its context and the tokens before it, in nats.

    Gives one float64 array per request, as long as its continuation. A causal model reads context + continuation, cut
    from the left to `max_length` tokens (default: the model's own limit) except for the first `keep_first`; a seq2seq
    model encodes the context, cut likewise, and decodes the continuation. How many inputs were cut is logged.
    `batch_tokens` bounds rows x tokens of a batch; neither it nor `min_shared` changes a result beyond rounding.
    `progress` wraps the list of batches (tqdm or the job's own).

    Raises `InputError` for an empty context or continuation, or a continuation that leaves no room for a context.
    """
    requests = _truncated(model, requests, max_length, keep_first)
    scores = [np.zeros(len(request.continuation)) for request in requests]
    with evaluating(model):
        if model.config.is_encoder_decoder:
            _score_decoded(model, requests, scores, batch_tokens, progress)
        elif requests:
            longest = max(len(request.context) + len(request.continuation) for request in requests)
            roots = _prefix_tree(requests, min_shared if _can_share(model, longest) else float("inf"))
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

    @property
    def bytes_per_token(self) -> int:
        return sum(2 * keys.element_size() * keys.shape[1] * keys.shape[3] for keys, _ in self.layers)

    def cache_of(self, rows: torch.Tensor):
        """A cache with these rows; the forward pass appends to copies."""
        from transformers.cache_utils import DynamicCache

        return DynamicCache([(keys[rows], values[rows]) for keys, values in self.layers])


def _score_nodes(
    model,
    items: list[tuple[int, _Node]],
    past: _Past | None,
    scores: list[np.ndarray],
    batch_tokens: int,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> None:
    """Encode nodes, each after its row of `past`, write their scores, then do the same for their children.

    `items` are (row of `past`, node). Batches go depth first, so that only the caches on one path are alive.
    """
    items = sorted(items, key=lambda item: (len(item[1].segment), item[1].scored_tail), reverse=True)
    vocabulary = model.config.get_text_config().vocab_size
    kept = past.attention_mask.shape[1] * past.bytes_per_token if past else 0
    costs = [(len(node.segment), node.scored_tail * vocabulary, kept) for _, node in items]
    for batch in progress(list(split_batches(costs, (batch_tokens, LOGITS_PER_BATCH, CACHE_BYTES)))):
        parents, nodes = zip(*(items[i] for i in batch), strict=True)
        children = [(row, child) for row, node in enumerate(nodes) for child in node.children]
        logits, new_past = _forward(model, parents, nodes, past, keep_past=bool(children))
        _read_scores(logits, nodes, scores)
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
    """Run the segments of a batch, padded on the left; the logits are those of the last positions.

    Gives logits (rows, longest scored tail, vocabulary) and, with `keep_past`, what the children go on from.
    """
    from transformers.cache_utils import DynamicCache

    device = model.device
    length, tail = max(len(node.segment) for node in nodes), max(node.scored_tail for node in nodes)
    input_ids = torch.zeros(len(nodes), length, dtype=torch.long)
    attention_mask = torch.zeros(len(nodes), length, dtype=torch.long)
    for row, node in enumerate(nodes):
        input_ids[row, length - len(node.segment) :] = torch.tensor(node.segment)
        attention_mask[row, length - len(node.segment) :] = 1
    input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    lengths = attention_mask.sum(1)
    arguments = {}
    if past:
        rows = torch.tensor(parents, device=device)
        attention_mask = torch.cat([past.attention_mask[rows], attention_mask], dim=1)
        position_ids = position_ids + past.lengths[rows, None]
        lengths = lengths + past.lengths[rows]
    if past or keep_past:
        arguments["past_key_values"] = past.cache_of(rows) if past else DynamicCache()
    if _accepts(model, "position_ids"):
        arguments["position_ids"] = position_ids
    if _accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = tail
    if _accepts(model, "use_cache"):
        arguments["use_cache"] = bool(past or keep_past)
    output = model(input_ids=input_ids, attention_mask=attention_mask, **arguments)
    if not keep_past:
        return output.logits[:, -tail:], None
    layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
    return output.logits[:, -tail:], _Past(layers, attention_mask, lengths)


def _read_scores(logits: torch.Tensor, nodes: Sequence[_Node], scores: list[np.ndarray]) -> None:
    """Take the log-probabilities of a batch's targets out of its logits, which end where the segments end."""
    targets = [
        (row, logits.shape[1] - len(node.segment) + position, request, index, token)
        for row, node in enumerate(nodes)
        for position, request, index, token in node.targets
    ]
    if not targets:
        return
    places = {place: number for number, place in enumerate(dict.fromkeys((row, column) for row, column, *_ in targets))}
    rows, columns = torch.tensor(list(places), device=logits.device).T
    chosen = at_least_float32(logits[rows, columns])
    normalizers = chosen.logsumexp(-1)
    numbers = torch.tensor([places[row, column] for row, column, *_ in targets], device=logits.device)
    tokens = torch.tensor([token for *_, token in targets], device=logits.device)
    values = (chosen[numbers, tokens] - normalizers[numbers]).double().cpu().numpy()
    for (_, _, request, index, _), value in zip(targets, values, strict=True):
        scores[request][index] = value


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits (...) in float32, or in float64 if they are: a half-precision loss would be rounded to a few digits."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def _score_decoded(model, requests: Sequence[Request], scores: list[np.ndarray], batch_tokens: int, progress) -> None:
    """Encoder-decoder models: each distinct context is encoded once, and its continuations are decoded in batches."""
    from transformers.modeling_outputs import BaseModelOutput

    by_context: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        by_context.setdefault(tuple(request.context), []).append(number)
    contexts = sorted(by_context, key=len, reverse=True)
    start, vocabulary = model.config.decoder_start_token_id, model.config.vocab_size
    for batch in progress(list(split_batches([(len(context),) for context in contexts], (batch_tokens,)))):
        input_ids, mask = pad_right([contexts[i] for i in batch], 0, model.device)
        encoded = model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        pairs = [(row, number) for row, i in enumerate(batch) for number in by_context[contexts[i]]]
        pairs.sort(key=lambda pair: len(requests[pair[1]].continuation), reverse=True)
        lengths = [len(requests[number].continuation) for _, number in pairs]
        # The encoder's states are repeated for every continuation, so they count as tokens.
        costs = [(encoded.shape[1] + length, length * vocabulary) for length in lengths]
        for part in split_batches(costs, (batch_tokens, LOGITS_PER_BATCH)):
            rows = torch.tensor([pairs[i][0] for i in part], device=model.device)
            numbers = [pairs[i][1] for i in part]
            targets, _ = pad_right([requests[number].continuation for number in numbers], 0, model.device)
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded[rows]),
                attention_mask=mask[rows],
                decoder_input_ids=torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1]], dim=1),
                use_cache=False,
            ).logits
            values = at_least_float32(logits).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
            for number, row in zip(numbers, values.double().cpu().numpy(), strict=True):
                scores[number][:] = row[: len(scores[number])]


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
    batch_tokens: int = 4096,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> np.ndarray:
    """`label_word_logits` of any number of prompts in length-sorted batches: float64 (prompts, labels)."""
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
