"""Perturbation that writes no stored weight: w + eps z is built in the forward, one layer at a time.

In bfloat16 and float16, adding eps z and taking it away again does not give the weight back, and the rounding errors
add up to a random walk larger than the training signal: 200 steps at learning rate 0 and eps 1e-3 move weights of 0.02
by 1.1e-3 in bfloat16 and 1.4e-4 in float16 (rms; 1.7e-8 in float32). So the weight of a Linear or Embedding layer is
replaced while that layer runs by w + eps z, computed in float32, rounded once, and held in one reused buffer of the
largest such weight. Every other trainable tensor (norms, biases, and weights that a module reads without calling their
layer, such as the output projection of torch's MultiheadAttention) is perturbed in place and put back from a saved
copy.

A layer whose weight is ALSO read from outside its own forward would be seen unperturbed there. Tied layers are safe
when each is called as a layer, which is how transformers ties embeddings.

Limits. A weight near 1 in bfloat16 has neighbours 0.008 away, so that a perturbation of 1e-3 is mostly rounded off it: norm
weights in half precision hardly move the loss; keep them in float32 where the model allows it. A sequential stream is drawn
once more per direction, to find where each tensor's values begin; rng="per_tensor" needs no such pass.

Differences from the paper: Algorithm 1 perturbs and restores in place at every precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from reclaim.optim.slots import Slot, compute_dtype
from reclaim.optim.streams import Direction, Scratch


def _builds_in_forward(layer: nn.Module) -> bool:
    """Whether the layer's weight is read in its own forward and nowhere else."""
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # nn.MultiheadAttention reads it without calling the layer
    # Conv1D: GPT-2's linear layer in transformers, matched by name so that transformers need not be imported.
    return isinstance(layer, nn.Linear | nn.Embedding) or type(layer).__name__ == "Conv1D"


class JustInTime:
    """Makes the layers of `module` compute with w + scale z while `perturbed` is open.

    module: the model that the closure runs, or None: then every slot is perturbed from a saved copy, which costs as
    much memory as the trainable weights.
    """

    def __init__(self, module: nn.Module | None, slots: Sequence[Slot], scratch: Scratch):
        self.slots, self.scratch = slots, scratch
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for layer in module.modules() if module is not None else ():
            for name, parameter in layer.named_parameters(recurse=False):
                owners.setdefault(id(parameter), []).append((layer, name))
        self.layers: dict[nn.Module, list[tuple[str, int]]] = {}
        self.copied: list[int] = []
        for index, slot in enumerate(slots):
            places = owners.get(id(slot.parameter), [])
            if slot.parameter.dim() > 1 and places and all(_builds_in_forward(layer) for layer, _ in places):
                for layer, name in places:
                    self.layers.setdefault(layer, []).append((name, index))
            else:
                self.copied.append(index)
        self._built: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    @contextmanager
    def perturbed(self, direction: Direction, scale: float) -> Iterator[None]:
        """Run the block with w + scale * z in place of w. The stored weights are the same bits before and after."""
        with ExitStack() as stack:
            for index in self.copied:
                flat = self.slots[index].flat()
                stack.callback(flat.copy_, flat.clone())
                self._write(index, direction, scale, flat)
            for layer, weights in self.layers.items():
                originals = {name: layer._parameters[name] for name, _ in weights}
                stack.callback(layer._parameters.update, originals)

                def build(layer, _args, weights=weights):
                    layer._parameters.update({name: self._build(k, direction, scale) for name, k in weights})

                def put_back(layer, _args, _output, originals=originals):
                    layer._parameters.update(originals)

                stack.callback(layer.register_forward_pre_hook(build).remove)
                stack.callback(layer.register_forward_hook(put_back, always_call=True).remove)
            yield

    def _build(self, index: int, direction: Direction, scale: float) -> torch.Tensor:
        parameter = self.slots[index].parameter
        key = parameter.dtype, parameter.device
        if key not in self._built:
            weights = {k for layer in self.layers.values() for _, k in layer}
            sizes = [p.numel() for p in (self.slots[k].parameter for k in weights) if (p.dtype, p.device) == key]
            self._built[key] = torch.empty(max(sizes), dtype=parameter.dtype, device=parameter.device)
        flat = self._built[key][: parameter.numel()]
        self._write(index, direction, scale, flat)
        return flat.view(parameter.shape)

    def _write(self, index: int, direction: Direction, scale: float, target: torch.Tensor) -> None:
        """target <- w + scale * z, computed in the precision of z and rounded once."""
        slot = self.slots[index]
        stored = slot.flat()
        for start, stop, z in direction.chunks(index):
            target[start:stop] = z.mul_(scale * slot.perturb_scale).add_(stored[start:stop])


def needs_just_in_time(slots: Sequence[Slot]) -> bool:
    """Whether any slot is of half precision, where restoring in place drifts."""
    return any(compute_dtype(slot.parameter.dtype) != slot.parameter.dtype for slot in slots)
