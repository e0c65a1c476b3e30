"""Streams batches of regions from a store: the entrance to loading; its parts lie in `loading/`.

`build_loader(store, rows, batch_size=..., seed=...)`, then `for batch in loader.epoch(n)`. The order is a pure
function of (seed, epoch, rank, world size), whatever the workers; the position is the number of batches
consumed; no tensor that is kept is ever overwritten. Text is not loaded here: gather it by `batch.indices`.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from stage2_models.loading.batch import LoadedBatch, RegionBatch
from stage2_models.loading.fill import LoaderError
from stage2_models.loading.order import epoch_batches, global_batch_sizes
from stage2_models.loading.pinning import Pin, decide_pinning
from stage2_models.loading.stream import BatchStream
from store_schema.errors import UsageError

if TYPE_CHECKING:
    from store_schema.reader import RegionStore

__all__ = ["DEFAULT_WORKERS", "LoadedBatch", "Loader", "LoaderError", "RegionBatch", "build_loader"]

logger = logging.getLogger(__name__)

DEFAULT_WORKERS = 2
"""One hides warm reading behind most steps; the second brings cold pages to the disk's speed, and slack where a large
batch takes one worker nearly a whole step. What each brings: docs/loading.md."""


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """Which batches a loader gives; `build_loader` explains and checks the fields."""

    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    workers: int
    pin: Pin
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0), ("workers", 0), ("rank", 0), ("world_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} of the loader must be at least {least}, got {getattr(self, name)}")
        if self.rank >= self.world_size:
            raise UsageError(f"rank must be below world_size {self.world_size}, got {self.rank}")
        if self.pin not in ("auto", "on", "off"):
            raise UsageError(f"pin must be 'auto', 'on' or 'off', got {self.pin!r}")


def build_loader(
    store: "RegionStore",
    sample_rows: NDArray[np.int64],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    drop_last: bool = False,
    workers: int = DEFAULT_WORKERS,
    pin: Pin = "auto",
    rank: int = 0,
    world_size: int = 1,
    lengths: NDArray[np.int64] | None = None,
) -> "Loader":
    """Build a loader over a list of samples, each a picture of the store.

    Args:
        store: an open region store.
        sample_rows: [num_samples] int64, the store's row of each sample (`store.rows(image_ids)`). A picture
            may come several times, as with several questions on it, and any subset may be given.
        batch_size: samples in a batch, on each rank.
        seed: of the order; together with the epoch.
        drop_last: leave out the last batch where it is smaller.
        workers: processes that read ahead; 0 reads in this process when a batch is asked for.
        pin: page-locked buffers: "auto" where CUDA is and they take less than a quarter of the memory.
        rank, world_size: this process's part of a distributed run; see `loading/order.py`.
        lengths: [num_samples] words of each sample's text: batches then hold texts of like length.

    Errors: `UsageError` for values out of range, rows outside the store, nothing to load, too little memory
    (on the first epoch), and "on" without CUDA.
    """
    spec = LoaderSpec(
        batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, workers=workers, pin=pin,
        rank=rank, world_size=world_size,
    )  # fmt: skip
    if not store.metadata.feature_dim:
        raise UsageError(
            f"{store.path} holds boxes and labels alone, no features; make a store without --boxes-only"
        )
    rows = np.asarray(sample_rows, dtype=np.int64)
    if rows.ndim != 1 or len(rows) == 0:
        raise UsageError(
            f"the loader needs a list of at least one store row, got an array of shape {rows.shape}"
        )
    if not (readable := np.isin(rows, store.all_rows)).all():
        raise UsageError(
            f"row {rows[~readable][0]} of the samples holds no picture in the store {store.path} of {len(store)} "
            f"pictures; take the rows from store.rows(image_ids)"
        )
    if lengths is not None and np.shape(lengths) != rows.shape:
        raise UsageError(f"lengths must have one number a sample, {len(rows)}, got shape {np.shape(lengths)}")
    if not global_batch_sizes(len(rows), batch_size, world_size=world_size, drop_last=drop_last):
        raise UsageError(
            f"drop_last leaves no batch of {len(rows)} samples with batch_size {batch_size} on {world_size} "
            f"ranks; use a smaller batch size or drop_last=False"
        )
    return Loader(store, rows, spec, None if lengths is None else np.asarray(lengths, dtype=np.int64))


class Loader:
    """Batches of a store's regions, epoch by epoch. Made by `build_loader`.

    Workers start with the first epoch and stay for all; `close`, the end of a `with`, or the loader's own
    end stops them. One epoch runs at a time: calling `epoch` again ends the iterator before.
    """

    def __init__(
        self,
        store: "RegionStore",
        sample_rows: NDArray[np.int64],
        spec: LoaderSpec,
        lengths: NDArray[np.int64] | None,
    ) -> None:
        self.spec = spec
        self._store = store
        self._sample_rows = sample_rows
        self._lengths = lengths
        self._stream: BatchStream | None = None
        self._running: Iterator[RegionBatch] | None = None
        if spec.pin == "on":
            decide_pinning("on", 0)  # refuse now, not in the first epoch

    def __len__(self) -> int:
        """Count the batches of an epoch, the same on every rank."""
        return len(
            global_batch_sizes(
                len(self._sample_rows),
                self.spec.batch_size,
                world_size=self.spec.world_size,
                drop_last=self.spec.drop_last,
            )
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[LoadedBatch]:
        """Iterate over an epoch's batches, from batch number `start` on. Reading starts at once.

        Tensors lie in reused buffers but may be kept for ever: a buffer is reused only when no tensor of it
        is left, and where too many are kept, further batches get memory of their own (the log says so once).

        Errors: those of reading, naming the picture; `LoaderError` when a worker dies. The loader can be
        used again afterwards, with new workers.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise UsageError(
                f"an epoch from 0 on and a start in 0..{len(self)} (the epoch's batches) are needed, got epoch "
                f"{epoch}, start {start}; was the position saved with another batch size?"
            )
        batches = epoch_batches(
            len(self._sample_rows),
            batch_size=self.spec.batch_size,
            seed=self.spec.seed,
            epoch=epoch,
            shuffle=self.spec.shuffle,
            drop_last=self.spec.drop_last,
            rank=self.spec.rank,
            world_size=self.spec.world_size,
            lengths=self._lengths,
        )[start:]
        if self._stream is None:
            self._stream = BatchStream(
                self._store, batch_size=self.spec.batch_size, workers=self.spec.workers, pin=self.spec.pin
            )
        with self._closed_by_failure():
            self._running = self._stream.read([self._sample_rows[batch] for batch in batches])
        return self._loaded(batches, self._running)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now, for `top` and the like."""
        return [] if self._stream is None else self._stream.worker_pids

    def close(self) -> None:
        """Stop the workers and let go of the buffers. Tensors that are still held stay valid."""
        self._running = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loaded(
        self, batches: Sequence[NDArray[np.int64]], regions: Iterator[RegionBatch]
    ) -> Iterator[LoadedBatch]:
        with self._closed_by_failure():
            for indices in batches:
                if regions is not self._running:
                    raise UsageError(
                        "this iterator was ended: the loader was closed, or epoch() was called again"
                    )
                yield LoadedBatch(indices, next(regions))

    @contextmanager
    def _closed_by_failure(self) -> Iterator[None]:
        """Close when the workers fail, so that the next epoch starts with new ones."""
        try:
            yield
        except LoaderError:
            self.close()
            raise
