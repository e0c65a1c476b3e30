"""Repair drops what verify finds, and the job run again gives the store as if nothing had happened."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from store_schema.errors import StoreDamagedError, StoreLockedError, StoreMismatchError, StoreNotFoundError
from store_schema.ledger import finished_blocks, ledger_folder, record_path
from store_schema.reader import RegionStore
from store_schema.repair import repair
from store_schema.verify import verify
from store_schema.writer import StoreWriter
from tests.store_schema.killed_work import repair_store
from tests.store_schema.self_kill import start
from tests.store_schema.tiny import IDS, METADATA, contents, write_store, written_ids


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty_of_all(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [flip, cut, empty_of_all, Path.unlink])
@pytest.mark.parametrize(
    "name", ["features/c.1.0.0", "boxes/c.1.0.0", "image_id_utf8/c.1.0", "num_regions/c.1"]
)
def test_a_damaged_block_is_dropped_and_written_anew(
    fixed_copy: Path, fixed_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(fixed_copy / name)
    of_block = re.compile(r".*/(c\.1(\..*)?|000001\.json)")
    good = {file: data for file, data in contents(fixed_copy).items() if not of_block.fullmatch(file)}
    report = repair(fixed_copy)
    assert {(finding.block, finding.array) for finding in report.findings} == {(1, name.split("/")[0])}
    assert [block.image_ids for block in report.dropped] == [tuple(IDS[4:8])]
    assert contents(fixed_copy) == good
    assert verify(fixed_copy, full=True).ok
    assert written_ids(RegionStore.open(fixed_copy)) == IDS[:4] + IDS[8:]
    with StoreWriter.open(fixed_copy, METADATA) as writer:
        assert [block.index for block in writer.plan(IDS)] == [1]
    assert contents(write_store(fixed_copy)) == contents(fixed_path)


def test_a_dropped_block_shows_as_not_written_to_any_zarr_reader(fixed_copy: Path) -> None:
    cut(fixed_copy / "boxes" / "c.1.0.0")
    repair(fixed_copy)
    group = zarr.open_group(str(fixed_copy), mode="r")
    assert group["num_regions"][4:8].tolist() == [65535] * 4  # type: ignore[index, union-attr]
    assert not group["features"][4:8].any()  # type: ignore[index, union-attr]


def test_a_broken_record_and_a_broken_description_are_repaired(fixed_copy: Path, fixed_path: Path) -> None:
    record_path(fixed_copy, 2).write_bytes(b"{")
    (fixed_copy / "boxes" / "zarr.json").write_text("{")
    report = repair(fixed_copy, full=False)
    assert [(finding.block, finding.array) for finding in report.findings] == [(None, "boxes"), (2, None)]
    assert [block.index for block in report.dropped] == [2]
    assert verify(fixed_copy, full=True).ok
    assert contents(write_store(fixed_copy)) == contents(fixed_path)


def test_a_whole_store_is_left_as_it_is(fixed_copy: Path) -> None:
    before = contents(fixed_copy)
    report = repair(fixed_copy)
    assert (report.findings, report.dropped, contents(fixed_copy)) == ([], [], before)


def test_dry_run_says_the_same_and_changes_nothing(fixed_copy: Path) -> None:
    flip(fixed_copy / "features" / "c.0.0.0")
    before = contents(fixed_copy)
    planned = repair(fixed_copy, dry_run=True)
    assert contents(fixed_copy) == before
    assert repair(fixed_copy) == planned


def test_the_quick_repair_looks_at_sizes_and_indexes_only(fixed_copy: Path) -> None:
    flip(fixed_copy / "boxes" / "c.0.0.0")
    cut(fixed_copy / "boxes" / "c.1.0.0")
    assert [block.index for block in repair(fixed_copy, full=False).dropped] == [1]


def test_what_nothing_in_the_store_can_replace_is_refused(fixed_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no such folder"):
        repair(tmp_path / "nowhere")
    other = shutil.copytree(fixed_copy, tmp_path / "other")
    shutil.rmtree(ledger_folder(other))
    with pytest.raises(StoreMismatchError, match="no records of finished blocks"):
        repair(other)
    (ledger_folder(fixed_copy) / "plan" / "000000.json").write_bytes(b"{")
    before = contents(fixed_copy)
    with pytest.raises(StoreDamagedError, match=r"plan of blocks: .*restore it from a copy"):
        repair(fixed_copy)
    (fixed_copy / "zarr.json").write_text("{")
    with pytest.raises(StoreDamagedError, match="is not readable JSON"):
        repair(fixed_copy)
    assert {**before, "zarr.json": b"{"} == contents(fixed_copy)


def test_a_store_that_is_being_written_is_not_repaired(fixed_copy: Path) -> None:
    with (
        StoreWriter.open(fixed_copy, METADATA),
        pytest.raises(StoreLockedError, match=f"being written by process {os.getpid()} on "),
    ):
        repair(fixed_copy)


@pytest.mark.slow
def test_killed_at_every_deletion_it_leaves_no_wrong_value(fixed_path: Path, tmp_path: Path) -> None:
    """Our reader refuses, or gives the good blocks; other readers see 65535; a second repair completes the first."""
    killed = 0
    while True:
        folder = tmp_path / str(killed)
        path = Path(shutil.copytree(fixed_path, folder / "store"))
        flip(path / "features" / "c.1.0.0")
        worker = start(repair_store, folder, kill_at=killed + 1, events=("os.remove",))
        if worker.ended() == 0:
            break
        assert worker.ended() == -9
        killed += 1
        if 1 not in finished_blocks(path):
            assert not (path / "num_regions" / "c.1").exists()
            assert written_ids(RegionStore.open(path)) == IDS[:4] + IDS[8:]
        else:
            assert {finding.block for finding in verify(path, full=True).findings} == {1}
        repair(path)
        assert contents(write_store(path)) == contents(fixed_path)
    assert killed == 13  # num_regions, the record, eleven arrays
