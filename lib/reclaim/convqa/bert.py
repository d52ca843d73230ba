"""BERT as a QuAC reader: a gate on each token, a span and the classes yes, no and unknown.

Source: EvalConvQA (Li et al. 2022), its BERT reader (official code, models/bert). `MLP2` is Linear(d, d), ReLU, Linear(d, k):

    g = sigmoid(MLP2(h));  h' = g h;  (start, end) = MLP2(h') g segment;  unk = MLP2(pooled);  (yes, no) = MLP2(attention(h'))

so that tokens of the question keep the logit 0, and padding has -inf. The target is an index into [yes, no, unk, tokens].
A window without the answer is trained as unknown; yes and no are never targets in QuAC.
"""

from __future__ import annotations

from dataclasses import dataclass

import reclaim.torchvision_shim  # noqa: F401
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertModel, BertPreTrainedModel
from transformers.modeling_outputs import ModelOutput

from reclaim.errors import InputError

YES, NO, UNKNOWN, SPAN = range(4)
"""Labels of a window. In the loss, the target of a span is its position plus the number of classes before `SPAN`."""

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@dataclass
class QuacOutput(ModelOutput):
    """start_logits, end_logits: (rows, tokens); yes_logits, no_logits, unk_logits: (rows, 1); loss: a scalar, nats."""

    loss: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    yes_logits: torch.Tensor | None = None
    no_logits: torch.Tensor | None = None
    unk_logits: torch.Tensor | None = None


class MLP2(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, outputs)])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linears[1](F.relu(self.linears[0](hidden)))


class QuacHead(nn.Module):
    """What stands on the encoder. Names of the parts are the official ones."""

    def __init__(self, width: int, beta: float = 0.0):
        super().__init__()
        self.beta = beta
        self.rational_l = MLP2(width, 1)
        self.logits_l = MLP2(width, 2)
        self.unk_l = MLP2(width, 1)
        self.attention_l = MLP2(width, 1)
        self.yn_l = MLP2(width, 2)

    def forward(
        self,
        hidden: torch.Tensor,
        pooled: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        rational_mask: torch.Tensor | None = None,
    ) -> QuacOutput:
        """`hidden` (rows, tokens, width), `pooled` (rows, width); `token_type_ids` is 1 for tokens of the passage.

        With `class_labels` (rows) the loss is given, and positions (rows) count where the label is `SPAN`. `rational_mask`
        (rows, tokens; 1 for tokens of the answer) is the gate's target where `beta` is not 0.
        """
        segment = token_type_ids.to(hidden.dtype)
        gate = torch.sigmoid(self.rational_l(hidden))
        gated = gate * hidden
        logits = self.logits_l(gated) * gate * segment[..., None]
        padding = ~attention_mask.bool()
        start, end = (each.masked_fill(padding, -torch.inf) for each in logits.unbind(-1))
        unk = self.unk_l(pooled)
        weights = self.attention_l(gated).squeeze(-1).masked_fill(padding, -torch.inf).softmax(-1)
        yes, no = self.yn_l((weights[..., None] * gated).sum(1)).split(1, dim=-1)
        loss = None
        if class_labels is not None:
            classes = torch.cat([yes, no, unk], dim=-1)
            losses = []
            for scores, positions in ((start, start_positions), (end, end_positions)):
                if positions is None:
                    raise InputError("forward", "class_labels without positions", "the labels of all heads")
                target = torch.where(class_labels == SPAN, positions + SPAN, class_labels)
                losses.append(F.cross_entropy(torch.cat([classes, scores], -1), target))
            loss = (losses[0] + losses[1]) / 2
            if self.beta:
                if rational_mask is None:
                    raise InputError("forward", "class_labels without rational_mask", "the labels of all heads")
                loss = loss + self.beta * focal_loss(gate.squeeze(-1), rational_mask, segment)
        return QuacOutput(loss=loss, start_logits=start, end_logits=end, yes_logits=yes, no_logits=no, unk_logits=unk)


def focal_loss(gate: torch.Tensor, target: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """Focal loss (Lin et al. 2017) of gates in 0..1, mean over all tokens of the passages."""
    target = target.to(gate.dtype)
    right = target * gate + (1 - target) * (1 - gate)
    alpha = target * FOCAL_ALPHA + (1 - target) * (1 - FOCAL_ALPHA)
    each = -alpha * (1 - right) ** FOCAL_GAMMA * torch.log(right + 1e-12)
    return (each * segment).sum() / segment.sum()


class BertForQuac(BertPreTrainedModel):
    """BERT with the QuAC head; `config.quac_beta` weighs the gate's loss (0 in the paper)."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.head = QuacHead(config.hidden_size, getattr(config, "quac_beta", 0.0))
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        rational_mask: torch.Tensor | None = None,
    ) -> QuacOutput:
        """As `QuacHead.forward`, from token ids (rows, tokens)."""
        encoded = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self.head(
            encoded.last_hidden_state, encoded.pooler_output, attention_mask, token_type_ids,
            class_labels, start_positions, end_positions, rational_mask,
        )  # fmt: skip
