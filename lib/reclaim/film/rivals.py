"""Gradient matching, the attacks that FILM is compared with: DLG, TAG, and LAMP with its prior and discrete moves.

* DLG (Zhu et al., NeurIPS 2019): optimise a dummy input until its gradient is near the client's in squared distance.
* TAG (Deng et al., EMNLP 2021 Findings): with an L1 term.
* LAMP (Balunovic et al., NeurIPS 2022): cosine distance, the best of many random starts, a regulariser on the lengths of the
  embeddings, and every so often discrete moves of tokens, chosen by distance and a language model's prior.

They were made for classifiers with known labels. Here the labels are the text itself: each token has a dummy embedding and
free logits as the label of the place before it, which moves move together. The prior is the attacked model, the best that
the attacker holds. The gradient of the word embeddings is left out, as in LAMP's code (dummy embeddings have no row in it);
the length of the sentence is given. Steps and starts are those of LAMP's repository unless the configuration names fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reclaim.errors import InputError
from reclaim.film.gradients import embedding_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DISTANCES = ("l2", "l2_l1", "cosine")


@dataclass(frozen=True)
class Matching:
    """Settings of gradient matching; Adam at `learning_rate`, times `lr_decay` every `lr_decay_steps` steps.

    `prior` weighs the prior's mean token loss, `regulariser` the squared difference of the embeddings' mean length from the
    model's own; `moves_steps` 0: no discrete moves.
    """

    distance: str
    num_steps: int
    learning_rate: float
    l1_weight: float = 0.01
    lr_decay: float = 1.0
    lr_decay_steps: int = 50
    num_starts: int = 1
    prior: float = 0.0
    regulariser: float = 0.0
    moves_steps: int = 0
    num_moves: int = 200

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise InputError("gradient matching: distance", repr(self.distance), f"one of {', '.join(DISTANCES)}")


RIVALS = {
    "dlg": Matching("l2", 2500, 0.1),
    "tag": Matching("l2_l1", 2500, 0.1),
    "lamp": Matching("cosine", 2000, 0.01, lr_decay=0.89, num_starts=500, prior=0.2, regulariser=1.0, moves_steps=75),
}


def match_gradient(
    model: nn.Module,
    gradients: Mapping[str, torch.Tensor],
    length: int,
    settings: Matching,
    generator: torch.Generator,
) -> list[int]:
    """The token ids of one sentence of `length` tokens whose gradient comes nearest to the one sent.

    `gradients` are the client's, by parameter name, each of its parameter's shape. Raises InputError for fewer than two tokens.
    """
    if length < 2:
        raise InputError("gradient matching: length", str(length), "at least two tokens")
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
        search = _Search(model, gradients, settings)
        dummy = search.start(length, generator)
        optimizer = torch.optim.Adam(dummy, lr=settings.learning_rate)
        decay = torch.optim.lr_scheduler.StepLR(optimizer, settings.lr_decay_steps, settings.lr_decay)
        for step in range(1, settings.num_steps + 1):
            optimizer.zero_grad()
            search.objective(*dummy, create_graph=True).backward(inputs=list(dummy))
            optimizer.step()
            decay.step()
            if settings.moves_steps and step % settings.moves_steps == 0:
                search.move(*dummy, generator)
        return search.tokens(*dummy)


class _Search:
    """The objective on dummy `embeddings` (tokens, width) and `labels` (tokens, vocabulary), logits; row 0 has no place."""

    def __init__(self, model: PreTrainedModel, gradients: Mapping[str, torch.Tensor], settings: Matching):
        left_out = embedding_names(model)[0]
        named = {name: part for name, part in model.named_parameters() if name in gradients and name != left_out}
        self.model, self.settings = model, settings
        self.parameters = list(named.values())
        self.wanted = [gradients[name] for name in named]
        self.table = model.get_input_embeddings().weight.detach()
        self.mean_length = self.table.norm(dim=1).mean()

    def start(self, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of `num_starts` random dummies, embeddings of the spread that the model's have."""
        vocab_size, width = self.table.shape
        best, least = None, float("inf")
        for _ in range(self.settings.num_starts):
            embeddings = torch.randn(length, width, generator=generator) * self.table.std().cpu()
            labels = torch.randn(length, vocab_size, generator=generator)
            device = self.table.device
            dummy = embeddings.to(device).requires_grad_(), labels.to(device).requires_grad_()
            value = float(self.score(*dummy)) if self.settings.num_starts > 1 else 0.0
            if value < least:
                best, least = dummy, value
        if best is None:
            raise InputError("gradient matching", "no start with a finite distance", "a gradient without NaN")
        return best

    def objective(self, embeddings: torch.Tensor, labels: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
        """Distance of the dummy's gradient from the client's, and the regulariser."""
        logits = self.model(inputs_embeds=embeddings[None]).logits[0, :-1]
        loss = F.cross_entropy(logits, labels[1:].softmax(-1))
        found = torch.autograd.grad(loss, self.parameters, create_graph=create_graph)
        value = self._distance(found)
        if self.settings.regulariser:
            excess = embeddings.norm(dim=1).mean() - self.mean_length
            value = value + self.settings.regulariser * excess.square()
        return value

    def _distance(self, found: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pairs = list(zip(found, self.wanted, strict=True))
        if self.settings.distance == "cosine":
            cosines = [F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs]
            return 1 - torch.stack(cosines).mean()
        value = reduce(torch.add, ((a - b).square().sum() for a, b in pairs))
        if self.settings.distance == "l2_l1":
            value = value + self.settings.l1_weight * reduce(torch.add, ((a - b).abs().sum() for a, b in pairs))
        return value

    def score(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What starts and moves are chosen by: the objective and the weighed prior."""
        value = self.objective(embeddings, labels).detach()
        if self.settings.prior:
            with torch.no_grad():
                ids = torch.tensor([self.tokens(embeddings, labels)], device=self.table.device)
                logits = self.model(input_ids=ids).logits[0, :-1]
                value = value + self.settings.prior * F.cross_entropy(logits, ids[0, 1:])
        return value

    def move(self, embeddings: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> None:
        """Reorder the tokens, in place, by the best of `num_moves` random moves if it is better than none."""
        best, least = None, self.score(embeddings, labels)
        for _ in range(self.settings.num_moves):
            order = _random_move(len(embeddings), generator)
            moved = tuple(part.detach()[order].requires_grad_() for part in (embeddings, labels))
            value = self.score(*moved)
            if value < least:
                best, least = order, value
        if best is not None:
            with torch.no_grad():
                embeddings.copy_(embeddings[best].clone())
                labels.copy_(labels[best].clone())

    @torch.no_grad()
    def tokens(self, embeddings: torch.Tensor, labels: torch.Tensor) -> list[int]:
        """The word whose embedding is nearest (cosine) to the first dummy's; of all others the likeliest label.

        The nearest word of the other dummies was measured to be wrong far more often than the label.
        """
        similar = F.normalize(embeddings[:1], dim=1) @ F.normalize(self.table, dim=1).T
        return [int(similar.argmax()), *labels[1:].argmax(1).tolist()]


def _random_move(length: int, generator: torch.Generator) -> list[int]:
    """An order of the tokens: two swapped, one moved, a run moved, or a beginning put at the end (LAMP, section 4.2)."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    order = list(range(length))
    moves: list[Callable[[], list[int]]] = [
        lambda: _swapped(order, draw(0, length), draw(0, length)),
        lambda: _moved(order, draw(0, length), 1, draw(0, length)),
        lambda: _moved(order, draw(0, length - 1), draw(2, max(3, length // 2 + 1)), draw(0, length)),
        lambda: (lambda cut: order[cut:] + order[:cut])(draw(1, length)),
    ]
    return moves[draw(0, len(moves))]()


def _swapped(order: list[int], i: int, j: int) -> list[int]:
    order[i], order[j] = order[j], order[i]
    return order


def _moved(order: list[int], start: int, size: int, to: int) -> list[int]:
    run, rest = order[start : start + size], order[:start] + order[start + size :]
    to = min(to, len(rest))
    return rest[:to] + run + rest[to:]
