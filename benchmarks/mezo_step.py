"""Time of a MeZO step against the official account of it, on the same random OPT and batch.

The reference is Algorithm 1 as princeton-nlp/MeZO spells it out: four sweeps over the weights, each of which reseeds
the stream, draws one tensor of normal numbers per parameter and builds new weights from whole-tensor expressions. Both
sides run the same forward passes, so the sweeps are also timed alone, with a closure that returns a constant.

    python benchmarks/mezo_step.py            # 125M parameters, batch 16 x 32 tokens: about two minutes on one core
    python benchmarks/mezo_step.py --hidden-size 256 --num-layers 4 --vocab-size 16000

Goals: sweeps at most 0.4x of the reference's, the whole step never slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import reclaim.torchvision_shim  # noqa: F401
import torch
import transformers

from reclaim.optim import MeZO

EPS, LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-6, 0.0


class Reference:
    """The step in four sweeps of whole tensors."""

    def __init__(self, model: torch.nn.Module):
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def _perturb(self, seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for _, p in self.named:
            z = torch.normal(mean=0.0, std=1.0, size=p.data.size(), device=p.device, dtype=p.dtype)
            p.data = p.data + scale * z * EPS

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor | float], seed: int = 1) -> None:
        self._perturb(seed, 1)
        plus = closure()
        self._perturb(seed, -2)
        minus = closure()
        self._perturb(seed, 1)
        g = (float(plus) - float(minus)) / (2 * EPS)
        torch.manual_seed(seed)
        for name, p in self.named:
            z = torch.normal(mean=0.0, std=1.0, size=p.data.size(), device=p.device, dtype=p.dtype)
            if any(part in name for part in ("bias", "layer_norm", "layernorm")):
                p.data = p.data - LEARNING_RATE * (g * z)
            else:
                p.data = p.data - LEARNING_RATE * (g * z + WEIGHT_DECAY * p.data)


def best(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least CPU and wall seconds of some runs, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        function()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(t[0] for t in times), min(t[1] for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--num-layers", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=50272)
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 32), metavar=("ROWS", "TOKENS"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rng", choices=["sequential", "per_tensor"], default="sequential")
    parser.add_argument("--sweep-threads", type=int, default=1, help="above 1 only with --rng per_tensor")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    width = arguments.hidden_size
    config = transformers.OPTConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=max(1, width // 64),
    )
    model = transformers.OPTForCausalLM(config).eval()
    ids = torch.randint(4, arguments.vocab_size, tuple(arguments.batch))

    def loss() -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    with torch.no_grad():
        forward = best(loss, arguments.repeats)
    reference, ours = (
        Reference(model),
        MeZO(
            model,
            LEARNING_RATE,
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
            rng=arguments.rng,
            num_threads=arguments.sweep_threads,
        ),
    )
    rows = [
        ("forward pass", forward, forward),
        ("sweeps of a step", *(best(lambda s=s: s.step(lambda: 0.0), arguments.repeats) for s in (reference, ours))),
        ("whole step", *(best(lambda s=s: s.step(loss), arguments.repeats) for s in (reference, ours))),
    ]

    size, (batch, tokens) = sum(p.numel() for p in model.parameters()) / 1e6, arguments.batch
    print(f"OPT of {size:.1f}M parameters, batch {batch} x {tokens}, {arguments.threads} thread(s), {arguments.rng}")
    print(f"{'':18}{'reference, CPU s':>18}{'MeZO, CPU s':>14}{'ratio':>8}{'wall s':>10}{'wall s':>10}{'ratio':>8}")
    for name, (cpu, wall), (our_cpu, our_wall) in rows:
        print(
            f"{name:18}{cpu:18.3f}{our_cpu:14.3f}{our_cpu / cpu:8.2f}{wall:10.3f}{our_wall:10.3f}{our_wall / wall:8.2f}"
        )


if __name__ == "__main__":
    main()
