"""The files of committed blocks, read without zarr: mapped, their sizes and checksums compared, their index followed.

This is the fast way to a store that lies as `layout.py` says. It opens a file when its block is first touched and
checks a chunk's CRC-32C the first time that this object touches it (or always, or never).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from store_schema import mapping
from store_schema.errors import StoreDamagedError
from store_schema.layout import ArraySpec
from store_schema.ledger import BlockRecord, repair_remedy
from store_schema.metadata import StoreMetadata
from store_schema.remote import RemotePath, StorePath
from store_schema.shards import (
    Bytes,
    checksum_holds,
    decode_chunk,
    decode_index,
    decode_strings,
    decode_values,
    file_stamp,
    index_bytes,
)

Verify = Literal["first", "always", "never"]


MIN_MAPPED_BYTES = 1 << 16
"""Smaller files of plain arrays are read: a mapping costs more, and Linux allows a process only 65,530 of them."""


@dataclass(eq=False)
class OpenShard:
    """One block's features: where each chunk lies and which were checked already."""

    path: StorePath
    data: Bytes | None
    """The mapped file; None where chunks are read one by one."""
    address: int
    """Of `data` in memory."""
    starts: list[int]
    """By image and group in one list: start of the chunk in the file, -1 where it is not stored."""
    lengths: list[int]
    checked: bytearray
    images: NDArray[Any] | None
    """All as one array [image, slot, feature], where each is one chunk and they lie equally far apart: finding one
    image in it costs a third of following the index, whose numbers no cache holds when a batch passes through it."""


class BlockFiles:
    """Reads committed blocks of one store; what is not committed cannot be reached."""

    def __init__(
        self,
        store: StorePath,
        metadata: StoreMetadata,
        records: Mapping[int, BlockRecord],
        verify: Verify,
        mmap: bool,
    ) -> None:
        self._store = store
        self._metadata = metadata
        self._records = records
        self._specs = metadata.arrays()
        self._verify = verify
        self._mmap = mmap and isinstance(store, Path)
        self._plain: dict[tuple[str, int], NDArray[Any]] = {}
        self._shards: dict[int, OpenShard] = {}
        if metadata.feature_dim:  # else none of the methods that read features is called
            spec = self._specs["features"]
            assert spec.inner_chunk is not None
            _, self._slots, feature_dim = spec.inner_chunk
            self._groups = spec.chunk_shape[1] // self._slots
            self._chunk_shape = (self._slots, feature_dim)
        self._direct = metadata.codec == "none"

    def check_sizes(self) -> None:
        """Compare the size of every committed file with its record. Errors: `StoreDamagedError`, the first found."""
        root = f"{self._store}{os.sep}"
        for block, record in self._records.items():
            for name, stamp in record.receipt.files.items():
                try:
                    size = os.stat(root + name).st_size
                except OSError:
                    size = None
                if size != stamp.num_bytes:
                    raise self._wrong_size(block, name, size)

    def plain(self, name: str, block: int, *, keep: bool = True) -> NDArray[Any]:
        """A block of an array that is not sharded, [block size, ...], read-only; `keep` it for the next time."""
        values = self._plain.get((name, block))
        if values is None:
            spec = self._specs[name]
            values = self._read_plain(spec, block, spec.chunk_key(block))
            if keep:
                self._plain[name, block] = values
        return values

    def id_bytes(self, block: int, width: int) -> Bytes:
        """Identifiers of a block, [block size, width], zero-padded."""
        spec = self._specs["image_id_utf8"]
        part_bytes = spec.chunk_shape[1]
        matrix = np.zeros((self._metadata.block_size, width), np.uint8)
        for part in range(width // part_bytes):
            key = spec.chunk_key(block, part)
            if f"{spec.name}/{key}" in self._records[block].receipt.files:
                matrix[:, part * part_bytes : (part + 1) * part_bytes] = self._read_plain(spec, block, key)
        return matrix

    def strings(self, block: int) -> list[str]:
        """A block of `image_id`, the identifiers as Zarr strings."""
        spec = self._specs["image_id"]
        try:
            return decode_strings(self._load(block, spec, spec.chunk_key(block)), self._metadata.codec)
        except ValueError as error:
            raise self._damaged(block, spec.name, str(error)) from error

    def id_width(self) -> int:
        """Bytes of the widest block of identifiers."""
        part_bytes = self._specs["image_id_utf8"].chunk_shape[1]
        parts = [
            sum(name.startswith("image_id_utf8/") for name in record.receipt.files)
            for record in self._records.values()
        ]
        return max(parts, default=1) * part_bytes

    def pieces(self, block: int, place: int, num_regions: int) -> list[NDArray[Any]]:
        """The features of one image, one array [m, D] for each chunk that they lie in, read-only.

        Views of the mapped file where it is not compressed.
        """
        shard = self._shards.get(block) or self._open_shard(block)
        first = place * self._groups
        if num_regions <= self._slots:
            return [self._chunk(shard, block, first, num_regions)] if num_regions else []
        return [
            self._chunk(shard, block, first + start // self._slots, min(self._slots, num_regions - start))
            for start in range(0, num_regions, self._slots)
        ]

    def copy(self, block: int, place: int, num_regions: int, out: NDArray[Any]) -> None:
        """Copy the features of one image into the first slots of `out` [K, D]."""
        shard = self._shards.get(block) or self._open_shard(block)
        if shard.images is not None and shard.checked[place]:
            out[:num_regions] = shard.images[place, :num_regions]
            return
        first = 0
        for piece in self.pieces(block, place, num_regions):
            out[first : first + len(piece)] = piece
            first += len(piece)

    def ask(self, name: str, blocks: Iterable[int]) -> None:
        """Of a remote store, begin to fetch what is not here yet of an array: whole blocks, of shards their indexes."""
        if not isinstance(self._store, RemotePath):
            return
        spec = self._specs[name]
        for block in blocks:
            if (name, block) in self._plain or (name == "features" and block in self._shards):
                continue
            for file, stamp in self._records[block].receipt.files.items():
                if file.startswith(f"{name}/"):
                    tail = 0 if spec.inner_chunk is None else index_bytes(spec)
                    (self._store / file).ask(*((stamp.num_bytes - tail, tail) if tail else ()))

    def will_need(self, block: int, place: int) -> None:
        """Begin to read an image's features in the background, from the disk or from a remote store."""
        shard = self._shards.get(block) or self._open_shard(block)
        chunks = slice(place * self._groups, (place + 1) * self._groups)
        stored = [
            (start, size)
            for start, size in zip(shard.starts[chunks], shard.lengths[chunks], strict=True)
            if size
        ]
        if isinstance(shard.path, RemotePath):
            for start, size in stored:
                shard.path.ask(start, size)
        elif stored and shard.data is not None:
            start = min(start for start, _ in stored)
            mapping.will_need(shard.address + start, max(start + size for start, size in stored) - start)

    def _chunk(self, shard: OpenShard, block: int, number: int, num_regions: int) -> NDArray[Any]:
        """The first regions of one chunk; its checksum is compared as `verify` says."""
        shape = (num_regions, self._chunk_shape[1])
        if self._direct and shard.checked[number] and shard.data is not None:
            return np.ndarray(shape, self._feature_dtype, shard.data, shard.starts[number])
        chunk = self._checked_chunk(shard, block, number)
        if self._direct:
            return np.ndarray(shape, self._feature_dtype, chunk)
        try:
            values = decode_values(
                chunk, self._metadata.feature_dtype, self._chunk_shape, self._metadata.codec
            )
        except ValueError as error:
            what = f"the chunk of row {self._row(block, number)}: {error}"
            raise self._damaged(block, "features", what) from error
        return values[:num_regions]

    def _checked_chunk(self, shard: OpenShard, block: int, number: int) -> Bytes:
        """The bytes of one chunk. What was read and not mapped is new each time, and is checked each time."""
        start, size = shard.starts[number], shard.lengths[number]
        row = self._row(block, number)
        if start < 0:
            raise self._damaged(block, "features", f"row {row} has regions but no features")
        if shard.data is not None:
            chunk = shard.data[start : start + size]
        else:
            chunk = self._read_range(block, shard.path, start, size)
        if self._verify != "never" and not shard.checked[number] and not checksum_holds(chunk):
            raise self._damaged(
                block, "features", f"the bytes of row {row} have changed since they were written"
            )
        shard.checked[number] = self._verify != "always" and shard.data is not None
        return chunk

    def _open_shard(self, block: int) -> OpenShard:
        spec = self._specs["features"]
        key = spec.chunk_key(block)
        tail_bytes = index_bytes(spec)
        if self._mmap:
            data = self._load(block, spec, key)
            file_bytes, tail = len(data), data[-tail_bytes:]
        else:
            data = None
            file_bytes = self._committed_bytes(block, spec, key)
            tail = self._read_range(block, self._store / spec.name / key, file_bytes - tail_bytes, tail_bytes)
        try:
            index = decode_index(tail, file_bytes, spec, self._metadata.codec)
        except ValueError as error:
            raise self._damaged(block, spec.name, f"{key}: {error}") from error
        shard = self._shards[block] = OpenShard(
            path=self._store / spec.name / key,
            data=data,
            address=0 if data is None else data.ctypes.data,
            starts=index.offsets.ravel().tolist(),
            lengths=index.lengths.ravel().tolist(),
            checked=bytearray(index.offsets.size),
            images=None if data is None else self._images(data, index.offsets),
        )
        return shard

    def _images(self, data: Bytes, offsets: NDArray[np.int64]) -> NDArray[Any] | None:
        steps = np.unique(np.diff(offsets.ravel()))
        if not self._direct or self._groups > 1 or len(steps) != 1 or int(offsets.min()) < 0:
            return None
        shape = (offsets.size, *self._chunk_shape)
        item_bytes = self._feature_dtype.itemsize
        strides = (int(steps[0]), self._chunk_shape[1] * item_bytes, item_bytes)
        return np.ndarray(shape, self._feature_dtype, data, int(offsets.ravel()[0]), strides)

    def _read_plain(self, spec: ArraySpec, block: int, key: str) -> NDArray[Any]:
        data = self._load(block, spec, key)
        codec = self._metadata.codec
        try:
            if self._verify == "never":
                return decode_values(data, spec.dtype, spec.chunk_shape, codec)
            values = decode_chunk(data, spec, codec)
        except ValueError as error:
            raise self._damaged(block, spec.name, f"{key}: {error}") from error
        if file_stamp(data, spec, codec) != self._records[block].receipt.files[f"{spec.name}/{key}"]:
            raise self._damaged(block, spec.name, f"{key} is not the file that was committed")
        return values

    def _load(self, block: int, spec: ArraySpec, key: str) -> Bytes:
        """A whole file, mapped where that pays."""
        path = self._store / spec.name / key
        expected = self._committed_bytes(block, spec, key)
        try:
            if isinstance(path, RemotePath):
                data = np.frombuffer(path.read_bytes(), np.uint8)
            elif self._mmap and (spec.inner_chunk is not None or expected >= MIN_MAPPED_BYTES):
                data = mapping.map_file(path)
            else:
                data = np.fromfile(path, np.uint8)
                data.setflags(write=False)
        except OSError as error:
            raise self._unreadable(block, path, error) from error
        if len(data) != expected:
            raise self._wrong_size(block, f"{spec.name}/{key}", len(data))
        return data

    def _read_range(self, block: int, path: StorePath, start: int, size: int) -> Bytes:
        """Bytes of a shard, read without mapping it."""
        try:
            if isinstance(path, RemotePath):
                return np.frombuffer(path.read_range(start, size), np.uint8)
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, start)
                if len(data) != size:
                    name = f"{path.parent.name}/{path.name}"
                    raise self._wrong_size(block, name, os.fstat(file.fileno()).st_size)
        except StoreDamagedError:  # an OSError too
            raise
        except OSError as error:
            raise self._unreadable(block, path, error) from error
        return np.frombuffer(data, np.uint8)

    def _committed_bytes(self, block: int, spec: ArraySpec, key: str) -> int:
        stamp = self._records[block].receipt.files.get(f"{spec.name}/{key}")
        if stamp is None:
            raise self._damaged(block, spec.name, f"its commit record does not know {key}")
        return stamp.num_bytes

    def _unreadable(self, block: int, path: StorePath, error: OSError) -> StoreDamagedError:
        if isinstance(error, FileNotFoundError):
            return self._wrong_size(block, f"{path.parent.name}/{path.name}", None)
        return self._damaged(block, path.parent.name, f"{path} cannot be read ({error.strerror})")

    def _wrong_size(self, block: int, name: str, size: int | None) -> StoreDamagedError:
        expected = self._records[block].receipt.files[name].num_bytes
        found = "is missing" if size is None else f"has {size} bytes"
        return self._damaged(
            block, name.split("/")[0], f"{self._store / name} {found}, expected {expected} bytes"
        )

    def _damaged(self, block: int, array: str, what: str) -> StoreDamagedError:
        return StoreDamagedError(
            f"{self._store}: block {block}, {array}: {what}; restore the file from a copy, or "
            f"{repair_remedy(self._store)}"
        )

    def _row(self, block: int, number: int) -> int:
        return block * self._metadata.block_size + number // self._groups

    @cached_property
    def _feature_dtype(self) -> np.dtype[Any]:
        return np.dtype(self._metadata.feature_dtype).newbyteorder("<")
