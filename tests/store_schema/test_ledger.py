import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from store_schema.errors import StoreDamagedError, StoreLockedError
from store_schema.ledger import WriterLock, append_plan, cut_blocks, ledger_folder, make_folders, read_plan


def test_blocks_are_cut_in_order_with_each_image_once() -> None:
    ids = [str(number) for number in range(10)]
    blocks = cut_blocks(ids, 5, 4)
    assert [image_id for block in blocks for image_id in block.image_ids] == ids
    assert [(block.index, block.start_row, len(block.image_ids)) for block in blocks] == [
        (5, 20, 4), (6, 24, 4), (7, 28, 2),
    ]  # fmt: skip
    assert cut_blocks([], 0, 4) == []


def test_a_plan_in_parts_is_read_as_one(tmp_path: Path) -> None:
    make_folders(tmp_path)
    append_plan(tmp_path, 0, ["a", "b", "c"])
    append_plan(tmp_path, 2, ["d"])
    assert [block.image_ids for block in read_plan(tmp_path, 2)] == [("a", "b"), ("c",), ("d",)]


def test_a_missing_or_misplaced_part_of_the_plan_is_named(tmp_path: Path) -> None:
    make_folders(tmp_path)
    append_plan(tmp_path, 0, ["a", "b", "c"])
    append_plan(tmp_path, 2, ["d"])
    with pytest.raises(StoreDamagedError, match=r"000001\.json does not continue the part before it"):
        read_plan(tmp_path, 1)
    (ledger_folder(tmp_path) / "plan" / "000000.json").unlink()
    with pytest.raises(StoreDamagedError, match=r"000000\.json is missing"):
        read_plan(tmp_path, 2)


def hold_lock(store: Path, ready: Any) -> None:
    """In another process: take the lock and wait to be killed."""
    lock = WriterLock(store)
    ready.set()
    signal.pause()
    lock.release()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    make_folders(tmp_path)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, ready))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(StoreLockedError, match=f"being written by process {process.pid} on "):
            WriterLock(tmp_path)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    lock = WriterLock(tmp_path)
    lock.release()
    lock.release()
