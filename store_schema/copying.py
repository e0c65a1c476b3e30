"""Copy stores into a new one: some pictures, other types, codecs or block sizes, several stores merged.

    copy_stores(["runs/a.zarr", "runs/b.zarr"], "runs/both.zarr", CopyOptions(where="width >= 300"))

The copy is built in a hidden folder beside its place and renamed when it is whole and on the disk. A killed copy
leaves that folder behind, without the file that would make it a store; the next copy to the same place clears it.
Blocks that do not change are hard links: a store's files are never changed in place.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from store_schema.copy_plan import CopiedBlock, CopyOptions, CopyPlan, Source, plan_copy
from store_schema.durable import flush_folders, make_folder
from store_schema.errors import StoreDamagedError, StoreError, UsageError
from store_schema.ledger import (
    LEDGER,
    WriterLock,
    append_plan,
    finished_blocks,
    has_ledger,
    make_folders,
    read_plan,
    read_record,
    write_record,
)
from store_schema.reader import RegionStore
from store_schema.records import Block, FileStamp, ImageRecord, Problem, Receipt
from store_schema.remote import StorePath, store_path
from store_schema.root import write_root
from store_schema.verify import Track
from store_schema.writer import write_block, write_descriptions


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What a copy holds, or would hold."""

    num_images: int
    num_problems: int
    """Quarantined pictures, which are carried along."""
    num_shared: int
    """Blocks that are hard links."""
    num_written: int
    num_bytes: int
    """Of the features that are written anew, before compression."""
    num_unfinished: int
    """Blocks of the sources that were planned and never finished: not copied."""


def copy_stores(
    sources: Sequence[str | StorePath],
    destination: str | Path,
    options: CopyOptions | None = None,
    *,
    dry_run: bool = False,
    track: Track = iter,
) -> CopyReport:
    """Make one new store of what is finished in one or several of the same detector.

    Memory is that of one block. The sources may be remote or written by other Zarr tools.

    Args:
        track: wraps the numbers of the copy's blocks, to show progress.

    Errors: those of `plan_copy` and of opening; `UsageError` where the destination is taken; `StoreError` and
    `StoreDamagedError` naming picture or file. After an error nothing is left behind.
    """
    destination = Path(destination)
    places = [store_path(source) for source in sources]
    _check_destination(destination, places)
    stores = [RegionStore.open(place) for place in places]
    plan = plan_copy(stores, options or CopyOptions())
    if not dry_run:
        _build(stores, plan, destination, track)
    return _report(stores, plan)


def _check_destination(destination: Path, sources: Sequence[StorePath]) -> None:
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise UsageError(f"{destination} is there already; a copy makes a new store: choose another place")
    for source in sources:
        if isinstance(source, Path) and destination.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"{destination} lies in the store {source}; choose a place beside it")


def _build(stores: Sequence[RegionStore], plan: CopyPlan, destination: Path, track: Track) -> None:
    hidden = destination.with_name(f".{destination.name}.copying")
    try:
        make_folders(hidden)
    except OSError as error:
        raise UsageError(f"{destination} cannot be made: {error.strerror}; choose another place") from error
    lock = WriterLock(hidden)
    try:
        _clear(hidden)
        make_folders(hidden)
        _write_blocks(stores, plan, hidden, track)
        write_root(hidden, plan.metadata)  # what makes it a store
        _move(hidden, destination)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    finally:
        lock.release()


def _clear(hidden: Path) -> None:
    """Delete what a killed copy left, but the lock."""
    for folder, _, names in os.walk(hidden, topdown=False):
        for name in names:
            if Path(folder, name) != hidden / LEDGER / "lock":
                Path(folder, name).unlink()
        with contextlib.suppress(OSError):  # not empty: it holds the lock
            Path(folder).rmdir()


def _write_blocks(stores: Sequence[RegionStore], plan: CopyPlan, hidden: Path, track: Track) -> None:
    metadata = plan.metadata
    folders = [hidden / name for name in metadata.arrays()]
    for folder in folders:
        make_folder(folder)
    blocks = [copied.block for copied in plan.blocks]
    _write_plan(hidden, blocks, metadata.block_size)
    for number in track(list(range(len(blocks)))):
        copied = plan.blocks[number]
        if copied.taken is None:
            items = [_item(stores, plan, source) for source in copied.sources]
            receipt = write_block(hidden, metadata, copied.block, items)
        else:
            receipt = _share(Path(str(stores[copied.sources[0].store].path)), copied, hidden)
        write_record(hidden, copied.block, receipt, metadata.detector["fingerprint"])
    write_descriptions(hidden, metadata, blocks)
    flush_folders([*folders, hidden])


def _write_plan(hidden: Path, blocks: Sequence[Block], block_size: int) -> None:
    """Plans: each ends where a block is not full."""
    first = 0
    image_ids: list[str] = []
    for block in blocks:
        image_ids += block.image_ids
        if len(block.image_ids) < block_size or block is blocks[-1]:
            append_plan(hidden, first, image_ids)
            first, image_ids = block.index + 1, []


def _item(stores: Sequence[RegionStore], plan: CopyPlan, source: Source) -> ImageRecord | Problem:
    """A picture as the copy has it."""
    if source.problem is not None:
        return source.problem
    record = stores[source.store].image_at(source.row)
    for kind, new_ids in plan.label_maps[source.store].items():
        old = np.asarray(getattr(record, f"{kind}_ids"))
        if len(old) and old.max() >= len(new_ids):
            raise StoreDamagedError(
                f"{stores[source.store].path}: picture {record.image_id!r} has the {kind} label {old.max()}, there "
                f"are {len(new_ids)} names; see 'butd store verify --full'"
            )
        record = replace(record, **{f"{kind}_ids": new_ids[old]})
    return record


def _share(store: Path, copied: CopiedBlock, hidden: Path) -> Receipt:
    """Give a block's files second names in the copy; where the disk cannot, copy their bytes."""
    assert copied.taken is not None
    source, index = read_record(store, copied.taken), copied.block.index
    files: dict[str, FileStamp] = {}
    for name, stamp in source.receipt.files.items():
        array, key = name.split("/")
        new_key = ".".join(["c", str(index), *key.split(".")[2:]])
        files[f"{array}/{new_key}"] = stamp
        try:
            _link(store / name, hidden / array / new_key)
        except OSError as error:
            raise StoreError(
                f"block {copied.taken}: {store / name} cannot be copied: {error.strerror}"
            ) from error
    return replace(source.receipt, block=index, files=files)


def _link(old: Path, new: Path) -> None:
    try:
        os.link(old.resolve(), new)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(old, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())


def _move(hidden: Path, destination: Path) -> None:
    try:
        hidden.rename(destination)
    except OSError as error:
        raise UsageError(
            f"the copy cannot be moved to {destination}: {error.strerror}; choose a place that is free"
        ) from error
    flush_folders([destination.parent])


def _report(stores: Sequence[RegionStore], plan: CopyPlan) -> CopyReport:
    metadata = plan.metadata
    anew = [source for copied in plan.blocks if copied.taken is None for source in copied.sources]
    num_regions = 0
    for number, store in enumerate(stores):
        rows = [source.row for source in anew if source.store == number and source.problem is None]
        num_regions += int(store.num_regions(rows).sum())
    sources = [source for copied in plan.blocks for source in copied.sources]
    num_problems = sum(source.problem is not None for source in sources)
    num_shared = sum(copied.taken is not None for copied in plan.blocks)
    return CopyReport(
        num_images=len(sources) - num_problems,
        num_problems=num_problems,
        num_shared=num_shared,
        num_written=len(plan.blocks) - num_shared,
        num_bytes=num_regions * metadata.feature_dim * np.dtype(metadata.feature_dtype).itemsize,
        num_unfinished=sum(map(_num_unfinished, stores)),
    )


def _num_unfinished(store: RegionStore) -> int:
    """None where it is not known: the plan is broken or far away, but what is finished can be copied all the same."""
    if not isinstance(store.path, Path) or not has_ledger(store.path):
        return 0
    with contextlib.suppress(StoreDamagedError):
        return len(read_plan(store.path, store.metadata.block_size)) - len(finished_blocks(store.path))
    return 0
