"""A disk that is full at any write: named, nothing wrong on it, and complete once there is room."""

import contextlib
import os
import re
from pathlib import Path

import pytest

from store_schema.copying import copy_stores
from store_schema.errors import ButdError, StoreNotFoundError
from store_schema.reader import RegionStore
from store_schema.verify import verify
from tests.store_schema.tiny import METADATA, contents, record, same_record, write_store

PAGE = 4096


def leave_room(folder: Path, pages: int) -> Path:
    """Fill the file system but for a number of pages; the filler is returned."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(PAGE)) == PAGE:
            pass
        file.truncate(file.tell() // PAGE * PAGE)
    os.truncate(filler, max(0, filler.stat().st_size - pages * PAGE))
    return filler


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_is_named_and_the_store_is_completed(
    small_disk: Path, fixed_path: Path
) -> None:
    path = small_disk / "store"
    messages: list[str] = []
    for pages in range(10_000):
        filler = leave_room(small_disk, pages)
        try:
            write_store(path)
        except ButdError as error:
            messages.append(str(error))
        else:
            break
        assert not list(path.rglob("*.partial"))
        with contextlib.suppress(StoreNotFoundError):  # not even made
            store = RegionStore.open(path)
            assert verify(path, full=True).findings == []
            assert all(same_record(store.image(image_id), record(image_id)) for image_id in store.image_ids)
        filler.unlink()
        assert contents(write_store(path)) == contents(fixed_path)
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()
    assert pages > 40
    expected = {f"block {block}, {array}" for block in range(3) for array in ("features", "commit record")}
    expected.remove(
        "block 0, features"
    )  # there is room: the plan of blocks made the arrays' descriptions anew
    expected |= {"plan of blocks", "the store's metadata", "array features, description"}
    assert all("No space left on device" in message for message in messages)
    assert expected <= {re.sub(r": cannot write.*", "", message) for message in messages}, messages
    assert contents(path) == contents(fixed_path)


def test_a_disk_that_is_full_while_copying_is_named_and_left_as_it_was(
    small_disk: Path, fixed_path: Path
) -> None:
    for pages in (3, 20, 40):
        filler = leave_room(small_disk, pages)
        with pytest.raises(ButdError, match="No space left on device"):
            copy_stores([fixed_path], small_disk / "copy")  # another file system: bytes, not links
        assert os.listdir(small_disk) == ["filler"]
        filler.unlink()
    report = copy_stores([fixed_path], small_disk / "copy")
    assert contents(small_disk / "copy") == contents(fixed_path)
    assert (report.num_shared, RegionStore.open(small_disk / "copy").metadata) == (3, METADATA)
