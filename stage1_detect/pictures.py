"""Decoded pictures by index, kept in memory where they all fit, and read ahead where they do not."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1_detect.images import load_image
from store_schema.errors import ImageReadError, TableError

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]


class PictureSource:
    """Reads pictures by index; those that cannot be read are None, named once in the log."""

    def __init__(
        self, paths: Sequence[Path], sizes: NDArray[np.int64], *, num_workers: int, cache_megabytes: float
    ) -> None:
        """Read from `paths`; `sizes` [N, 2] are the heights and widths that the tables state.

        Args:
            num_workers: decoding threads; 0 decodes in the caller.
            cache_megabytes: decoded pictures are kept when all together take no more than this.
        """
        self._paths = paths
        self._sizes = sizes
        self._num_workers = num_workers
        megabytes = 3 * int(sizes.prod(1).sum()) / 1e6
        self._cache: dict[int, Picture | None] | None = {} if megabytes <= cache_megabytes else None
        logger.info(
            "%d pictures, %.0f MB decoded: %s (limit %.0f MB)",
            len(paths),
            megabytes,
            "kept in memory" if self._cache is not None else "decoded anew in each epoch",
            cache_megabytes,
        )

    def batches(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[list[Picture | None]]:
        """The pictures of each batch of indices, in order, decoded ahead by the worker threads."""
        if self._num_workers == 0:
            yield from (self._load_all(indices) for indices in batches)
            return
        with ThreadPoolExecutor(self._num_workers, thread_name_prefix="decode") as pool:
            todo = iter(batches)
            ahead: list[Future[list[Picture | None]]] = []
            try:
                ahead.extend(pool.submit(self._load_all, i) for i in islice(todo, 2 * self._num_workers))
                while ahead:
                    yield ahead.pop(0).result()
                    ahead.extend(pool.submit(self._load_all, i) for i in islice(todo, 1))
            finally:  # an epoch that is left early does not decode on
                pool.shutdown(wait=False, cancel_futures=True)

    def _load_all(self, indices: NDArray[np.int64]) -> list[Picture | None]:
        return [self._load(int(index)) for index in indices]

    def _load(self, index: int) -> Picture | None:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        picture = self._decode(index)
        if self._cache is not None:
            self._cache[index] = picture
        return picture

    def _decode(self, index: int) -> Picture | None:
        try:
            picture = load_image(self._paths[index])
        except ImageReadError as error:
            logger.warning("left out: %s", error)
            return None
        height, width = (int(value) for value in self._sizes[index])
        if picture.shape[:2] != (height, width):
            raise TableError(
                f"{self._paths[index]} is {picture.shape[1]}x{picture.shape[0]} pixels, the images table says "
                f"{width}x{height}; are the boxes those of the upright picture?"
            )
        return picture
