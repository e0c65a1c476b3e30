"""A copy holds just what was asked for, bit by bit, shares the files of blocks that stay, and appears whole."""

import os
import shutil
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from store_schema.copy_plan import CopyOptions
from store_schema.copying import copy_stores
from store_schema.errors import (
    ButdError,
    StoreDamagedError,
    StoreLockedError,
    StoreMismatchError,
    StoreNotFoundError,
    UsageError,
)
from store_schema.ledger import WriterLock, ledger_folder, make_folders
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord, Problem
from store_schema.repair import repair
from store_schema.verify import verify
from store_schema.writer import StoreWriter, write_block
from tests.store_schema.killed_work import merge
from tests.store_schema.self_kill import start, touches
from tests.store_schema.tiny import (
    ADAPTIVE,
    BAD_ID,
    IDS,
    METADATA,
    contents,
    finish,
    item,
    record,
    same_record,
    write_store,
    written_ids,
)

GOOD = [image_id for image_id in IDS if image_id != BAD_ID]


def write_items(
    path: Path, items: Sequence[ImageRecord | Problem], metadata: StoreMetadata = METADATA
) -> Path:
    """A store of these pictures."""
    given = {one.image_id: one for one in items}
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan(list(given)):
            items = [given[image_id] for image_id in block.image_ids]
            writer.commit(block, write_block(path, metadata, block, items))
    return path


def linked(source: Path, copy: Path) -> set[str]:
    """Files of the copy that are the source's own."""
    inodes = {file.stat().st_ino for file in source.rglob("*") if file.is_file()}
    return {str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file() and f.stat().st_ino in inodes}


def labels_of(store: RegionStore, image_id: str) -> list[int]:
    labels = store.image(image_id).object_ids
    assert labels is not None
    return [int(label) for label in labels]


def assert_holds(path: Path, image_ids: Sequence[str], metadata: StoreMetadata = METADATA) -> None:
    """Just these pictures, in this order, as they were first written."""
    store = RegionStore.open(path)
    assert written_ids(store) == list(image_ids)
    for image_id in image_ids:
        assert same_record(store.image(image_id), record(image_id, metadata)), image_id
    assert verify(path, full=True).findings == []


@pytest.mark.parametrize("metadata", [METADATA, ADAPTIVE, replace(METADATA, codec="zstd")])
def test_a_copy_of_everything_is_the_same_store_in_the_same_files(
    tmp_path: Path, metadata: StoreMetadata
) -> None:
    source = write_store(tmp_path / "source", metadata)
    report = copy_stores([source], tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)
    chunks = {name for name in contents(source) if "/c." in name}
    assert linked(source, tmp_path / "copy") == chunks
    assert (report.num_images, report.num_problems, report.num_shared, report.num_written) == (10, 1, 3, 0)


@pytest.mark.parametrize(
    "change", [{"codec": "zstd"}, {"block_size": 3}, {"block_size": 16}, {"codec": "zstd", "block_size": 5}]
)
@pytest.mark.parametrize("metadata", [METADATA, ADAPTIVE])
def test_another_codec_or_block_size_gives_the_store_that_would_have_been_written_so(
    tmp_path: Path, metadata: StoreMetadata, change: dict[str, Any]
) -> None:
    source = write_store(tmp_path / "source", metadata)
    copy_stores([source], tmp_path / "copy", CopyOptions(**change))
    assert contents(tmp_path / "copy") == contents(
        write_store(tmp_path / "direct", replace(metadata, **change))
    )
    back = CopyOptions(codec=metadata.codec, block_size=metadata.block_size)
    copy_stores([tmp_path / "copy"], tmp_path / "back", back)
    assert contents(tmp_path / "back") == contents(source)


def test_float16_to_float32_and_back_is_exact(fixed_path: Path, tmp_path: Path) -> None:
    copy_stores([fixed_path], tmp_path / "wide", CopyOptions(feature_dtype="float32"))
    wide = RegionStore.open(tmp_path / "wide")
    assert wide.read(GOOD).features.dtype == np.float32
    assert np.array_equal(wide.read(GOOD).features, RegionStore.open(fixed_path).read(GOOD).features)
    copy_stores([tmp_path / "wide"], tmp_path / "back", CopyOptions(feature_dtype="float16"))
    assert contents(tmp_path / "back") == contents(fixed_path)


def test_float32_that_does_not_fit_float16_is_refused_with_its_picture(tmp_path: Path) -> None:
    wide = replace(METADATA, feature_dtype="float32")
    large = replace(record("p", wide, num_regions=1), features=np.full((1, 6), 70000, np.float32))
    source = write_items(tmp_path / "source", [large], wide)
    with pytest.raises(ButdError, match="picture 'p': the store takes features that fit float16, got 70000"):
        copy_stores([source], tmp_path / "copy", CopyOptions(feature_dtype="float16"))
    assert os.listdir(tmp_path) == ["source"]


def test_pictures_that_are_left_out_change_only_their_block(fixed_path: Path, tmp_path: Path) -> None:
    where = "image_id != 'picture:6'"
    report = copy_stores([fixed_path], tmp_path / "copy", CopyOptions(where=where))
    assert_holds(tmp_path / "copy", [image_id for image_id in GOOD if image_id != "picture:6"])
    assert (report.num_shared, report.num_written, report.num_problems) == (2, 1, 1)
    shared = linked(fixed_path, tmp_path / "copy")
    assert {name.split("/c.")[1].split(".")[0] for name in shared} == {"0", "2"}


def test_pictures_of_blocks_that_change_are_packed_together(fixed_path: Path, tmp_path: Path) -> None:
    copy_stores([fixed_path], tmp_path / "copy", CopyOptions(image_ids=IDS[1:5] + IDS[9:]))
    assert contents(tmp_path / "copy") == contents(
        write_store(tmp_path / "direct", image_ids=IDS[1:5] + IDS[9:])
    )


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (CopyOptions(where="num_regions > 0"), [i for i in GOOD if len(record(i).boxes)]),
        (CopyOptions(where="height < 100 and not quarantined"), [i for i in GOOD if record(i).height < 100]),
        (CopyOptions(where="width == 100"), GOOD),
        (CopyOptions(image_ids=["picture:7", "picture:1"]), ["picture:1", "picture:7"]),
        (CopyOptions(exclude=["picture:0", "nobody"]), GOOD[1:]),
        (CopyOptions(image_ids=IDS[:3], exclude=IDS[:1], where="image_id.endswith('1')"), None),
        (CopyOptions(image_ids=IDS[:3], exclude=IDS[:1], where="image_id.startswith('pic')"), IDS[1:3]),
    ],
)
def test_conditions_and_lists_choose_the_pictures(
    fixed_path: Path, tmp_path: Path, options: CopyOptions, left: list[str] | None
) -> None:
    if left is None:
        with pytest.raises(
            StoreMismatchError, match=r"1 of the pictures asked for .* or do not meet --where"
        ):
            copy_stores([fixed_path], tmp_path / "copy", options)
        return
    copy_stores([fixed_path], tmp_path / "copy", options)
    assert_holds(tmp_path / "copy", left)


def test_quarantined_pictures_and_notes_are_carried_along_or_left_out(tmp_path: Path) -> None:
    turned = replace(record("turned"), notes=("exif_turned",))
    source = write_items(tmp_path / "source", [record("a"), item(BAD_ID), turned, record("b")])
    for name, options in (
        ("kept", CopyOptions(exclude=["a"])),
        ("left", CopyOptions(where="not quarantined")),
    ):
        copy_stores([source], tmp_path / name, options)
        assert RegionStore.open(tmp_path / name).notes() == {"turned": ("exif_turned",)}
    assert RegionStore.open(tmp_path / "kept").problems() == [item(BAD_ID)]
    assert RegionStore.open(tmp_path / "left").problems() == []


def test_stores_of_one_detector_are_merged_in_order(tmp_path: Path) -> None:
    sources = [write_store(tmp_path / "a", image_ids=IDS[:6]), write_store(tmp_path / "b", image_ids=IDS[6:])]
    report = copy_stores(sources, tmp_path / "both")
    assert_holds(tmp_path / "both", GOOD)
    assert (report.num_shared, report.num_written) == (4, 0)
    with StoreWriter.open(tmp_path / "both", METADATA) as writer:  # and grows
        assert writer.plan(IDS) == []
        for block in writer.plan(["more"]):
            finish(writer, block)
    assert_holds(tmp_path / "both", [*GOOD, "more"])
    assert verify(sources[0], full=True).ok
    assert contents(write_store(tmp_path / "again", image_ids=IDS[:6])) == contents(sources[0])


def test_labels_are_joined_by_name(tmp_path: Path) -> None:
    other = replace(METADATA, object_names=("tree", "dog", "bus", "dog"))
    a, b = write_store(tmp_path / "a", image_ids=["p"]), write_store(tmp_path / "b", other, image_ids=["q"])
    report = copy_stores([a, b], tmp_path / "both")
    both = RegionStore.open(tmp_path / "both")
    assert both.metadata.object_names == ("dog", "cat", "tree", "bus", "dog")
    for path, image_id in ((a, "p"), (b, "q")):
        source = RegionStore.open(path)
        before, after = (
            [store.metadata.object_names[i] for i in labels_of(store, image_id)] for store in (source, both)
        )
        assert (before, source.image(image_id).features.tolist()) == (
            after,
            both.image(image_id).features.tolist(),
        )
    assert (report.num_shared, report.num_written) == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"detector": {"name": "other", "fingerprint": "e" * 64}},
            r"detector is .*'tiny'.*ffff.*'other'.*eeee",
        ),
        ({"box_source": "refined"}, "box_source is proposal in the first and refined in the second"),
        ({"selection": {"score_thresh": 0.5}}, r"selection is .*0\.2.* in the first and .*0\.5"),
        (
            {"feature_dtype": "float32"},
            "feature_dtype is float16 in the first and float32 in the second; say --dtype",
        ),
        ({"object_names": ()}, r"b has no object_names, .*a has 3"),
    ],
)
def test_stores_that_cannot_be_one_are_refused_and_both_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    a = write_store(tmp_path / "a", image_ids=["p"])
    b = write_store(tmp_path / "b", replace(METADATA, **change), image_ids=["q"])
    with pytest.raises(StoreMismatchError, match=message) as caught:
        copy_stores([a, b], tmp_path / "both")
    assert str(a) in str(caught.value)
    assert str(b) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_stores_of_different_types_are_merged_where_the_type_is_said(tmp_path: Path) -> None:
    a = write_store(tmp_path / "a", image_ids=["p"])
    b = write_store(tmp_path / "b", replace(METADATA, feature_dtype="float32"), image_ids=["q"])
    copy_stores([a, b], tmp_path / "both", CopyOptions(feature_dtype="float32"))
    both = RegionStore.open(tmp_path / "both")
    assert np.array_equal(both.image("p").features, record("p").features)
    assert np.array_equal(both.image("q").features, RegionStore.open(b).image("q").features)


def test_a_picture_in_two_stores_is_refused_or_replaced_in_its_place(
    fixed_path: Path, tmp_path: Path
) -> None:
    newer = [replace(record(name, num_regions=3), width=99) for name in ("picture:6", "new", "picture:1")]
    patch = write_items(tmp_path / "patch", newer)
    with pytest.raises(
        StoreMismatchError, match=r"2 pictures are in more than one of .*fixed and .*patch, first 'p"
    ):
        copy_stores([fixed_path, patch], tmp_path / "copy")
    report = copy_stores([fixed_path, patch], tmp_path / "copy", CopyOptions(replace=True))
    copy = RegionStore.open(tmp_path / "copy")
    assert written_ids(copy) == [*GOOD, "new"]
    for name in written_ids(copy):
        expected = next((one for one in newer if one.image_id == name), record(name))
        assert same_record(copy.image(name), expected), name
    assert (report.num_shared, report.num_written) == (1, 3)
    assert verify(tmp_path / "copy", full=True).ok


def test_a_picture_with_regions_goes_before_a_quarantined_one(fixed_path: Path, tmp_path: Path) -> None:
    """So that pictures that could be read at last are merged in without --replace, in either order."""
    second_try = write_items(tmp_path / "again", [record(BAD_ID)])
    for name, sources in (("a", [fixed_path, second_try]), ("b", [second_try, fixed_path])):
        copy_stores(sources, tmp_path / name)
        copy = RegionStore.open(tmp_path / name)
        assert (set(written_ids(copy)), copy.problems()) == (set(IDS), [])
        assert verify(tmp_path / name, full=True).ok
    assert_holds(tmp_path / "a", IDS)


def test_pictures_in_no_store_and_copies_of_nothing_are_refused(fixed_path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StoreMismatchError, match="2 of the pictures asked for are in no store, first 'nobody'"
    ):
        copy_stores([fixed_path], tmp_path / "c", CopyOptions(image_ids=["nobody", "picture:1", "xyz"]))
    with pytest.raises(UsageError, match=r"no picture of .* is left to copy"):
        copy_stores([fixed_path], tmp_path / "c", CopyOptions(where="width < 0"))
    with pytest.raises(
        UsageError, match=r"there is no column 'size'; expected a condition on image_id, width"
    ):
        copy_stores([fixed_path], tmp_path / "c", CopyOptions(where="size < 0"))
    with pytest.raises(StoreNotFoundError, match="no such folder"):
        copy_stores([fixed_path, tmp_path / "x"], tmp_path / "c")
    assert os.listdir(tmp_path) == []


def test_a_place_that_is_taken_is_refused(fixed_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for place, message in (
        (fixed_copy, "is there already"),
        (tmp_path / "file", "is there already"),
        (fixed_copy / "copy", "lies in the store"),
        (tmp_path / "file" / "copy", "cannot be made"),
    ):
        with pytest.raises(UsageError, match=message):
            copy_stores([fixed_copy], place)
    copy_stores([fixed_copy], tmp_path / "empty")
    copy_stores([fixed_copy], tmp_path / "new" / "folder" / "copy")
    assert (
        contents(tmp_path / "empty") == contents(tmp_path / "new" / "folder" / "copy") == contents(fixed_copy)
    )


def test_two_copies_to_one_place_at_a_time_are_refused(fixed_path: Path, tmp_path: Path) -> None:
    make_folders(tmp_path / ".copy.copying")
    lock = WriterLock(tmp_path / ".copy.copying")
    with pytest.raises(StoreLockedError, match=f"being written by process {os.getpid()} on "):
        copy_stores([fixed_path], tmp_path / "copy")
    lock.release()
    copy_stores([fixed_path], tmp_path / "copy")
    assert os.listdir(tmp_path) == ["copy"]


def test_damage_in_what_is_copied_is_named_and_leaves_nothing(fixed_copy: Path, tmp_path: Path) -> None:
    data = bytearray((fixed_copy / "features" / "c.1.0.0").read_bytes())
    data[0] ^= 1
    (fixed_copy / "features" / "c.1.0.0").write_bytes(data)
    with pytest.raises(StoreDamagedError, match="block 1, features: the bytes of row 6 have changed"):
        copy_stores([fixed_copy], tmp_path / "copy", CopyOptions(codec="zstd"))
    assert os.listdir(tmp_path) == ["store"]


def test_a_store_whose_plan_is_lost_can_still_be_copied(
    fixed_copy: Path, fixed_path: Path, tmp_path: Path
) -> None:
    """The way out that the message names."""
    (ledger_folder(fixed_copy) / "plan" / "000000.json").write_bytes(b"{")
    with pytest.raises(StoreDamagedError, match=r"plan of blocks: .*'butd store copy'"):
        StoreWriter.open(fixed_copy, METADATA)
    copy_stores([fixed_copy], tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(fixed_path)


def test_only_finished_blocks_are_copied_and_the_others_counted(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "source", METADATA) as writer:
        finish(writer, writer.plan(IDS)[1])
        report = copy_stores([tmp_path / "source"], tmp_path / "copy")
    assert (report.num_images, report.num_unfinished) == (3, 2)
    assert_holds(tmp_path / "copy", [image_id for image_id in IDS[4:8] if image_id != BAD_ID])


def test_a_copy_that_a_zarr_tool_made_becomes_a_store_with_records_again(
    fixed_path: Path, tmp_path: Path
) -> None:
    source = zarr.open_group(str(fixed_path), mode="r")
    foreign = zarr.create_group(str(tmp_path / "foreign"), attributes=dict(source.attrs))
    for name in METADATA.arrays():
        if name != "image_id":
            array: Any = source[name]
            made: Any = foreign.create_array(
                name, shape=array.shape, chunks=array.shape, dtype=array.dtype, fill_value=array.fill_value
            )
            made[:] = array[:]
    copy_stores([tmp_path / "foreign"], tmp_path / "copy")
    assert_holds(tmp_path / "copy", GOOD)


def test_repairing_a_copy_leaves_its_source_alone(fixed_path: Path, tmp_path: Path) -> None:
    copy_stores([fixed_path], tmp_path / "copy")
    before = contents(fixed_path)
    (tmp_path / "copy" / "boxes" / "c.1.0.0").unlink()
    repair(tmp_path / "copy")
    assert contents(fixed_path) == before
    assert contents(write_store(tmp_path / "copy")) == before


def test_dry_run_says_the_same_and_writes_nothing(fixed_path: Path, tmp_path: Path) -> None:
    options = CopyOptions(where="image_id != 'picture:0'")
    planned = copy_stores([fixed_path], tmp_path / "copy", options, dry_run=True)
    assert os.listdir(tmp_path) == []
    assert copy_stores([fixed_path], tmp_path / "copy", options) == planned
    assert planned.num_bytes == sum(len(record(image_id).boxes) for image_id in IDS[1:4]) * 6 * 2


def test_memory_is_that_of_a_block(tmp_path: Path) -> None:
    """Of 30 blocks of 128 KB each."""
    large = replace(METADATA, feature_dim=4096)
    pictures = [record(f"p{number}", large, num_regions=4) for number in range(120)]
    source = write_items(tmp_path / "source", pictures, large)
    del pictures
    copy_stores([source], tmp_path / "first", CopyOptions(image_ids=["p0"]))  # what is imported stays
    tracemalloc.start()
    report = copy_stores([source], tmp_path / "copy", CopyOptions(where="image_id != 'p0'", block_size=3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.num_written, report.num_bytes) == (40, 119 * 4 * 4096 * 2)
    assert peak < report.num_bytes / 3


def test_killed_half_way_it_leaves_nothing_that_looks_whole(fixed_path: Path, tmp_path: Path) -> None:
    total = touches(merge, prepared(fixed_path, tmp_path / "whole"))
    assert not check_killed_copy(fixed_path, tmp_path, total // 2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_fifth_touch_of_a_file_it_leaves_nothing_that_looks_whole(
    fixed_path: Path, tmp_path: Path
) -> None:
    total = touches(merge, prepared(fixed_path, tmp_path / "whole"))
    instants = [
        *range(1, total - 8, 5),
        *range(total - 8, total + 1),
    ]  # and at each of the last, around the rename
    moved = [check_killed_copy(fixed_path, tmp_path, kill_at) for kill_at in instants]
    assert moved == sorted(moved)
    assert 1 <= sum(moved) <= 5  # flushing and the count of what the sources lack


def prepared(fixed_path: Path, folder: Path) -> Path:
    shutil.copytree(fixed_path, folder / "store")
    write_store(folder / "more", image_ids=["m", "n"])
    return folder


def check_killed_copy(fixed_path: Path, tmp_path: Path, kill_at: int) -> bool:
    """Whether the copy was there already when its process was killed; it must be whole then."""
    folder = prepared(fixed_path, tmp_path / str(kill_at))
    assert start(merge, folder, kill_at=kill_at).ended() == -9
    if is_there := (folder / "copy").exists():
        assert verify(folder / "copy", full=True).ok
    else:
        if (folder / ".copy.copying" / "zarr.json").exists():  # killed just before the rename
            assert verify(folder / ".copy.copying", full=True).num_unfinished == 0
        merge(folder)
    assert contents(folder / "copy") == contents(tmp_path / "whole" / "copy")
    assert sorted(os.listdir(folder)) == ["copy", "more", "store"]
    assert contents(folder / "store") == contents(fixed_path)
    shutil.rmtree(folder)
    return is_there
