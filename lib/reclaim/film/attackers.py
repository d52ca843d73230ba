"""What an eavesdropper reads from a defended client: FILM's own reading, and the strongest one known for each defence.

FILM (Gupta et al., NeurIPS 2022) reads the gradient of the word embeddings. Where none is sent, it is left with the whole
vocabulary. A defence is praised too early if it meets that attacker alone, so each also meets one that was made for it: rows
of pruned or noisy gradients with the size of the bag given, the span test for frozen embeddings and LoRA (`span`), and the
average of many scalars for MeZO (`scalars`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from reclaim.film.bag import read_bag
from reclaim.film.defences import Defence, sent_gradients
from reclaim.film.gradients import client_loss, embedding_names, mean_hidden_norm, padded
from reclaim.film.scalars import average_scalars, send_scalars
from reclaim.film.search import SearchOptions, official_search, start_tokens
from reclaim.film.span import ATTENTION, CUTS, first_layer_gradient, span_bag, span_basis, span_residuals
from reclaim.film.start_search import end_tokens, start_search
from reclaim.metrics.recovery import cut
from reclaim.seeding import derive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Each attacker with its search: FILM as published, and the strongest reading with the better search.
ATTACKERS = {"film": "official", "strongest": "per_start"}


@dataclass(frozen=True)
class Knowledge:
    """What the eavesdropper has beside the message: weights, tokenizer, texts of its own, limits on sentences.

    `ends` are the tokens that end a sentence, added to every bag by hand; `hidden_norm` is H of the kH/N rule, taken on the
    attacker's own texts; `max_length` tokens are the longest sentence it looks for.
    """

    model: PreTrainedModel
    tokenizer: Any
    ends: Sequence[int]
    hidden_norm: float
    max_length: int

    @classmethod
    def of(cls, model, tokenizer, texts: Sequence[str], max_length: int) -> Knowledge:
        """Gather it for a model; `texts` are the attacker's own."""
        hidden_norm = mean_hidden_norm(model, *padded(model, tokenizer, texts))
        return cls(model, tokenizer, end_tokens(tokenizer, model.config.vocab_size), hidden_norm, max_length)

    @property
    def vocabulary(self) -> list[int]:
        """Every id: the bag of whoever has read nothing."""
        return list(range(self.model.config.vocab_size))


def true_bag(model, tokenizer, texts: Sequence[str]) -> set[int]:
    """Ids of all tokens of a batch."""
    ids, mask = padded(model, tokenizer, texts)
    return set(ids[mask].tolist())


def eavesdrop(client, defence: Defence, texts: Sequence[str], known: Knowledge, *, seed: int) -> dict[str, list[int]]:
    """The bag that each attacker (`ATTACKERS`) reads from one step of a defended client on a batch of texts.

    `client` is the model that `Defence.protect` gave, with the weights of `known.model`. Of a MeZO client only its messages
    are used. `seed` fixes noise and directions.
    """
    ids, mask = padded(client, known.tokenizer, texts)
    size, num_targets = len(true_bag(client, known.tokenizer, texts)), int(mask[:, 1:].sum())
    words = embedding_names(known.model)[0]
    if defence.name == "mezo":
        messages = send_scalars(
            client, lambda: client_loss(client, ids, mask)[0], int(defence.strength), seed=derive(seed, "directions")
        )
        estimate = average_scalars(known.model, messages, words)
        strongest = read_bag(estimate, "size", num_targets=num_targets, size=size, add=known.ends)
        return {"film": known.vocabulary, "strongest": strongest}
    generator = torch.Generator().manual_seed(derive(seed, "noise"))
    sent = sent_gradients(client, ids, mask, defence, generator)
    if words in sent:
        options: dict[str, Any] = {"num_targets": num_targets, "hidden_norm": known.hidden_norm}
        options |= {"size": size, "add": known.ends}
        rules = {"film": "scaled", "strongest": "size"}
        return {attacker: read_bag(sent[words], rule, **options) for attacker, rule in rules.items()}
    bag = span_bag(residuals(client, sent, known), CUTS[torch.float32])
    return {"film": known.vocabulary, "strongest": sorted(bag.union(known.ends))}


def residuals(client, sent: dict[str, torch.Tensor], known: Knowledge) -> torch.Tensor:
    """`span_residuals` of every word and position for the gradients of a client with frozen embeddings or LoRA.

    `sent`: by parameter name, each of its parameter's shape. LoRA's A is part of the weights that server and client share.
    """
    adapter = getattr(client.get_submodule(ATTENTION), "lora_A", None)
    adapter = None if adapter is None else adapter["default"].weight
    basis = span_basis(first_layer_gradient(sent))
    return span_residuals(known.model, basis, known.max_length - 1, adapter)


def write_sentence(known: Knowledge, bag: Sequence[int], batch_size: int, attacker: str, num_beams: int) -> str:
    """The first sentence that an attacker's search makes of a bag, cut at its end (`official`: two groups, n = 2).

    Lengths and counts are not known to it. An empty text where there is no result.
    """
    starts = start_tokens(bag, known.tokenizer, batch_size)
    if ATTACKERS[attacker] == "official":
        options = SearchOptions(known.max_length, num_beams, num_groups=2, no_repeat_ngram_size=2)
        counts = dict.fromkeys(bag, known.max_length)
        found = official_search(known.model, counts, starts, known.tokenizer.eos_token_id, options)
    else:
        limits = {"max_length": known.max_length, "num_beams": num_beams}
        found = start_search(known.model, bag, starts, known.ends, **limits)
    return cut(known.tokenizer.decode(found[0].tokens[0])) if found else ""
