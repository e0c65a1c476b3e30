"""Slots come back when nothing refers to them, and never before."""

import gc
import os
import resource
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stage2_models.loading.buffers import SlotLayout, SlotPool, map_slots
from stage2_models.loading.memory import available_bytes
from store_schema.errors import UsageError

LAYOUT = SlotLayout(batch_size=3, max_regions=4, feature_dim=5, feature_dtype="float16")


def take(pool: SlotPool) -> int:
    slot = pool.take()
    assert slot is not None
    return slot


@given(
    batch_size=st.integers(1, 9), max_regions=st.integers(1, 9), feature_dim=st.integers(1, 9), data=st.data(),
    dtype=st.sampled_from(["float16", "float32"]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_arrays_of_a_slot_fit_into_it_and_do_not_overlap(
    batch_size: int, max_regions: int, feature_dim: int, data: st.DataObject, dtype: str
) -> None:
    layout = SlotLayout(
        batch_size=batch_size, max_regions=max_regions, feature_dim=feature_dim, feature_dtype=dtype
    )
    num_images = data.draw(st.integers(0, batch_size))
    num_slots = data.draw(st.integers(1, max_regions))
    slot = np.zeros(layout.slot_bytes, np.uint8)
    arrays, rows = layout.arrays(slot, num_images, num_slots), layout.rows(slot, num_images)
    everything: list[NDArray[Any]] = [rows, arrays.num_regions, arrays.sizes, arrays.boxes, arrays.features]
    assert arrays.features.shape == (num_images, num_slots, feature_dim)
    assert arrays.boxes.shape == (num_images, num_slots, 4)
    for number, array in enumerate(everything):
        array[...] = number + 1
    for number, array in enumerate(everything):
        assert (array == number + 1).all()


def test_a_slot_is_free_when_the_last_slice_of_the_last_tensor_is_gone() -> None:
    pool = SlotPool(LAYOUT, 1)
    slot = take(pool)
    arrays = LAYOUT.arrays(pool.lease(slot), 3, 4)
    kept = torch.from_numpy(arrays.features)[1:2].float()  # a copy: holds nothing
    part = torch.from_numpy(arrays.boxes)[:, 0].unsqueeze(1)  # a view of a view of a view
    del arrays
    gc.collect()
    assert pool.take() is None
    assert pool.num_leased() == 1
    del part
    assert pool.num_leased() == 0
    assert pool.take() == slot
    assert kept.shape == (1, 4, 5)


def test_tensors_stay_valid_when_the_pool_is_gone() -> None:
    pool = SlotPool(LAYOUT, 2)
    slot = take(pool)
    LAYOUT.arrays(pool.view(slot), 3, 4).features[...] = 7
    tensor = torch.from_numpy(LAYOUT.arrays(pool.lease(slot), 3, 4).features)
    del pool
    gc.collect()
    assert bool((tensor == 7).all())


def test_another_mapping_of_the_descriptor_sees_the_same_memory_and_no_file_has_a_name() -> None:
    before = set(os.listdir("/dev/shm"))
    pool = SlotPool(LAYOUT, 2)
    map_slots(pool.fd)[10] = 99
    assert pool.memory[10] == 99
    assert set(os.listdir("/dev/shm")) == before
    assert "memfd:butd-loader" in Path("/proc/self/maps").read_text()


def test_a_descriptor_is_closed_with_its_pool() -> None:
    pool = SlotPool(LAYOUT, 1)
    fd = pool.fd
    del pool
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


class HandFence:
    """A device that is done when the test says so."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


def test_a_slot_is_not_free_while_the_device_may_read_it() -> None:
    pool = SlotPool(LAYOUT, 2)
    fences: deque[HandFence] = deque()

    def fence() -> HandFence:
        fences.append(HandFence())
        return fences[-1]

    pool.fence = fence
    leases = [pool.lease(take(pool)) for _ in range(2)]
    leases.clear()
    assert pool.take() is None
    assert len(fences) == 2
    fences[0].done = True
    assert pool.num_leased() == 1
    pool.wait_for_device()
    assert fences[1].done
    assert pool.num_leased() == 0


def test_shared_memory_that_the_system_refuses_is_said_in_words() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(
            UsageError, match=r"refuses shared memory for 2 buffers .* smaller batch size or fewer workers"
        ):
            SlotPool(LAYOUT, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_available_memory_is_at_most_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_bytes() <= total
