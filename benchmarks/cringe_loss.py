"""Output layer and CRINGE loss together against the loss on all logits: peak memory and time, forward and backward.

    python benchmarks/cringe_loss.py                          # 1024 positions, 50257 tokens, width 512: a minute
    python benchmarks/cringe_loss.py --positions 4096 --chunk-rows 256 --threads 2

Ways: `all rows` computes cross entropy, candidates and contrast for every position and masks them, as the official code
does; `negative rows` takes the contrast for the negative positions only (`cringe_loss`); `recomputed` does that on chunks of
positions, whose logits are computed again in the backward pass (`torch.utils.checkpoint`); `linear` is
`linear_cringe_loss`, which takes the gradients while a chunk's logits are at hand. Each runs in a fresh process; memory is
above what was in use before (hidden states and weights), time is of the processor; each holds the gradient of the weights
at the end. The losses are compared with the same drawn tokens. Goal: at most half the memory of `all rows` in at most 2.5
times its time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

WAYS = ("all rows", "negative rows", "recomputed", "linear")
# Blocks of 64 kB or more come from the system and return to it, so that the high-water mark shows what is in use.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}


def all_rows(hidden, weight, labels, polarity, k, generator, drawn=None):
    """The summed loss by way of everything for every position."""
    logits = F.linear(hidden, weight)
    values, ids = logits.topk(k + 1, dim=-1)
    own = ids == labels[:, None]
    own[:, -1] |= ~own.any(dim=-1)
    probability = (values - 1e10 * own.float()).softmax(dim=-1)
    picked = torch.multinomial(probability.detach(), 1, generator=generator)
    other = ids.gather(1, picked) if drawn is None else drawn[:, None]
    pair = torch.cat([logits.gather(1, other), logits.gather(1, labels[:, None])], dim=1)
    contrast = F.cross_entropy(pair, torch.zeros_like(labels), reduction="none")
    bad = (polarity == 0).float()
    return (F.cross_entropy(logits, labels, reduction="none") * (1 - bad) + contrast * bad).sum()


def measure(way: str, options: argparse.Namespace) -> None:
    """Print the loss with given tokens, peak bytes and seconds of forward and backward, of a way."""
    from torch.utils.checkpoint import checkpoint

    from reclaim.cringe import cringe_loss, linear_cringe_loss
    from reclaim.memory import peak_memory

    def chunked(hidden, weight, labels, polarity, k, generator, drawn=None):
        def part(rows, weight, labels, polarity, drawn):
            settings = {"k": k, "generator": generator, "positive_ids": drawn, "reduction": "sum"}
            return cringe_loss(F.linear(rows, weight), labels, polarity, **settings).loss

        pieces = [slice(start, start + options.chunk_rows) for start in range(0, len(hidden), options.chunk_rows)]
        losses = [
            checkpoint(part, hidden[p], weight, labels[p], polarity[p], None if drawn is None else drawn[p],
                       use_reentrant=False) for p in pieces
        ]  # fmt: skip
        return torch.stack(losses).sum()

    ways = {
        "all rows": all_rows,
        "negative rows": lambda h, w, y, s, k, g, drawn=None: (
            cringe_loss(F.linear(h, w), y, s, k=k, generator=g, positive_ids=drawn, reduction="sum").loss
        ),
        "recomputed": chunked,
        "linear": lambda h, w, y, s, k, g, drawn=None: (
            linear_cringe_loss(h, w, y, s, k=k, generator=g, positive_ids=drawn, chunk_rows=options.chunk_rows).loss
        ),
    }
    torch.set_num_threads(options.threads)
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.positions, options.width, generator=stream).requires_grad_()
    weight = (torch.randn(options.vocabulary, options.width, generator=stream) / options.width**0.5).requires_grad_()
    labels = torch.randint(0, options.vocabulary, (options.positions,), generator=stream)
    polarity = (torch.rand(options.positions, generator=stream) > options.negative).long()
    drawn = (labels + 1) % options.vocabulary
    few = slice(0, 4)
    ways[way](hidden[few], weight, labels[few], polarity[few], options.k, stream).backward()  # what loads on first use
    hidden.grad = weight.grad = None
    seconds = []
    with peak_memory() as used:
        for _ in range(options.repeats):
            hidden.grad = weight.grad = None
            started = time.process_time()
            ways[way](hidden, weight, labels, polarity, options.k, stream).backward()
            seconds.append(time.process_time() - started)
    hidden.grad = weight.grad = None
    loss = ways[way](hidden, weight, labels, polarity, options.k, stream, drawn)
    loss.backward()
    norm = float(weight.grad.norm()) + float(hidden.grad.norm())
    print(json.dumps({"loss": loss.item(), "norm": norm, "bytes": used.peak_bytes, "seconds": min(seconds)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--negative", type=float, default=0.25, help="share of negative positions")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--chunk-rows", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options)
        return
    found = {}
    print(f"{'':15} {'peak (MB)':>10} {'share':>7} {'cpu (s)':>9} {'ratio':>7} {'loss':>12} {'gradient':>10}")
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        row = found[way] = json.loads(result.stdout)
        first = found[WAYS[0]]
        share, ratio = row["bytes"] / first["bytes"], row["seconds"] / first["seconds"]
        print(f"{way:15} {row['bytes'] / 1e6:10.0f} {share:7.2f} {row['seconds']:9.2f} {ratio:7.2f} "
              f"{row['loss']:12.3f} {row['norm']:10.4f}")  # fmt: skip
    same = all(abs(row["loss"] / found[WAYS[0]]["loss"] - 1) < 1e-5 for row in found.values())
    linear = found["linear"]
    print(
        f"linear against all rows: {linear['bytes'] / found[WAYS[0]]['bytes']:.2f} of the memory, "
        f"{linear['seconds'] / found[WAYS[0]]['seconds']:.2f} times the time; losses {'equal' if same else 'DIFFER'}"
    )


if __name__ == "__main__":
    main()
