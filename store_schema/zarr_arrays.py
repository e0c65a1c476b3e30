"""A store that something else than our writer laid out, read through zarr-python.

Zarr tools that copy or rechunk a store keep its arrays and attributes but not our records of finished blocks. Such a
store has the same meaning; it is read about thirty times slower, and only Zarr's own checks apply.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreDamagedError
from store_schema.metadata import StoreMetadata
from store_schema.remote import RemotePath, StorePath, explained


class ZarrArrays:
    """The same reads as `BlockFiles`, by zarr; a block is any stretch of rows as long as the block size."""

    def __init__(self, store: StorePath, metadata: StoreMetadata) -> None:
        """Open every array. Errors: `StoreDamagedError` where one is missing or has another shape or type."""
        import zarr

        self._store = store
        self._block_size = metadata.block_size
        with explained(str(store)):
            source = store.files.zarr_store() if isinstance(store, RemotePath) else str(store)
            group = zarr.open_group(source, mode="r")
        self._arrays: dict[str, Any] = {}
        for spec in metadata.arrays().values():
            if (
                spec.dtype == "string"
            ):  # the same identifiers are in image_id_utf8, without unstable string types
                continue
            try:
                with explained(str(store / spec.name)):
                    array: Any = group[spec.name]
            except KeyError as error:
                raise StoreDamagedError(
                    f"{store}: array {spec.name} is missing; restore it from a copy"
                ) from error
            fixed = len(spec.row_shape) if spec.name != "image_id_utf8" else 0
            if array.dtype != np.dtype(spec.dtype) or array.shape[1:][:fixed] != spec.row_shape[:fixed]:
                raise StoreDamagedError(
                    f"{store}: array {spec.name} is {array.dtype} {array.shape}, expected {spec.dtype} "
                    f"{('images', *spec.row_shape)}; copy the store again without changing its values"
                )
            self._arrays[spec.name] = array
        self._plain: dict[tuple[str, int], NDArray[Any]] = {}

    def num_rows(self) -> int:
        """Length of the image dimension."""
        return int(self._arrays["num_regions"].shape[0])

    def plain(self, name: str, block: int, *, keep: bool = True) -> NDArray[Any]:
        """A block of a small array, [up to block size, ...]; `keep` it for the next time."""
        values = self._plain.get((name, block))
        if values is None:
            values = self._read(name, block * self._block_size, self._block_size)
            if keep:
                self._plain[name, block] = values
        return values

    def id_width(self) -> int:
        """Bytes of the identifiers' array."""
        return int(self._arrays["image_id_utf8"].shape[1])

    def id_bytes(self, block: int, width: int) -> NDArray[np.uint8]:
        """Identifiers of a block, [up to block size, width], zero-padded."""
        return self._read("image_id_utf8", block * self._block_size, self._block_size)

    def pieces(self, block: int, place: int, num_regions: int) -> list[NDArray[Any]]:
        """The features of one image as one array [n, D]; none where there are no regions."""
        if not num_regions:
            return []
        return [self._read("features", block * self._block_size + place, 1)[0, :num_regions]]

    def copy(self, block: int, place: int, num_regions: int, out: NDArray[Any]) -> None:
        """Copy the features of one image into the first slots of `out` [K, D]."""
        for piece in self.pieces(block, place, num_regions):
            out[:num_regions] = piece

    def ask(self, name: str, blocks: Iterable[int]) -> None:
        """Nothing, as `will_need`."""

    def will_need(self, block: int, place: int) -> None:
        """Nothing: zarr has no way to ask ahead."""

    def _read(self, name: str, start: int, num_rows: int) -> NDArray[Any]:
        with explained(str(self._store / name)):
            values = np.asarray(self._arrays[name][start : start + num_rows])
        values.setflags(write=False)
        return values
