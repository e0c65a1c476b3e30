"""From the rows of batches to batches of tensors: owns the loader's memory and whoever fills it."""

import logging
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from stage2_models.loading.batch import RegionBatch
from stage2_models.loading.buffers import Fence, SlotLayout, SlotPool
from stage2_models.loading.fill import fill
from stage2_models.loading.memory import GIGABYTE
from stage2_models.loading.pinning import Pin, decide_pinning, pin_memory
from stage2_models.loading.readahead import ReadAhead
from stage2_models.loading.ring import PREFETCH, WorkerRing
from store_schema.errors import ButdError, UsageError

if TYPE_CHECKING:
    from store_schema.reader import RegionStore

logger = logging.getLogger(__name__)

HELD_SLOTS = 3
"""Batches that a user may hold without a copy: the one in use, the one before, and one on its way to a GPU."""


class BatchStream:
    """Reads batches in this process or by workers, into the slots of one pool."""

    def __init__(self, store: "RegionStore", *, batch_size: int, workers: int, pin: Pin) -> None:
        metadata = store.metadata
        layout = SlotLayout(
            batch_size=batch_size,
            max_regions=metadata.max_regions,
            feature_dim=metadata.feature_dim,
            feature_dtype=metadata.feature_dtype,
        )
        self._store = store
        self._pool = SlotPool(layout, HELD_SLOTS + max(workers * PREFETCH, 1))
        pinned, reason = _pin(self._pool, pin)
        logger.info(
            "loader: batches of %s, %s workers, %.2f GB of buffers for at most %s regions a picture, %s (%s)",
            batch_size, workers, self._pool.memory.nbytes / GIGABYTE, metadata.max_regions,
            "pinned" if pinned else "not pinned", reason,
        )  # fmt: skip
        self._ring = WorkerRing(store, self._pool, workers) if workers else None
        self._readahead = ReadAhead(store)
        self._told_of_copies = False

    def read(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[RegionBatch]:
        """Iterate over the batches given by their rows. Workers start reading at once."""
        filled = self._read_here(batches) if self._ring is None else self._ring.read(batches)
        return (
            self._batch(slot, len(rows), num_slots)
            for rows, (slot, num_slots) in zip(batches, filled, strict=True)
        )

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers; none where this process reads by itself."""
        return [] if self._ring is None else self._ring.pids

    def close(self) -> None:
        """Stop the workers."""
        if self._ring is not None:
            self._ring.close()

    def _read_here(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[tuple[int, int]]:
        for rows in batches[:1]:
            self._readahead.ask(rows)
        for rows, next_rows in zip_longest(batches, batches[1:]):
            if next_rows is not None:
                self._readahead.ask(next_rows)  # the disk reads it during this batch's step
            slot = self._pool.take()
            assert slot is not None  # the pool holds one slot more than are ever leased
            try:
                num_slots = fill(self._store, rows, self._pool.layout, self._pool.view(slot))
            except ButdError:
                self._pool.give_back(slot)
                raise
            yield slot, num_slots

    def _batch(self, slot: int, num_images: int, num_slots: int) -> RegionBatch:
        """Lease a filled slot, or copy it where the user holds as many as may be spared."""
        held = self._pool.num_leased()
        if held >= HELD_SLOTS:
            self._pool.wait_for_device()
            held = self._pool.num_leased()
        memory = self._pool.lease(slot) if held < HELD_SLOTS else self._copy(slot, num_images, num_slots)
        arrays = self._pool.layout.arrays(memory, num_images, num_slots)
        return RegionBatch(
            features=torch.from_numpy(arrays.features),
            boxes=torch.from_numpy(arrays.boxes),
            sizes=torch.from_numpy(arrays.sizes),
            num_regions=torch.from_numpy(arrays.num_regions),
        )

    def _copy(self, slot: int, num_images: int, num_slots: int) -> NDArray[np.uint8]:
        if not self._told_of_copies:
            self._told_of_copies = True
            logger.info(
                "more than %s batches of the loader are kept in use: the others are copied into memory of "
                "their own, which is slower", HELD_SLOTS,
            )  # fmt: skip
        layout = self._pool.layout
        used = layout.features_offset + layout.features_bytes(num_images, num_slots)
        memory = self._pool.view(slot)[:used].copy()
        self._pool.give_back(slot)
        return memory


def _pin(pool: SlotPool, pin: Pin) -> tuple[bool, str]:
    """Pin the pool's memory where that was decided and CUDA agrees; give the outcome and its reason."""
    pinned, reason = decide_pinning(pin, pool.memory.nbytes)
    if not pinned:
        return False, reason
    complaint = pin_memory(pool.memory)
    if complaint is not None:
        if pin == "on":
            raise UsageError(
                f"pin='on' was asked for, but {complaint}; use pin='auto' or a smaller batch size"
            )
        return False, complaint
    pool.fence = _fence
    return True, reason


def _fence() -> Fence:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
