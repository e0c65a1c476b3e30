"""The loader gives the store's own bytes, in the promised order, whatever the number of workers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stage2_models.loader import LoadedBatch, Loader, build_loader
from store_schema.errors import UsageError
from store_schema.reader import RegionStore

WORKERS = [0, 1, 2]


@pytest.fixture(scope="module", params=WORKERS)
def loader(request: pytest.FixtureRequest, adaptive_store: RegionStore) -> Iterator[Loader]:
    """Batches of 7 over the adaptive store; one loader for all tests of the file, epochs are independent."""
    with build_loader(
        adaptive_store, adaptive_store.all_rows, batch_size=7, seed=3, workers=request.param
    ) as loader:
        yield loader


def assert_right(batches: Sequence[LoadedBatch], store: RegionStore, rows: NDArray[np.int64]) -> None:
    """Hold batches against what the store's own reader says about their samples."""
    for batch in batches:
        expected = store.read_rows(rows[batch.indices])
        slots = max(int(expected.num_regions.max()), 1)
        regions = batch.regions
        assert regions.features.dtype == torch.float16
        np.testing.assert_array_equal(regions.features.numpy(), expected.features[:, :slots])
        np.testing.assert_array_equal(regions.boxes.numpy(), expected.boxes[:, :slots])
        np.testing.assert_array_equal(regions.sizes.numpy(), expected.sizes)
        np.testing.assert_array_equal(regions.num_regions.numpy(), expected.num_regions)
        np.testing.assert_array_equal(
            regions.mask.numpy(), np.arange(slots) < expected.num_regions[:, np.newaxis]
        )


def test_batches_hold_what_the_store_says_and_zeros_in_padded_slots(
    loader: Loader, adaptive_store: RegionStore
) -> None:
    seen = []
    for batch in loader.epoch(0):
        assert_right([batch], adaptive_store, adaptive_store.all_rows)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(len(adaptive_store)))
    assert len(loader) == -(-len(adaptive_store) // 7)


def test_a_list_of_all_batches_holds_right_values(loader: Loader, adaptive_store: RegionStore) -> None:
    """Reused buffers made 10 of 12 such batches silently wrong in a prototype."""
    assert_right(list(loader.epoch(1)), adaptive_store, adaptive_store.all_rows)


def test_slices_that_outlive_their_batches_hold_right_values(
    loader: Loader, adaptive_store: RegionStore
) -> None:
    order = [batch.indices for batch in loader.epoch(2)]
    slices = [batch.regions.features[:1] for batch in loader.epoch(2)]
    for indices, features in zip(order, slices, strict=True):
        expected = adaptive_store.read_rows(adaptive_store.all_rows[indices[:1]]).features
        np.testing.assert_array_equal(features.numpy(), expected[:, : features.shape[1]])


@pytest.mark.parametrize("name", ["features", "boxes", "sizes", "num_regions"])
def test_each_tensor_alone_keeps_its_values_across_epochs(
    loader: Loader, adaptive_store: RegionStore, name: str
) -> None:
    first = next(loader.epoch(3))
    kept, before = getattr(first.regions, name), getattr(first.regions, name).clone()
    del first
    for epoch in range(4, 7):
        for _ in loader.epoch(epoch):
            pass
    assert torch.equal(kept, before)


def test_epochs_differ_and_repeat(loader: Loader) -> None:
    def order(epoch: int) -> list[int]:
        return [int(index) for batch in loader.epoch(epoch) for index in batch.indices]

    assert order(7) == order(7)
    assert order(7) != order(8)


def test_an_epoch_that_was_left_does_not_disturb_the_next(
    loader: Loader, adaptive_store: RegionStore
) -> None:
    for _ in range(5):
        left = loader.epoch(9)
        next(left)
    assert_right(list(loader.epoch(10)), adaptive_store, adaptive_store.all_rows)
    with pytest.raises(UsageError, match="epoch\\(\\) was called again"):
        next(left)


def test_resume_gives_the_same_batches_with_other_workers(
    loader: Loader, adaptive_store: RegionStore
) -> None:
    whole = list(loader.epoch(11))
    with build_loader(adaptive_store, adaptive_store.all_rows, batch_size=7, seed=3, workers=0) as other:
        rest = list(other.epoch(11, start=4))
    back = list(loader.epoch(11, start=4))
    assert len(rest) == len(whole) - 4
    for expected, there, here in zip(whole[4:], rest, back, strict=True):
        for batch in (there, here):
            np.testing.assert_array_equal(batch.indices, expected.indices)
            assert torch.equal(batch.regions.features, expected.regions.features)


def test_start_at_the_end_gives_nothing_and_behind_it_is_refused(loader: Loader) -> None:
    assert list(loader.epoch(0, start=len(loader))) == []
    with pytest.raises(UsageError, match="another batch size"):
        loader.epoch(0, start=len(loader) + 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_may_come_several_times_in_a_batch(store: RegionStore, workers: int) -> None:
    rows = np.array([5, 5, 5, 2, 5, 2])
    with build_loader(store, rows, batch_size=6, seed=0, workers=workers) as loader:
        assert_right(list(loader.epoch(0)), store, rows)


def test_ranks_share_the_samples(store: RegionStore) -> None:
    rows = store.all_rows[:50]
    parts = [
        build_loader(store, rows, batch_size=4, seed=1, workers=0, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert len({len(part) for part in parts}) == 1
    seen = [int(index) for part in parts for batch in part.epoch(0) for index in batch.indices]
    assert sorted(seen) == list(range(50))


def test_a_rank_without_samples_gets_an_empty_batch(store: RegionStore) -> None:
    loader = build_loader(store, store.all_rows[:2], batch_size=4, seed=1, workers=0, rank=2, world_size=3)
    (batch,) = loader.epoch(0)
    assert len(batch) == 0
    assert batch.regions.features.shape == (0, 1, store.metadata.feature_dim)
    assert batch.regions.mask.shape == (0, 1)


def test_lengths_put_texts_of_like_length_together(store: RegionStore) -> None:
    lengths = np.arange(len(store)) % 5
    with build_loader(store, store.all_rows, batch_size=5, seed=1, workers=0, lengths=lengths) as loader:
        spread = [np.ptp(lengths[batch.indices]) for batch in loader.epoch(0)]
    assert np.mean(spread) < 0.5


def test_drop_last_leaves_out_the_smaller_batch(store: RegionStore) -> None:
    loader = build_loader(store, store.all_rows, batch_size=10, seed=1, workers=0, drop_last=True)
    assert [len(batch) for batch in loader.epoch(0)] == [10] * 7


def test_to_moves_every_tensor_and_a_batch_on_the_device_is_not_copied(store: RegionStore) -> None:
    batch = next(build_loader(store, store.all_rows, batch_size=4, seed=0, workers=0).epoch(0))
    moved = batch.regions.to("cpu", non_blocking=True)
    assert moved.features.data_ptr() == batch.regions.features.data_ptr()
    meta = batch.regions.to("meta")
    assert {tensor.device.type for tensor in (meta.features, meta.boxes, meta.sizes, meta.num_regions)} == {
        "meta"
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_reach_the_gpu_whole(store: RegionStore) -> None:
    with build_loader(store, store.all_rows, batch_size=7, seed=0, workers=2, pin="on") as loader:
        moved = [(batch.indices, batch.regions.to("cuda", non_blocking=True)) for batch in loader.epoch(0)]
        pinned = next(loader.epoch(1)).regions.features.is_pinned()
    assert pinned
    for indices, regions in moved:
        expected = store.read_rows(store.all_rows[indices]).features
        np.testing.assert_array_equal(regions.features.cpu().numpy(), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size of the loader must be at least 1, got 0"),
        ({"workers": -1}, "workers of the loader must be at least 0, got -1"),
        ({"seed": -1}, "seed of the loader must be at least 0"),
        ({"rank": 2, "world_size": 2}, "rank must be below world_size 2, got 2"),
        ({"pin": "yes"}, "pin must be 'auto', 'on' or 'off', got 'yes'"),
        ({"lengths": np.zeros(3, np.int64)}, "lengths must have one number a sample, 75"),
        ({"batch_size": 100, "drop_last": True}, "drop_last leaves no batch of 75 samples"),
    ],
)
def test_options_out_of_range_are_refused(store: RegionStore, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_loader(store, store.all_rows, **{"batch_size": 4, "seed": 0, "workers": 0, **options})


def test_rows_without_a_picture_are_refused(store: RegionStore, adaptive_store: RegionStore) -> None:
    with pytest.raises(UsageError, match="row 75 of the samples holds no picture"):
        build_loader(store, np.array([1, 75]), batch_size=1, seed=0)
    with pytest.raises(UsageError, match="row 40 of the samples holds no picture"):  # the bad picture's
        build_loader(adaptive_store, np.arange(75), batch_size=1, seed=0)
    with pytest.raises(UsageError, match="at least one store row"):
        build_loader(store, np.array([], np.int64), batch_size=1, seed=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without CUDA")
def test_pinning_without_cuda_is_refused(store: RegionStore) -> None:
    with pytest.raises(UsageError, match="pin='on' needs CUDA"):
        build_loader(store, store.all_rows, batch_size=4, seed=0, pin="on")


def test_more_memory_than_there_is_is_refused_with_the_sum(store: RegionStore) -> None:
    loader = build_loader(store, store.all_rows, batch_size=10**10, seed=0, workers=2)
    with pytest.raises(
        UsageError, match=r"the loader needs 7 buffers .* GB in all, but only .* smaller batch size"
    ):
        loader.epoch(0)
