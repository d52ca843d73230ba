"""The small decoder as a model of transformers: padding, caches, generation, saving, and its start."""

from __future__ import annotations

import pytest
import torch

from reclaim.errors import InputError
from reclaim.icl.decoder import AttentionOnlyForCausalLM, build_decoder
from reclaim.models import load
from reclaim.scoring import Request, score_continuations
from reclaim.tokenization import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("gpt2", [], words="label dog oak A B C ivy goat".split())


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.set_num_threads(1)
    return build_decoder(tokenizer, 0, num_hidden_layers=2, hidden_size=32, embedding_std=0.5)


@pytest.fixture
def ids():
    return torch.randint(1, 9, (3, 12), generator=torch.Generator().manual_seed(0))


def test_size_and_start(tokenizer):
    model = build_decoder(tokenizer, 0, num_hidden_layers=3)
    assert model.num_parameters() == 9 * 64 + 3 * 4 * 64**2 + 2 * 2 * 64
    eye = torch.eye(64)
    for layer in model.layers:
        assert torch.equal(layer.query, layer.key)
        assert torch.allclose(layer.query @ layer.query.T, eye, atol=1e-5)
        assert torch.allclose(layer.output @ layer.value, eye, atol=1e-5)
    again, other = build_decoder(tokenizer, 0, num_hidden_layers=3), build_decoder(tokenizer, 1, num_hidden_layers=3)
    assert torch.equal(model.embedding.weight, again.embedding.weight)
    assert not torch.equal(model.embedding.weight, other.embedding.weight)
    with pytest.raises(InputError, match="multiple"):
        build_decoder(tokenizer, 0, hidden_size=30)


def test_the_future_and_the_token_itself_are_not_read(tokenizer, ids):
    """In one layer, what stands at a position reaches its own output through the residual stream alone."""
    model = build_decoder(tokenizer, 0, num_hidden_layers=1, hidden_size=32, embedding_std=0.5)
    changed = ids.clone()
    changed[:, 7] = ids[:, 7] % 8 + 1
    before, after = model.hidden_states(ids), model.hidden_states(changed)
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.allclose(before[:, 8:], after[:, 8:])
    residual = model.embedding(changed) - model.embedding(ids)
    only_query = after[:, 7] - before[:, 7] - residual[:, 7]
    with torch.no_grad():
        model.layers[0].query.zero_()  # attention no longer depends on who asks
    alone = model.hidden_states(changed) - model.hidden_states(ids) - residual
    assert torch.allclose(alone[:, 7], torch.zeros_like(alone[:, 7]), atol=1e-5)
    assert only_query.abs().max() > 1e-4
    first = ids.clone()
    first[:, 0] = ids[:, 0] % 8 + 1
    moved = model.hidden_states(first) - model.hidden_states(ids) - (model.embedding(first) - model.embedding(ids))
    assert moved[:, 0].abs().max() > 1e-3


def test_padding_changes_nothing(model, ids):
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    assert torch.allclose(model(padded, attention_mask=mask).logits[:, 4:], model(ids).logits, atol=1e-5)
    assert torch.isfinite(model(padded, attention_mask=mask).logits).all()
    right = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    assert torch.allclose(model(right, attention_mask=mask.flip(1)).logits[:, :12], model(ids).logits, atol=1e-5)


def test_a_cache_goes_on_where_it_stopped(model, ids):
    first = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], past_key_values=first.past_key_values, attention_mask=torch.ones(3, 12, dtype=torch.long))
    assert torch.allclose(rest.logits, model(ids).logits[:, 5:], atol=1e-5)


@torch.no_grad()
def test_generate_is_greedy_step_by_step(model, ids):
    by_hand = ids
    for _ in range(5):
        by_hand = torch.cat([by_hand, model(by_hand).logits[:, -1:].argmax(-1)], dim=1)
    generated = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(generated, by_hand)


def test_the_scoring_room_is_exact_on_it(model):
    shared = list(range(1, 9)) * 3
    requests = [Request([*shared[:n], 1, 2], [label]) for n in (0, 8, 16, 20, 24) for label in (4, 5)]
    requests += [Request([*shared, 7], [3, 6])]
    for request, found in zip(requests, score_continuations(model, requests, batch_tokens=64), strict=True):
        logits = model(torch.tensor([[*request.context, *request.continuation]])).logits[0].log_softmax(-1).detach()
        for i, token in enumerate(request.continuation):
            assert abs(float(logits[len(request.context) - 1 + i, token]) - found[i]) < 1e-4


def test_it_is_saved_and_loaded_as_any_model(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, "causal")
    assert isinstance(loaded, AttentionOnlyForCausalLM) and not list(tmp_path.glob("*.bin"))
    assert torch.equal(loaded(ids).logits, model(ids).logits)
