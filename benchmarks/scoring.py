"""Batched scoring with shared prefixes against one forward pass per candidate and against `generate` with 4 beams.

The two baselines are what the official code of MeZO (one pass per candidate, logits at every position) and of the
in-context-learning study (`generate(num_beams=4)` per prompt) do. Random weights, 32 demonstrations a prompt. Prints
CPU seconds, the ratio to ours and the largest difference of a score; exits with status 1 if an answer differs, or if
either baseline takes less than 3 times as long.

`limit` is about what the first ratio can be where prompts share nothing: one bare pass of the model for each prompt, with
logits at its end only, in place of one for each label. Two labels of one token save half of the passes and the logits at all
other positions, so that the limit there is 2 for a vocabulary that costs nothing, and 3 to 4 at these sizes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from reclaim.scoring import Request, score_continuations

GOAL = 3.0


def build(family: str, width: int, layers: int, vocabulary: int, positions: int):
    """A model with random weights, larger than usual, so that scores differ clearly."""
    import transformers

    torch.manual_seed(0)
    heads = max(1, width // 32)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, n_positions=positions,
            bos_token_id=0, eos_token_id=0, initializer_range=0.05,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.OPTConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        ffn_dim=4 * width, max_position_embeddings=positions, word_embed_proj_dim=width, init_std=0.05,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config).eval()


def make_requests(rows: int, labels: int, label_tokens: int, same_demonstrations: bool, vocabulary: int):
    """`rows` prompts of 32 demonstrations of 8 to 16 tokens and a query; the same `labels` after each."""
    rng = np.random.default_rng(0)

    def example() -> list[int]:
        return rng.integers(10, vocabulary, rng.integers(8, 17)).tolist()

    demonstrations = [example() for _ in range(32)]
    words = rng.choice(np.arange(10, vocabulary), (labels, label_tokens), replace=False).tolist()
    requests = []
    for _ in range(rows):
        if not same_demonstrations:
            demonstrations = [example() for _ in range(32)]
        context = [2, *sum(demonstrations, []), *example()]
        requests += [Request(context, word) for word in words]
    return requests


@torch.inference_mode()
def one_pass_per_candidate(model, requests: list[Request]) -> list[float]:
    scores = []
    for request in requests:
        ids = torch.tensor([[*request.context, *request.continuation]])
        log_probabilities = torch.log_softmax(model(input_ids=ids).logits.float(), dim=-1)[0]
        start = len(request.context) - 1
        picked = log_probabilities[range(start, start + len(request.continuation)), list(request.continuation)]
        scores.append(picked.mean().item())
    return scores


@torch.inference_mode()
def four_beams(model, requests: list[Request], labels: int) -> list[int]:
    """The label that constrained generation of one token gives; single-token labels only."""
    answers = []
    for first in range(0, len(requests), labels):
        context = torch.tensor([list(requests[first].context)])
        allowed = [request.continuation[0] for request in requests[first : first + labels]]
        generated = model.generate(
            context, attention_mask=torch.ones_like(context), num_beams=4, max_new_tokens=1, do_sample=False,
            prefix_allowed_tokens_fn=lambda _batch, _ids, allowed=allowed: allowed, pad_token_id=0,
        )  # fmt: skip
        answers.append(allowed.index(int(generated[0, -1])))
    return answers


@torch.inference_mode()
def bare_passes(model, requests: list[Request], labels: int) -> None:
    """The least work where prompts share nothing: each is read once, and nothing is done with the logits at its end."""
    for request in requests[::labels]:
        model(input_ids=torch.tensor([list(request.context)]), logits_to_keep=1, use_cache=False)


def timed(function: Callable, repeats: int):
    """Best CPU seconds of some repeats, and the result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--batch-tokens", type=int, help="tokens of a batch; default: the library's")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':6} {'labels':>6} {'tokens':>6} {'demonstrations':>14} {'ours':>8} ", end="")
    print(f"{'per label':>10} {'ratio':>6} {'limit':>6} {'4 beams':>8} {'ratio':>6} {'difference':>10} answers")
    good = True
    for family in ("gpt2", "opt"):
        model = build(family, arguments.width, arguments.layers, arguments.vocabulary, positions=1024)
        for labels, label_tokens, same in ((2, 1, False), (4, 1, False), (2, 1, True), (4, 3, False), (4, 3, True)):
            requests = make_requests(arguments.rows, labels, label_tokens, same, arguments.vocabulary)
            ours, scores = timed(
                lambda r=requests, m=model: score_continuations(m, r, batch_tokens=arguments.batch_tokens),
                arguments.repeats,
            )
            found = np.array([score.mean() for score in scores])
            per_label, wanted = timed(lambda r=requests, m=model: one_pass_per_candidate(m, r), arguments.repeats)
            answers = found.reshape(-1, labels).argmax(1)
            same_answers = np.array_equal(answers, np.reshape(wanted, (-1, labels)).argmax(1))
            ratios = [per_label / ours]
            beams, beam_ratio, limit = "", "", ""
            if not same and label_tokens == 1:
                seconds, _ = timed(lambda r=requests, m=model, n=labels: bare_passes(m, r, n), arguments.repeats)
                limit = f"{per_label / seconds:.1f}"
            if label_tokens == 1:
                seconds, chosen = timed(lambda r=requests, m=model, n=labels: four_beams(m, r, n), arguments.repeats)
                same_answers &= np.array_equal(answers, chosen)
                ratios.append(seconds / ours)
                beams, beam_ratio = f"{seconds:.2f}", f"{ratios[-1]:.1f}"
            good &= same_answers and min(ratios) >= GOAL
            print(
                f"{family:6} {labels:6} {label_tokens:6} {'same' if same else 'own':>14} {ours:8.2f} {per_label:10.2f} "
                f"{ratios[0]:6.1f} {limit:>6} {beams:>8} {beam_ratio:>6} {np.abs(found - wanted).max():10.1e} "
                f"{'equal' if same_answers else 'DIFFER'}",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
