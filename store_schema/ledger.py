"""What a store keeps beside its arrays: the plan of blocks, a record of each finished block, the writer's lock.

All lie in `num_regions/.butd/`: inside an array's folder, where Zarr tools look for chunks by name only (a strange
folder in the group itself makes zarr-python warn). A record appears by an atomic rename after the block's files
are on the disk, so a block is there whole or not at all. No file holds a time or a machine's name but the lock.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, overload

from store_schema.durable import replace_file, seal, unseal
from store_schema.errors import StoreDamagedError, StoreLockedError, StoreMismatchError, UsageError
from store_schema.layout import SCHEMA_VERSION
from store_schema.metadata import StoreMetadata
from store_schema.records import Block, Receipt
from store_schema.remote import AnyPath, RemotePath, StorePath
from store_schema.root import num_blocks

LEDGER = Path("num_regions/.butd")


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """A finished block, as its record on disk says."""

    index: int
    start_row: int
    num_rows: int
    """Rows planned for the block, at most the block size; quarantined pictures have a row too."""
    detector: str
    """Fingerprint of the detector that made it."""
    receipt: Receipt
    problem_rows: tuple[int, ...]
    """Rows of the quarantined pictures, in the order of the receipt's problems."""


def ledger_folder(store: AnyPath) -> AnyPath:
    return store / LEDGER


@overload
def record_path(store: Path, block: int) -> Path: ...
@overload
def record_path(store: RemotePath, block: int) -> RemotePath: ...
@overload
def record_path(store: StorePath, block: int) -> StorePath: ...
def record_path(store: StorePath, block: int) -> StorePath:
    """The file whose presence says that a block is finished."""
    return store / LEDGER / "blocks" / f"{block:06d}.json"


def repair_remedy(store: StorePath) -> str:
    """What messages advise for a damaged block."""
    if isinstance(store, RemotePath):
        return "upload the whole store again"
    return f"'butd store repair {store}' drops the block, and the job, run again, writes just this block anew"


def make_folders(store: Path) -> None:
    """Make the ledger's folders where they are not there yet."""
    for name in ("plan", "blocks"):
        (store / LEDGER / name).mkdir(parents=True, exist_ok=True)


def write_record(store: Path, block: Block, receipt: Receipt, detector: str) -> None:
    """Make a block exist for readers. Its files must be on the disk already."""
    rows = {image_id: block.start_row + place for place, image_id in enumerate(block.image_ids)}
    content = {
        "schema_version": SCHEMA_VERSION,
        "start_row": block.start_row,
        "num_rows": len(block.image_ids),
        "detector": detector,
        "problem_rows": [rows[problem.image_id] for problem in receipt.problems],
        **receipt.to_json(),
    }
    replace_file(record_path(store, block.index), seal(content), f"block {block.index}, commit record")


def read_record(store: StorePath, block: int) -> BlockRecord:
    """Read one record. Errors: `StoreDamagedError` naming block, file and remedy."""
    path = record_path(store, block)
    what = f"block {block}, commit record"
    remedy = repair_remedy(store)
    content = unseal(path, what, remedy)
    try:
        record = BlockRecord(
            index=int(content["block"]),
            start_row=int(content["start_row"]),
            num_rows=int(content["num_rows"]),
            detector=str(content["detector"]),
            receipt=Receipt.from_json(content),
            problem_rows=tuple(int(row) for row in content["problem_rows"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreDamagedError(f"{what}: {path} lacks or mistypes {error}; {remedy}") from error
    if record.index != block:
        raise StoreDamagedError(f"{what}: {path} is the record of block {record.index}; {remedy}")
    return record


def check_record(store: StorePath, record: BlockRecord, metadata: StoreMetadata) -> None:
    """Hold a record against the store's metadata.

    Errors: `StoreMismatchError` where another detector made the block, `StoreDamagedError` where its rows cannot be.
    """
    if record.detector != metadata.detector["fingerprint"]:
        raise StoreMismatchError(
            f"{store}: block {record.index} was made by detector {record.detector}, the store is of "
            f"{metadata.detector['fingerprint']}; {repair_remedy(store)}"
        )
    first, size = record.index * metadata.block_size, metadata.block_size
    rows_fit = record.start_row == first and 0 < record.num_rows <= size
    if not rows_fit or not all(first <= row < first + record.num_rows for row in record.problem_rows):
        raise StoreDamagedError(
            f"block {record.index}, commit record: {record.num_rows} rows from {record.start_row} with problems at "
            f"{list(record.problem_rows)} do not fit blocks of {size}; {repair_remedy(store)}"
        )


def has_ledger(store: StorePath) -> bool:
    """Whether the store has records of finished blocks; not where other Zarr tools copied it."""
    if isinstance(store, RemotePath):
        return (store / LEDGER / "plan" / "000000.json").is_file()
    return ledger_folder(store).is_dir()


def finished_blocks(store: StorePath) -> list[int]:
    """Numbers of the finished blocks, ascending."""
    if isinstance(
        store, RemotePath
    ):  # a server may list nothing: every block that the arrays have room for is asked
        return store.files.existing({record_path(store, block): block for block in range(num_blocks(store))})
    return _numbers(store / LEDGER / "blocks")


def append_plan(store: Path, first_block: int, image_ids: Sequence[str]) -> None:
    """Register new images; the blocks follow from the block size."""
    folder = store / LEDGER / "plan"
    number = len(_numbers(folder))
    content = {"schema_version": SCHEMA_VERSION, "first_block": first_block, "image_ids": list(image_ids)}
    replace_file(folder / f"{number:06d}.json", seal(content), "plan of blocks")


def read_plan(store: StorePath, block_size: int) -> list[Block]:
    """Every block ever planned, in order. Errors: `StoreDamagedError` where a part of the plan is broken."""
    folder = store / LEDGER / "plan"
    blocks: list[Block] = []
    for expected, number in enumerate(_numbers(folder)):
        path = folder / f"{number:06d}.json"
        remedy = "restore it from a copy, or make a new store of what is finished with 'butd store copy'"
        if number != expected:
            raise StoreDamagedError(f"plan of blocks: {folder}/{expected:06d}.json is missing; {remedy}")
        content: dict[str, Any] = unseal(path, "plan of blocks", remedy)
        if content.get("first_block") != len(blocks):
            raise StoreDamagedError(f"plan of blocks: {path} does not continue the part before it; {remedy}")
        blocks += cut_blocks(content["image_ids"], len(blocks), block_size)
    return blocks


def cut_blocks(image_ids: Sequence[str], first_block: int, block_size: int) -> list[Block]:
    """Cut images into blocks, the last perhaps partial; a pure function of its arguments."""
    return [
        Block(
            index=first_block + number,
            start_row=(first_block + number) * block_size,
            image_ids=tuple(image_ids[start : start + block_size]),
        )
        for number, start in enumerate(range(0, len(image_ids), block_size))
    ]


class WriterLock:
    """Held by the one process that may write a store; the system frees it when that process dies."""

    def __init__(self, store: Path) -> None:
        """Take the lock.

        Errors: `StoreLockedError` naming the process that holds it; `UsageError` where the store cannot be written.
        """
        path = store / LEDGER / "lock"
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"{store} cannot be opened for writing: {error.strerror}; choose a place you may write to"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            os.close(self._descriptor)
            raise StoreLockedError(
                f"{store} is being written by {holder}; wait until it is done, or stop it first"
            ) from error
        with contextlib.suppress(
            OSError
        ):  # a full disk: the lock holds, only its holder's name is not written
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock up; again is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _numbers(folder: StorePath) -> list[int]:
    if isinstance(folder, RemotePath):  # parts of the plan are few, and none is left out
        parts = takewhile(lambda number: (folder / f"{number:06d}.json").is_file(), count())
        return list(parts)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isdigit())
