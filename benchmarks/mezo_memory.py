"""Peak memory of MeZO, of inference on the same batch, and of backprop, each in a fresh process.

    python benchmarks/mezo_memory.py          # 125M OPT, and a model with one tensor of 200 MB: a minute or two
    python benchmarks/mezo_memory.py --models opt-9m --threads 2

Figures are above the loaded model: `VmHWM` on CPU, see `reclaim.memory`. `extra` is what a method needs beyond
inference, as a share of the largest tensor. Goal: MeZO's extra at most 0.05.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import nn

METHODS = ("inference", "mezo", "mezo, adam", "backprop, adam", "lora, adam", "lora, mezo")

# glibc otherwise keeps freed blocks in ways that depend on the order of sizes, and the figures scatter by tens of MiB.
# So every block of 64 kB or more comes from the system and returns to it, and the high-water mark shows what is in
# use.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}


class OneTensor(nn.Module):
    """An embedding of 200 MB and a loss that reads a few of its rows: nothing but the optimiser can need memory."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50_000, 1_000)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed(ids).square().mean()


def build(name: str) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor], int]:
    """A model, its loss as a function of token ids, and its vocabulary size."""
    if name == "one-tensor":
        model = OneTensor()
        return model, model.loss, 50_000
    import reclaim.torchvision_shim  # noqa: F401, I001
    from transformers import OPTConfig, OPTForCausalLM

    width, layers, vocabulary = {"opt-9m": (256, 8, 8192), "opt-125m": (768, 12, 50272)}[name]
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    model = OPTForCausalLM(config).eval()
    return model, lambda ids: model(input_ids=ids, labels=ids).loss, vocabulary


def measure(name: str, method: str, batch: tuple[int, int]) -> None:
    """Print the peak bytes of two steps above the loaded model, and the bytes of the largest tensor."""
    from reclaim.memory import peak_memory
    from reclaim.optim import MeZO

    model, loss, vocabulary = build(name)
    if method.startswith("lora"):
        from reclaim.adapters import add_lora

        add_lora(model)
    ids = torch.randint(4, vocabulary, tuple(batch), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss(ids[:1, :4])  # what is loaded on first use is not the method's
    with peak_memory() as used:
        if method == "inference":
            for _ in range(2):
                with torch.no_grad():
                    loss(ids).item()
        elif "mezo" in method:
            optimizer = MeZO(model, 1e-6, optimizer="adam" if method == "mezo, adam" else "sgd")
            for _ in range(2):
                optimizer.step(lambda: loss(ids))
        else:
            adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-6)
            for _ in range(2):
                loss(ids).backward()
                adam.step()
                adam.zero_grad()
    print(used.peak_bytes, max(p.numel() * p.element_size() for p in model.parameters()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["opt-125m", "one-tensor"], choices=["opt-9m", "opt-125m", "one-tensor"]
    )
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 32), metavar=("ROWS", "TOKENS"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "METHOD"), help="one figure, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        measure(*arguments.measure, arguments.batch)
        return
    for name in arguments.models:
        print(f"{name}, batch {arguments.batch[0]} x {arguments.batch[1]}")
        print(f"  {'method':16}{'peak MiB':>10}{'x inference':>13}{'extra':>8}")
        base = None
        for method in METHODS:
            if name == "one-tensor" and method.startswith("lora"):
                continue
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--measure", name, method]
            command += ["--batch", *map(str, arguments.batch)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=ENVIRONMENT).stdout
            peak, largest = map(int, output.split())
            base = peak if base is None else base
            ratio = f"{peak / base:13.2f}" if base > 2**20 else f"{'-':>13}"
            print(f"  {method:16}{peak / 2**20:10.1f}{ratio}{(peak - base) / largest:8.3f}", flush=True)


if __name__ == "__main__":
    main()
