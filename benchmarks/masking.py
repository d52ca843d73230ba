"""Time of masking per sequence: reclaim's schemes, the collator of transformers, and fairseq's and SpanBERT's own
routines.

One process and one thread; each row is the best of several repeats, in microseconds of CPU time per sequence.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import reclaim.torchvision_shim  # noqa: F401
import torch

from reclaim import pmi
from reclaim.masking import Masker, span_lengths
from reclaim.masking_legacy import mask_fairseq, mask_spanbert


def microseconds(function: Callable[[], object], sequences: int, seconds: float) -> float:
    """Best CPU time of one call, divided by its sequences, over about `seconds` of repeats."""
    function()
    best, end = float("inf"), time.process_time() + seconds
    while time.process_time() < end:
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best * 1e6 / sequences


def collator(vocab_size: int, rate: float, replacement: tuple[float, float]):
    """The collator of transformers with a tokenizer of single words."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = {word: i for i, word in enumerate([*specials, *(f"w{i}" for i in range(vocab_size - 5)), "<mask>"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<unk>")),
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    return DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=rate, mask_replace_prob=replacement[0], random_replace_prob=replacement[1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=0.4)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time spent on each row")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, length, vocab_size, rate = args.batch, args.length, args.vocab_size, args.rate
    mask_id = vocab_size - 1
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, vocab_size - 4)
    tokens = 4 + generator.choice(vocab_size - 5, size=(rows * 20, length), p=weights / weights.sum())
    tokens[:, 0] = 0
    input_ids, indices = torch.from_numpy(tokens[:rows]), torch.arange(rows)
    word_start = generator.random(vocab_size) < 0.7
    counts = pmi.count_ngrams(tokens.astype(str).tolist(), count_above=3)
    vocabulary = pmi.build_vocabulary(pmi.score_ngrams(counts), 400)
    units = pmi.UnitMatcher.from_vocabulary(vocabulary, lambda words: [int(word) for word in words.split()])
    common = {"seed": 1, "vocab_size": vocab_size, "mask_token_id": mask_id, "special_ids": (0, 1, 2, 3)}
    eighty = {**common, "replacement": "80-10-10"}

    def ours(masker: Masker) -> Callable[[], object]:
        return lambda: masker.mask(input_ids, 0, indices)

    special = (input_ids < 4).bool()
    mask_only, mixed = collator(vocab_size, rate, (1.0, 0.0)), collator(vocab_size, rate, (0.8, 0.1))
    lists = [{"input_ids": row} for row in input_ids.tolist()]
    legacy_weights = np.r_[np.zeros(4), np.ones(vocab_size - 4)]

    def fairseq(**options) -> Callable[[], object]:
        options |= {"mask_prob": rate, "mask_id": mask_id, "pad_id": 1, "random_weights": legacy_weights}
        return lambda: [mask_fairseq(row, seed, **options) for seed, row in enumerate(tokens[:rows])]

    def spanbert() -> object:
        options = {"ratio": rate, "length_distribution": span_lengths(0.2, 10), "random_token_pool": (4, mask_id - 1)}
        return [
            mask_spanbert(row, seed, mask_id=mask_id, pad_id=1, **options) for seed, row in enumerate(tokens[:rows])
        ]

    arms = {
        "reclaim uniform, mask only": ours(Masker("uniform", rate, **common)),
        "reclaim uniform, 80-10-10": ours(Masker("uniform", rate, **eighty)),
        "reclaim uniform, half predicted": ours(Masker("uniform", rate, rate / 2, **common)),
        "reclaim uniform, 2 copies": ours(Masker("uniform", rate / 2, rate, **common)),
        "reclaim whole words": ours(Masker("whole_word", rate, word_start=word_start, **common)),
        "reclaim span, 80-10-10": ours(Masker("span", rate, word_start=word_start, **eighty)),
        "reclaim PMI": ours(Masker("pmi", rate, units=units, **common)),
        "transformers, tensor routine, mask only": lambda: mask_only.torch_mask_tokens(
            input_ids.clone(), special.clone()
        ),
        "transformers, tensor routine, 80-10-10": lambda: mixed.torch_mask_tokens(input_ids.clone(), special.clone()),
        "transformers, tensors without special mask": lambda: mask_only.torch_mask_tokens(input_ids.clone()),
        "transformers, collating lists": lambda: mask_only(lists),
        "fairseq's stream, mask only": fairseq(),
        "fairseq's stream, 80-10-10": fairseq(leave_unmasked_prob=0.1, random_token_prob=0.1),
        "SpanBERT's stream": spanbert,
    }
    timings = {name: microseconds(function, rows, args.seconds) for name, function in arms.items()}
    base = timings["reclaim uniform, mask only"]
    print(f"{rows} x {length} tokens, vocabulary {vocab_size}, rate {rate}, {len(vocabulary)} collocations, one thread")
    print(f"{'routine':46s} {'us / sequence':>13s} {'ratio':>8s}")
    for name, value in timings.items():
        print(f"{name:46s} {value:13.2f} {value / base:8.2f}")
    print("ratio: time over that of `reclaim uniform, mask only`")


if __name__ == "__main__":
    main()
