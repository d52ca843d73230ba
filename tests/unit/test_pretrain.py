"""Packing, the unigram plateau, and pre-training loops that learn and pair their arms."""

import math
import re

import numpy as np
import pytest
import torch

from reclaim.blocks import token_blocks
from reclaim.errors import InputError
from reclaim.masking import Masker
from reclaim.pretrain import held_out_loss, pack, pretrain, pretrain_masked, unigram_entropy
from reclaim.tokenization import train_tokenizer
from reclaim.train import Recipe

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


def test_the_loss_on_held_out_text_is_that_of_every_row_at_the_runs_own_rate(tokenizer, caplog):
    others = ["the mat sat on a dog and a cat", "a dog", *TEXTS[:5]]
    masking = {"scheme": "uniform", "corruption": 0.4}
    caplog.set_level("INFO", logger="reclaim")
    model, record = pretrain(spec(masking=masking), TEXTS, tokenizer, held_out=others)
    assert re.search(r"60 steps, \d+ tokens/s", caplog.text)
    _, without = pretrain(spec(masking=masking), TEXTS, tokenizer)
    assert without["loss"] == record["loss"] and "held_out_loss" not in without

    rows = pack(others, tokenizer, 12, packing="documents")
    masker = Masker("uniform", 0.4, seed=3, vocab_size=model.config.vocab_size, mask_token_id=tokenizer.mask_token_id)
    specials = tokenizer.all_special_ids
    for batch_rows in (1, 3, 100):
        measured = held_out_loss(model, rows, masker, batch_rows, never_masked=specials)
        assert measured == pytest.approx(record["held_out_loss"], abs=1e-5)
    total = count = 0
    for number in range(len(rows)):
        ids, mask = rows.take(np.array([number]))
        eligible = mask & ~torch.isin(ids, torch.tensor(specials))
        batch = masker.mask(ids, -1, [number], mask, eligible)
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(logits[0], batch.labels[0], reduction="sum")
        total, count = total + loss.item(), count + int(batch.predicted.sum())
    assert record["held_out_loss"] == pytest.approx(total / count, abs=1e-5)
    assert held_out_loss(model, rows, Masker("uniform", 1e-9, seed=3, vocab_size=9, mask_token_id=4), 4) is None


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_vocabulary_head_sees_predicted_positions_only(tokenizer, rate):
    model, _ = pretrain(spec(masking={"scheme": "none"}), TEXTS, tokenizer)
    rows = pack(TEXTS, tokenizer, 12, packing="documents")
    masker = Masker("uniform", rate, seed=3, vocab_size=model.config.vocab_size, mask_token_id=tokenizer.mask_token_id)
    seen = []
    model.lm_head.register_forward_hook(lambda head, given, logits: seen.append(logits.shape[:-1].numel()))
    recipe = Recipe(num_train_steps=4, per_device_train_batch_size=16)
    history = pretrain_masked(model, rows, masker, recipe, seed=3)
    assert sum(seen) == history.predictions < 4 * 16 * 12 / 2


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
