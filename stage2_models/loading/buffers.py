"""The memory that batches lie in: a few slots, allocated once, reused when nobody holds them any more.

Allocating a buffer for each batch costs more than reading it (page faults: 62,200 against 10,300 images/s,
DESIGN §5). Reuse is a trap, though: a batch that the user keeps would be overwritten. So each time a slot is
handed out, a fresh numpy view of it is made, which carries a finalizer; every tensor made from it, and every
slice of such a tensor, holds that view. When the last of them is gone the slot returns, and not before.

The memory is a memfd: it has no name, so nothing can stay in /dev/shm whatever kills the processes, and the
size of /dev/shm (64 MB in a container) does not matter. No torch here: workers import this.
"""

import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stage2_models.loading.memory import GIGABYTE, available_bytes
from store_schema.errors import UsageError
from store_schema.records import RegionArrays


@dataclass(frozen=True, kw_only=True)
class SlotLayout:
    """Where the arrays of a batch lie in a slot that is large enough for any batch.

    Each slot begins with the rows of its batch: that is how a worker learns what to read.
    """

    batch_size: int
    max_regions: int
    feature_dim: int
    feature_dtype: str

    @cached_property
    def features_offset(self) -> int:
        """Bytes before the features: the small arrays, at their largest, rounded up to whole pages."""
        return _whole_pages(self.batch_size * (8 + 8 + 2 * 4 + self.max_regions * 4 * 4))

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of a slot. A batch of pictures with few regions touches only the first part of them."""
        return self.features_offset + _whole_pages(self.features_bytes(self.batch_size, self.max_regions))

    def features_bytes(self, num_images: int, num_slots: int) -> int:
        """Bytes that the features of a batch take."""
        return num_images * num_slots * self.feature_dim * np.dtype(self.feature_dtype).itemsize

    def arrays(self, slot: NDArray[np.uint8], num_images: int, num_slots: int) -> RegionArrays:
        """View [slot_bytes] uint8 as a batch of `num_images` pictures with `num_slots` region slots each."""
        size = self.batch_size
        return RegionArrays(
            num_regions=np.ndarray((num_images,), np.int64, slot, size * 8),
            sizes=np.ndarray((num_images, 2), np.float32, slot, size * 16),
            boxes=np.ndarray((num_images, num_slots, 4), np.float32, slot, size * 24),
            features=np.ndarray(
                (num_images, num_slots, self.feature_dim), self.feature_dtype, slot, self.features_offset
            ),
        )

    def rows(self, slot: NDArray[np.uint8], num_images: int) -> NDArray[np.int64]:
        """View the rows [num_images] of the batch that a slot is for."""
        return np.ndarray((num_images,), np.int64, slot)


class Fence(Protocol):
    """Tells when a device has done all that it was asked until the fence was made; a `torch.cuda.Event`."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class _Lease(weakref.ref["NDArray[np.uint8]"]):
    """A slot's exporter, watched; `weakref.finalize` does the same in ten times as many steps of Python."""

    __slots__ = ("slot",)
    slot: int


class SlotPool:
    """The slots, which of them are free, and which are on lease.

    `memory` is the whole of it, [num_slots * slot_bytes] uint8; `fd` opens it in another process. One thread
    takes; slots may come back from any thread. With `fence`, a slot that comes back is free only when the
    device has passed the fence made then: a copy to the device may still be reading it.
    """

    def __init__(self, layout: SlotLayout, num_slots: int) -> None:
        self.layout = layout
        self.fence: Callable[[], Fence] | None = None
        self.fd = _allocate(layout, num_slots)
        weakref.finalize(self, os.close, self.fd).atexit = False
        self.memory = map_slots(self.fd)
        self._slots = [slot_view(self.memory, layout, slot) for slot in range(num_slots)]
        self._free = list(range(num_slots))  # what came last goes first: its memory may still be in a cache
        self._leases: dict[int, _Lease] = {}
        self._returned: deque[weakref.ref[NDArray[np.uint8]]] = deque()
        self._fenced: deque[tuple[int, Fence]] = deque()
        self._num_leased = 0

    def num_leased(self) -> int:
        """Count the slots that somebody still holds a tensor of, or that a device still reads."""
        self._collect()
        return self._num_leased

    def wait_for_device(self) -> None:
        """Wait until the slot that came back first is no longer read by the device, if there is one."""
        if self._fenced:
            self._fenced[0][1].synchronize()

    def take(self, cost: Callable[[int], int] | None = None) -> int | None:
        """Take a free slot to fill, the one of least `cost`; None where there is none."""
        self._collect()
        if not self._free:
            return None
        slot = self._free[-1] if cost is None else min(reversed(self._free), key=cost)
        self._free.remove(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Return a slot that was taken and not leased."""
        self._free.append(slot)

    def view(self, slot: int) -> NDArray[np.uint8]:
        """View a slot that was taken and is not leased; for filling and copying."""
        return self._slots[slot]

    def lease(self, slot: int) -> NDArray[np.uint8]:
        """Hand out a filled slot: it is free again when the returned array and all made from it are gone.

        The array is made anew from the memory's buffer, not sliced from another array: numpy lets a slice of
        a slice refer to the first array that has a base of another kind, and that must be this one.
        """
        exporter = np.frombuffer(
            self.memory.data, np.uint8, self.layout.slot_bytes, slot * self.layout.slot_bytes
        )
        self._num_leased += 1
        lease = self._leases[slot] = _Lease(exporter, self._returned.append)
        lease.slot = slot
        return exporter

    def _collect(self) -> None:
        while self._returned:
            lease = self._returned.popleft()
            assert isinstance(lease, _Lease)
            slot = lease.slot
            if self.fence is None:
                self._free_leased(slot)
            else:
                self._fenced.append((slot, self.fence()))
        while self._fenced and self._fenced[0][1].query():
            self._free_leased(self._fenced.popleft()[0])

    def _free_leased(self, slot: int) -> None:
        self._num_leased -= 1
        self._free.append(slot)


def map_slots(fd: int) -> NDArray[np.uint8]:
    """Map the memory behind a descriptor; it stays mapped as long as an array of it lives."""
    return np.frombuffer(mmap.mmap(fd, 0), np.uint8)


def slot_view(memory: NDArray[np.uint8], layout: SlotLayout, slot: int) -> NDArray[np.uint8]:
    """View one slot of the mapped memory."""
    return memory[slot * layout.slot_bytes : (slot + 1) * layout.slot_bytes]


def _allocate(layout: SlotLayout, num_slots: int) -> int:
    """Make the memory and give its descriptor. Pages are taken when they are first written."""
    nbytes, available = num_slots * layout.slot_bytes, available_bytes()
    wanted = (
        f"{num_slots} buffers for {layout.batch_size} pictures x {layout.max_regions} regions x "
        f"{layout.feature_dim} {layout.feature_dtype}, {nbytes / GIGABYTE:.2f} GB in all"
    )
    if nbytes > available:
        raise UsageError(
            f"the loader needs {wanted}, but only {available / GIGABYTE:.2f} GB of memory are available; "
            f"use a smaller batch size or fewer workers"
        )
    try:
        fd = os.memfd_create("butd-loader", os.MFD_CLOEXEC)
        os.ftruncate(fd, nbytes)
    except OSError as error:
        raise UsageError(
            f"the system refuses shared memory for {wanted} ({error}); use a smaller batch size or fewer "
            f"workers, or raise the limit on file sizes (ulimit -f)"
        ) from error
    return fd


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
