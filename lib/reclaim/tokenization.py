"""Train tokenizers of the classes that the papers' models use, for generated worlds and for real text.

Byte-level BPE (Radford et al. 2019) for GPT-2, OPT and RoBERTa; Unigram with sentinels (Kudo 2018; Raffel et al. 2020)
for T5. Two ways:

- With `vocab_size`, ordinary training on real text; the alphabet of the byte-level families is all 256 bytes.
- Without, one token a word: every word of the texts, with its leading space, is one token, as the protocols of the
  generated worlds need it. BPE can only reach a word through its beginnings, so its tables also hold the letters in use
  and the beginnings of words. They get the highest ids: special tokens and words fill the ids below
  `model_vocab_size(tokenizer)`, and a model needs no more rows than that. (The classes of transformers 5 rebuild their
  BPE from vocabulary and merges alone; one that takes whole words without merges would not survive `from_pretrained`.)

Differences from the published tokenizers: special tokens have the lowest ids in all byte-level families (`<mask>` of
RoBERTa and `<|endoftext|>` of GPT-2 are the last ones there); one-token-a-word tokenizers put a space before the first
word (`add_prefix_space`), so that it has the id that it has elsewhere; GPT-2 pads with `<|endoftext|>`; T5 does not
normalise Unicode. As published, OPT begins a text with `</s>`, RoBERTa puts it between `<s>` and `</s>`, T5 ends it
with `</s>`, and GPT-2 adds nothing. T5 has `<unk>` for what it does not know; the byte-level classes drop a letter that
the alphabet of a one-token-a-word tokenizer lacks, which `require_words` finds out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import reclaim.torchvision_shim  # noqa: F401

from reclaim.errors import InputError

# Special tokens in the order of their ids.
SPECIAL_TOKENS = {
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "opt": ("<s>", "<pad>", "</s>", "<unk>"),
    "gpt2": ("<|endoftext|>",),
    "t5": ("<pad>", "</s>", "<unk>"),
}
SPACE = {"roberta": "Ġ", "opt": "Ġ", "gpt2": "Ġ", "t5": "▁"}


def train_tokenizer(
    family: str,
    texts: Iterable[str],
    vocab_size: int | None = None,
    words: Iterable[str] = (),
    num_sentinels: int = 100,
    model_max_length: int | None = None,
    add_prefix_space: bool = True,
):
    """Train a tokenizer of `family` (`roberta`, `opt`, `gpt2` or `t5`); gives a fast tokenizer of transformers.

    Without `vocab_size`, each word of `texts` and each of `words` (for those that prompts use and texts lack) becomes
    one token; ids follow the alphabet and not the order of the texts. With it, the vocabulary is learned and has at
    most that many tokens, special ones included. `num_sentinels` is for T5, whose `<extra_id_0>` has the last id.
    Without `add_prefix_space` a word that begins one of `texts` has a second token, without a space, as in the published
    GPT-2 (one-token-a-word tokenizers of the byte-level families; learned ones never add a space).

    Raises InputError for an unknown family, no words, a word that the family's pre-tokenizer cuts, and a `vocab_size`
    that leaves no room to learn.
    """
    if family not in SPECIAL_TOKENS:
        raise InputError("tokenizer family", repr(family), f"one of {', '.join(SPECIAL_TOKENS)}")
    options: dict[str, Any] = {} if model_max_length is None else {"model_max_length": model_max_length}
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(num_sentinels))]
    if vocab_size is None:
        texts = texts if add_prefix_space else list(texts)
        vocabulary = sorted({word for text in texts for word in text.split()}.union(*(word.split() for word in words)))
        vocabulary = [word for word in vocabulary if word not in (*SPECIAL_TOKENS[family], *sentinels)]
        if not vocabulary:
            raise InputError("texts of the tokenizer", "no word", "at least one word")
        if family == "t5":
            return _unigram([(SPACE["t5"] + word, -1.0) for word in vocabulary], sentinels, options)
        first = (
            [] if add_prefix_space else sorted({text.split()[0] for text in texts if text.split()} & set(vocabulary))
        )
        # Words behind a space come first: their merges must win over those of the beginnings of texts.
        tokens, merges = _word_merges([f" {word}" for word in vocabulary] + first)
        options["model_vocab_size"] = len(SPECIAL_TOKENS[family]) + len(vocabulary) + len(first)
        return _byte_level(family, tokens, merges, add_prefix_space=add_prefix_space, options=options)
    if family == "t5":
        return _unigram(_learn_unigram(texts, vocab_size, len(sentinels)), sentinels, options)
    tokens, merges = _learn_bpe(texts, vocab_size - len(SPECIAL_TOKENS[family]))
    return _byte_level(family, tokens, merges, add_prefix_space=False, options=options)


def model_vocab_size(tokenizer) -> int:
    """Give the number of rows that a model's token table needs for the texts that the tokenizer was made for."""
    return tokenizer.init_kwargs.get("model_vocab_size", len(tokenizer))


def word_starts(tokenizer) -> np.ndarray:
    """Tell for each id whether it begins a word, for whole-word masking; special tokens do. Bool, (len(tokenizer),).

    A word that opens a text without a space is not told by its id; whoever masks knows that a text begins a word.
    """
    # OPT has `<s>` and `<unk>` in its vocabulary without registering them as special.
    special = {token for tokens in SPECIAL_TOKENS.values() for token in tokens}
    starts = np.zeros(len(tokenizer), dtype=bool)
    for token, number in tokenizer.get_vocab().items():
        starts[number] = token[0] in SPACE.values() or token in special
    starts[list(tokenizer.added_tokens_decoder)] = True
    return starts


def require_words(tokenizer, texts: Iterable[str], place: str) -> None:
    """Raise InputError, naming `place` and the word, unless a one-token-a-word tokenizer has every word of `texts`.

    Other tokenizers know every text and pass.
    """
    if "model_vocab_size" not in tokenizer.init_kwargs:
        return
    for word in sorted({word for text in texts for word in text.split()}):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        # A letter outside the alphabet is dropped, so that only reading the ids back shows it.
        if len(ids) != 1 or ids[0] >= model_vocab_size(tokenizer) or tokenizer.decode(ids).strip() != word:
            raise InputError(
                place,
                f"the word {word!r}",
                "words that the tokenizer was trained on",
                "Name this data set in the tokenizer's `data`, or the word in its `words`.",
            )


def _byte_level(family: str, tokens: list[str], merges: list[tuple[str, str]], add_prefix_space: bool, options: dict):
    from transformers import AddedToken, GPT2TokenizerFast, RobertaTokenizerFast

    vocab = {token: number for number, token in enumerate((*SPECIAL_TOKENS[family], *tokens))}
    options = {"vocab": vocab, "merges": merges, "add_prefix_space": add_prefix_space, **options}
    if family == "roberta":
        # The mask takes the space before it, so that "it was <mask> ." has no token for a lone space.
        mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
        return RobertaTokenizerFast(mask_token=mask, **options)
    if family == "opt":
        special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
        return GPT2TokenizerFast(add_bos_token=True, **special, **options)
    return GPT2TokenizerFast(pad_token="<|endoftext|>", **options)


def _word_merges(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Give the tokens (words first) and the merges of a BPE that reads each word from left to right into one token."""
    from tokenizers.pre_tokenizers import ByteLevel

    pre_tokenizer = ByteLevel(add_prefix_space=False)
    whole = []
    for word in words:
        pieces = pre_tokenizer.pre_tokenize_str(word)
        if len(pieces) != 1:
            parts = [piece.removeprefix("Ġ") for piece, _ in pieces]
            raise InputError("a word of the tokenizer's texts", f"{word.strip()!r}, which is cut into {parts}",
                             "words of letters only, digits only or other signs only")  # fmt: skip
        whole.append(pieces[0][0])
    # Dictionaries as ordered sets: tokens in the order of their ids, merges in the order in which BPE applies them.
    tokens = dict.fromkeys(whole)
    tokens |= dict.fromkeys(sorted(set("".join(whole))))
    merges: dict[tuple[str, str], None] = {}
    for token in whole:
        for end in range(1, len(token)):
            merges[token[:end], token[end]] = None
            tokens[token[: end + 1]] = None
    return list(tokens), list(merges)


def _learn_bpe(texts: Iterable[str], num_tokens: int) -> tuple[list[str], list[tuple[str, str]]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if num_tokens <= len(alphabet):
        raise InputError(
            "vocab_size of the tokenizer",
            f"{num_tokens} beside the special tokens",
            f"more than {len(alphabet)}, the number of bytes",
        )
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=num_tokens, initial_alphabet=alphabet, show_progress=False)
    learned.train_from_iterator(texts, trainer)
    model = _state(learned)
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [tuple(merge) for merge in model["merges"]]


def _learn_unigram(texts: Iterable[str], vocab_size: int, num_sentinels: int) -> list[tuple[str, float]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = list(SPECIAL_TOKENS["t5"])
    num_tokens = vocab_size - num_sentinels
    if num_tokens <= len(special):
        raise InputError("vocab_size of the tokenizer", str(vocab_size), f"more than {num_sentinels + len(special)}")
    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=num_tokens, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    learned.train_from_iterator(texts, trainer)
    return [(piece, score) for piece, score in _state(learned)["vocab"] if piece not in special]


def _state(learned) -> dict[str, Any]:
    import json

    return json.loads(learned.to_str())["model"]


def _unigram(pieces: list[tuple[str, float]], sentinels: list[str], options: dict):
    from transformers import T5TokenizerFast

    special = [(token, 0.0) for token in SPECIAL_TOKENS["t5"]]
    vocab = special + pieces + [(sentinel, 0.0) for sentinel in sentinels]
    return T5TokenizerFast(vocab=vocab, extra_ids=len(sentinels), **options)
