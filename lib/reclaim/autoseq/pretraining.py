"""A small T5 from scratch: built, pre-trained by span corruption, saved and loaded like one of the Hub.

Span corruption (Raffel et al. 2020): spans of the input are replaced by sentinels, the target lists each sentinel with the
span it stands for, then the next sentinel and the end. Half of the documents (`comment_share`) have one span, the comment at
their end, the others random spans: `density` of the tokens (drawn uniformly between its two ends), lengths geometric with
mean `mean_span`; where texts have no comments, all have random spans. Drawn afresh at each visit of a document.

As T5 v1.1 the model has gated GELU and does not scale the decoder's output; unlike it, its head is the embedding: that is
what `T5Config(tie_word_embeddings=False)` builds in transformers 5, and with a head of its own the encoder and the decoder
would have separate embeddings, too. Models of the Hub are loaded as they are. The recipe follows this project's protocol,
not T5's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F

from reclaim.batches import epoch_batches
from reclaim.errors import InputError
from reclaim.scoring import pad_right
from reclaim.seeding import derive
from reclaim.train import History, Recipe, train


def build_t5(tokenizer, config: dict[str, Any], seed: int):
    """A T5 with random weights, which depend on `seed` alone; `config` goes to `T5Config`.

    Raises `InputError` for an unknown key.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    unknown = set(config) - set(T5Config().to_dict())
    if unknown:
        raise InputError("model.config", f"unknown keys {sorted(unknown)}", "arguments of T5Config")
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    options = {"feed_forward_proj": "gated-gelu", **special, **config}
    model_config = T5Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "init"))
        return T5ForConditionalGeneration(model_config).eval()


def sentinel_ids(tokenizer) -> list[int]:
    """The ids of `<extra_id_0>`, `<extra_id_1>`, ... in this order."""
    ids: list[int] = []
    while (number := tokenizer.convert_tokens_to_ids(f"<extra_id_{len(ids)}>")) not in (None, tokenizer.unk_token_id):
        ids.append(number)
    if len(ids) < 2:
        raise InputError("tokenizer", f"{len(ids)} sentinels", "at least two")
    return ids


def corrupt_spans(
    ids: Sequence[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int], eos: int
) -> tuple[list[int], list[int]]:
    """Input and target of a document whose `spans` (first, behind the last; in order, apart) are masked."""
    source: list[int] = []
    target: list[int] = []
    position = 0
    for sentinel, (first, last) in zip(sentinels, spans, strict=False):
        source += [*ids[position:first], sentinel]
        target += [sentinel, *ids[first:last]]
        position = last
    return [*source, *ids[position:], eos], [*target, sentinels[len(spans)], eos]


def random_spans(
    rng: np.random.Generator, length: int, density: tuple[float, float], mean_span: float, most: int
) -> list[tuple[int, int]]:
    """At most `most` spans of geometric length with at least one token between them, until the drawn share is masked."""
    wanted = max(1, round(rng.uniform(*density) * length))
    masked = np.zeros(length, dtype=bool)
    for _ in range(4 * wanted):  # a crowded document may have no room left
        room = wanted - masked.sum()
        if room < 1:
            break
        span = int(min(rng.geometric(1 / mean_span), room))
        first = int(rng.integers(length - span + 1))
        if not masked[max(0, first - 1) : first + span + 1].any():
            masked[first : first + span] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], masked, [False]])))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)[:most]]


def pretrain_spans(
    model,
    tokenizer,
    sentences: Sequence[str],
    comments: Sequence[str] | None,
    recipe: Recipe,
    *,
    seed: int,
    max_length: int | None = None,
    comment_share: float = 0.5,
    density: tuple[float, float] = (0.08, 0.45),
    mean_span: float = 3.0,
    **options: Any,
) -> History:
    """Pre-train in place on documents, each a sentence with a comment behind it; no label is read.

    Texts without comments have random spans only, and documents are cut to `max_length` tokens. `options` go to
    `reclaim.train.train`.
    """
    first = [ids[:max_length] for ids in _token_ids(tokenizer, sentences)]
    second = [[]] * len(first) if comments is None else _token_ids(tokenizer, comments)
    comment_share = 0.0 if comments is None else comment_share
    sentinels, device = sentinel_ids(tokenizer), model.device
    take = epoch_batches(len(first), recipe.per_device_train_batch_size, derive(seed, "pretrain"))

    def batches(step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        _, rows = take(step)
        rng = np.random.default_rng(derive(seed, "spans", step))
        whole = rng.permutation(len(rows)) < round(comment_share * len(rows))
        pairs = []
        for row, whole_comment in zip(rows, whole, strict=True):
            ids = first[row] + second[row]
            if whole_comment:
                spans = [(len(first[row]), len(ids))]
            else:
                spans = random_spans(rng, len(ids), density, mean_span, len(sentinels) - 1)
            pairs.append(corrupt_spans(ids, spans, sentinels, tokenizer.eos_token_id))
        sources, targets = zip(*pairs, strict=True)
        input_ids, mask = pad_right(sources, tokenizer.pad_token_id, device)
        labels, known = pad_right(targets, 0, device)
        yield input_ids, mask, labels.masked_fill(known == 0, -100)

    def loss(batch) -> tuple[torch.Tensor, int]:
        input_ids, mask, labels = batch
        logits = model(input_ids=input_ids, attention_mask=mask, labels=labels).logits
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum"), int((labels != -100).sum())

    return train(model, batches, loss, recipe, seed=seed, **options)


def _token_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, each different text tokenized once: comments repeat."""
    different = list(dict.fromkeys(texts))
    ids = dict(zip(different, tokenizer(different, add_special_tokens=False)["input_ids"], strict=True))
    return [ids[text] for text in texts]
