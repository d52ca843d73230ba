"""DIRECTOR, the baseline with a head that says of every next token whether it would be good.

Source: Arora et al. 2022 as ParlAI has it (projects/director), which the CRINGE paper compares with. The head W h scores every
token of the vocabulary, next to the language model on the same hidden states h:

    decode:  log_softmax(log_softmax(z) + gamma * logsigmoid(W h))
    train:   LM loss of unlabelled sequences + gamma_train * BCE of the observed token's score with the sequence's label,
             means over a sequence's tokens, summed over the batch

By default labelled sequences train the head alone, good ones too, while CRINGE and unlikelihood train the language model on the
good ones. Where the unlabelled text has what is unwanted that difference decides a comparison, so the official switch by which
good ones train both (`--train-generator-with-pos-feedback-examples`, here `lm_on_positives` of an arm) makes an arm of its own.

Differences from the official code: the head starts from zeros and has no bias (that of the last layer norm does as well); a
sequence that trains both has the mean of each, where the original divides by the tokens of both losses and so halves them
(the language model would learn good sequences at half the weight that CRINGE gives them); training divides by the number of
sequences of a batch, which only matters where gradients are clipped, and leaves out the ends of bad sequences as for the
other methods (`contrast_eos`).

A `director_class` of any model with a language-modelling head is a model of `transformers` like any other: it gives the
combined log-probabilities as logits, so that `generate`, perplexity and bad mass are those of what is decoded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reclaim.cringe.loss import UNLABELLED


def director_scores(logits: torch.Tensor, head: torch.Tensor, gamma: float) -> torch.Tensor:
    """Log-probabilities (..., V) of language model and head together; `gamma` weighs the head, 0 leaves it out."""
    return F.log_softmax(F.log_softmax(logits, dim=-1) + gamma * F.logsigmoid(head), dim=-1)


def director_loss(
    logits: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    polarity: torch.Tensor,
    *,
    gamma_train: float,
    ignore_index: int = -100,
    norm_coeff: float = 0.0,
    trains_lm: torch.Tensor | None = None,
) -> torch.Tensor:
    """The summed loss of a batch, in nats: `logits`, `head` (B, T, V), `labels` (B, T), `polarity` (B) in 1, 0, -1.

    Labelled sequences train the head, the others (or those that `trains_lm`, bool (B), names) the language model. With
    `norm_coeff` the head's other scores are drawn to a probability of 0.5: mean squared distance over the V - 1 other tokens,
    part of what `gamma_train` weighs.
    """
    mask = (labels != ignore_index) & (labels != -100)
    safe = labels.masked_fill(~mask, 0)
    polarity = polarity.reshape(-1)
    labelled = polarity != UNLABELLED
    trains_lm = ~labelled if trains_lm is None else trains_lm.reshape(-1).bool()
    nats = F.cross_entropy(logits.transpose(1, 2).float(), safe, reduction="none")
    observed = head.gather(2, safe[..., None])[..., 0].float()
    target = (polarity == 1).float()[:, None].expand_as(observed)
    score = F.binary_cross_entropy_with_logits(observed, target, reduction="none")
    if norm_coeff:
        distance = (head.float().sigmoid() - 0.5).square()
        others = distance.sum(dim=-1) - distance.gather(2, safe[..., None])[..., 0]
        score = score + norm_coeff * others / (head.shape[-1] - 1)
    return (_means(nats, mask) * trains_lm + gamma_train * _means(score, mask) * labelled).sum()


def _means(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


@cache
def director_class(base: type) -> Any:
    """The class of a model of class `base` (GPT2LMHeadModel, BlenderbotForConditionalGeneration, ...) with the second head.

    Its configuration has `director_gamma`, the head's weight in decoding (default 1). `forward` gives `logits` as combined
    log-probabilities; `both` gives the two scores apart, for training.
    """

    class Director(base):
        def __init__(self, config, *arguments, **options):
            super().__init__(config, *arguments, **options)
            self.director_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()

        def both(self, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
            """Logits of the language model and scores of the head, each (B, T, V)."""
            output = super().forward(**inputs, output_hidden_states=True)
            return output.logits, self.director_head(_last_hidden(output))

        def forward(self, *arguments, **inputs):
            # `generate` wants the logits of the last token only, and the head has to be asked for the same ones.
            inputs |= {"output_hidden_states": True, "return_dict": True}
            output = super().forward(*arguments, **inputs)
            head = self.director_head(_last_hidden(output)[:, -output.logits.shape[1] :])
            gamma = getattr(self.config, "director_gamma", 1.0)
            output.logits = director_scores(output.logits.float(), head.float(), gamma)
            return output

    Director.__name__ = Director.__qualname__ = f"Director{base.__name__}"
    return Director


def _last_hidden(output) -> torch.Tensor:
    states = getattr(output, "decoder_hidden_states", None)
    return (output.hidden_states if states is None else states)[-1]


def as_director(model, gamma: float = 1.0):
    """A copy of a language model with a second head whose scores are all 0 (neither good nor bad)."""
    config = type(model.config).from_dict({**model.config.to_dict(), "director_gamma": gamma})
    with torch.random.fork_rng(devices=[]):
        kind: Any = type(model)
        director = director_class(kind)(config)
    director.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        director.director_head.weight.zero_()
    return director.to(next(model.parameters()).device).eval()
