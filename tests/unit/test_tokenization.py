"""Tokenizers of the real classes: one token a word for the worlds, learned vocabularies for real text."""

import numpy as np
import pytest
import reclaim.torchvision_shim  # noqa: F401

from reclaim.errors import InputError
from reclaim.tokenization import SPECIAL_TOKENS, model_vocab_size, require_words, train_tokenizer, word_starts
from reclaim.world import generators

FAMILIES = list(SPECIAL_TOKENS)
CLASSES = {"roberta": "RobertaTokenizer", "opt": "GPT2Tokenizer", "gpt2": "GPT2Tokenizer", "t5": "T5Tokenizer"}
WORLDS = ["idioms_corpus", "polarity_corpus", "household_corpus"]
REAL = [
    "The café's menu, printed in 1998, said: “Don't ask twice!”",
    "A quick brown fox jumped over the lazy dog; the dog didn't mind the fox.",
    "She asked the printer to print the menu again, and the printer printed the menu.",
] * 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Tokenizers by (family, world), each with the one that AutoTokenizer reads back."""
    from transformers import AutoTokenizer

    result = {}
    for world in WORLDS:
        texts = generators.generate(world, {"train": 300}, 0)["train"]["text"].tolist()
        for family in FAMILIES:
            words = generators.info(world)["words"]
            tokenizer = train_tokenizer(family, texts, words=words, num_sentinels=10, model_max_length=64)
            folder = tmp_path_factory.mktemp(f"{world}-{family}")
            tokenizer.save_pretrained(folder)
            result[family, world] = tokenizer, AutoTokenizer.from_pretrained(folder), texts
    return result


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_word_is_one_token_before_and_after_the_round_trip(trained, family, world):
    tokenizer, loaded, texts = trained[family, world]
    assert type(loaded).__name__ == CLASSES[family]
    assert loaded.model_max_length == 64
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert loaded.get_vocab() == tokenizer.get_vocab()
    words = generators.info(world)["words"]
    ids = {word: loaded(word, add_special_tokens=False)["input_ids"] for word in words}
    assert all(len(of_word) == 1 for of_word in ids.values())
    assert len({of_word[0] for of_word in ids.values()}) == len(words)
    for text in texts[:50]:
        encoded = loaded(text, add_special_tokens=False)["input_ids"]
        # Also the first word of a text has the id that it has inside.
        assert encoded == [ids[word][0] for word in text.split()]
        assert loaded.decode(encoded).strip() == text
        assert max(encoded) < model_vocab_size(loaded)


def test_vocabularies_have_the_sizes_of_the_protocols(trained):
    sizes = {key: model_vocab_size(loaded) for key, (_, loaded, _) in trained.items()}
    assert sizes["roberta", "idioms_corpus"] == 163
    assert sizes["roberta", "polarity_corpus"] == 79
    assert sizes["gpt2", "polarity_corpus"] == 75
    assert sizes["t5", "polarity_corpus"] == 74 + 3 + 10


def test_special_tokens_are_those_of_the_families(trained):
    text = "it was great ."

    def encoded(family):
        loaded = trained[family, "polarity_corpus"][1]
        ids = loaded(text)["input_ids"]
        bare = loaded(text, add_special_tokens=False)["input_ids"]
        assert len(bare) == 4
        start = next(i for i in range(len(ids)) if ids[i : i + 4] == bare)
        return loaded, ids[:start], ids[start + 4 :]

    roberta, before, after = encoded("roberta")
    assert roberta.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 4]
    assert (roberta.bos_token_id, roberta.pad_token_id, roberta.eos_token_id, roberta.mask_token_id) == (0, 1, 2, 4)
    assert (before, after) == ([0], [2])
    pair = roberta("it was", "great .")["input_ids"]
    assert [pair[i] for i in (0, 3, 4, 7)] == [0, 2, 2, 2]
    opt, before, after = encoded("opt")
    assert (opt.bos_token_id, opt.pad_token_id, opt.eos_token_id) == (2, 1, 2)
    assert (before, after) == ([2], [])
    gpt2, before, after = encoded("gpt2")
    assert gpt2.bos_token_id == gpt2.eos_token_id == gpt2.pad_token_id == 0
    assert (before, after) == ([], [])
    t5, before, after = encoded("t5")
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert (before, after) == ([], [1])
    assert t5.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(10)]) == [len(t5) - 1 - i for i in range(10)]


def test_masks_and_sentinels_take_their_space(trained):
    roberta = trained["roberta", "polarity_corpus"][1]
    ids = roberta("overall it was <mask> .", add_special_tokens=False)["input_ids"]
    assert len(ids) == 5 and ids[3] == roberta.mask_token_id
    t5 = trained["t5", "polarity_corpus"][1]
    assert len(t5("it was <extra_id_0> .", add_special_tokens=False)["input_ids"]) == 4


def test_unknown_words(trained):
    t5 = trained["t5", "polarity_corpus"][1]
    assert t5("it was zebra 漢 .", add_special_tokens=False)["input_ids"].count(t5.unk_token_id) == 2
    for family in FAMILIES:
        loaded = trained[family, "polarity_corpus"][1]
        require_words(loaded, ["it was great ."], "data.polarity")
    for family in ("roberta", "opt", "gpt2"):
        with pytest.raises(InputError, match="data.reviews.*'zebra'"):
            require_words(trained[family, "polarity_corpus"][1], ["it was fine .", "it was zebra ."], "data.reviews")
        # The beginning of a word is in the BPE's tables but is no word; a letter outside the alphabet vanishes.
        for word in ("gre", "great漢"):
            with pytest.raises(InputError, match=f"'{word}'"):
                require_words(trained[family, "polarity_corpus"][1], [word], "data.reviews")


def test_words_of_any_script_are_one_token():
    for family in FAMILIES:
        tokenizer = train_tokenizer(family, ["le café 漢字 !", "le naïf 42"], words=["où"])
        ids = tokenizer("le café 漢字 naïf 42 où !", add_special_tokens=False)["input_ids"]
        assert len(ids) == 7 and max(ids) < model_vocab_size(tokenizer)
        require_words(tokenizer, ["le café 漢字 où"], "data.menus")


def test_ids_do_not_depend_on_the_order_of_the_texts():
    one = train_tokenizer("gpt2", ["b a", "c"])
    assert one.get_vocab() == train_tokenizer("gpt2", ["c", "a b"]).get_vocab()


@pytest.mark.parametrize("family", FAMILIES)
def test_word_starts(trained, family):
    loaded = trained[family, "polarity_corpus"][1]
    starts = word_starts(loaded)
    assert starts.dtype == bool and len(starts) == len(loaded)
    assert starts[: model_vocab_size(loaded)].all()
    real = train_tokenizer(family, REAL, vocab_size=300 if family != "t5" else 90, num_sentinels=5)
    ids = real("the menu printers", add_special_tokens=False)["input_ids"]
    found = word_starts(real)[ids]
    # Apart from the first word, which a real tokenizer of the GPT-2 kind reads without a space, words begin by a space.
    pieces = [real.convert_ids_to_tokens(i) for i in ids]
    assert found.tolist() == [piece[0] in "Ġ▁" for piece in pieces]
    assert found[1:].sum() == 2 and len(ids) > 3
    assert word_starts(real)[real.all_special_ids].all()


@pytest.mark.parametrize("family", FAMILIES)
def test_real_text(family, tmp_path):
    from transformers import AutoTokenizer

    size = 100 if family == "t5" else 330
    tokenizer = train_tokenizer(family, REAL, vocab_size=size, num_sentinels=5)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__ == CLASSES[family]
    assert len(loaded) == model_vocab_size(loaded) <= size
    foreign = "naïve 漢字 🙂 menus"
    for text in [*REAL[:3], foreign]:
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        if family != "t5":
            assert loaded.decode(ids) == text
    if family == "t5":
        assert loaded.decode(loaded(REAL[0], add_special_tokens=False)["input_ids"]) == REAL[0]
        assert loaded.unk_token_id in loaded(foreign)["input_ids"]
    assert len(loaded("the printer", add_special_tokens=False)["input_ids"]) < 8
    require_words(loaded, [foreign], "data.reviews")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "bert", "texts": ["a"]}, "bert"),
        ({"family": "gpt2", "texts": [" "]}, "no word"),
        ({"family": "gpt2", "texts": ["my name12"]}, "'name12'.*'name', '12'"),
        ({"family": "roberta", "texts": ["a b"], "vocab_size": 200}, "more than 256"),
        ({"family": "t5", "texts": ["a b"], "vocab_size": 100}, "more than 103"),
    ],
)
def test_bad_input_gives_one_clear_error(arguments, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(**arguments)


def test_ids_index_word_starts_for_masking(trained):
    """A whole-word masker looks ids up in the table."""
    loaded = trained["roberta", "idioms_corpus"][1]
    ids = np.array(loaded("the of and")["input_ids"])
    assert word_starts(loaded)[ids].all()
