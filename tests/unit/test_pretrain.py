"""Packing, the unigram plateau, and pre-training loops that learn and pair their arms."""

import math

import numpy as np
import pytest
import torch

from reclaim.blocks import token_blocks
from reclaim.errors import InputError
from reclaim.pretrain import pack, pretrain, unigram_entropy
from reclaim.tokenization import train_tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat", "a cat and a dog sat on a mat"] * 40


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("roberta", TEXTS)


def rows_of(packed):
    return [packed.tokens[a:b].tolist() for a, b in zip(packed.offsets[:-1], packed.offsets[1:], strict=True)]


@pytest.mark.parametrize("at_a_time", [1, 7, 10_000])
def test_blocks_do_not_depend_on_how_many_texts_are_read_at_a_time(tokenizer, monkeypatch, at_a_time):
    monkeypatch.setattr("reclaim.pretrain.TEXTS_AT_A_TIME", at_a_time)
    packed = pack(iter(TEXTS), tokenizer, max_length=8)
    encoded = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    expected = token_blocks([[*ids, tokenizer.eos_token_id] for ids in encoded], block_size=7, bos=0)
    assert rows_of(packed) == [list(block) for block in expected]


def test_documents_are_rows_of_their_own(tokenizer):
    packed = pack(TEXTS[:3], tokenizer, max_length=6, packing="documents")
    rows = rows_of(packed)
    assert [len(row) for row in rows] == [6, 5, 6]
    assert all(row[0] == 0 and row[-1] == tokenizer.eos_token_id for row in rows)
    input_ids, mask = packed.take(np.array([1, 0]))
    assert input_ids.shape == (2, 6) and mask.sum(1).tolist() == [5, 6]
    assert input_ids[0, 5] == tokenizer.pad_token_id


def test_the_start_token_is_free(tokenizer):
    """Two equally frequent words: log 2 a word, and less a predicted position where `<s>` is predicted too."""
    packed = pack(["cat", "dog"] * 50, tokenizer, max_length=4, packing="documents", append_eos=False)
    assert unigram_entropy(packed) == pytest.approx(math.log(2) / 2)
    assert unigram_entropy(packed, never_masked=[0, 1, 2]) == pytest.approx(math.log(2))


def test_faults_are_named(tokenizer):
    with pytest.raises(InputError, match="packing"):
        pack(TEXTS, tokenizer, 8, packing="pages")
    with pytest.raises(InputError, match="no text"):
        pack([], tokenizer, 8)


def spec(architecture="roberta-prelayernorm", masking=None, seed=3, steps=60):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 20}
    if architecture == "opt":
        sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}
    else:
        sizes |= {"intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {
        "model": {"architecture": architecture, "config": sizes, "linear_init": "fan_in"},
        "recipe": {
            "num_train_steps": steps,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "max_length": 12,
            "packing": "documents",
        },
        "masking": masking or {"scheme": "uniform", "corruption": 0.4},
        "seed": seed,
    }


@pytest.mark.parametrize("scheme", ["uniform", "whole_word", "span"])
def test_masked_pre_training_leaves_the_plateau(tokenizer, scheme):
    model, record = pretrain(spec(masking={"scheme": scheme, "corruption": 0.3}), TEXTS, tokenizer)
    assert np.mean(record["loss"][-10:]) < 0.8 * record["unigram_entropy"]
    assert record["forward_passes"] == 60 and record["predictions"] > 0
    assert not model.training


def test_causal_pre_training_learns():
    tokenizer = train_tokenizer("opt", TEXTS)
    _, record = pretrain(spec("opt", {"scheme": "causal"}), TEXTS, tokenizer)
    assert np.mean(record["loss"][-10:]) < 0.5 * record["unigram_entropy"]


@pytest.mark.parametrize("architecture", ["roberta-prelayernorm", "opt"])
def test_half_precision_pre_trains_as_float32_does(architecture):
    tokenizer = train_tokenizer(architecture.partition("-")[0], TEXTS)
    losses = {}
    for precision in ("float32", "bfloat16", "float16"):
        made = spec(architecture, {"scheme": "causal"} if architecture == "opt" else None, steps=30)
        made["recipe"] |= {"precision": precision, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
        model, record = pretrain(made, TEXTS, tokenizer)
        assert model.dtype == torch.float32
        losses[precision] = np.array(record["loss"])
    assert losses["float32"][-5:].mean() < 0.8 * losses["float32"][:5].mean()
    for precision in ("bfloat16", "float16"):
        assert 0 < np.abs(losses[precision] - losses["float32"]).max() < 0.05


def test_arms_of_a_seed_start_from_the_same_weights(tokenizer):
    start, record = pretrain(spec(masking={"scheme": "none"}), TEXTS, tokenizer)
    assert record["loss"] == []
    again, _ = pretrain(spec(masking={"scheme": "none"}), TEXTS, tokenizer)
    other, _ = pretrain(spec(masking={"scheme": "none"}, seed=4), TEXTS, tokenizer)
    name = "roberta_prelayernorm.encoder.layer.0.output.dense.weight"
    weight = start.state_dict()[name]
    assert torch.equal(weight, again.state_dict()[name]) and not torch.equal(weight, other.state_dict()[name])
    # N(0, 1/fan_in), not the config's 0.02.
    assert weight.std() == pytest.approx(1 / math.sqrt(64), rel=0.1)


def test_a_prediction_rate_above_the_corruption_rate_costs_forward_passes_only_within_a_step(tokenizer):
    masking = {"scheme": "uniform", "corruption": 0.2, "prediction": 0.4}
    _, record = pretrain(spec(masking=masking, steps=5), TEXTS, tokenizer)
    _, plain = pretrain(spec(masking={"scheme": "uniform", "corruption": 0.4}, steps=5), TEXTS, tokenizer)
    assert record["predictions"] == pytest.approx(plain["predictions"], rel=0.1)
    assert record["input_tokens"] == plain["input_tokens"]
