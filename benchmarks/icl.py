"""In-context prompts scored in one room against the two usual ways: `generate` with 4 beams for each prompt, as the
official code of the in-context study does it, and one forward pass for each label word.

The same prompts for all three, over a model with random weights: 32 demonstrations alone, of two and of four classes,
and the study's grid of 8, 16 and 32 demonstrations under GOLD, RANDOM and ABSTRACT. Prints CPU seconds, ratios to ours
and whether the answers are equal; exits with status 1 if an answer differs, or if four beams take less than 3 times as
long. One pass for each label word is about as many times as slow as there are classes, less than 3 where there are two:
prompts with demonstrations of their own share nothing else (`benchmarks/scoring.py` has a larger vocabulary, whose logits
at every position such passes pay for).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
import transformers

from reclaim.icl.predict import score
from reclaim.icl.prepare import Cell, Prepared, prepare
from reclaim.icl.prompts import define_sets
from reclaim.tokenization import train_tokenizer

GOAL = 3.0


def build(width: int, layers: int, vocab_size: int):
    """An OPT with random weights, larger than usual, so that answers differ."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // 32),
        ffn_dim=4 * width, max_position_embeddings=2048, word_embed_proj_dim=width, init_std=0.05,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config).eval()


def make_sets(rows: int, seed: int = 0):
    """The study's templates over made-up sentences of 6 to 14 words, by data set; and a tokenizer that knows them."""
    rng = np.random.default_rng(seed)
    letters = [*"bdfgklmnprst"], [*"aeiou"]
    words = ["".join(rng.choice(letters[i % 2]) for i in range(rng.integers(2, 7))) for _ in range(2000)]
    texts = [" ".join(rng.choice(words, rng.integers(6, 15))) for _ in range(500 + rows)]
    definitions = {name: define_sets(name)[""] for name in ("sst2", "tweet_eval_emotion")}
    labels = [word for definition in definitions.values() for word in definition.label_words]
    tokenizer = train_tokenizer("opt", [*texts, "The sentiment is Label:", " ".join(labels)] * 2, vocab_size=4000)
    sets = {}
    for name, definition in definitions.items():
        classes = len(definition.label_words)
        records = [{"id": str(i), "text": text, "label": i % classes} for i, text in enumerate(texts)]
        sets[name] = replace(definition, pool=records[:500], test=records[500:])
    return sets, tokenizer


def ours(model, prepared: Prepared) -> list[int]:
    table = score(model, prepared, scorer="official_last")
    return [row.label_words.index(row.prediction) for row in table.itertuples()]


@torch.inference_mode()
def four_beams(model, prepared: Prepared) -> list[int]:
    answers = []
    for context, words in zip(prepared.contexts, prepared.words, strict=True):
        allowed, ids = [word[-1] for word in words], torch.tensor([context])
        generated = model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=4, max_new_tokens=1, do_sample=False,
            prefix_allowed_tokens_fn=lambda _batch, _ids, allowed=allowed: allowed, pad_token_id=1,
        )  # fmt: skip
        answers.append(allowed.index(int(generated[0, -1])))
    return answers


@torch.inference_mode()
def one_pass_per_label(model, prepared: Prepared) -> list[int]:
    answers = []
    for context, words in zip(prepared.contexts, prepared.words, strict=True):
        scores = []
        for word in words:
            ids = torch.tensor([[*context, word[-1]]])
            log_probabilities = model(input_ids=ids).logits.log_softmax(-1)
            scores.append(log_probabilities[0, len(context) - 1, word[-1]].item())
        answers.append(int(np.argmax(scores)))
    return answers


def timed(function, *arguments, repeats: int = 2) -> tuple[float, list[int]]:
    """Least CPU seconds of some repeats, and the result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - start)
    return min(seconds), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets, tokenizer = make_sets(arguments.rows)
    model = build(arguments.width, arguments.layers, len(tokenizer))
    nested = [
        Cell(setting, k, space)
        for setting, space in (("gold", "natural"), ("random", "natural"), ("abstract", "letter"))
        for k in (8, 16, 32)
    ]
    grids = [
        ("GOLD, 32", "sst2", [Cell("gold", 32)]),
        ("GOLD, 32", "tweet_eval_emotion", [Cell("gold", 32)]),
        ("grid of 9", "sst2", nested),
    ]
    columns = ("cells", 10), ("classes", 8), ("prompts", 8), ("tokens", 7), ("ours, s", 8), ("4 beams", 8), ("ratio", 6)
    columns += ("per label", 10), ("ratio", 6)
    print(*(f"{title:>{width}}" for title, width in columns), "answers")
    good = True
    for label, name, cells in grids:
        dataset = sets[name]
        prepared = prepare(tokenizer, dataset, cells, seed=0, scorer="official_last")
        seconds, answers = timed(ours, model, prepared)
        beams, by_beams = timed(four_beams, model, prepared)
        passes, by_passes = timed(one_pass_per_label, model, prepared)
        equal = answers == by_beams == by_passes
        good &= equal and beams / seconds >= GOAL
        tokens = np.mean([len(context) for context in prepared.contexts])
        values = [label, len(dataset.label_words), len(answers), f"{tokens:.0f}", f"{seconds:.2f}"]
        values += [f"{beams:.2f}", f"{beams / seconds:.1f}", f"{passes:.2f}", f"{passes / seconds:.1f}"]
        cells_of_line = (f"{value:>{width}}" for value, (_, width) in zip(values, columns, strict=True))
        print(*cells_of_line, "equal" if equal else "DIFFER", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
