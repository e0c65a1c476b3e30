import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store_schema.durable import seal
from store_schema.errors import StoreMismatchError, StoreNotFoundError
from store_schema.ledger import ledger_folder, record_path
from store_schema.metadata import StoreMetadata
from store_schema.shards import encode_chunk, encode_shard, file_stamp
from store_schema.verify import Finding, verify
from store_schema.writer import StoreWriter
from tests.store_schema.tiny import ADAPTIVE, IDS, METADATA, contents, finish, record, write_store

NUM_REGIONS = sum(len(record(image_id).boxes) for image_id in IDS if image_id != "picture:5")
HIT = next(image_id for image_id in IDS[4:] if image_id != "picture:5" and len(record(image_id).boxes))
"""A picture of block 1 that has regions."""


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("metadata", [METADATA, ADAPTIVE])
def test_a_whole_store_has_no_findings(
    tmp_path: Path, metadata: StoreMetadata, codec: Any, full: bool
) -> None:
    path = write_store(tmp_path / "store", replace(metadata, codec=codec))
    before = contents(path)
    report = verify(path, full)
    assert report.findings == []
    assert (report.ok, report.num_blocks, report.num_images, report.num_problems) == (True, 3, 10, 1)
    assert contents(path) == before
    if metadata is METADATA:
        assert report.num_regions == NUM_REGIONS


def test_an_unfinished_store_is_in_order_and_says_so(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, METADATA) as writer:
        finish(writer, writer.plan(IDS)[1])
        report = verify(tmp_path, full=True)
    assert (report.ok, report.num_blocks, report.num_unfinished, report.num_images) == (True, 1, 2, 3)


@pytest.mark.parametrize("name", ["features/c.1.0.0", "boxes/c.1.0.0", "image_id/c.1", "image_id_utf8/c.2.2"])
def test_missing_and_cut_files_are_found_by_the_quick_check(fixed_copy: Path, name: str) -> None:
    file, array, block = fixed_copy / name, name.split("/")[0], int(name.split(".")[1])
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    what = f"{name} has {len(data) + 1} bytes, {len(data)} were written"
    assert verify(fixed_copy).findings == [Finding(block=block, array=array, what=what)]
    file.unlink()
    assert verify(fixed_copy).findings == [Finding(block=block, array=array, what=f"{name} is missing")]


def test_a_changed_index_is_found_by_the_quick_check(fixed_copy: Path) -> None:
    change(fixed_copy / "features" / "c.1.0.0", -9)
    found = verify(fixed_copy).findings
    assert [str(finding) for finding in found] == [
        "block 1, features: c.1.0.0: the checksum of its index does not fit (pictures 'picture:4' to 'picture:7')"
    ]


@pytest.mark.parametrize("name", ["boxes/c.1.0.0", "image_id/c.1", "num_regions/c.1", "image_id_utf8/c.1.0"])
def test_a_flipped_bit_anywhere_is_found_by_the_full_check(fixed_copy: Path, name: str) -> None:
    change(fixed_copy / name, 2)
    assert verify(fixed_copy).ok
    expected = Finding(block=1, array=name.split("/")[0], what=f"the bytes of {name} have changed")
    assert verify(fixed_copy, full=True).findings == [expected]


def test_a_flipped_bit_in_features_is_found_with_its_picture(fixed_copy: Path) -> None:
    change(fixed_copy / "features" / "c.1.0.0", 0)
    findings = verify(fixed_copy, full=True).findings
    row = IDS.index(HIT)
    assert findings == [
        Finding(block=1, array="features", image_id=HIT, what=f"the bytes of row {row} have changed")
    ]
    assert str(findings[0]) == f"block 1, features, picture {HIT!r}: the bytes of row {row} have changed"


@pytest.mark.parametrize("name", ["features/c.1.0.0", "boxes/c.1.0.0"])
def test_a_whole_file_of_another_store_is_found(fixed_copy: Path, tmp_path: Path, name: str) -> None:
    """Same size, its own checksums in order: only the record knows better."""
    changed = write_store(tmp_path / "changed", scale=2)
    shutil.copy(changed / name, fixed_copy / name)
    findings = verify(fixed_copy, full=True).findings
    assert [(finding.block, finding.array) for finding in findings] == [(1, name.split("/")[0])]


def test_every_damaged_block_is_found_not_only_the_first(fixed_copy: Path) -> None:
    (fixed_copy / "boxes" / "c.0.0.0").unlink()
    record_path(fixed_copy, 1).write_bytes(b"{")
    change(fixed_copy / "features" / "c.2.0.0", -1)
    findings = verify(fixed_copy, full=True).findings
    assert [(finding.block, finding.array) for finding in findings] == [
        (0, "boxes"),
        (1, None),
        (2, "features"),
    ]
    assert str(findings[1]).startswith("block 1, commit record: ")


def test_broken_descriptions_are_found_by_name(fixed_copy: Path) -> None:
    (fixed_copy / "boxes" / "zarr.json").write_text("{")
    shape = json.loads((fixed_copy / "width" / "zarr.json").read_text()) | {"shape": [10]}
    (fixed_copy / "width" / "zarr.json").write_text(json.dumps(shape))
    findings = verify(fixed_copy).findings
    assert [(finding.block, finding.array) for finding in findings] == [(None, "boxes"), (None, "width")]
    assert str(findings[1]) == "width: it has 10 rows, finished blocks reach to 11"


def test_a_broken_root_is_a_finding(fixed_copy: Path) -> None:
    (fixed_copy / "zarr.json").write_text("{")
    findings = verify(fixed_copy).findings
    assert len(findings) == 1
    assert "zarr.json is not readable JSON" in findings[0].what


def test_a_broken_plan_is_a_finding(fixed_copy: Path) -> None:
    plan = ledger_folder(fixed_copy) / "plan" / "000000.json"
    plan.write_bytes(plan.read_bytes().replace(b"picture:0", b"picture:1"))
    assert ["plan of blocks" in str(finding) for finding in verify(fixed_copy).findings] == [True]


def test_a_record_beyond_the_plan_is_a_finding(fixed_copy: Path, tmp_path: Path) -> None:
    plan = ledger_folder(fixed_copy) / "plan" / "000000.json"
    shorter = plan.read_bytes()
    shutil.copytree(
        write_store(tmp_path / "more", image_ids=[*IDS, "a", "b"]), fixed_copy, dirs_exist_ok=True
    )
    plan.write_bytes(shorter)
    assert [str(finding) for finding in verify(fixed_copy).findings] == [
        "block 2: its record does not fit the plan of blocks (pictures 'ein Bär' to 'a/b.jpg')",
        "block 3: its record does not fit the plan of blocks",
    ]


def test_a_block_of_another_detector_is_a_finding(fixed_copy: Path, tmp_path: Path) -> None:
    other = replace(METADATA, detector={"name": "tiny", "fingerprint": "e" * 64})
    shutil.copy(record_path(write_store(tmp_path / "other", other), 1), record_path(fixed_copy, 1))
    found = verify(fixed_copy).findings
    assert [(finding.block, "made by detector eeee" in finding.what) for finding in found] == [(1, True)]


def test_no_store_and_other_schemas_are_errors(fixed_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no such folder"):
        verify(tmp_path / "nowhere")
    root = fixed_copy / "zarr.json"
    root.write_text(root.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(StoreMismatchError, match="schema version 9"):
        verify(fixed_copy)


def boxes(values: np.ndarray[Any, Any]) -> None:
    values[place(HIT), 0] = (0, 0, 101, 5)


def labels(values: np.ndarray[Any, Any]) -> None:
    values[place(HIT), 0] = 3


def scores(values: np.ndarray[Any, Any]) -> None:
    values[place(HIT), 0] = np.nan


def sizes(values: np.ndarray[Any, Any]) -> None:
    values[place(HIT)] = 0


def too_many(values: np.ndarray[Any, Any]) -> None:
    values[place(HIT)] = 9


def one_less(values: np.ndarray[Any, Any]) -> None:
    values[place(HIT)] = 65535


@pytest.mark.parametrize(
    ("array", "edit", "message"),
    [
        ("boxes", boxes, "region 0 has the box [0.0, 0.0, 101.0, 5.0] in a picture of 100x"),
        ("object_id", labels, "label 3, there are 3 names"),
        ("attribute_score", scores, "a score is NaN or infinite"),
        ("width", sizes, "the picture has a size of 0x"),
        ("num_regions", too_many, "9 regions, at most 4 fit"),
        ("num_regions", one_less, "are not as the record says"),
    ],
)
def test_values_that_cannot_be_are_found_though_their_checksums_fit(
    fixed_copy: Path, array: str, edit: Callable[[np.ndarray[Any, Any]], None], message: str
) -> None:
    spec = METADATA.arrays()[array]
    key = spec.chunk_key(1)
    data = np.fromfile(fixed_copy / array / key, np.uint8)[:-4]
    values = data.view(spec.dtype).reshape(spec.chunk_shape).copy()
    edit(values)
    forge(fixed_copy, f"{array}/{key}", encode_chunk(values, "none"))
    assert verify(fixed_copy).ok
    findings = verify(fixed_copy, full=True).findings
    assert any(finding.block == 1 and message in finding.what for finding in findings), findings
    if message != "are not as the record says":
        assert {finding.image_id for finding in findings} == {HIT}


def test_features_that_cannot_be_are_found(fixed_copy: Path) -> None:
    rows: list[np.ndarray[Any, Any] | None] = [None] * 4
    rows[place(HIT)] = np.full((4, 6), np.nan, np.float16)
    shard = encode_shard(rows, METADATA.arrays()["features"], "none")
    forge(fixed_copy, "features/c.1.0.0", shard.tobytes())
    found = {
        (finding.image_id, finding.what.split(";")[0][-60:])
        for finding in verify(fixed_copy, full=True).findings
    }
    assert (HIT, "a feature is NaN or infinite") in found
    others = [name for name in IDS[4:8] if name not in (HIT, "picture:5") and len(record(name).boxes)]
    assert {name for name, _ in found} == {HIT, *others}


def test_an_identifier_in_two_blocks_is_found(tmp_path: Path) -> None:
    first, second = (
        write_store(tmp_path / "a", image_ids=["p", "q"]),
        write_store(tmp_path / "b", image_ids=["q", "p"]),
    )
    for name in ("image_id/c.0", "image_id_utf8/c.0.0"):
        forge(first, name, (second / name).read_bytes())
    assert [str(finding) for finding in verify(first, full=True).findings] == [
        "block 0, image_id_utf8, picture 'p': row 0 holds 'q', the plan of blocks gives it to 'p'",
        "block 0, image_id_utf8, picture 'q': row 1 holds 'p', the plan of blocks gives it to 'q'",
    ]
    forge(first, "image_id_utf8/c.0.0", encode_chunk(as_bytes(["p", "p"]), "none"))
    found = [str(finding) for finding in verify(first, full=True).findings]
    assert found == [
        "block 0, image_id: the identifiers differ from those in image_id_utf8 (pictures 'p' to 'q')",
        "block 0, image_id_utf8, picture 'q': row 1 holds 'p', the plan of blocks gives it to 'q'",
        "block 0, image_id_utf8, picture 'p': the store has it twice",
    ]


def test_a_store_without_records_is_checked_by_its_values(fixed_copy: Path) -> None:
    shutil.rmtree(ledger_folder(fixed_copy))
    report = verify(fixed_copy, full=True)
    assert (report.ok, report.has_records, report.num_images, report.num_regions) == (
        True,
        False,
        10,
        NUM_REGIONS,
    )
    spec = METADATA.arrays()["object_id"]
    wrong = np.full(spec.chunk_shape, 3, np.uint16)
    (fixed_copy / "object_id" / "c.1.0").write_bytes(encode_chunk(wrong, "none"))
    assert {finding.array for finding in verify(fixed_copy, full=True).findings} == {"object_id"}
    shutil.rmtree(fixed_copy / "boxes")
    assert ["array boxes is missing" in finding.what for finding in verify(fixed_copy).findings] == [True]


def place(image_id: str) -> int:
    """Within its block of four."""
    return IDS.index(image_id) % 4


def as_bytes(ids: list[str]) -> np.ndarray[Any, Any]:
    matrix = np.zeros((4, 32), np.uint8)
    for row, image_id in enumerate(ids):
        matrix[row, : len(image_id)] = list(image_id.encode())
    return matrix


def change(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def forge(store: Path, name: str, data: bytes) -> None:
    """Replace a file and what the block's record says of it: a wrong writer, not a wrong disk."""
    (store / name).write_bytes(data)
    path = record_path(store, int(name.split(".")[1]))
    content = json.loads(path.read_bytes())["content"]
    stamp = file_stamp(np.frombuffer(data, np.uint8), METADATA.arrays()[name.split("/")[0]], "none")
    content["files"][name] = [stamp.num_bytes, stamp.digest]
    path.write_bytes(seal(content))
