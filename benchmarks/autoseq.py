"""Candidate generation for one class: AutoSeq's cached beam against the official way, in CPU seconds.

The official tool runs the whole model, encoder included, over all examples of the class for every hypothesis and step
(up to 1 + beam x 17 passes), and sorts the vocabulary in Python. Here the encoder runs once, hypotheses are decoded
together from cached keys and values, and the head sees the mean of the hidden states. Random weights, one thread, medians;
prints the ratio and exits with status 1 where the candidates differ.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time

import numpy as np
import torch

from reclaim.autoseq.decoding import ClassDecoder
from reclaim.autoseq.prompts import Sentinels
from reclaim.autoseq.search import Constraints, label_sequences
from reclaim.tokenization import train_tokenizer

# Vocabulary, width, layers, beam, examples, length of an example.
SETTINGS = {"small": (340, 32, 2, 24, 16, 20), "vocabulary": (32128, 64, 2, 6, 16, 20)}


def build(vocabulary: int, width: int, layers: int):
    """A T5 with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=width // 4, d_ff=2 * width, num_heads=4, num_layers=layers,
        num_decoder_layers=layers, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def official(
    model, prompts: list[list[int]], sentinels: Sentinels, constraints: Constraints, beam: int, max_length: int
):
    """Beam search as the official tool does it: (ids, log-probability) best first, and the number of passes."""
    input_ids = torch.tensor(prompts)
    pool, passes = [((), 0.0, False)], 0
    for position in range(max_length - 2):
        new = [entry for entry in pool if entry[2]]
        for ids, score, finished in pool:
            if finished:
                continue
            decoder = torch.tensor([[0, *ids]]).expand(len(prompts), -1)
            with torch.no_grad():
                logits = model(input_ids=input_ids, decoder_input_ids=decoder).logits[:, -1].mean(0)
            passes += 1
            log_q = logits.log_softmax(-1)
            order = sorted(range(len(log_q)), key=lambda token, log_q=log_q: -log_q[token].item())
            for token in order[: beam + 3]:
                if token in constraints.banned or (position == 1 and token == sentinels.end):
                    continue
                if ids and ids[-1] in constraints.punctuation and token in constraints.punctuation:
                    continue
                finishes = token in (sentinels.second, sentinels.end)
                new.append(((*ids, token), score + log_q[token].item(), finishes))
        pool = sorted(new, key=lambda entry: -entry[1])[:beam]
        if all(entry[2] for entry in pool):
            break
    return [(ids, score) for ids, score, _ in pool], passes


def cpu_seconds(function, repeats: int):
    """Median CPU seconds of a call, and what the last one gave."""
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        found = function()
        spent.append(time.process_time() - started)
    return statistics.median(spent), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--max-length", type=int, default=20, help="the official constant; the loop runs two steps fewer"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = train_tokenizer("t5", ["a few words ."], num_sentinels=5)
    same = True
    print("setting      vocabulary width beam examples  official s   ours s   ratio  passes  encoder calls")
    for name in options.settings:
        vocabulary, width, layers, beam, examples, length = SETTINGS[name]
        model = build(vocabulary, width, layers)
        prompts = np.random.default_rng(0).integers(10, vocabulary, (examples, length)).tolist()
        constraints, sentinels = Constraints.official(), Sentinels.of(tokenizer)

        def ours(model=model, prompts=prompts, constraints=constraints, beam=beam):
            decoder = ClassDecoder(model, prompts)
            found = label_sequences(decoder, tokenizer, constraints, beam=beam, max_length=options.max_length)
            return found, decoder.encoder_calls

        def theirs(model=model, prompts=prompts, constraints=constraints, sentinels=sentinels, beam=beam):
            return official(model, prompts, sentinels, constraints, beam, options.max_length)

        fast, (found, calls) = cpu_seconds(ours, options.repeats)
        slow, (wanted, passes) = cpu_seconds(theirs, options.repeats)
        same &= [candidate.ids for candidate in found] == [ids for ids, _ in wanted]
        same &= np.allclose([math.log(candidate.probability) for candidate in found], [s for _, s in wanted], atol=1e-3)
        print(
            f"{name:<12} {vocabulary:>10} {width:>5} {beam:>4} {examples:>8} {slow:>11.2f} {fast:>8.3f} "
            f"{slow / fast:>6.0f}x {passes:>7} {calls:>14}",
            flush=True,
        )
    print("candidates and probabilities agree" if same else "CANDIDATES DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
