"""All dialogs put to a reader together, turn by turn, against the official way: one dialog and one question at a time.

The same reader (random weights of the embedded runs' size) and dialogs under Auto-Pred; and Auto-Rewrite with two calls of the
coreference model for every question, as the official code has it, against ours, which asks for differing texts only and for
each once. Prints CPU seconds, calls and ratios; exits with status 1 if an answer differs or if ours takes more.
"""

from __future__ import annotations

import argparse
import sys
import time

import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim.convqa.coreference import CachedResolver
from reclaim.convqa.experiment import vocabulary_of
from reclaim.convqa.protocols import Validity, run_protocol
from reclaim.convqa.rules import RuleResolver
from reclaim.convqa.small_reader import SmallAnswerer, build_reader
from reclaim.world.conversations import generate_dialogs


class Counted:
    """A resolver that counts the texts it reads."""

    def __init__(self):
        self.resolver, self.calls = RuleResolver(), 0

    def resolve(self, texts):
        self.calls += len(texts)
        return self.resolver.resolve(texts)


def timed(function, repeats: int):
    """The last value of a function, and its least CPU seconds."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        value = function()
        best = min(best, time.process_time() - started)
    return value, best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogs", type=int, default=60, help="dialogs of 8 turns (default: 60)")
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts (default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dialogs = generate_dialogs({"test": options.dialogs}, seed=0)["test"]
    reader = SmallAnswerer(build_reader(0, vocabulary=vocabulary_of(dialogs)))
    run_protocol(dialogs, reader, "pred")  # fills the caches of words for both
    together, ours = timed(lambda: run_protocol(dialogs, reader, "pred"), options.repeats)
    alone, theirs = timed(lambda: run_protocol(dialogs, reader, "pred", batch_dialogs=1), options.repeats)
    print(
        f"Auto-Pred, {options.dialogs} dialogs: together {ours:.2f} s, one by one {theirs:.2f} s, ratio {theirs / ours:.1f}"
    )
    counted = Counted()
    turns = run_protocol(dialogs, reader, "rewrite", Validity(CachedResolver(counted)))
    official = 2 * len(turns)
    print(f"Auto-Rewrite: {counted.calls} texts to the coreference model, officially {official}, ratio "
          f"{official / max(1, counted.calls):.1f}")  # fmt: skip
    same = together == alone
    print("answers are equal" if same else "ANSWERS DIFFER")
    return 0 if same and ours < theirs and counted.calls < official else 1


if __name__ == "__main__":
    sys.exit(main())
