import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store_schema.errors import (
    StoreDamagedError,
    StoreError,
    StoreMismatchError,
    StoreNotFoundError,
    UsageError,
)
from store_schema.ledger import ledger_folder, record_path
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord, Problem, RegionArrays
from store_schema.writer import StoreWriter
from tests.store_schema.tiny import (
    ADAPTIVE,
    BAD_ID,
    IDS,
    METADATA,
    finish,
    record,
    same_record,
    write_store,
    written_ids,
)

GOOD = [image_id for image_id in IDS if image_id != BAD_ID]
VARIANTS = [
    pytest.param(replace(metadata, codec=codec, feature_dtype=dtype), id=f"{name}-{codec}-{dtype}")
    for name, metadata in (("fixed", METADATA), ("adaptive", ADAPTIVE))
    for codec in ("none", "zstd")
    for dtype in ("float16", "float32")
]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("metadata", VARIANTS)
def test_what_was_written_is_read(tmp_path: Path, metadata: StoreMetadata, mmap: bool) -> None:
    store = RegionStore.open(write_store(tmp_path / "store", metadata), mmap=mmap)
    assert written_ids(store) == GOOD
    for image_id in GOOD:
        assert same_record(store.image(image_id), record(image_id, metadata)), image_id
    assert store.problems() == [Problem(image_id=BAD_ID, path="bad.jpg", reason="cut short")]


@pytest.mark.parametrize("metadata", VARIANTS)
def test_our_way_and_zarrs_give_identical_bytes(tmp_path: Path, metadata: StoreMetadata) -> None:
    ours = RegionStore.open(write_store(tmp_path / "store", metadata))
    zarrs = RegionStore.open(without_records(tmp_path / "store", tmp_path / "bare"))
    assert written_ids(ours) == written_ids(zarrs)
    assert_equal(ours.read(GOOD), zarrs.read(GOOD))
    assert ours.to_dataframe().equals(zarrs.to_dataframe())
    for left, right in zip(
        ours.feature_views(ours.all_rows), zarrs.feature_views(zarrs.all_rows), strict=True
    ):
        assert left.tobytes() == right.tobytes()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_regions=st.lists(st.integers(0, 23), min_size=1, max_size=9),
    min_regions=st.sampled_from([0, 23]),
    codec=st.sampled_from(["none", "zstd"]),
    block_size=st.integers(1, 5),
    picks=st.lists(st.integers(0, 8), max_size=12),
)
def test_any_batch_is_the_same_in_both_ways(
    tmp_path_factory: pytest.TempPathFactory,
    num_regions: list[int],
    min_regions: int,
    codec: Literal["none", "zstd"],
    block_size: int,
    picks: list[int],
) -> None:
    """Any numbers of regions, block sizes and rows, also repeated ones."""
    metadata = replace(
        METADATA, min_regions=min_regions, max_regions=23, codec=codec, block_size=block_size, feature_dim=3
    )
    folder = tmp_path_factory.mktemp("any")
    records = [record(f"p{number}", metadata, num_regions=num) for number, num in enumerate(num_regions)]
    write_records(folder / "store", metadata, records)
    ours = RegionStore.open(folder / "store")
    zarrs = RegionStore.open(without_records(folder / "store", folder / "bare"))
    chosen = [records[pick % len(records)] for pick in picks]
    asked = [item.image_id for item in chosen]
    batch = ours.read(asked)
    assert_equal(batch, zarrs.read(asked))
    assert batch.num_regions.tolist() == [len(item.boxes) for item in chosen]
    for place, item in enumerate(chosen):
        assert np.array_equal(batch.features[place, : len(item.boxes)], item.features)
        assert not batch.features[place, len(item.boxes) :].any()
    shutil.rmtree(folder)


@pytest.mark.parametrize("path", ["fixed_path", "adaptive_path"])
def test_a_reused_buffer_holds_nothing_of_the_batch_before(path: str, request: pytest.FixtureRequest) -> None:
    store = RegionStore.open(request.getfixturevalue(path))
    out = RegionArrays.empty(6, store.metadata)
    out.features[:] = 7
    out.boxes[:] = 7
    result = store.read(GOOD[:4], out)
    assert_equal(result, store.read(GOOD[:4]))
    assert np.shares_memory(result.features, out.features)
    assert len(result.num_regions) == 4
    assert (out.features[4:] == 7).all()


def test_a_buffer_that_does_not_fit_is_refused(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    with pytest.raises(
        UsageError, match=r"float16 and at least \[3, 4, 6\]; make it with RegionArrays.empty"
    ):
        store.read(GOOD[:3], RegionArrays.empty(2, store.metadata))
    wide = RegionArrays.empty(3, replace(store.metadata, feature_dtype="float32"))
    with pytest.raises(UsageError, match=r"out holds features of float32"):
        store.read(GOOD[:3], wide)


def test_views_are_of_the_file_and_read_only(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    first, second = store.feature_views(store.all_rows)[-1], store.feature_views(store.all_rows)[-1]
    assert len(first)
    assert np.shares_memory(first, second)
    assert not first.flags.writeable


def test_views_outlive_their_store(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    views = store.feature_views(store.all_rows)
    del store
    for image_id, view in zip(GOOD, views, strict=True):
        assert np.array_equal(view, record(image_id).features)


def test_pieces_of_an_adaptive_store_are_views_that_join_to_the_whole(adaptive_path: Path) -> None:
    store = RegionStore.open(adaptive_path)
    out = RegionArrays.empty(len(store), store.metadata)
    for place, first, piece in store.feature_pieces(store.all_rows):
        assert len(piece) <= 10
        assert not piece.flags.writeable
        out.features[place, first : first + len(piece)] = piece
    assert np.array_equal(out.features, store.read_rows(store.all_rows).features)


def test_without_mapping_a_store_is_not_kept_in_memory(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path, mmap=False)
    first, second = store.feature_views(store.all_rows)[-1], store.feature_views(store.all_rows)[-1]
    assert not np.shares_memory(first, second)
    assert not first.flags.writeable
    assert np.array_equal(first, second)


def test_mapping_holds_no_file_open(tmp_path: Path) -> None:
    """A store of COCO has 481 blocks; with a descriptor for each the usual limit of 1,024 would be met."""
    path = write_store(tmp_path / "store", replace(METADATA, block_size=1))
    before = len(os.listdir("/proc/self/fd"))
    store = RegionStore.open(path)
    views = store.feature_views(store.all_rows)
    assert len(views) == 10
    assert len(os.listdir("/proc/self/fd")) == before


def test_per_row_values(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    rows = store.rows(GOOD)
    records = [record(image_id) for image_id in GOOD]
    assert store.num_regions(rows).tolist() == [len(item.boxes) for item in records]
    assert store.sizes(rows).tolist() == [[item.width, item.height] for item in records]
    boxes = store.boxes(rows)
    for place, item in enumerate(records):
        assert np.array_equal(boxes[place, : len(item.boxes)], item.boxes)
        assert not boxes[place, len(item.boxes) :].any()


def test_rows_and_identifiers_are_inverse(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    assert [store.image_id_of(row) for row in store.all_rows.tolist()] == GOOD
    assert store.rows(GOOD[::-1]).tolist() == store.all_rows[::-1].tolist()
    assert len(store) == 10
    assert GOOD[0] in store
    assert BAD_ID not in store
    assert 3 not in store


def test_unknown_pictures_are_named_with_the_reason_where_one_is_known(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    with pytest.raises(
        StoreMismatchError, match=r"no regions of 2 of the 3 pictures.*'nobody', 'picture:5' \(cut short\)"
    ):
        store.rows(["nobody", GOOD[0], BAD_ID])


def test_rows_without_picture_are_refused(fixed_path: Path) -> None:
    """Row 5 is the quarantined picture's, row 11 lies behind the partial block."""
    store = RegionStore.open(fixed_path)
    for row in (5, 11):
        with pytest.raises(StoreError, match=f"row {row} holds no picture"):
            store.read_rows([row])
        with pytest.raises(StoreError, match=f"row {row} holds no picture"):
            store.image_id_of(row)
    for row in (12, -1):
        with pytest.raises(StoreError, match=f"row {row} holds no picture"):
            store.read_rows([0, row])


def test_an_empty_batch_and_an_empty_store(fixed_path: Path, tmp_path: Path) -> None:
    assert RegionStore.open(fixed_path).read([]).features.shape == (0, 4, 6)
    empty = RegionStore.open(write_store(tmp_path / "empty", image_ids=[]))
    assert (len(empty), list(empty.image_ids), empty.problems()) == (0, [], [])
    assert len(empty.to_dataframe()) == 0
    with pytest.raises(StoreMismatchError, match="no regions of 1 of the 1"):
        empty.rows(["a"])


def test_dataframe_has_a_line_for_each_region(fixed_path: Path) -> None:
    frame = RegionStore.open(fixed_path).to_dataframe()
    expected = [record(image_id) for image_id in GOOD]
    assert frame["image_id"].tolist() == [item.image_id for item in expected for _ in item.boxes]
    assert np.array_equal(
        frame[["x1", "y1", "x2", "y2"]].to_numpy(), np.concatenate([item.boxes for item in expected])
    )
    last = next(item for item in reversed(expected) if len(item.boxes))
    assert last.object_ids is not None
    assert frame["object"].iloc[-1] == METADATA.object_names[last.object_ids[-1]]
    assert frame["region"].iloc[-1] == len(last.boxes) - 1
    assert list(frame.columns[-6:]) == [
        "object_id", "object", "object_score", "attribute_id", "attribute", "attribute_score",
    ]  # fmt: skip


def test_a_store_without_names_has_no_label_columns(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", replace(METADATA, object_names=(), attribute_names=()))
    store = RegionStore.open(path)
    assert list(store.to_dataframe().columns) == ["image_id", "region", "x1", "y1", "x2", "y2"]
    assert store.image(GOOD[0]).object_ids is None
    assert not (path / "object_id").exists()


def test_it_pickles_as_its_path_and_options(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path, verify="always", mmap=False)
    store.read(GOOD)
    data = pickle.dumps(store)
    assert len(data) < 500
    again = pickle.loads(data)
    assert again.fingerprint == store.fingerprint
    assert pickle.dumps(again) == data


def test_fingerprint_changes_with_content_and_not_with_place(fixed_path: Path, tmp_path: Path) -> None:
    original = RegionStore.open(fixed_path).fingerprint
    assert RegionStore.open(shutil.copytree(fixed_path, tmp_path / "copy")).fingerprint == original
    fewer = write_store(tmp_path / "fewer", image_ids=IDS[:-1])
    other = write_store(tmp_path / "other", replace(METADATA, selection={"score_thresh": 0.3}))
    scaled = write_store(tmp_path / "scaled", scale=2)  # the same sizes, names and numbers of regions
    assert RegionStore.open(scaled).fingerprint != original
    newer = write_store(tmp_path / "newer", replace(METADATA, code_version="9"))
    assert RegionStore.open(fewer).fingerprint != original
    assert RegionStore.open(other).fingerprint != original
    assert RegionStore.open(newer).fingerprint == original


def test_an_open_store_keeps_its_blocks_while_it_grows(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        blocks = writer.plan(IDS)
        finish(writer, blocks[1])
        store = RegionStore.open(tmp_path)
        assert written_ids(store) == [image_id for image_id in IDS[4:8] if image_id != BAD_ID]
        assert store.rows([IDS[4]]).tolist() == [4]
        for block in (blocks[0], blocks[2]):
            finish(writer, block)
        assert len(store) == 3
        assert same_record(store.image(IDS[4]), record(IDS[4]))
        assert written_ids(RegionStore.open(tmp_path)) == GOOD


@pytest.mark.parametrize(
    ("name", "array"), [("features/c.1.0.0", "features"), ("boxes/c.1.0.0", "boxes"), ("width/c.1", "width")]
)
def test_missing_and_cut_files_are_named_on_opening(fixed_copy: Path, name: str, array: str) -> None:
    file = fixed_copy / name
    data = file.read_bytes()
    remedy = (
        r"'butd store repair .*store' drops the block, and the job, run again, writes just this block anew"
    )
    file.write_bytes(data[:-1])
    with pytest.raises(
        StoreDamagedError, match=rf"block 1, {array}: .* has {len(data) - 1} bytes, .*{remedy}"
    ):
        RegionStore.open(fixed_copy)
    file.unlink()
    with pytest.raises(StoreDamagedError, match=rf"block 1, {array}: .*{name} is missing, .*{remedy}"):
        RegionStore.open(fixed_copy)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_cut_after_opening_is_named_when_touched(fixed_copy: Path, mmap: bool) -> None:
    store = RegionStore.open(fixed_copy, mmap=mmap)
    file = fixed_copy / "features" / "c.1.0.0"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StoreDamagedError, match=r"block 1, features: .* bytes, expected"):
        store.read(GOOD)
    file.unlink()
    with pytest.raises(StoreDamagedError, match=r"block 1, features: .* is missing"):
        store.read(GOOD)


@pytest.mark.parametrize("verify", ["first", "always"])
def test_a_flipped_bit_is_named_with_its_row_and_other_pictures_can_be_read(
    fixed_copy: Path, verify: Literal["first", "always"]
) -> None:
    flip(fixed_copy / "features" / "c.0.0.0", 3)
    first = next(image_id for image_id in GOOD if len(record(image_id).boxes))
    store = RegionStore.open(fixed_copy, verify=verify)
    row = GOOD.index(first)
    for _ in range(2):
        with pytest.raises(
            StoreDamagedError, match=f"block 0, features: the bytes of row {row} have changed"
        ):
            store.image(first)
    for image_id in GOOD:
        if image_id != first:
            assert same_record(store.image(image_id), record(image_id))
    assert len(RegionStore.open(fixed_copy, verify="never").image(first).features)


@pytest.mark.parametrize(
    "name", ["num_regions/c.0", "boxes/c.0.0.0", "image_id_utf8/c.0.0", "object_id/c.0.0"]
)
def test_a_flipped_bit_in_a_small_array_is_named(fixed_copy: Path, name: str) -> None:
    flip(fixed_copy / name, 1)
    with pytest.raises(StoreDamagedError, match=f"block 0, {name.split('/')[0]}: .*checksum does not fit"):
        RegionStore.open(fixed_copy).image(GOOD[0])


@pytest.mark.parametrize("place", [-1, -30])
def test_a_flipped_bit_in_a_shards_index_is_named(fixed_copy: Path, place: int) -> None:
    flip(fixed_copy / "features" / "c.0.0.0", place)
    with pytest.raises(StoreDamagedError, match=r"block 0, features: c.0.0.0: the checksum of its index"):
        RegionStore.open(fixed_copy).image(GOOD[0])


def test_a_small_file_of_another_store_is_named(fixed_copy: Path, tmp_path: Path) -> None:
    """Same size, and its own checksum is in order."""
    shutil.copy(write_store(tmp_path / "scaled", scale=2) / "boxes" / "c.1.0.0", fixed_copy / "boxes")
    with pytest.raises(
        StoreDamagedError, match=r"block 1, boxes: c.1.0.0 is not the file that was committed"
    ):
        RegionStore.open(fixed_copy).read(GOOD)


def test_a_zero_filled_shard_is_named(fixed_copy: Path) -> None:
    file = fixed_copy / "features" / "c.0.0.0"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(StoreDamagedError, match="block 0, features"):
        RegionStore.open(fixed_copy).image(GOOD[0])


def test_always_sees_a_bit_that_flips_after_the_first_read(fixed_copy: Path) -> None:
    image_id = next(image_id for image_id in GOOD if len(record(image_id).boxes))
    always, first = (RegionStore.open(fixed_copy, verify=mode) for mode in ("always", "first"))
    always.image(image_id)
    first.image(image_id)
    flip(fixed_copy / "features" / "c.0.0.0", 3)
    first.image(image_id)
    with pytest.raises(StoreDamagedError, match="have changed"):
        always.image(image_id)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{}", "cannot be read"),
        (b'{"content":{"block":1},"crc32c":5}', "the bytes of .* have changed"),
    ],
)
def test_a_broken_record_is_named_with_the_remedy(fixed_copy: Path, content: bytes, message: str) -> None:
    record_path(fixed_copy, 1).write_bytes(content)
    with pytest.raises(StoreDamagedError, match=rf"block 1, commit record: .*{message}.*butd store repair"):
        RegionStore.open(fixed_copy)


def test_every_flipped_bit_of_a_record_is_seen(fixed_copy: Path) -> None:
    path = record_path(fixed_copy, 1)
    whole = path.read_bytes()
    for place in range(0, len(whole) - 1, 7):
        changed = bytearray(whole)
        changed[place] ^= 2
        path.write_bytes(changed)
        with pytest.raises(StoreDamagedError, match="block 1, commit record"):
            RegionStore.open(fixed_copy)


def test_a_record_under_another_name_is_named(fixed_copy: Path) -> None:
    shutil.copy(record_path(fixed_copy, 0), record_path(fixed_copy, 7))
    with pytest.raises(StoreDamagedError, match="is the record of block 0"):
        RegionStore.open(fixed_copy)


def test_a_block_of_another_detector_is_refused(fixed_copy: Path, tmp_path: Path) -> None:
    other = replace(METADATA, detector={"name": "tiny", "fingerprint": "e" * 64})
    shutil.copy(record_path(write_store(tmp_path / "other", other), 1), record_path(fixed_copy, 1))
    with pytest.raises(StoreMismatchError, match="block 1 was made by detector eeee"):
        RegionStore.open(fixed_copy)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
@pytest.mark.parametrize("name", ["zarr.json", "features/zarr.json"])
def test_a_broken_zarr_json_is_named(fixed_copy: Path, name: str, content: bytes) -> None:
    (fixed_copy / name).write_bytes(content)
    with pytest.raises(StoreDamagedError, match=f"{name} .*restore the file from a copy"):
        RegionStore.open(fixed_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_type": "float32"}, "has data_type 'float32', the store's metadata asks for 'float16'"),
        ({"codecs": []}, "has codecs"),
        ({"chunk_grid": {"name": "rectilinear"}}, "has chunk_grid"),
        ({"chunk_key_encoding": {"name": "v2"}}, "has chunk_key_encoding"),
        ({"shape": [11, 4, 7]}, r"has shape \[11, 4, 7\], expected any number of images by \[4, 6\]"),
        ({"shape": ["11", 4, 6]}, "has shape"),
        ({"shape": [10, 4, 6]}, "has 10 rows, finished blocks reach to 11"),
    ],
)
def test_a_zarr_json_that_says_something_else_is_named(
    fixed_copy: Path, change: dict[str, Any], message: str
) -> None:
    path = fixed_copy / "features" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreDamagedError, match=rf"array features.*{message}"):
        RegionStore.open(fixed_copy)


def test_a_schema_from_the_future_is_refused_with_both_versions(fixed_copy: Path) -> None:
    path = fixed_copy / "zarr.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreMismatchError, match=r"schema version 2, this code .* reads version 1"):
        RegionStore.open(fixed_copy)


def test_where_there_is_no_store_the_message_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no such folder; make one with 'butd detect'"):
        RegionStore.open(tmp_path / "nowhere")
    with pytest.raises(StoreNotFoundError, match=r"the folder has no zarr\.json"):
        RegionStore.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotFoundError, match="it is a file, a store is a folder"):
        RegionStore.open(tmp_path / "file")
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(StoreNotFoundError, match="is a Zarr group but no region store"):
        RegionStore.open(tmp_path)


def test_an_unknown_mode_of_checking_is_refused(fixed_path: Path) -> None:
    with pytest.raises(UsageError, match="verify must be one of first, always, never, got 'sometimes'"):
        RegionStore.open(fixed_path, verify="sometimes")  # type: ignore[arg-type]


def test_asking_ahead_changes_nothing(fixed_path: Path, adaptive_path: Path) -> None:
    for path in (fixed_path, adaptive_path):
        for mmap in (True, False):
            store = RegionStore.open(path, mmap=mmap)
            store.will_need(store.all_rows)
            assert_equal(store.read(GOOD), RegionStore.open(path).read(GOOD))


def test_reading_imports_neither_torch_nor_dask_nor_zarr_nor_pandas(fixed_path: Path) -> None:
    code = (
        "import sys; from store_schema.reader import RegionStore; from store_schema.writer import StoreWriter; "
        f"store = RegionStore.open({str(fixed_path)!r}); store.read(list(store.image_ids)); "
        "print([name for name in ('torch', 'dask', 'zarr', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def without_records(path: Path, copy: Path) -> Path:
    """The store as another Zarr tool would have copied it: read through zarr."""
    shutil.copytree(path, copy)
    shutil.rmtree(ledger_folder(copy))
    return copy


def write_records(path: Path, metadata: StoreMetadata, records: list[ImageRecord]) -> None:
    from store_schema.writer import write_block

    by_id = {item.image_id: item for item in records}
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan(list(by_id)):
            writer.commit(
                block, write_block(path, metadata, block, [by_id[name] for name in block.image_ids])
            )


def assert_equal(left: RegionArrays, right: RegionArrays) -> None:
    for name in ("features", "boxes", "num_regions", "sizes"):
        one, other = getattr(left, name), getattr(right, name)
        assert one.dtype == other.dtype, name
        assert np.array_equal(one, other), name


def flip(path: Path, place: int) -> None:
    """Flip a bit in place, as a failing disk would."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    with path.open("r+b") as file:
        file.write(data)
