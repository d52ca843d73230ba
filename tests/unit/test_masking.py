"""Masking: counts, streams, copies, replacement, words, spans and units."""

import math

import numpy as np
import pytest
import torch

from reclaim.errors import InputError
from reclaim.masking import Masker, draw_spans, span_lengths
from reclaim.masking_legacy import numpy_seed
from reclaim.pmi import UnitMatcher

VOCAB, MASK, PAD = 65, 64, 1
SPECIAL_IDS = (0, 1, 2, 3)
# From 6 on every third id continues a word.
WORD_START = [not (i >= 6 and i % 3 == 0) for i in range(VOCAB)]
UNITS = UnitMatcher([[10, 11], [10, 11, 13], [13, 14], [20, 21, 22], [7, 8]])


def batch(rows: int, length: int = 128, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(4, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return ids


def masker(scheme: str = "uniform", corruption: float = 0.4, prediction: float | None = None, **options) -> Masker:
    options = {"seed": 5, "vocab_size": VOCAB, "mask_token_id": MASK, "special_ids": SPECIAL_IDS} | options
    if scheme == "whole_word":
        options.setdefault("word_start", WORD_START)
    if scheme == "pmi":
        options.setdefault("units", UNITS)
    return Masker(scheme, corruption, prediction, **options)


def by_copy(masked, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Corrupted and predicted positions, [copies, rows, length]; for mask-only replacement."""
    shape = (masked.copies, rows, -1)
    return (masked.input_ids == MASK).reshape(shape), masked.predicted.reshape(shape)


# --- counts


@pytest.mark.parametrize("rate", [0.15, 0.4, 0.8])
def test_the_count_is_almost_fixed_and_not_a_coin_per_token(rate):
    rows = 4000
    masked = masker(corruption=rate).mask(batch(rows), 0, torch.arange(rows))
    counts = masked.predicted.sum(1).double()
    assert set(counts.tolist()) <= {math.floor(rate * 128), math.ceil(rate * 128)}
    assert abs(counts.mean() - rate * 128) < 0.03
    assert counts.var() < 0.26  # a coin per token: 128 * rate * (1 - rate), 16 to 31
    assert torch.equal(masked.input_ids == MASK, masked.predicted)


def test_special_tokens_are_candidates_unless_the_caller_says_otherwise():
    rows, ids = 2000, batch(2000)
    open_to_all = masker().mask(ids, 0, torch.arange(rows))
    assert 0.35 < open_to_all.predicted[:, 0].double().mean() < 0.45
    without = masker().mask(ids, 0, torch.arange(rows), eligible=ids >= 4)
    assert not without.predicted[:, 0].any()
    assert abs(without.predicted.sum(1).double().mean() - 0.4 * 127) < 0.05


@pytest.mark.parametrize("scheme", ["uniform", "whole_word", "span", "pmi"])
def test_rows_of_different_length_mask_no_padding_and_do_not_depend_on_its_width(scheme):
    rows = 200
    lengths = torch.arange(rows) % 60 + 1
    ids = batch(rows, 64)
    attention_mask = (torch.arange(64) < lengths[:, None]).long()
    ids[attention_mask == 0] = PAD
    tool = masker(scheme, replacement="80-10-10")
    masked = tool.mask(ids, 3, torch.arange(rows), attention_mask)
    assert not (masked.predicted & (attention_mask == 0)).any()
    assert torch.equal(masked.input_ids[attention_mask == 0], ids[attention_mask == 0])
    counts, n = masked.predicted.sum(1), lengths.double()
    if scheme == "uniform":
        assert ((counts == (0.4 * n).floor()) | (counts == (0.4 * n + 1).floor())).all()
    if scheme == "span":
        assert torch.equal(counts, (0.4 * n).ceil().long())
    for row in (3, 30, 59, 170):
        alone = tool.mask(ids[row : row + 1, : lengths[row]], 3, [row])
        assert torch.equal(alone.labels[0], masked.labels[row, : lengths[row]])
        assert torch.equal(alone.input_ids[0], masked.input_ids[row, : lengths[row]])


def test_a_block_of_one_token_may_stay_whole():
    ids = torch.zeros((500, 1), dtype=torch.long)
    counts = masker(corruption=0.15).mask(ids, 0, torch.arange(500)).predicted.sum(1)
    assert 0.08 < counts.double().mean() < 0.22


# --- the stream


@pytest.mark.parametrize("scheme", ["uniform", "whole_word", "span", "pmi"])
def test_a_mask_depends_on_seed_epoch_and_index_only(scheme):
    rows, ids = 96, batch(96)
    tool = masker(scheme, replacement="80-10-10")
    whole = tool.mask(ids, 7, torch.arange(rows))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    fresh = masker(scheme, replacement="80-10-10")
    torch.manual_seed(99)
    pieces = [fresh.mask(ids[part], 7, part) for part in order.split(10)]
    assert torch.equal(torch.cat([piece.input_ids for piece in pieces]), whole.input_ids[order])
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), whole.labels[order])
    others = [
        tool.mask(ids, 8, torch.arange(rows)),
        masker(scheme, seed=6, replacement="80-10-10").mask(ids, 7, torch.arange(rows)),
        tool.mask(ids, 7, torch.arange(rows) + rows),
    ]
    for other in others:
        differ = (other.predicted != whole.predicted).double().mean()
        assert differ > 0.3, "masks of another epoch, seed or index should be independent: 2 * 0.4 * 0.6"


def test_no_two_of_many_examples_share_their_positions():
    n = 20_000
    ids = torch.full((n, 64), 9)
    labels = masker().mask(ids, 0, torch.arange(n)).predicted.numpy()
    assert len({row.tobytes() for row in labels}) == n
    assert len({numpy_seed(5, 0, index) for index in range(n)}) < 0.7 * n  # what the old stream would have given


def test_positions_and_neighbours_are_masked_evenly_and_independently():
    rows, length, rate = 20_000, 32, 0.25
    chosen = masker(corruption=rate).mask(torch.full((rows, length), 9), 0, torch.arange(rows)).predicted.double()
    error = math.sqrt(rate * (1 - rate) / rows)
    assert ((chosen.mean(0) - rate).abs() < 4.5 * error).all()
    # Pairs of positions in a row: drawn without replacement; the same position in the next row: independent.
    together = (chosen[:, :-1] * chosen[:, 1:]).mean().item()
    assert abs(together - rate * (rate * length - 1) / (length - 1)) < 0.002
    assert abs((chosen[:-1] * chosen[1:]).mean().item() - rate**2) < 0.002


# --- corruption and prediction


@pytest.mark.parametrize("scheme", ["uniform", "whole_word", "span", "pmi"])
def test_a_lower_prediction_rate_predicts_a_subset_of_the_masked(scheme):
    rows = 1000
    masked = masker(scheme, 0.4, 0.2).mask(batch(rows), 0, torch.arange(rows))
    corrupted, predicted = (side[0] for side in by_copy(masked, rows))
    assert masked.copies == 1
    assert not (predicted & ~corrupted).any()
    assert abs(corrupted.double().mean() - 0.4) < 0.008
    counts = predicted.sum(1)
    assert counts.min() >= 25 and counts.max() <= 26
    # The subset is a uniform one: the share predicted among the masked is the same at every position.
    share = predicted.sum(0) / corrupted.sum(0)
    assert (share - 0.5).abs().max() < 0.12


@pytest.mark.parametrize("scheme", ["uniform", "whole_word", "span", "pmi"])
@pytest.mark.parametrize(
    "corruption, prediction, copies", [(0.2, 0.4, 2), (0.1, 0.4, 4), (0.05, 0.4, 8), (0.15, 0.4, 3)]
)
def test_a_higher_prediction_rate_makes_disjoint_copies_whose_union_has_its_size(
    scheme, corruption, prediction, copies
):
    rows, ids = 600, batch(600)
    masked = masker(scheme, corruption, prediction).mask(ids, 0, torch.arange(rows))
    corrupted, predicted = by_copy(masked, rows)
    assert masked.copies == copies
    assert corrupted.sum(0).max() == 1, "no position is masked in two copies"
    assert not (predicted & ~corrupted).any()
    assert (corrupted.double().mean((1, 2)) - corruption).abs().max() < 0.012
    union = predicted.any(0).sum(1).double()
    assert torch.equal(union, predicted.sum((0, 2)).double())
    slack = {"uniform": 1, "span": 1, "pmi": 2}.get(scheme)
    if slack:
        assert (union - prediction * 128).abs().max() <= slack
    assert abs(union.mean() - prediction * 128) < 1
    assert torch.equal(masked.labels[masked.predicted], ids.repeat(copies, 1)[masked.predicted])


def test_the_mean_over_all_predictions_is_the_gradient_of_the_concatenated_batch():
    rows, ids = 6, batch(6, 40)
    masked = masker("uniform", 0.15, 0.4).mask(ids, 0, torch.arange(rows))
    table = torch.nn.Embedding(VOCAB, VOCAB)
    with torch.no_grad():
        table.weight.normal_(generator=torch.Generator().manual_seed(0))

    def loss(part, reduction):
        logits = table(masked.input_ids[part])[masked.predicted[part]]
        return torch.nn.functional.cross_entropy(
            logits, masked.labels[part][masked.predicted[part]], reduction=reduction
        )

    def gradient(value):
        return torch.autograd.grad(value, table.weight)[0]

    copies = [slice(c * rows, (c + 1) * rows) for c in range(masked.copies)]
    whole = gradient(loss(slice(None), "mean"))
    summed = sum(gradient(loss(part, "sum")) for part in copies) / int(masked.predicted.sum())
    of_means = sum(gradient(loss(part, "mean")) for part in copies) / len(copies)
    torch.testing.assert_close(summed, whole)
    # The last copy predicts fewer tokens, so that averaging per copy gives another gradient.
    assert (of_means - whole).abs().max() > 1e-3


# --- replacement


def test_shares_of_replacement_and_ids_that_are_never_drawn():
    rows, ids = 2000, batch(2000)
    masked = masker(replacement=(0.5, 0.3, 0.2), special_ids=SPECIAL_IDS).mask(ids, 0, torch.arange(rows))
    at = masked.predicted
    inputs, original = masked.input_ids[at], ids[at]
    hit = 1 / (VOCAB - 4)
    original_special = (original < 4).double().mean().item()
    assert abs((inputs == original).double().mean() - (0.2 + 0.3 * hit)) < 0.01
    assert abs((inputs == MASK).double().mean() - (0.5 + 0.3 * hit)) < 0.01
    drawn = inputs[(inputs != original) & (inputs != MASK)]
    assert abs(len(drawn) / len(inputs) - 0.3 * (1 - 2 * hit)) < 0.01 + original_special
    assert drawn.min() >= 4
    share = torch.bincount(drawn, minlength=VOCAB)[4:MASK].double() / len(drawn)
    assert (share * 60 - 1).abs().max() < 0.15, "random ids are uniform"
    assert torch.equal(masked.labels[at], original), "same and random positions keep their target"


def test_the_number_of_targets_does_not_depend_on_the_replacement():
    rows, ids = 300, batch(300)
    plain = masker().mask(ids, 0, torch.arange(rows))
    for replacement in ("80-10-10", (0.5, 0.0, 0.5), (0.0, 0.0, 1.0)):
        other = masker(replacement=replacement).mask(ids, 0, torch.arange(rows))
        assert torch.equal(other.labels, plain.labels)
    assert torch.equal(other.input_ids, ids)


def test_the_mask_token_is_drawn_as_a_random_id_only_if_it_is_not_special():
    rows, ids = 500, batch(500)
    options = {"replacement": (0.0, 1.0, 0.0)}
    assert (masker(**options).mask(ids, 0, torch.arange(rows)).input_ids == MASK).any()
    without = masker(special_ids=(*SPECIAL_IDS, MASK), **options).mask(ids, 0, torch.arange(rows))
    assert not (without.input_ids == MASK).any()


def test_weighted_random_ids_follow_their_weights():
    rows, ids = 2000, batch(2000)
    weights = np.zeros(VOCAB)
    weights[[0, 10, 11, 12]] = 100, 1, 2, 5
    masked = masker(replacement=(0.0, 1.0, 0.0), random_weights=weights).mask(ids, 0, torch.arange(rows))
    drawn = torch.bincount(masked.input_ids[masked.predicted], minlength=VOCAB).double()
    np.testing.assert_allclose(drawn[[10, 11, 12]] / drawn.sum(), np.array([1, 2, 5]) / 8, atol=0.01)
    assert drawn[0] == 0


# --- words, spans, units


def test_whole_words_are_masked_whole_and_alike():
    rows, ids = 1500, batch(1500)
    begins = torch.tensor(WORD_START)[ids]
    begins[:, 0] = True
    word = begins.long().cumsum(1)
    words = word[:, -1].double()
    masked = masker("whole_word", replacement=(0.6, 0.2, 0.2)).mask(ids, 0, torch.arange(rows))
    same_word = word[:, 1:] == word[:, :-1]
    assert same_word.any()
    at = masked.predicted
    assert torch.equal(at[:, 1:][same_word], at[:, :-1][same_word])
    masked_words = (at & begins).sum(1)
    assert ((masked_words == (0.4 * words).floor()) | (masked_words == (0.4 * words + 1).floor())).all()
    assert at.sum(1).double().var() > 2, "the number of tokens varies: only that of words is fixed"
    # Inside a word either all tokens are the mask token, or all are kept, or each has its own random id.
    is_mask = masked.input_ids == MASK
    pairs = same_word & at[:, 1:] & at[:, :-1]
    disagree = (is_mask[:, 1:] != is_mask[:, :-1])[pairs].double().mean()
    assert disagree < 0.02, "only a random id that happens to be the mask token"
    inputs = masked.input_ids
    is_random = at & (inputs != ids) & ~is_mask
    both = pairs & is_random[:, 1:] & is_random[:, :-1]
    assert (inputs[:, 1:] == inputs[:, :-1])[both].double().mean() < 0.1


def test_a_word_whose_first_token_may_not_be_masked_is_masked_from_the_next_on():
    ids = torch.tensor([[0, 9, 9, 5, 7]]).repeat(400, 1)
    eligible = ids != 0
    chosen = masker("whole_word", 0.4).mask(ids, 0, torch.arange(400), eligible=eligible).predicted
    assert not chosen[:, 0].any()
    assert torch.equal(chosen[:, 1], chosen[:, 2]) and 0.3 < chosen[:, 1].double().mean() < 0.5


@pytest.mark.parametrize("rate", [0.15, 0.4, 0.8])
@pytest.mark.parametrize("words", [True, False])
def test_spans_corrupt_exactly_the_rounded_up_rate(rate, words):
    rows, ids = 400, batch(400, 127)
    masked = masker("span", rate, word_start=WORD_START if words else None).mask(ids, 0, torch.arange(rows))
    assert (masked.predicted.sum(1) == math.ceil(rate * 127)).all()


def test_span_lengths_are_renormalised_and_not_clipped():
    lengths = span_lengths(0.2, 10)
    assert abs(lengths.sum() - 1) < 1e-12
    assert abs(lengths[-1] - 0.0301) < 1e-4  # 0.134 if the tail were put on the last
    assert abs(lengths @ np.arange(1, 11) - 3.797) < 1e-3


def test_first_spans_have_the_lengths_and_anchors_of_the_distribution():
    rows, n = 20_000, 200
    draws = torch.rand(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cdf = torch.from_numpy(np.cumsum(span_lengths(0.2, 10)))
    free = torch.ones((rows, n), dtype=torch.bool)
    masked, spans = draw_spans(free, None, torch.full((rows,), 100), cdf, draws)
    first, last = spans[0, :, 0], spans[0, :, 1]
    assert torch.equal(masked.sum(1), last - first + 1)
    inside = first <= n - 10
    share = torch.bincount((last - first + 1)[inside], minlength=11)[1:].double() / inside.sum()
    np.testing.assert_allclose(share, span_lengths(0.2, 10), atol=0.012)
    assert abs(first.double().mean() - (n - 1) / 2) < 1.5


def test_spans_take_whole_words_from_the_start_of_the_anchors_word():
    rows = 3000
    begins = (torch.arange(60) % 3 == 0).expand(rows, 60)
    draws = torch.rand(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cdf = torch.from_numpy(np.cumsum(span_lengths(0.2, 10)))
    free = torch.ones((rows, 60), dtype=torch.bool)
    _, spans = draw_spans(free, begins, torch.full((rows,), 60), cdf, draws)
    assert (spans[0, :, 0] % 3 == 0).all() and (spans[0, :, 1] % 3 == 2).all()
    # With a budget of four tokens the second word is cut in its first one.
    masked, spans = draw_spans(free, begins, torch.full((rows,), 4), cdf, draws)
    cut = spans[0, :, 1] - spans[0, :, 0] == 3
    assert cut.any() and masked.sum(1).max() == 4


def test_spans_are_replaced_as_runs_unless_each_token_is_to_draw():
    rows, ids = 800, batch(800)
    special_ids = (*SPECIAL_IDS, MASK)
    options = {"replacement": (0.5, 0.0, 0.5), "special_ids": special_ids}

    def disagreement(**more):
        masked = masker("span", 0.3, **options, **more).mask(ids, 0, torch.arange(rows))
        at, is_mask = masked.predicted, masked.input_ids == MASK
        pairs = at[:, 1:] & at[:, :-1]
        return (is_mask[:, 1:] != is_mask[:, :-1])[pairs].double().mean().item()

    assert disagreement() == 0
    assert abs(disagreement(replace_tokens_alone=True) - 0.5) < 0.02


def test_spans_are_longer_runs_than_single_tokens():
    rows, ids = 500, batch(500)

    def runs(scheme):
        chosen = masker(scheme, 0.15).mask(ids, 0, torch.arange(rows)).predicted
        return chosen[:, 0].sum() + (chosen[:, 1:] & ~chosen[:, :-1]).sum()

    assert runs("span") < 0.45 * runs("uniform")


def test_units_are_masked_whole_and_within_the_budget():
    rows, ids = 2000, batch(2000, 50)
    ids[:, 5:7] = torch.tensor([7, 8])
    ids[:, 20:23] = torch.tensor([20, 21, 22])
    ids[:, 30:32] = torch.tensor([10, 11])
    ids[:, 32] = 40
    masked = masker("pmi", 0.3).mask(ids, 0, torch.arange(rows))
    at = masked.predicted
    assert torch.equal(at[:, 5], at[:, 6]) and torch.equal(at[:, 30], at[:, 31])
    assert torch.equal(at[:, 20], at[:, 21]) and torch.equal(at[:, 21], at[:, 22])
    assert not torch.equal(at[:, 5], at[:, 20])
    counts = at.sum(1)
    assert (counts.double() - 15).abs().max() <= 2, "half of the longest unit, rounded up"
    assert abs(counts.double().mean() - 15) < 0.5
    assert abs(at[:, 20].double().mean() - 0.3) < 0.05, "long units are drawn as often as single words"


def test_overlapping_units_are_kept_at_random_and_contained_ones_dropped():
    # 10 11 13 14: [10 11] lies inside [10 11 13], which overlaps [13 14].
    rows = 2000
    ids = torch.tensor([[5, 10, 11, 13, 14, 5]]).repeat(rows, 1)
    chosen = masker("pmi", 0.5).mask(ids, 0, torch.arange(rows)).predicted
    # Kept as 10 11 13 in half of the rows, as 13 14 in the others, where 10 and 11 are words of their own.
    left = (chosen[:, 1] == chosen[:, 2]) & (chosen[:, 2] == chosen[:, 3])
    right = chosen[:, 3] == chosen[:, 4]
    assert (left | right).all()
    assert 0.2 < (~left).double().mean() < 0.5 and 0.2 < (~right).double().mean() <= 0.5
    again = masker("pmi", 0.5).mask(ids, 1, torch.arange(rows)).predicted
    assert not torch.equal(chosen, again)


# --- bad input


@pytest.mark.parametrize(
    "arguments, options, word",
    [
        (("uniform", 0.0), {}, "corruption_rate"),
        (("uniform", 1.0), {}, "corruption_rate"),
        (("uniform", 15), {}, "corruption_rate"),
        (("uniform", 0.4, 1.0), {}, "prediction_rate"),
        (("uniform", 0.4, 0.9), {}, "disjoint"),
        (("words", 0.4), {}, "scheme"),
        (("whole_word", 0.4), {"word_start": None}, "word_start"),
        (("whole_word", 0.4), {"word_start": [True] * 7}, "word_start"),
        (("pmi", 0.4), {"units": None}, "units"),
        (("uniform", 0.4), {"replacement": "80-20"}, "replacement"),
        (("uniform", 0.4), {"replacement": (0.8, 0.1, 0.2)}, "replacement"),
        (("uniform", 0.4), {"random_weights": [1.0, 2.0]}, "random_weights"),
        (("uniform", 0.4), {"special_ids": (0, 65)}, "special_ids"),
        (("span", 0.4), {"span_p": 1.5}, "span_p"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, options, word):
    with pytest.raises(InputError, match=word):
        masker(*arguments, **options)


def test_bad_batches_are_refused():
    with pytest.raises(InputError, match="indices"):
        masker().mask(batch(4), 0, [0, 1])
    with pytest.raises(InputError, match="attention_mask"):
        masker().mask(batch(4), 0, range(4), attention_mask=torch.ones(4, 5))


def test_copies_that_use_up_all_tokens_are_allowed():
    rows = 50
    masked = masker("uniform", 0.25, 0.9).mask(batch(rows), 0, torch.arange(rows))
    corrupted, predicted = by_copy(masked, rows)
    assert corrupted.any(0).all()
    assert (predicted.sum((0, 2)).double() - 0.9 * 128).abs().max() < 1
