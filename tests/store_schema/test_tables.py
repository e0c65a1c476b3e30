import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import SCHEMAS, TableName, check_references, has_table, read_table, write_table

ROWS: dict[TableName, list[dict[str, Any]]] = {
    "images": [
        {"image_id": "a", "path": "a.jpg", "width": 100, "height": 80, "split": "train", "coco_id": None},
        {"image_id": "coco:7", "path": "val/b c.jpg", "width": 10, "height": 8, "split": "val", "coco_id": 7},
    ],
    "captions": [{"image_id": "a", "caption_id": "a:0", "text": "Ein Bär.", "split": "train"}],
    "questions": [
        {
            "question_id": "q1",
            "image_id": "a",
            "text": "What?",
            "question_type": "what",
            "answer_type": "other",
            "split": "train",
            "pair_id": None,
        },
        {
            "question_id": "q2",
            "image_id": "coco:7",
            "text": "What?",
            "question_type": "what",
            "answer_type": "other",
            "split": "train",
            "pair_id": "q2-q3",
        },
    ],
    "answers": [{"question_id": "q1", "answer": "bear", "annotator": number} for number in range(3)],
    "objects": [
        {
            "image_id": "a",
            "object_id": "o1",
            "x1": 0.0,
            "y1": 0,
            "x2": 100,
            "y2": 8,
            "object": "bear",
            "crowd": False,
        },
        {
            "image_id": "coco:7",
            "object_id": "o2",
            "x1": 1.5,
            "y1": 1,
            "x2": 3,
            "y2": 8,
            "object": "",
            "crowd": True,
        },
    ],
    "object_attributes": [
        {"object_id": "o1", "attribute": "brown"},
        {"object_id": "o1", "attribute": "large"},
    ],
}


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_write_then_read_is_equal(tmp_path: Path, name: TableName) -> None:
    write_table(tmp_path, name, ROWS[name])
    frame = read_table(tmp_path, name)
    assert list(frame.columns) == list(SCHEMAS[name].columns)
    read = [
        {key: None if pd.isna(value) else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]
    assert read == ROWS[name]
    assert os.listdir(tmp_path) == [f"{name}.parquet"]


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_an_empty_table_has_its_columns(tmp_path: Path, name: TableName) -> None:
    write_table(tmp_path, name, [])
    frame = read_table(tmp_path, name)
    assert (len(frame), list(frame.columns)) == (0, list(SCHEMAS[name].columns))


def test_a_nullable_column_can_be_left_out(tmp_path: Path) -> None:
    write_table(tmp_path, "images", [{k: v for k, v in ROWS["images"][0].items() if k != "coco_id"}])
    assert "coco_id" not in read_table(tmp_path, "images")


def test_a_frame_is_written_like_its_rows(tmp_path: Path) -> None:
    first = write_table(tmp_path / "a", "objects", ROWS["objects"])
    second = write_table(tmp_path / "b", "objects", pd.DataFrame(ROWS["objects"], index=[5, 3]))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", {"image_id": None}, "row 0: image_id must not be empty"),
        ("images", {"image_id": "coco:7"}, "row 1: image_id must be unique; image_id is 'coco:7'"),
        ("images", {"image_id": "../a"}, "row 0: image_id must be a plain name"),
        ("images", {"image_id": "/a"}, "row 0: image_id must be a plain name"),
        ("images", {"image_id": "a\0"}, "row 0: image_id must be a plain name"),
        ("images", {"path": "/etc/passwd"}, "row 0: path must stay below the images' root"),
        ("images", {"path": "a/../../b.jpg"}, "row 0: path must stay below"),
        ("images", {"width": 0}, "row 0: width and height must be positive"),
        ("images", {"height": -3}, "row 0: width and height must be positive"),
        ("images", {"width": 10.5}, "column 'width' must hold int"),
        ("images", {"width": "wide"}, "column 'width' must hold int"),
        ("images", {"split": 3}, "column 'split' must hold string"),
        ("objects", {"x1": float("nan")}, "row 0: x1 must not be empty"),
        ("objects", {"x1": float("inf")}, "row 0: x1, y1, x2 and y2 must be finite"),
        ("objects", {"x2": float("inf")}, "row 0: x1, y1, x2 and y2 must be finite"),
        ("objects", {"x1": -0.5}, "row 0: x1 and y1 must be at least 0"),
        ("objects", {"x2": 0.0}, "row 0: x2 > x1 and y2 > y1 must hold"),
        ("objects", {"y2": 0}, "row 0: x2 > x1 and y2 > y1 must hold"),
        ("objects", {"object_id": "o2"}, "row 1: object_id must be unique"),
        ("objects", {"crowd": 1}, "column 'crowd' must hold bool"),
        ("objects", {"object": None}, "row 0: object must not be empty"),
        ("captions", {"text": None}, "row 0: text must not be empty"),
        ("answers", {"annotator": "me"}, "column 'annotator' must hold int"),
    ],
)
def test_a_broken_rule_is_named_with_file_and_row(
    tmp_path: Path, name: TableName, change: dict[str, Any], message: str
) -> None:
    rows = [ROWS[name][0] | change, *ROWS[name][1:]]
    with pytest.raises(TableError, match=rf"{name}\.parquet: {message}"):
        write_table(tmp_path, name, rows)
    assert not has_table(tmp_path, name)


def test_the_same_rules_hold_on_reading(tmp_path: Path) -> None:
    columns = {key: [row[key] for row in ROWS["objects"]] for key in ROWS["objects"][0]}
    pq.write_table(pa.table(columns | {"x2": [100.0, 1.0]}), tmp_path / "objects.parquet")
    with pytest.raises(
        TableError, match=r"objects\.parquet: row 1: x2 > x1 and y2 > y1 must hold; x2 is 1\.0"
    ):
        read_table(tmp_path, "objects")


def test_how_many_rows_break_the_rule_is_said(tmp_path: Path) -> None:
    rows = [row | {"width": 0} for row in ROWS["images"]]
    with pytest.raises(TableError, match=r"row 0: .* \(and 1 more row\)"):
        write_table(tmp_path, "images", rows)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="column 'text' is missing; captions needs"):
        write_table(tmp_path, "captions", [{"image_id": "a", "caption_id": "c", "split": "val"}])


def test_a_missing_table_is_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="there is no such folder; make it with 'butd scenes'"):
        read_table(tmp_path / "nowhere", "images")
    with pytest.raises(InputNotFoundError, match="the folder holds no Parquet files"):
        read_table(tmp_path, "images")
    write_table(tmp_path, "answers", ROWS["answers"])
    with pytest.raises(InputNotFoundError, match=r"the folder holds \['answers\.parquet'\]"):
        read_table(tmp_path, "images")


@pytest.mark.parametrize("data", [b"", b"not parquet", b"PAR1" + bytes(50) + b"PAR1"])
def test_an_unreadable_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "images.parquet").write_bytes(data)
    with pytest.raises(TableError, match=r"images\.parquet: not a readable Parquet file"):
        read_table(tmp_path, "images")


def test_references_are_checked_against_the_images(tmp_path: Path) -> None:
    write_table(tmp_path, "images", ROWS["images"])
    images = read_table(tmp_path, "images")
    check_references(tmp_path, "objects", pd.DataFrame(ROWS["objects"]), images)
    strange = pd.DataFrame([ROWS["captions"][0], ROWS["captions"][0] | {"image_id": "nobody"}])
    with pytest.raises(
        TableError, match=r"captions\.parquet: row 1: image_id must be one of the images table"
    ):
        check_references(tmp_path, "captions", strange, images)
    outside = pd.DataFrame([ROWS["objects"][0], ROWS["objects"][1] | {"y2": 8.5}])
    with pytest.raises(TableError, match=r"objects\.parquet: row 1: the box must lie inside its picture"):
        check_references(tmp_path, "objects", outside, images)
