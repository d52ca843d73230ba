"""FILM's beam search and the scores of its reordering against the official way of computing them.

Official search: at every step all positions of every beam go through the model, the whole vocabulary's log-softmax is taken
at each of them, and masks are filled beam by beam. Official scores: one forward and backward pass through all parameters and
one more forward pass for each candidate. Same models, bags and options for both; models have random weights.

Prints CPU seconds, ratios, and whether sequences and scores are equal; exits with status 1 if they are not, or below the
goals: 10 times at the first setting (a vocabulary of 50,257), 5 times at the shape of GPT-2 small, 10 times for the scores.
By default the first setting has 2 groups of beams; --full takes 8, as the official program does (minutes, 4 GB).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch
import transformers

from reclaim.film.clients import client_tokenizer
from reclaim.film.reorder_scores import PAD_LENGTH, reorder_scores
from reclaim.film.search import BAN, SearchOptions, official_search
from reclaim.tokenization import model_vocab_size
from reclaim.world import generators

VOCABULARY = 50_257
GOALS = {"vocabulary of 50,257, width 64": 10.0, "shape of GPT-2 small": 5.0, "scores of 64 candidates": 10.0}


def build(width: int, layers: int, heads: int, vocab_size: int = VOCABULARY):
    """A GPT-2 with random weights, larger than usual, so that log-probabilities differ; the last id ends texts."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocab_size, n_embd=width, n_layer=layers, n_head=heads, n_positions=64, initializer_range=0.15,
        bos_token_id=vocab_size - 1, eos_token_id=vocab_size - 1,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


# ---------------------------------------------------------------------------------------------------------------- search


@torch.no_grad()
def whole_search(model, bag: dict[int, int], starts: list[int], filler: int, options: SearchOptions) -> list[list[int]]:
    """The search by the spec's account of the official one: one sentence a beam, counts unknown, one repetition."""
    length = min(sum(bag.values()), options.max_length)
    vocab_size, allowed, size = model.config.vocab_size, torch.tensor(sorted(bag)), options.no_repeat_ngram_size
    groups = [
        [([start], 0.0, defaultdict(set)) for start in starts] for _ in range(options.num_groups)
    ]  # tokens, sum of log-probabilities, n-grams
    for _ in range(length - 1):
        grown: list[list[tuple]] = []
        states = [tokens + [filler] * (length + 1 - len(tokens)) for group in groups for tokens, _, _ in group]
        log_probs = model(torch.tensor(states)).logits.log_softmax(-1)
        rows = iter(torch.stack([row[len(groups[0][0][0]) - 1] for row in log_probs]))
        for number, group in enumerate(groups):
            scores = torch.stack([next(rows) for _ in group])
            mask = torch.full_like(scores, -torch.inf)
            banned = torch.zeros_like(scores)
            for row, (tokens, _, seen) in enumerate(group):
                mask[row, allowed] = 0.0
                banned[row, torch.tensor(sorted(seen.get(tuple(tokens[-(size - 1) :]), ())), dtype=torch.long)] = BAN
            penalised = scores + mask + banned
            if number:
                used = torch.tensor(
                    [
                        token
                        for earlier in grown
                        for tokens, _, _ in earlier
                        for token in tokens + [filler] * (length + 1 - len(tokens))
                    ]
                )
                penalised = penalised + used.bincount(minlength=vocab_size) * -options.diversity_penalty
            penalised = penalised + torch.tensor([total for _, total, _ in group])[:, None]
            new = {}
            for place in penalised.flatten().topk(options.num_beams).indices.tolist():
                beam, token = divmod(place, vocab_size)
                tokens, total, seen = group[beam]
                after = defaultdict(set, {suffix: set(found) for suffix, found in seen.items()})
                after[tuple(tokens[-(size - 1) :])].add(token)
                new.setdefault((*tokens, token), ([*tokens, token], total + float(scores[beam, token]), after))
            grown.append(list(new.values()))
        groups = grown
    ends = [max(group, key=lambda beam: beam[1]) for group in groups]
    return [tokens for tokens, _, _ in sorted(ends, key=lambda beam: -beam[1])]


def compare_search(name: str, model, options: SearchOptions, bag_size: int, num_starts: int) -> bool:
    rng = np.random.default_rng(0)
    words = sorted(rng.choice(model.config.vocab_size - 1, bag_size, replace=False).tolist())
    bag, starts = dict.fromkeys(words, options.max_length), words[:num_starts]
    filler = model.config.vocab_size - 1
    official_search(
        model, bag, starts[:1], filler, SearchOptions(4, 2, 1)
    )  # what is loaded on first use counts for neither
    ours_s, found = timed(lambda: official_search(model, bag, starts, filler, options))
    whole_s, expected = timed(lambda: whole_search(model, bag, starts, filler, options))
    equal = sum(each.tokens[0] == other for each, other in zip(found, expected, strict=True))
    print(f"  {equal} of {len(expected)} sequences equal")
    return report(name, whole_s, ours_s) and equal == len(expected)


# ---------------------------------------------------------------------------------------------------------------- scores


def one_by_one(model, tokenizer, sentences: list[str], layer: torch.nn.Parameter, alpha: float) -> np.ndarray:
    """Norm of one LayerNorm's gradient + alpha x perplexity, a sentence at a time, through all parameters."""
    parameters = list(model.transformer.parameters())
    place = next(number for number, parameter in enumerate(parameters) if parameter is layer)
    scores = []
    for sentence in sentences:
        whole = tokenizer(sentence)["input_ids"]
        ids = torch.tensor([(whole + [tokenizer.eos_token_id] * PAD_LENGTH)[:PAD_LENGTH]])
        gradients = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, parameters)
        with torch.no_grad():
            perplexity = model(input_ids=torch.tensor([whole]), labels=torch.tensor([whole])).loss.exp()
        scores.append(float(gradients[place].norm() + alpha * perplexity))
    return np.array(scores)


def compare_scores(name: str, candidates: int) -> bool:
    texts = generators.generate("clients_corpus", {"train": 30}, 0)["train"]["text"].tolist()
    tokenizer = client_tokenizer(texts)
    model = build(32, 2, 2, model_vocab_size(tokenizer))
    rng = np.random.default_rng(0)
    words = texts[0].split()
    moved = [" ".join([words[0], *rng.permutation(words[1:])]) for _ in range(candidates)]
    ours_s, found = timed(
        lambda: reorder_scores(model, tokenizer, [[text] for text in moved], block=0).total, repeats=5
    )
    layer = model.transformer.h[0].ln_2.weight
    single_s, expected = timed(lambda: one_by_one(model, tokenizer, moved, layer, 1.0), repeats=3)
    difference = float(np.abs(found / expected - 1).max())
    print(f"  largest relative difference of the scores {difference:.1e}")
    return report(name, single_s, ours_s) and difference < 1e-4


def timed(function, repeats: int = 1):
    """The least CPU seconds of some runs, and the value."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        value = function()
        seconds.append(time.process_time() - started)
    return min(seconds), value


def report(name: str, official_s: float, ours_s: float) -> bool:
    ratio = official_s / ours_s
    print(
        f"{name}: official {official_s:.3f} s, ours {ours_s:.3f} s, ratio {ratio:.1f} (goal {GOALS[name]:g})",
        flush=True,
    )
    return ratio >= GOALS[name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="8 groups of beams at the first setting")
    parser.add_argument(
        "--max-length", type=int, default=40, help="tokens of a sentence (default 40, as the official program)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    first, small, scores = GOALS
    options = {"max_length": args.max_length, "no_repeat_ngram_size": 2}
    good = [
        compare_search(first, build(64, 2, 4), SearchOptions(num_groups=8 if args.full else 2, **options), 120, 8),
        compare_search(small, build(768, 12, 12), SearchOptions(num_beams=4, num_groups=1, **options), 60, 4),
        compare_scores(scores, 64),
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
