import contextlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store_schema.errors import (
    StoreDamagedError,
    StoreError,
    StoreLockedError,
    StoreMismatchError,
    StoreNotFoundError,
    UsageError,
)
from store_schema.ledger import record_path
from store_schema.reader import RegionStore
from store_schema.records import Block, Receipt
from store_schema.verify import verify
from store_schema.writer import StoreWriter, write_block
from tests.store_schema.conftest import mount
from tests.store_schema.tiny import (
    BAD_ID,
    IDS,
    METADATA,
    contents,
    finish,
    item,
    record,
    write_store,
    written_ids,
)


def test_same_input_gives_the_same_bytes(fixed_path: Path, tmp_path: Path) -> None:
    assert contents(write_store(tmp_path / "again")) == contents(fixed_path)


def test_blocks_written_in_another_order_give_the_same_bytes(fixed_path: Path, tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "store", METADATA) as writer:
        for block in reversed(writer.plan(IDS)):
            finish(writer, block)
    assert contents(tmp_path / "store") == contents(fixed_path)


def test_plan_gives_the_same_blocks_again_and_leaves_out_committed_ones(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        first = writer.plan(IDS)
        assert [len(block.image_ids) for block in first] == [4, 4, 3]
        assert [block.start_row for block in first] == [0, 4, 8]
        finish(writer, first[1])
    with StoreWriter.open(tmp_path, METADATA) as writer:
        assert writer.plan(IDS[::-1]) == [first[0], first[2]]


def test_plan_of_some_images_returns_only_their_blocks(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        blocks = writer.plan(IDS)
        assert writer.plan([IDS[9]]) == [blocks[2]]


def test_new_images_start_at_the_next_block_boundary(fixed_copy: Path) -> None:
    with StoreWriter.open(fixed_copy, METADATA) as writer:
        blocks = writer.plan([*IDS, "new:1", "new:2"])
        assert blocks == [Block(index=3, start_row=12, image_ids=("new:1", "new:2"))]
        finish(writer, blocks[0])
    store = RegionStore.open(fixed_copy)
    assert written_ids(store)[-3:] == [IDS[-1], "new:1", "new:2"]
    assert store.rows(["new:1", IDS[-1]]).tolist() == [12, 10]
    assert verify(fixed_copy, full=True).ok


def test_longer_new_identifiers_widen_the_array_of_bytes(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", image_ids=["short"])
    with StoreWriter.open(path, METADATA) as writer:
        for block in writer.plan(["y" * 1024]):
            finish(writer, block)
    assert written_ids(RegionStore.open(path)) == ["short", "y" * 1024]
    assert json.loads((path / "image_id_utf8" / "zarr.json").read_text())["shape"] == [5, 1024]


@pytest.mark.parametrize(
    ("image_ids", "message"),
    [
        (["a", ""], "image_id '' cannot be stored"),
        (["a\0b"], "cannot be stored"),
        (["ä" * 513], "needs 1 to 1024 bytes"),
        (["a", "b", "a"], "image_id 'a' is given twice"),
    ],
)
def test_identifiers_that_cannot_be_keys_are_refused(
    tmp_path: Path, image_ids: list[str], message: str
) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer, pytest.raises(UsageError, match=message):
        writer.plan(image_ids)
    with StoreWriter.open(tmp_path, METADATA) as writer:
        assert [block.image_ids for block in writer.plan(["a"])] == [("a",)]


def test_other_metadata_is_refused_with_the_difference(fixed_copy: Path) -> None:
    other = replace(METADATA, detector={"name": "tiny", "fingerprint": "e" * 64})
    with pytest.raises(StoreMismatchError, match=r"detector is .*ffff.* in the store and .*eeee.* now"):
        StoreWriter.open(fixed_copy, other)


def test_other_code_version_and_detector_path_go_on_with_the_store(fixed_copy: Path) -> None:
    before = contents(fixed_copy)
    moved = dict(METADATA.detector) | {"path": "moved"}
    other = replace(METADATA, code_version="9", software={"numpy": "9"}, detector=moved)
    with StoreWriter.open(fixed_copy, other) as writer:
        assert writer.metadata == METADATA
    assert contents(fixed_copy) == before


def test_a_second_writer_is_refused_and_the_first_named(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA):
        with pytest.raises(StoreLockedError, match=rf"being written by process {os.getpid()} on "):
            StoreWriter.open(tmp_path, METADATA)
        assert len(RegionStore.open(tmp_path)) == 0
    StoreWriter.open(tmp_path, METADATA).close()


def test_a_refused_writer_leaves_the_lock_free(fixed_copy: Path) -> None:
    with pytest.raises(StoreMismatchError, match="box_source"):
        StoreWriter.open(fixed_copy, replace(METADATA, box_source="refined"))
    StoreWriter.open(fixed_copy, METADATA).close()


def test_partial_files_of_a_killed_writer_are_cleared(fixed_copy: Path) -> None:
    before = contents(fixed_copy)
    for folder in (".", "features", "num_regions/.butd/blocks", "num_regions/.butd/plan"):
        (fixed_copy / folder / "c.9.0.0.123-abc.partial").write_bytes(b"half")
    StoreWriter.open(fixed_copy, METADATA).close()
    assert contents(fixed_copy) == before


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty \(it holds 'notes.txt'\)"):
        StoreWriter.open(tmp_path, METADATA)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_another_zarr_group_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(StoreNotFoundError, match="is a Zarr group but no region store"):
        StoreWriter.open(tmp_path, METADATA)
    assert os.listdir(tmp_path) == ["zarr.json"]


def test_a_store_that_another_tool_laid_out_is_not_continued(fixed_copy: Path) -> None:
    shutil.rmtree(fixed_copy / "num_regions" / ".butd")
    before = contents(fixed_copy)
    with pytest.raises(StoreMismatchError, match="it can be read, not continued: write to a new store"):
        StoreWriter.open(fixed_copy, METADATA)
    assert contents(fixed_copy) == before


def test_a_store_that_lost_its_plan_is_not_continued(fixed_copy: Path) -> None:
    (fixed_copy / "num_regions" / ".butd" / "plan" / "000000.json").unlink()
    before = contents(fixed_copy)
    with pytest.raises(StoreDamagedError, match=r"block 0 is finished, but .*plan plans only 0 blocks"):
        StoreWriter.open(fixed_copy, METADATA)
    assert contents(fixed_copy) == before


def test_a_file_in_the_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(UsageError, match="is a file; a region store is a folder"):
        StoreWriter.open(tmp_path / "store", METADATA)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        StoreWriter.open(tmp_path / "file" / "store", METADATA)


def test_creation_that_was_cut_off_goes_on(fixed_path: Path, tmp_path: Path) -> None:
    """Killed before the root's zarr.json, which is written last, with some arrays' files there."""
    write_store(tmp_path / "store", image_ids=[])
    (tmp_path / "store" / "zarr.json").unlink()
    (tmp_path / "store" / "boxes" / "zarr.json").unlink()
    assert contents(write_store(tmp_path / "store")) == contents(fixed_path)


def test_receipt_survives_json(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(IDS)[1]
        receipt = write_block(tmp_path, METADATA, block, [item(image_id) for image_id in block.image_ids])
    assert Receipt.from_json(json.loads(json.dumps(receipt.to_json()))) == receipt
    assert (receipt.num_images, [problem.image_id for problem in receipt.problems]) == (3, [BAD_ID])


def test_what_was_done_to_a_picture_is_noted(tmp_path: Path) -> None:
    turned = replace(record("turned"), notes=("exif_turned",))
    both = replace(record("both"), notes=("exif_turned", "first_frame"))
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(["plain", "turned", "both"])[0]
        receipt = write_block(tmp_path, METADATA, block, [record("plain"), turned, both])
        writer.commit(block, Receipt.from_json(json.loads(json.dumps(receipt.to_json()))))
    store = RegionStore.open(tmp_path)
    assert store.notes() == {"turned": ("exif_turned",), "both": ("exif_turned", "first_frame")}
    assert [store.image(image_id).notes for image_id in ("plain", "both")] == [(), both.notes]
    assert verify(tmp_path, full=True).ok


def test_commit_refuses_a_block_whose_file_is_not_as_the_receipt_says(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(IDS)[0]
        receipt = write_block(tmp_path, METADATA, block, [item(image_id) for image_id in block.image_ids])
        (tmp_path / "boxes" / "c.0.0.0").unlink()
        with pytest.raises(StoreDamagedError, match=r"block 0: .*boxes/c.0.0.0 is missing"):
            writer.commit(block, receipt)
        with pytest.raises(StoreError, match="receipt is of block 0"):
            writer.commit(writer.plan(IDS)[1], receipt)
    assert len(RegionStore.open(tmp_path)) == 0


def test_a_block_without_commit_is_not_there(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        blocks = writer.plan(IDS)
        finish(writer, blocks[0])
        write_block(tmp_path, METADATA, blocks[1], [item(image_id) for image_id in blocks[1].image_ids])
        store = RegionStore.open(tmp_path)
        assert written_ids(store) == IDS[:4]
        report = verify(tmp_path)
        assert (report.ok, report.num_blocks, report.num_unfinished) == (True, 1, 2)


def test_deleting_a_record_makes_just_this_block_written_anew(fixed_copy: Path, fixed_path: Path) -> None:
    """The remedy that the messages name."""
    record_path(fixed_copy, 1).unlink()
    (fixed_copy / "features" / "c.1.0.0").write_bytes(b"damaged")
    with StoreWriter.open(fixed_copy, METADATA) as writer:
        blocks = writer.plan(IDS)
        assert [block.index for block in blocks] == [1]
        finish(writer, blocks[0])
    assert contents(fixed_copy) == contents(fixed_path)


def test_a_picture_that_became_unreadable_leaves_nothing_of_the_first_try(tmp_path: Path) -> None:
    """Its identifier is long: the second try must overwrite every part of it."""
    long_id = "z" * 70
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan([BAD_ID, long_id])[0]
        write_block(tmp_path, METADATA, block, [item(BAD_ID), record(long_id)])
        problem = replace(item(BAD_ID), image_id=long_id)
        writer.commit(block, write_block(tmp_path, METADATA, block, [item(BAD_ID), problem]))
    assert not any(file.read_bytes()[:-4].strip(b"\0") for file in (tmp_path / "image_id_utf8").glob("c.*"))
    assert verify(tmp_path, full=True).ok


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((2, 5), np.float16)}, r"features of shape \[2, 6\], got \[2, 5\]"),
        ({"boxes": np.zeros((2, 5), np.float32)}, r"boxes of shape \[2, 4\]"),
        ({"boxes": np.array([[0, 0, 5, 5], [0, 0, 101, 5]], np.float32)}, r"got \[0.0, 0.0, 101.0, 5.0\] at region 1"),
        ({"boxes": np.array([[0, 0, 5, 5], [0, 3, 5, 3]], np.float32)}, "0 <= x1 < x2 <= width"),
        ({"boxes": np.array([[0, 0, 5, 5], [0, 3, 5, np.nan]], np.float32)}, "0 <= x1 < x2 <= width"),
        ({"features": np.array([[0] * 6, [0] * 5 + [np.nan]], np.float16)}, "NaN or infinity at region 1"),
        ({"features": np.array([[0] * 6, [0] * 5 + [np.nan]], np.float64)}, "NaN or infinity at region 1"),
        ({"features": np.full((2, 6), -np.inf, np.float32)}, "NaN or infinity at region 0"),
        ({"features": np.full((2, 6), -70000.0, np.float32)}, "fit float16, got 70000; use feature_dtype float32"),
        ({"object_ids": np.array([0, 3])}, "object ids from 0 to 2, got 0 to 3"),
        ({"object_ids": np.array([-1, 0])}, "object ids from 0 to 2, got -1 to 0"),
        ({"attribute_ids": None}, "attribute ids and scores, since the store has 2 attribute names"),
        ({"object_scores": np.array([0.5, np.nan])}, "finite object scores"),
        ({"object_scores": np.array([0.5])}, r"object_scores of shape \[2\]"),
        ({"width": 0}, "a positive size, got 0x"),
        ({"notes": ("upside down",)}, "notes out of exif_turned, first_frame, got upside down"),
    ],
)  # fmt: skip
def test_a_record_that_breaks_a_rule_is_refused_with_its_picture(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    good = replace(record("picture:0", num_regions=2), width=100)
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(["picture:0"])[0]
        write_block(tmp_path, METADATA, block, [good])
        with pytest.raises(StoreError, match=f"picture 'picture:0': the store takes .*{message}"):
            write_block(tmp_path, METADATA, block, [replace(good, **change)])


def test_too_many_regions_are_refused(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(["a"])[0]
        five = record("a", replace(METADATA, max_regions=5), num_regions=5)
        with pytest.raises(StoreError, match="at most 4 regions, got 5"):
            write_block(tmp_path, METADATA, block, [five])


def test_labels_without_names_are_refused(tmp_path: Path) -> None:
    bare = replace(METADATA, attribute_names=())
    with StoreWriter.open(tmp_path, bare) as writer:
        block = writer.plan(["a"])[0]
        with pytest.raises(StoreError, match="no attribute labels, since the store has no attribute names"):
            write_block(tmp_path, bare, block, [record("a")])


def test_items_in_another_order_are_refused(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(["a", "b"])[0]
        with pytest.raises(StoreError, match=r"first difference \('a', 'b'\)"):
            write_block(tmp_path, METADATA, block, [record("b"), record("a")])


def test_features_of_another_type_are_cast_to_the_stores(tmp_path: Path) -> None:
    exact = record("a", num_regions=4)
    wide = replace(exact, features=exact.features.astype(np.float64), boxes=exact.boxes.astype(np.float64))
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(["a"])[0]
        writer.commit(block, write_block(tmp_path, METADATA, block, [wide]))
    assert np.array_equal(RegionStore.open(tmp_path).image("a").features, exact.features)


def test_a_read_only_store_is_read_and_refused_for_writing(small_disk: Path) -> None:
    write_store(small_disk / "store")
    assert mount("-o", "remount,ro", str(small_disk)).returncode == 0
    with pytest.raises(UsageError, match="cannot be opened for writing: Read-only file system"):
        StoreWriter.open(small_disk / "store", METADATA)
    with pytest.raises(UsageError, match="cannot be made: Read-only file system"):
        StoreWriter.open(small_disk / "other", METADATA)
    assert len(RegionStore.open(small_disk / "store")) == 10
    assert verify(small_disk / "store", full=True).ok


def test_a_full_disk_is_named_and_the_store_goes_on_when_there_is_room(
    small_disk: Path, fixed_path: Path
) -> None:
    filler = small_disk / "filler"
    path = small_disk / "store"
    with StoreWriter.open(path, METADATA) as writer:
        blocks = writer.plan(IDS)
        finish(writer, blocks[0])
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)) == 4096:
                pass
        with pytest.raises(StoreError, match=r"block 1, \w+: cannot write the \d+ bytes of .*No space left"):
            finish(writer, blocks[1])
    assert not list(path.rglob("*.partial"))
    assert written_ids(RegionStore.open(path)) == IDS[:4]
    filler.unlink()
    assert contents(write_store(path)) == contents(fixed_path)


def test_moved_and_symlinked_stores_are_the_same_store(
    fixed_copy: Path, fixed_path: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.move(fixed_copy, moved)
    (tmp_path / "link").symlink_to(moved)
    store = RegionStore.open(tmp_path / "link")
    assert store.fingerprint == RegionStore.open(fixed_path).fingerprint
    with StoreWriter.open(tmp_path / "link", METADATA) as writer:
        assert writer.plan(IDS) == []


def test_files_from_the_future_are_no_trouble(fixed_copy: Path, fixed_path: Path) -> None:
    """What a clock that is set back looks like: nothing in a store is decided by a time."""
    record_path(fixed_copy, 1).unlink()
    (fixed_copy / "boxes" / "c.1.0.0.1-a.partial").write_bytes(b"half")
    for path in [fixed_copy, *fixed_copy.rglob("*")]:
        os.utime(path, (4e9, 4e9))
    assert written_ids(RegionStore.open(fixed_copy)) == IDS[:4] + IDS[8:]
    assert contents(write_store(fixed_copy)) == contents(fixed_path)
    assert verify(fixed_copy, full=True).ok


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With block and array; nothing half written stays."""
    with StoreWriter.open(tmp_path, METADATA) as writer:
        block = writer.plan(["a"])[0]
        (tmp_path / "boxes" / "c.0.0.0").mkdir()
        place = re.escape(str(tmp_path / "boxes" / "c.0.0.0"))
        with pytest.raises(StoreError, match=rf"block 0, boxes: cannot write the \d+ bytes of {place}: Is a"):
            write_block(tmp_path, METADATA, block, [record("a")])
        assert not list(tmp_path.rglob("*.partial"))
