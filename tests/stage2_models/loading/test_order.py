"""The order of samples: each once, the same for everyone who knows (seed, epoch, rank, world size)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stage2_models.loading.order import BUCKET_BATCHES, epoch_batches, global_batch_sizes

SIZES = st.integers(1, 200)
RANKS = st.integers(1, 7)


@given(num_samples=SIZES, batch_size=st.integers(1, 40), world_size=RANKS, bucketed=st.booleans(), seed=SIZES)
@settings(max_examples=200, deadline=None)
def test_the_ranks_together_have_each_sample_once(
    num_samples: int, batch_size: int, world_size: int, bucketed: bool, seed: int
) -> None:
    lengths = np.arange(num_samples) % 17 if bucketed else None
    ranks = [
        epoch_batches(
            num_samples,
            batch_size=batch_size,
            seed=seed,
            epoch=3,
            rank=rank,
            world_size=world_size,
            lengths=lengths,
        )
        for rank in range(world_size)
    ]
    seen = np.concatenate([batch for rank in ranks for batch in rank])
    assert sorted(seen.tolist()) == list(range(num_samples))
    assert len({len(rank) for rank in ranks}) == 1, "every rank has the same number of batches"
    for step in zip(*ranks, strict=True):
        sizes = [len(batch) for batch in step]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        if batch_size > 1 and num_samples >= world_size:
            assert min(sizes) > 0, "no rank of a DDP run is without data"


@given(num_samples=SIZES, batch_size=st.integers(1, 40), world_size=RANKS)
def test_drop_last_leaves_only_full_batches_and_loses_less_than_one(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    sizes = global_batch_sizes(num_samples, batch_size, world_size=world_size, drop_last=True)
    full_size = batch_size * world_size
    assert set(sizes) <= {full_size}
    assert 0 <= num_samples - sum(sizes) < full_size


@given(num_samples=SIZES, batch_size=st.integers(1, 20), world_size=RANKS)
def test_ranks_see_together_what_one_process_with_a_larger_batch_sees(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    full_size = batch_size * world_size
    alone = epoch_batches(num_samples, batch_size=full_size, seed=5, epoch=1)
    ranks = [
        epoch_batches(num_samples, batch_size=batch_size, seed=5, epoch=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for number in range(num_samples // full_size - 1):  # the last two may share samples out differently
        together = np.concatenate([rank[number] for rank in ranks])
        assert set(together.tolist()) == set(alone[number].tolist())


def test_order_is_the_same_each_time_and_another_for_each_epoch_and_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(1000, batch_size=100, seed=seed, epoch=epoch)
        return [int(index) for index in np.concatenate(batches)]

    assert order(1, 2) == order(1, 2)
    # A sum of seed and epoch would make the second pair equal to the first.
    assert len({tuple(order(seed, epoch)) for seed, epoch in [(1, 2), (2, 1), (1, 1), (2, 2), (0, 3)]}) == 5


def test_the_order_of_seed_0_and_epoch_0_never_changes() -> None:
    """Runs that were begun with an older version go on with the same batches."""
    batches = epoch_batches(8, batch_size=3, seed=0, epoch=0)
    assert [batch.tolist() for batch in batches] == [[2, 4, 3], [6, 5, 0], [1, 7]]


def test_without_shuffling_the_samples_keep_their_order() -> None:
    batches = epoch_batches(7, batch_size=3, seed=9, epoch=4, shuffle=False)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_last_batch_smaller_than_the_ranks_borrows_from_the_one_before() -> None:
    assert global_batch_sizes(17, 4, world_size=4, drop_last=False) == [13, 4]
    assert global_batch_sizes(20, 4, world_size=4, drop_last=False) == [16, 4]
    assert global_batch_sizes(17, 16, world_size=1, drop_last=False) == [16, 1]


def test_bucketing_pads_far_less_and_still_shuffles() -> None:
    lengths = np.random.default_rng(0).integers(3, 20, size=20_000)

    def padding(batches: list[NDArray[np.int64]]) -> float:
        padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
        return padded / int(lengths.sum()) - 1

    plain = epoch_batches(20_000, batch_size=64, seed=1, epoch=0)
    bucketed = epoch_batches(20_000, batch_size=64, seed=1, epoch=0, lengths=lengths)
    again = epoch_batches(20_000, batch_size=64, seed=1, epoch=1, lengths=lengths)
    assert padding(plain) > 0.5
    assert padding(bucketed) < 0.04
    means = [lengths[batch].mean() for batch in bucketed]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2, "long batches do not follow each other"
    assert {frozenset(batch.tolist()) for batch in bucketed}.isdisjoint(
        frozenset(batch.tolist()) for batch in again
    ), "batches are put together anew in each epoch"


def test_bucketing_keeps_the_smaller_last_batch_last() -> None:
    num_samples = 64 * BUCKET_BATCHES + 10
    batches = epoch_batches(
        num_samples, batch_size=64, seed=1, epoch=0, lengths=np.arange(num_samples, dtype=np.int64)
    )
    assert [len(batch) for batch in batches] == [64] * BUCKET_BATCHES + [10]


def test_bucketing_without_shuffling_goes_from_the_longest_to_the_shortest() -> None:
    lengths = np.array([2, 9, 4, 9, 1])
    batches = epoch_batches(5, batch_size=2, seed=0, epoch=0, shuffle=False, lengths=lengths)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 0], [4]]


@pytest.mark.parametrize("world_size", [1, 3])
def test_no_samples_give_no_batches(world_size: int) -> None:
    assert epoch_batches(0, batch_size=4, seed=0, epoch=0, world_size=world_size) == []
