"""Objectives against their definitions, written out row by row."""

import math

import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
import transformers

from reclaim.errors import InputError
from reclaim.objectives import (
    label_word_logits,
    minus_accuracy,
    minus_f1,
    option_classification_loss,
    option_lm_loss,
    option_scores,
    option_token_logprobs,
    prompt_mlm_loss,
)


def causal(kind="OPT", dtype=torch.float32, **options):
    transformers.set_seed(0)
    sizes = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1}
    if kind == "OPT":
        sizes |= {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "init_std": 0.2}
    elif kind == "Llama":
        sizes |= {"hidden_size": 16, "intermediate_size": 32}
    else:
        sizes |= {"n_embd": 16}
    config = getattr(transformers, f"{kind}Config")(max_position_embeddings=24, **sizes, **options)
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    return getattr(transformers, name)(config).to(dtype).eval()


def masked(kind="Roberta"):
    transformers.set_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        pad_token_id=1,
    )
    return getattr(transformers, f"{kind}ForMaskedLM")(config).eval()


def left_padded(rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[1] * (longest - len(row)) + row for row in rows])
    return ids, (ids != 1).long()


ROWS = [[2, 5, 6, 7, 8], [2, 9, 10], [2, 11, 12, 13, 14, 15, 16], [2, 20, 21, 22]]
OPTION_LEN = [3, 1, 2, 2]


def one_by_one(model, row, option_len):
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([row])).logits[0].float().log_softmax(-1)
    return [logprobs[i - 1, row[i]].item() for i in range(len(row) - option_len, len(row))]


@pytest.mark.parametrize("kind", ["OPT", "GPT2", "Llama"])
def test_option_logprobs_are_those_of_each_row_alone(kind):
    model = causal(kind)
    with torch.no_grad():
        logprobs, mask = option_token_logprobs(model, *left_padded(ROWS), OPTION_LEN)
    for row, length, found, here in zip(ROWS, OPTION_LEN, logprobs, mask, strict=True):
        assert found[here.bool()].tolist() == pytest.approx(one_by_one(model, row, length), abs=1e-5)


def test_the_lm_loss_is_a_mean_over_tokens_not_over_rows():
    model = causal()
    every = [value for row, length in zip(ROWS, OPTION_LEN, strict=True) for value in one_by_one(model, row, length)]
    loss = option_lm_loss(model, *left_padded(ROWS), OPTION_LEN)
    assert loss.item() == pytest.approx(-sum(every) / len(every), abs=1e-5)
    assert loss.requires_grad  # so that backprop trains on the same objective


def test_classification_scores_options_by_their_mean_and_averages_examples():
    model = causal()
    means = [sum(one_by_one(model, row, n)) / n for row, n in zip(ROWS, OPTION_LEN, strict=True)]
    ids, mask = left_padded(ROWS)
    scores = option_scores(model, ids, mask, OPTION_LEN, [3, 1])
    assert scores[0].tolist() == pytest.approx(means[:3], abs=1e-5)
    assert scores[1].tolist() == pytest.approx([means[3], -math.inf, -math.inf], abs=1e-5)
    loss = option_classification_loss(model, ids, mask, OPTION_LEN, [3, 1], torch.tensor([1, 0]))
    first = means[1] - math.log(sum(map(math.exp, means[:3])))
    assert loss.item() == pytest.approx(-(first + 0.0) / 2, abs=1e-5)


@pytest.mark.parametrize("option_len", [[3, 1, 2, 0], [3, 3, 2, 2], [3, 1, 2]])
def test_empty_or_whole_row_options_are_refused(option_len):
    with pytest.raises(InputError, match="option_len"):
        option_lm_loss(causal(), *left_padded(ROWS), option_len)


def test_right_padding_is_refused():
    ids, mask = left_padded(ROWS)
    with pytest.raises(InputError, match="left-padded"):
        option_lm_loss(causal(), ids.flip(-1), mask.flip(-1), OPTION_LEN)


@pytest.mark.parametrize("num_options", [[4, 1], [3], [4, 0], []])
def test_numbers_of_options_must_add_up(num_options):
    with pytest.raises(InputError, match="num_options"):
        option_scores(causal(), *left_padded(ROWS), OPTION_LEN, num_options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_loss_is_float32_for_half_models_and_float64_for_double(dtype):
    loss = option_lm_loss(causal(dtype=dtype), *left_padded(ROWS), OPTION_LEN)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_only_scored_positions_get_logits():
    model = causal()
    shapes = []
    model.lm_head.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    option_lm_loss(model, *left_padded(ROWS), OPTION_LEN)
    assert shapes == [(4, 4, 50)]
    masks = masked()
    masks.lm_head.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    ids, mask = left_padded(ROWS)
    label_word_logits(masks, ids, mask, torch.tensor([6, 6, 5, 4]), [30, 31])
    assert shapes[1:] == [(4, 50)]


@pytest.mark.parametrize("kind", ["Roberta", "Bert"])
def test_label_words_are_scored_at_the_mask(kind):
    model = masked(kind)
    ids = torch.tensor([[0, 5, 3, 7, 2], [0, 3, 6, 2, 1]])
    mask, positions, labels = (ids != 1).long(), torch.tensor([[2], [1]]), torch.tensor([1, 0])
    with torch.no_grad():
        full = model(input_ids=ids, attention_mask=mask).logits
        logits = label_word_logits(model, ids, mask, positions, [30, 40])
        loss = prompt_mlm_loss(model, ids, mask, positions, [30, 40], labels)
    expected = torch.stack([full[0, 2, [30, 40]], full[1, 1, [30, 40]]])
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(expected, labels))


def test_accuracy_is_a_multiple_of_one_over_the_batch_and_no_loss_in_disguise():
    logits = torch.tensor([[2.0, 1.0], [0.0, 5.0], [1.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    assert minus_accuracy(logits, labels) == -0.5  # a tie goes to the first
    assert minus_accuracy(logits * 1.5, labels) == -0.5


def test_f1_of_generations_is_negated_and_averaged():
    calls = []

    def generate():
        calls.append(1)
        return ["the red fox", "blue"]

    assert minus_f1(generate, [["red fox", "dog"], ["green"]]) == pytest.approx(-0.5)
    assert len(calls) == 1
