"""The disk itself as a reference: a file's pages dropped, and read again by preadv on several threads."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from store_schema.reader import RegionStore

PREADV_THREADS = 8


def drop_pages(files: Sequence[Path]) -> None:
    """Make the system forget the files' pages; nobody may have them mapped."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cold_preadv(files: Sequence[Path], store: RegionStore) -> float:
    """Read the same number of bytes at the same kind of places, into a buffer used again, 8 at a time."""
    metadata = store.metadata
    image_bytes = metadata.max_regions * metadata.feature_dim * np.dtype(metadata.feature_dtype).itemsize
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    buffer = memoryview(bytearray(256 * image_bytes))

    def read(place: int, row: int) -> None:
        block, inside = divmod(row, store.metadata.block_size)
        os.preadv(
            descriptors[block],
            [buffer[place * image_bytes : (place + 1) * image_bytes]],
            inside * image_bytes,
        )

    rows = np.random.default_rng(0).permutation(len(store))
    start = time.perf_counter()
    with ThreadPoolExecutor(PREADV_THREADS) as pool:
        for first in range(0, len(rows), 256):
            batch = np.sort(rows[first : first + 256]).tolist()
            list(pool.map(read, range(len(batch)), batch))
    seconds = time.perf_counter() - start
    for descriptor in descriptors:
        os.close(descriptor)
    return len(rows) / seconds
