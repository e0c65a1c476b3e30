"""Write a region store block by block, so that a kill at any instant loses at most the block at hand.

The driver holds a `StoreWriter`: it plans blocks and commits finished ones. Tasks, in whatever process, call
`write_block` and send the receipt back. A block's files are written beside their places, flushed and renamed,
`num_regions` last; only then the commit record appears. The same images and features give the same bytes.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from store_schema.durable import PARTIAL_SUFFIX, NewFile, make_folder, remove_partials, replace_files
from store_schema.errors import StoreDamagedError, StoreError, StoreMismatchError, UsageError
from store_schema.layout import ID_CHUNK_BYTES, MAX_ID_BYTES, ArraySpec
from store_schema.ledger import (
    WriterLock,
    append_plan,
    cut_blocks,
    finished_blocks,
    ledger_folder,
    make_folders,
    read_plan,
    write_record,
)
from store_schema.metadata import StoreMetadata, first_difference
from store_schema.records import Block, FileStamp, ImageRecord, Problem, Receipt, check_record
from store_schema.root import DOCUMENT, read_metadata, write_arrays, write_root
from store_schema.shards import encode_chunk, encode_shard, encode_strings, file_stamp

logger = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]


class StoreWriter:
    """The one writer of a store: plans blocks, commits finished ones, holds the lock until closed."""

    def __init__(self, path: Path, metadata: StoreMetadata, lock: WriterLock, planned: list[Block]) -> None:
        """Use `StoreWriter.open`."""
        self.path = path
        self.metadata = metadata
        self._lock = lock
        self._planned = planned
        self._block_of = {image_id: block.index for block in planned for image_id in block.image_ids}

    @classmethod
    def open(cls, path: str | Path, metadata: StoreMetadata) -> Self:
        """Make a new store, or go on with one that was written with the same metadata.

        What a killed writer left half done is cleared. Only the code's version and the detector's path may
        differ from what the store says; the store's own are kept.

        Errors: `StoreMismatchError` naming the first difference, `StoreLockedError` naming the other writer,
        `UsageError` where the folder holds something else or cannot be written, `StoreDamagedError`.
        """
        path = Path(path)
        _check_place(path, metadata)
        _agree(path, metadata)
        try:
            make_folders(path)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be made: {error.strerror}; choose a place you may write to"
            ) from error
        lock = WriterLock(path)
        try:
            metadata = _agree(path, metadata)
            for folder in _folders(path, metadata):
                make_folder(folder)
                remove_partials(folder)
            planned = _whole_plan(path, metadata)
            write_descriptions(path, metadata, planned)
            write_root(path, metadata)
        except BaseException:
            lock.release()
            raise
        return cls(path, metadata, lock, planned)

    def plan(self, image_ids: Sequence[str], *, again: Collection[str] = ()) -> list[Block]:
        """Give every image a row, for good, and return the blocks that must still be written for these images.

        Images not planned before start a new block. The plan is on the disk before this returns: the same images
        again, whatever happens in between, give the same blocks. A block is returned whole where any of the given
        images is in it and it is not committed.

        Args:
            again: those of the images, all quarantined in a committed block, that get a new row in a new block.

        Errors: `UsageError` for an empty, overlong or repeated identifier, or one with a zero byte.
        """
        _check_ids(image_ids)
        new = [image_id for image_id in image_ids if image_id not in self._block_of or image_id in again]
        if new:
            blocks = cut_blocks(new, len(self._planned), self.metadata.block_size)
            append_plan(self.path, len(self._planned), new)
            self._planned += blocks
            self._block_of |= {image_id: block.index for block in blocks for image_id in block.image_ids}
        write_descriptions(self.path, self.metadata, self._planned)
        wanted = {self._block_of[image_id] for image_id in image_ids} - set(finished_blocks(self.path))
        return [self._planned[index] for index in sorted(wanted)]

    def commit(self, block: Block, receipt: Receipt) -> None:
        """Make a written block exist for readers, durably. Committing it again with the same bytes is harmless.

        Errors: `StoreError` where the receipt is another block's, `StoreDamagedError` where a file is not as the
        receipt says.
        """
        if receipt.block != block.index or self._planned[block.index] != block:
            raise StoreError(
                f"block {block.index}: not the planned block, or the receipt is of block {receipt.block}"
            )
        for name, stamp in receipt.files.items():
            file = self.path / name
            size = file.stat().st_size if file.is_file() else None
            if size != stamp.num_bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise StoreDamagedError(
                    f"block {block.index}: {file} {found}, {stamp.num_bytes} were written; run the job again"
                )
        write_record(self.path, block, receipt, self.metadata.detector["fingerprint"])

    def close(self) -> None:
        """Give up the lock; again is harmless."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_block(
    path: str | Path, metadata: StoreMetadata, block: Block, items: Sequence[ImageRecord | Problem]
) -> Receipt:
    """Write every file of one block, whole, and flush them; readers see the block once it is committed.

    Runs in any process on any machine that sees the store. Writing a block again replaces it.

    Args:
        items: for each of `block.image_ids`, in that order, its regions or why there are none.

    Errors: `StoreError` naming the picture that does not fit the store, or the file that cannot be written.
    """
    path = Path(path)
    _check_items(block, items, metadata)
    stamps: dict[str, FileStamp] = {}

    def files() -> Iterator[NewFile]:
        for spec, key, data in _encode_block(metadata, block, items):
            name = f"{spec.name}/{key}"
            stamps[name] = file_stamp(np.frombuffer(data, np.uint8), spec, metadata.codec)
            yield NewFile(path / name, data, f"block {block.index}, {spec.name}")

    replace_files(files())
    records = [item for item in items if isinstance(item, ImageRecord)]
    return Receipt(
        block=block.index,
        files=stamps,
        num_images=len(records),
        num_regions=sum(len(record.boxes) for record in records),
        problems=tuple(item for item in items if isinstance(item, Problem)),
        notes={record.image_id: record.notes for record in records if record.notes},
    )


def write_descriptions(path: Path, metadata: StoreMetadata, planned: Sequence[Block]) -> None:
    """Give every array the length, and the identifiers the width, of what is planned."""
    num_rows = planned[-1].start_row + len(planned[-1].image_ids) if planned else 0
    width = _id_width(image_id for block in planned for image_id in block.image_ids)
    write_arrays(path, metadata, num_rows, width)


def _check_items(block: Block, items: Sequence[ImageRecord | Problem], metadata: StoreMetadata) -> None:
    given = tuple(item.image_id for item in items)
    if given != block.image_ids:
        raise StoreError(
            f"block {block.index}: expected its {len(block.image_ids)} images in order, got {len(given)}, first "
            f"difference {next((pair for pair in zip(block.image_ids, given, strict=False) if pair[0] != pair[1]), '')}"
        )
    for item in items:
        if isinstance(item, ImageRecord):
            check_record(item, metadata)


def _encode_block(
    metadata: StoreMetadata, block: Block, items: Sequence[ImageRecord | Problem]
) -> Iterator[tuple[ArraySpec, str, bytes | Bytes]]:
    """Array, key and bytes of each file of a block, one at a time, `num_regions` last."""
    records = [item if isinstance(item, ImageRecord) else None for item in items]
    ids = ["" if record is None else record.image_id for record in records]
    for spec in metadata.arrays().values():
        if spec.name == "features":
            features = [None if record is None else record.features for record in records]
            yield spec, spec.chunk_key(block.index), encode_shard(features, spec, metadata.codec)
        elif spec.name == "image_id":
            padded = [*ids, *[""] * (metadata.block_size - len(ids))]
            yield spec, spec.chunk_key(block.index), encode_strings(padded, metadata.codec)
        elif spec.name == "image_id_utf8":
            for part, values in enumerate(_id_parts(ids, _id_width(block.image_ids), metadata.block_size)):
                yield spec, spec.chunk_key(block.index, part), encode_chunk(values, metadata.codec)
        else:
            values = _small_values(spec, records)
            yield spec, spec.chunk_key(block.index), encode_chunk(values, metadata.codec)


def _small_values(spec: ArraySpec, records: Sequence[ImageRecord | None]) -> NDArray[Any]:
    """The values of one plain array for a whole block, [block size, ...], fill where there is nothing."""
    values = np.full(spec.chunk_shape, spec.fill, spec.dtype)
    for place, record in enumerate(records):
        if record is None:
            continue
        if spec.name == "num_regions":
            values[place] = len(record.boxes)
        elif spec.dims == ("image",):
            values[place] = getattr(record, spec.name)
        else:
            regions = record.boxes if spec.name == "boxes" else getattr(record, f"{spec.name}s")
            values[place, : len(record.boxes)] = regions
    return values


def _id_parts(ids: Sequence[str], width: int, block_size: int) -> list[Bytes]:
    """Identifiers as zero-padded bytes, cut into chunks of 32 bytes."""
    encoded = [image_id.encode() for image_id in ids]
    flat = b"".join(item.ljust(width, b"\0") for item in encoded).ljust(block_size * width, b"\0")
    matrix = np.frombuffer(flat, np.uint8).reshape(block_size, width)
    return [matrix[:, start : start + ID_CHUNK_BYTES] for start in range(0, width, ID_CHUNK_BYTES)]


def _id_width(image_ids: Iterable[str]) -> int:
    """The width of `image_id_utf8` that holds these identifiers: a multiple of 32."""
    longest = max((len(image_id.encode()) for image_id in image_ids), default=0)
    return max(1, math.ceil(longest / ID_CHUNK_BYTES)) * ID_CHUNK_BYTES


def _check_place(path: Path, metadata: StoreMetadata) -> None:
    """Refuse a folder that holds something else than a store or the beginning of one."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; a region store is a folder: choose another place")
    if path.is_dir() and not (path / DOCUMENT).is_file():
        foreign = sorted(item.name for item in path.iterdir() if item.name not in metadata.arrays())
        foreign = [name for name in foreign if not name.endswith(PARTIAL_SUFFIX)]
        if foreign:
            raise UsageError(
                f"{path} is no region store and is not empty (it holds {foreign[0]!r}): choose another place"
            )


def _agree(path: Path, metadata: StoreMetadata) -> StoreMetadata:
    """The store's own metadata where it has some, once it is sure that the writer's is the same."""
    if not (path / DOCUMENT).is_file():
        return metadata
    stored = read_metadata(path)
    if not ledger_folder(path).is_dir():
        raise StoreMismatchError(
            f"{path} has no records of finished blocks, so another tool laid it out; it can be read, not continued: "
            "write to a new store"
        )
    difference = first_difference(metadata, stored)
    if difference is not None:
        raise StoreMismatchError(
            f"{path} was written otherwise: {difference}; write to a new store, or use its settings"
        )
    return stored


def _whole_plan(path: Path, metadata: StoreMetadata) -> list[Block]:
    """Every planned block. Errors: `StoreDamagedError`, also where blocks are finished that nobody planned."""
    planned = read_plan(path, metadata.block_size)
    unplanned = [index for index in finished_blocks(path) if index >= len(planned)]
    if unplanned:
        raise StoreDamagedError(
            f"plan of blocks: block {unplanned[0]} is finished, but {ledger_folder(path) / 'plan'} plans only "
            f"{len(planned)} blocks; restore the folder from a copy"
        )
    return planned


def _folders(path: Path, metadata: StoreMetadata) -> list[Path]:
    ledger = ledger_folder(path)
    return [path, *(path / name for name in metadata.arrays()), ledger / "plan", ledger / "blocks"]


def _check_ids(image_ids: Sequence[str]) -> None:
    for image_id in image_ids:
        if not image_id or "\0" in image_id or len(image_id.encode()) > MAX_ID_BYTES:
            raise UsageError(
                f"image_id {image_id[:80]!r} cannot be stored: it needs 1 to {MAX_ID_BYTES} bytes, none of them zero"
            )
    if len(set(image_ids)) != len(image_ids):
        repeated = next(image_id for image_id, count in Counter(image_ids).items() if count > 1)
        raise UsageError(f"image_id {repeated!r} is given twice: every picture needs an id of its own")
