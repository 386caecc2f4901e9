"""Properties of the order of the data."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gh_downstream.training import batch_samples, derive_seed, sample_generator, warn_of_repeats

sizes = {"length": st.integers(1, 40), "batch_size": st.integers(1, 12), "seed": st.integers(0, 2**32)}


@given(**sizes, epochs=st.integers(1, 4))
def test_every_sample_comes_once_an_epoch(length, batch_size, seed, epochs):
    steps = -(-epochs * length // batch_size)
    indices = [i for step in range(steps) for _, i in batch_samples(step, length, batch_size, seed)]
    for epoch in range(epochs):
        assert sorted(indices[epoch * length : (epoch + 1) * length]) == list(range(length))


@given(**sizes, step=st.integers(0, 10**6), ranks=st.integers(1, 5))
def test_ranks_share_the_batch_of_one_process(length, batch_size, seed, step, ranks):
    batch_size *= ranks
    parts = [batch_samples(step, length, batch_size, seed, rank, ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {batch_size // ranks}
    assert [sample for part in parts for sample in part] == batch_samples(step, length, batch_size, seed)
    assert [position for part in parts for position, _ in part] == list(range(batch_size))


def test_the_order_is_that_of_a_permutation_of_wide_integers():
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(derive_seed(3, "order", 0)))
    assert [index for _, index in batch_samples(0, 1000, 1000, 3)] == order.tolist()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(i for _, i in batch_samples(step, 50, 50, seed)) for seed in range(3) for step in range(3)]
    assert len(set(orders)) == 9


def test_unequal_shares_and_no_data_are_refused():
    with pytest.raises(ValueError, match="batch of 4 cannot be shared equally by 3"):
        batch_samples(0, 10, 4, seed=0, rank=0, ranks=3)
    with pytest.raises(ValueError, match="no sample"):
        batch_samples(0, 0, 4, seed=0)


def test_seeds_tell_everything_apart():
    parts = [(seed, name, step) for seed in range(5) for name in ("data", "model") for step in range(50)]
    assert max(Counter(derive_seed(*part) for part in parts).values()) == 1
    assert all(0 <= derive_seed(*part) < 2**32 for part in parts)
    assert derive_seed(1, 23) != derive_seed(12, 3) != derive_seed(3, 12)


def test_sample_generators_repeat_and_differ():
    draws = {(s, p): torch.rand(3, generator=sample_generator(0, s, p)) for s in range(3) for p in range(3)}
    assert torch.equal(draws[1, 2], torch.rand(3, generator=sample_generator(0, 1, 2)))
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 9


def test_a_batch_of_more_samples_than_there_are_is_told(caplog):
    warn_of_repeats("batch_size", 12, {"source": 12, "target": 11})
    assert [record.getMessage() for record in caplog.records] == [
        "batch_size=12 is more than the 11 samples of the target: a batch has some of them more than once"
    ]
