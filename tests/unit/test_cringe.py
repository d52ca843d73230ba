"""The CRINGE loss and its baselines as pieces: masks, draws, chunked output layer, data path, decoding."""

import math

import pytest
import torch
import torch.nn.functional as F

from reclaim.cringe import CringeLoss, cringe_loss, linear_cringe_loss
from reclaim.cringe.loss import NEGATIVE, POSITIVE, UNLABELLED, candidates
from reclaim.cringe.rows import IGNORED, encode_rows, join, mixture_batches
from reclaim.cringe.unlikelihood import unlikelihood_loss
from reclaim.errors import InputError
from reclaim.tokenization import train_tokenizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    logits = torch.randn(24, 40, generator=generator())
    labels = torch.randint(0, 40, (24,), generator=generator(1))
    polarity = torch.tensor([POSITIVE, NEGATIVE, UNLABELLED] * 8)
    return logits, labels, polarity


def test_without_weight_it_is_cross_entropy(batch):
    logits, labels, polarity = batch
    good = polarity != NEGATIVE
    terms = cringe_loss(logits, labels, polarity, alpha=0.0, reduction="sum", generator=generator())
    expected = F.cross_entropy(logits[good], labels[good], reduction="sum").item()
    assert terms.loss.item() == pytest.approx(expected, abs=1e-4)
    assert not terms.ce[~good].any() and not terms.ct[good].any()


@pytest.mark.parametrize("pad", [0, 1, -100])
def test_the_padding_id_does_not_matter(batch, pad):
    logits, labels, polarity = batch
    labels = labels.clamp(min=2)
    padded = labels.clone()
    padded[::5] = pad
    reference = labels.clone()
    reference[::5] = -100
    drawn = torch.full_like(labels, 7)
    losses = [
        cringe_loss(logits, y, polarity, ignore_index=index, positive_ids=drawn).loss
        for y, index in ((padded, pad), (reference, -100))
    ]
    assert losses[0] == losses[1]


def test_draws_are_fresh_reproducible_and_never_the_label(batch):
    logits, labels, polarity = batch
    stream = generator(3)
    drawn = [cringe_loss(logits, labels, polarity, generator=stream).positive_ids for _ in range(2)]
    again = cringe_loss(logits, labels, polarity, generator=generator(3)).positive_ids
    bad = polarity == NEGATIVE
    assert not torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], again)
    assert (drawn[0][bad] != labels[bad]).all() and (drawn[0][~bad] == -1).all()


def test_candidates_are_the_k_best_others(batch):
    logits, labels, _ = batch
    labels = logits.argmax(dim=-1)  # the hardest place: the label itself is the best
    ids, probability = candidates(logits, labels, 5)
    assert ((probability > 0).sum(dim=1) == 5).all()
    best = logits.scatter(1, labels[:, None], -math.inf).topk(5).indices.sort().values
    assert torch.equal(ids[probability > 0].view(-1, 5).sort().values, best)


def test_bad_settings_are_refused(batch):
    with pytest.raises(InputError, match="1 or more"):
        cringe_loss(*batch, k=0)
    with pytest.raises(InputError, match="reduction"):
        cringe_loss(*batch, reduction="median")


def test_a_batch_without_anything_gives_zero_with_a_gradient(batch):
    logits, labels, polarity = batch
    logits.requires_grad_()
    loss = cringe_loss(logits, torch.full_like(labels, -100), polarity).loss
    loss.backward()
    assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("chunk_rows", [1, 7, 64])
@pytest.mark.parametrize("with_bias", [False, True])
def test_output_layer_and_loss_together_equal_the_two_apart(chunk_rows, with_bias):
    hidden = torch.randn(30, 8, generator=generator())
    weight = torch.randn(50, 8, generator=generator(1))
    bias = torch.randn(50, generator=generator(2)) if with_bias else None
    labels = torch.randint(0, 50, (30,), generator=generator(3))
    labels[::4] = -100
    polarity = torch.tensor([POSITIVE, NEGATIVE, UNLABELLED] * 10)
    drawn = (labels.clamp(min=0) + 1) % 50
    found = []
    for together in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight, *([bias] if with_bias else []))]
        h, w, b = (*leaves, None)[:3]
        if together:
            loss = linear_cringe_loss(
                h, w, labels, polarity, bias=b, alpha=3.0, positive_ids=drawn, chunk_rows=chunk_rows
            ).loss
        else:
            loss = cringe_loss(F.linear(h, w, b), labels, polarity, alpha=3.0, positive_ids=drawn, reduction="sum").loss
        (2.5 * loss).backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_chunks_do_not_change_the_draws():
    hidden, weight = torch.randn(40, 8, generator=generator()), torch.randn(20, 8, generator=generator(1))
    labels, polarity = torch.arange(40) % 20, torch.full((40,), NEGATIVE)
    losses = [
        float(linear_cringe_loss(hidden, weight, labels, polarity, generator=generator(5), chunk_rows=rows).loss)
        for rows in (40, 1000)
    ]
    assert losses[0] == losses[1]


def test_the_module_trains_with_draws_and_evaluates_with_their_expectation(batch):
    logits, labels, polarity = (tensor.view(4, 6, *tensor.shape[1:]) for tensor in batch)
    module = CringeLoss(k=5, alpha=2.0)
    assert module(logits, labels, polarity) != module(logits, labels, polarity)
    module.eval()
    assert module(logits, labels, polarity) == module(logits, labels, polarity)
    # one polarity a sequence
    assert torch.isfinite(module(logits, labels, torch.tensor([1, 0, -1, 0])))


def test_unlikelihood_saturates_without_nan():
    logits = torch.zeros(1, 5).index_fill(1, torch.tensor([2]), 200.0).requires_grad_()
    loss = unlikelihood_loss(logits, torch.tensor([2]), torch.tensor([True])).loss
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-20)) and torch.isfinite(logits.grad).all()


# ------------------------------------------------------------------------------------------------------------------ rows


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("gpt2", [], words=["a b c d e ?"])


def test_only_the_reply_and_its_end_are_trained_on(tokenizer):
    rows = encode_rows(tokenizer, ["a b ?", "c ?"], ["d e", "e"], [NEGATIVE, POSITIVE])
    kept = [[token for token in row if token != IGNORED] for row in rows.labels.tolist()]
    texts = [tokenizer.decode(row[:-1]).split() for row in kept]
    assert texts == [["d", "e"], ["e"]] and all(row[-1] == tokenizer.eos_token_id for row in kept)
    # each label stands where the token before it is read
    first = int((rows.labels[0] != IGNORED).nonzero()[0])
    assert tokenizer.decode(rows.input_ids[0, first]).strip() == "?"
    without = rows.without_negative_end(tokenizer.eos_token_id)
    assert [int((row != IGNORED).sum()) for row in without.labels] == [2, 2]


def test_word_polarities_mark_their_tokens(tokenizer):
    rows = encode_rows(tokenizer, ["a ?"], ["b c d"], [[1, 0, 1]])
    signs = rows.polarity[0][rows.labels[0] != IGNORED].tolist()
    assert signs == [POSITIVE, NEGATIVE, POSITIVE, POSITIVE]


def test_encoder_decoders_have_the_prompt_apart(tokenizer):
    rows = encode_rows(tokenizer, ["a b ?"], ["c d"], [POSITIVE], seq2seq=True, start=3)
    assert rows.decoder_input_ids[0, 0] == 3
    assert torch.equal(rows.decoder_input_ids[0, 1:], rows.labels[0, :-1])
    assert rows.input_ids.shape[1] == 3


def test_a_mixture_follows_its_weights_and_depends_on_the_step_alone(tokenizer):
    one = encode_rows(tokenizer, ["a ?"] * 10, ["b"] * 10, [POSITIVE] * 10)
    other = encode_rows(tokenizer, ["a b c ?"] * 5, ["c d"] * 5, [NEGATIVE] * 5)
    batches = mixture_batches({"one": (one, 3.0), "other": (other, 1.0)}, 400, tokenizer.pad_token_id, 0)
    batch, again = batches(7), batches(7)
    assert torch.equal(batch.labels, again.labels) and not torch.equal(batch.labels, batches(8).labels)
    share = (batch.labels[:, -1] != IGNORED).float().mean()  # only rows of `other` are that long
    assert 0.17 < float(share) < 0.33
    assert len(join([one, other], 0)) == 15
