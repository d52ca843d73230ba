"""Citations judged in batches, each distinct pair once, against one call at a time as the official ALCE script does it.

The same answers for all: questions of a generated world, several sampled answers each (right and wrong sentences, one to
three citations), evaluated in both modes, as every run does. The judge is a T5 with random weights that is asked
`premise: P hypothesis: H`. Baselines: `generate` for one pair at a time (two tokens, the verdict and the end, where the
official limit is ten), and one step of the decoder for one pair at a time. Prints CPU seconds, how many pairs the model saw,
and the ratio to ours; exits with status 1 if a verdict differs or `generate` takes less than 3 times as long.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import T5Config, T5ForConditionalGeneration

from reclaim.alce.evaluate import evaluate
from reclaim.alce.judge import CachedJudge, T5Judge
from reclaim.tokenization import train_tokenizer
from reclaim.world.passages import draw_questions, draw_world

GOAL = 3.0


def make_items(questions: int, samples: int, seed: int = 0) -> list[dict]:
    """Answers of a generator that often finds the right sentence and cites passages about the name."""
    rng = np.random.default_rng(seed)
    world = draw_world(rng)
    items = []
    for item in draw_questions(world, "asqa", questions, rng):
        name = item["question"].rstrip("?").split()[-1]
        about = [passage for passage in world.passages if passage.name == name]
        docs = [about[place] for place in rng.choice(len(about), 5, replace=False)]
        docs = [{"title": passage.title, "text": passage.text} for passage in docs]
        sentences = [sentence.strip(" .") for sentence in item["answer"].split(". ")]
        for _ in range(samples):
            output = " ".join(f"{sentence} {citations(rng)}." for sentence in sentences)
            items.append({**item, "docs": docs, "output": output})
    return items


def citations(rng: np.random.Generator) -> str:
    chosen = rng.choice(5, rng.integers(1, 4), replace=False)
    return "".join(f"[{number + 1}]" for number in sorted(chosen.tolist()))


def build(items: list[dict], width: int, layers: int) -> T5Judge:
    """A T5 with random weights and its tokenizer, which has every word as a token."""
    texts = [doc["title"] + " " + doc["text"] for item in items for doc in item["docs"]]
    texts += [item["output"] for item in items] + ["premise: hypothesis: Title: 1 0"]
    tokenizer = train_tokenizer("t5", texts)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_ff=4 * width, d_kv=width // 4, num_layers=layers, num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return T5Judge(T5ForConditionalGeneration(config), tokenizer, "random")


class Single:
    """Baseline: every question to the model by itself, in the order in which it comes up."""

    def __init__(self, judge: T5Judge, generate: bool):
        self.judge, self.generate, self.judged = judge, generate, 0

    def __call__(self, pairs) -> list[bool]:
        return [self._one(*pair) for pair in pairs]

    def _one(self, premise: str, hypothesis: str) -> bool:
        self.judged += 1
        if not self.generate:
            return self.judge.probabilities([(premise, hypothesis)])[0] >= 0.5
        inputs = self.judge.tokenizer(f"premise: {premise} hypothesis: {hypothesis}", return_tensors="pt")
        with torch.inference_mode():
            found = self.judge.model.generate(
                **inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        one, zero = found.logits[0][0, self.judge.tokens].tolist()
        return one >= zero


def timed(items: list[dict], judge) -> tuple[float, list[float]]:
    """CPU seconds of both evaluations, and the citation scores of all items."""
    started = time.process_time()
    found = [evaluate(items, judge, mode, measures=["citations"]) for mode in ("legacy", "strict")]
    seconds = time.process_time() - started
    return seconds, [value for each in found for values in each.items for value in values.values()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--samples", type=int, default=4, help="answers for each question")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    print(f"{'answers a question':>18} {'way':>28} {'CPU s':>8} {'pairs judged':>12} {'ratio':>6} scores")
    for samples in dict.fromkeys((1, arguments.samples)):
        items = make_items(arguments.questions, samples)
        judge = build(items, arguments.width, arguments.layers)
        timed(items[:1], CachedJudge(judge))  # warm up
        ours = CachedJudge(judge, batch_size=arguments.batch_size)
        seconds, scores = timed(items, ours)
        print(f"{samples:>18} {'batched, each pair once':>28} {seconds:>8.2f} {ours.judged:>12} {'1':>6}", flush=True)
        for name, generate in (("one step, one at a time", False), ("generate, one at a time", True)):
            single = Single(judge, generate)
            slow, expected = timed(items, single)
            equal = scores == expected
            good &= equal and (not generate or slow / seconds >= GOAL)
            line = f"{samples:>18} {name:>28} {slow:>8.2f} {single.judged:>12} {slow / seconds:>6.1f}"
            print(line, "equal" if equal else "DIFFER", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
