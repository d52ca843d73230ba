"""The decoder of all examples of one class at once: log-probabilities of a common next token, and of whole sequences.

Yu et al. 2022; official `tools/generate_label_sequences.py`. The examples of a class share one decoder prefix, and their
LOGITS are averaged, m = (1/n) sum_i z_i, before the softmax: log q(w) = m[w] - logsumexp(m), a renormalised geometric mean of
the examples' distributions. `pooling="probabilities"` averages the distributions instead (an ablation).

Differences from the official code, which runs encoder and decoder anew over all examples for every hypothesis and step:

- the encoder runs once per class, in ceil(n / batch_size) batches (counted);
- hypotheses are decoded together, one token a step: their keys and values of self-attention are kept and reordered, those of
  cross-attention are computed once for each example and only repeated (for as many hypotheses as `cache_bytes` allows);
- the head is linear, so the mean of the logits is the head at the mean of the hidden states: one product with the
  vocabulary for each hypothesis in place of one for each example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from reclaim.errors import InputError
from reclaim.scoring import LOGITS_PER_BATCH, evaluating, pad_right, split_batches

CACHE_BYTES = 2**30
"""Bound on the repeated cross-attention keys and values of one forward pass."""

POOLINGS = ("logits", "probabilities")


@dataclass
class DecoderState:
    """Keys and values of self-attention by layer, each (hypotheses, examples, heads, tokens, width)."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def __getitem__(self, hypotheses: torch.Tensor) -> DecoderState:
        return DecoderState([(keys[hypotheses], values[hypotheses]) for keys, values in self.layers])


class ClassDecoder:
    """Encoded examples of one class under a seq2seq model, and what they say together about targets.

    `prompts` are the examples' token ids, at least one. `encoder_calls` and `decoder_calls` count forward passes.

    Raises `InputError` for no example, an unknown pooling, and a model without encoder or with a biased head.
    """

    def __init__(
        self,
        model,
        prompts: Sequence[Sequence[int]],
        *,
        pooling: str = "logits",
        batch_size: int = 16,
        cache_bytes: int = CACHE_BYTES,
    ):
        if not prompts:
            raise InputError("examples of a class", "none", "at least one")
        if pooling not in POOLINGS:
            raise InputError("pooling", repr(pooling), f"one of {', '.join(POOLINGS)}")
        head = model.get_output_embeddings()
        if not model.config.is_encoder_decoder or getattr(head, "bias", None) is not None:
            raise InputError("model", type(model).__name__, "an encoder-decoder model with a linear head without bias")
        self.model, self.pooling, self.cache_bytes = model, pooling, cache_bytes
        self.encoder_calls = self.decoder_calls = 0
        self._head = head
        # T5 v1.0 scales the decoder's output; whether a model does is not what `tie_word_embeddings` says.
        scaled = getattr(model.config, "scale_decoder_outputs", False)
        self._scale = model.config.d_model**-0.5 if scaled else 1.0
        with evaluating(model):
            input_ids, self._mask = pad_right(prompts, model.config.pad_token_id, model.device)
            encoded = []
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                output = model.get_encoder()(input_ids=input_ids[part], attention_mask=self._mask[part])
                encoded.append(output.last_hidden_state)
                self.encoder_calls += 1
            self._encoded = torch.cat(encoded)
            self._repeated: tuple | None = None
            self._cross: list[tuple[torch.Tensor, torch.Tensor]] = []
            self._start_log_q, self._start_state = self._start()

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self._encoded)

    def start(self) -> tuple[torch.Tensor, DecoderState]:
        """Log q of the first token, (1, vocabulary), and the state of the one empty hypothesis."""
        return self._start_log_q, self._start_state

    def extend(self, state: DecoderState, tokens: torch.Tensor) -> tuple[torch.Tensor, DecoderState]:
        """Append a token to each hypothesis of `state`: log q of the next one, (hypotheses, vocabulary), and the new state."""
        log_q, parts = [], []
        with self._evaluating():
            for rows in self._chunks(len(tokens)):
                hidden, layers = self._decode(tokens[rows, None], state[rows])
                log_q.append(self._log_q(hidden[:, :, -1]))
                parts.append(layers)
        if len(parts) == 1:
            return log_q[0], DecoderState(parts[0])
        joined = []
        for layer in zip(*parts, strict=True):
            keys, values = zip(*layer, strict=True)
            joined.append((torch.cat(keys), torch.cat(values)))
        return torch.cat(log_q), DecoderState(joined)

    def sequence_log_probabilities(self, targets: Sequence[Sequence[int]]) -> np.ndarray:
        """Log of P(target) = prod_j q(target_j), teacher-forced, for each target (at least one token): float64, nats."""
        values = np.zeros(len(targets))
        order = sorted(range(len(targets)), key=lambda i: len(targets[i]), reverse=True)
        start = self.model.config.decoder_start_token_id
        with self._evaluating():
            for rows in self._chunks(len(targets), max((len(target) for target in targets), default=1)):
                chosen = [order[i] for i in rows.tolist()]
                ids, mask = pad_right([targets[i] for i in chosen], 0, self.model.device)
                inputs = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], dim=1)
                hidden, _ = self._decode(inputs, None)
                log_q = self._log_q(hidden).gather(-1, ids[..., None])[..., 0]
                values[chosen] = (log_q.double() * mask).sum(1).cpu().numpy()
        self.release()
        return values

    def release(self) -> None:
        """Free what is kept between steps; it is made again when it is needed."""
        self._repeated = None

    # ------------------------------------------------------------------------------------------------------- internals

    def _evaluating(self):
        """As `evaluating`; a model that is not in train mode need not be walked through at every step."""
        return evaluating(self.model) if self.model.training else torch.no_grad()

    def _start(self) -> tuple[torch.Tensor, DecoderState]:
        """Decode the start token once for each example, which gives the keys and values of cross-attention."""
        start = self.model.config.decoder_start_token_id
        tokens = torch.full((self.examples, 1), start, device=self.model.device)
        output = self.model.get_decoder()(
            input_ids=tokens, encoder_hidden_states=self._encoded, encoder_attention_mask=self._mask, use_cache=True
        )
        self.decoder_calls += 1
        past = output.past_key_values
        self._cross = [(layer.keys, layer.values) for layer in past.cross_attention_cache.layers]
        state = DecoderState([(layer.keys[None], layer.values[None]) for layer in past.self_attention_cache.layers])
        return self._log_q(output.last_hidden_state[None, :, -1]), state

    def _chunks(self, hypotheses: int, length: int = 1) -> Iterator[torch.Tensor]:
        """Row numbers of as many hypotheses at a time as the bounds on memory allow."""
        per_row = sum(2 * keys.numel() * keys.element_size() for keys, _ in self._cross)
        # Averaged probabilities need the logits of every example.
        logits = length * self.model.config.vocab_size * (1 if self.pooling == "logits" else self.examples)
        for rows in split_batches([(per_row, logits)] * hypotheses, (self.cache_bytes, LOGITS_PER_BATCH)):
            yield torch.tensor(rows, device=self.model.device)

    def _decode(self, tokens: torch.Tensor, state: DecoderState | None):
        """Decode `tokens` (hypotheses, length) after `state`: hidden states (hypotheses, examples, length, width), layers."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        shape = (len(tokens), self.examples)
        mask, cross = self._repeat(len(tokens))
        own = DynamicCache(
            [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in state.layers] if state else None
        )
        output = self.model.get_decoder()(
            input_ids=tokens.repeat_interleave(self.examples, 0),
            # Not read, as the cross-attention cache is full; it only says how long the inputs are.
            encoder_hidden_states=self._encoded[:1].expand(shape[0] * shape[1], -1, -1),
            encoder_attention_mask=mask,
            past_key_values=EncoderDecoderCache(own, DynamicCache(cross)),
            use_cache=True,
        )
        self.decoder_calls += 1
        layers = [
            (layer.keys.unflatten(0, shape), layer.values.unflatten(0, shape))
            for layer in output.past_key_values.self_attention_cache.layers
        ]
        return output.last_hidden_state.unflatten(0, shape), layers

    def _repeat(self, hypotheses: int) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The examples' mask and cross-attention keys and values for each hypothesis; kept, as steps are often as wide."""
        if self._repeated is None or self._repeated[0] != hypotheses:
            self._repeated = None  # before the new one is made

            def repeated(tensor: torch.Tensor) -> torch.Tensor:
                return tensor.expand(hypotheses, *tensor.shape).flatten(0, 1)

            cross = [(repeated(keys), repeated(values)) for keys, values in self._cross]
            self._repeated = (hypotheses, repeated(self._mask), cross)
        return self._repeated[1:]

    def _log_q(self, hidden: torch.Tensor) -> torch.Tensor:
        """Pool hidden states (hypotheses, examples, ..., width) over the examples: log q (hypotheses, ..., vocabulary)."""
        if self.pooling == "logits":
            return self._head(hidden.mean(1) * self._scale).float().log_softmax(-1)
        log_p = self._head(hidden * self._scale).float().log_softmax(-1)
        return log_p.logsumexp(1) - float(np.log(self.examples))
