"""Directions: drawn in chunks, from private generators, bit for bit as torch draws whole tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclaim.errors import InputError
from reclaim.optim import slots as slots_module
from reclaim.optim.slots import Slot, chunk_bounds, compute_dtype, trainable_slots
from reclaim.optim.streams import PerTensorDirection, Scratch, SequentialDirection, legacy_numpy_seeds

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def slots_of(sizes, dtype=torch.float32):
    return [Slot(f"tensor{i}", torch.zeros(size, dtype=dtype)) for i, size in enumerate(sizes)]


def whole(direction, index):
    return torch.cat([z.clone() for _, _, z in direction.chunks(index)])


@given(numel=st.integers(0, 5000), groups=st.integers(2, 40))
def test_chunks_cover_the_tensor_in_multiples_of_16_with_a_tail_of_at_least_16(numel, groups):
    bounds = list(chunk_bounds(numel, 16 * groups))
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(numel))
    assert all(start % 16 == 0 for start, _ in bounds)
    assert numel < 16 or all(stop - start >= 16 for start, stop in bounds)
    assert all(stop - start <= 16 * groups for start, stop in bounds)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    groups=st.integers(2, 6),
    seed=st.integers(0, 2**40),
)
def test_a_sequential_direction_is_torchs_own_stream(sizes, dtype, groups, seed):
    previous, slots_module.CPU_CHUNK = slots_module.CPU_CHUNK, 16 * groups
    try:
        direction = SequentialDirection(seed, slots_of(sizes, dtype), Scratch())
        drawn = [whole(direction, index) for index in range(len(sizes))]
    finally:
        slots_module.CPU_CHUNK = previous
    generator = torch.Generator().manual_seed(seed)
    for z, size in zip(drawn, sizes, strict=True):
        expected = torch.empty(size, dtype=dtype).normal_(generator=generator)
        assert z.dtype == compute_dtype(dtype)
        assert torch.equal(z.to(dtype), expected)


@pytest.mark.parametrize("numel", [32_752, 32_767, 32_768, 32_769, 65_537, 98_320])
def test_the_real_chunk_size_keeps_the_stream(numel):
    direction = SequentialDirection(7, slots_of([numel, 3, 40]), Scratch())
    drawn = [whole(direction, index) for index in range(3)]
    generator = torch.Generator().manual_seed(7)
    for z in drawn:
        assert torch.equal(z, torch.empty(len(z)).normal_(generator=generator))


def test_no_chunk_is_large_enough_for_torchs_thread_pool():
    assert max(stop - start for start, stop in chunk_bounds(10**6 + 7, slots_module.CPU_CHUNK)) <= 32_768


def test_any_order_gives_the_same_values_with_random_access():
    sizes = [5, 40, 17, 3, 100]
    in_order = SequentialDirection(3, slots_of(sizes), Scratch())
    expected = [whole(in_order, index) for index in range(5)]
    direction = SequentialDirection(3, slots_of(sizes), Scratch(), random_access=True)
    for index in (4, 0, 2, 3, 3, 1, 4):
        assert torch.equal(whole(direction, index), expected[index])


def test_a_sweep_that_was_broken_off_does_not_disturb_the_next():
    direction = SequentialDirection(3, slots_of([100_000, 50]), Scratch())
    expected = [whole(direction, index) for index in range(2)]
    next(direction.chunks(0))
    assert [torch.equal(whole(direction, i), expected[i]) for i in range(2)] == [True, True]


def test_per_tensor_depends_on_the_name_and_not_on_the_neighbours():
    many = PerTensorDirection(11, slots_of([30, 40, 50]), Scratch())
    alone = PerTensorDirection(11, [Slot("tensor1", torch.zeros(40))], Scratch())
    renamed = PerTensorDirection(11, [Slot("other", torch.zeros(40))], Scratch())
    assert torch.equal(whole(many, 1), whole(alone, 0))
    assert not torch.equal(whole(alone, 0), whole(renamed, 0))
    assert not torch.equal(whole(alone, 0), whole(PerTensorDirection(12, alone.slots, Scratch()), 0))


def test_per_tensor_is_stable_across_versions():
    # These values are part of the log format: a change makes old logs unreadable.
    z = whole(PerTensorDirection(1, [Slot("w", torch.zeros(2))], Scratch()), 0)
    assert z.tolist() == pytest.approx([-2.9518866539, 0.5991383195])


def test_legacy_seeds_are_numpys_and_leave_its_global_stream_alone():
    state = np.random.get_state()[1].copy()
    seeds = legacy_numpy_seeds(0)
    assert [next(seeds) for _ in range(3)] == [209652396, 398764591, 924231285]
    assert (np.random.get_state()[1] == state).all()


def test_slots_are_the_trainable_tensors_once_and_in_order():
    module = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3, bias=False) for name in "abc"})
    module["c"].weight = module["a"].weight
    module["b"].weight.requires_grad_(False)
    assert [slot.name for slot in trainable_slots(module.named_parameters())] == ["a.weight"]


@pytest.mark.parametrize(
    ("pairs", "word"),
    [
        (lambda w: [("w", w.t())], "contiguous"),
        (lambda w: [("w", w.to("meta"))], "with data"),
        (lambda w: [("w", w), ("w", w * 1)], "unique"),
        (lambda w: [("w", w), ("part", w[1:])], "separate"),
        (lambda w: [], "at least one"),
    ],
)
def test_tensors_that_cannot_be_trained_in_place_are_refused(pairs, word):
    with pytest.raises(InputError, match=word):
        trainable_slots(pairs(torch.zeros(4, 3, requires_grad=True)))
