"""Token blocks."""

import numpy as np
import pytest

from reclaim.blocks import token_blocks
from reclaim.errors import InputError

SENTENCES = [[5, 6, 2], [2], [7, 8, 9, 2], [10, 2], [2], [2], [11, 2]]


def lists(blocks):
    return [block.tolist() for block in blocks]


def test_none_cuts_anywhere_and_loses_nothing():
    generator = np.random.default_rng(0)
    sentences = [generator.integers(4, 50, generator.integers(1, 20)).tolist() for _ in range(200)]
    blocks = token_blocks(sentences, 127, bos=0)
    assert all(len(block) == 128 and block[0] == 0 for block in blocks[:-1])
    assert sum((block[1:].tolist() for block in blocks), []) == sum(sentences, [])


def test_whole_sentences_and_documents():
    assert lists(token_blocks(SENTENCES, 6, "complete")) == [[5, 6, 2, 2], [7, 8, 9, 2, 10, 2], [2, 2, 11, 2]]
    assert lists(token_blocks(SENTENCES, 6, "complete_doc")) == [[5, 6, 2], [7, 8, 9, 2, 10, 2], [11, 2]]
    assert lists(token_blocks(SENTENCES, 6, "eos")) == SENTENCES
    assert lists(token_blocks(SENTENCES, 3, "complete_doc"))[1] == [7, 8, 9, 2], "a long sentence stays whole"


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc", "eos"])
def test_no_sentences_give_no_blocks(mode):
    assert token_blocks([], 5, mode) == []


def test_only_separators_give_no_documents():
    assert token_blocks([[2], [2]], 5, "complete_doc") == []


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="break_mode"):
        token_blocks(SENTENCES, 6, "sentence")
    with pytest.raises(InputError, match="block_size"):
        token_blocks(SENTENCES, 0)
