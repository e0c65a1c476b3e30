"""Boxes read from a table, checked as they are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stage1_detect.box_tables import COCO_NAMES, WHOLE_PICTURE, BoxTable, box_names
from store_schema.errors import InputNotFoundError, TableError

GOOD: dict[str, Any] = {"image_id": "a", "x1": 0.0, "y1": 1.0, "x2": 5.0, "y2": 6.0, "object": "cone"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    pd.DataFrame(list(rows)).to_parquet(path)
    return path


def test_boxes_come_by_picture_with_ids_into_the_sorted_names(tmp_path: Path) -> None:
    path = write(
        tmp_path / "objects.parquet", GOOD, {**GOOD, "image_id": "b"}, {**GOOD, "object": "ball", "x1": 2.0}
    )
    assert box_names(path, whole_picture=True) == ("ball", "cone", WHOLE_PICTURE)
    assert box_names(tmp_path, whole_picture=False) == ("ball", "cone")
    given = BoxTable(path).boxes_of("a")
    np.testing.assert_array_equal(given.boxes, [[0, 1, 5, 6], [2, 1, 5, 6]])
    assert given.object_ids.tolist() == [1, 0]
    assert given.scores.tolist() == [1, 1]
    assert BoxTable(path).boxes_of("unknown").boxes.shape == (0, 4)


def test_scores_are_kept_and_crowds_left_out(tmp_path: Path) -> None:
    rows = [{**GOOD, "score": 0.5, "crowd": crowd} for crowd in (False, True)]
    given = BoxTable(write(tmp_path / "boxes.parquet", *rows)).boxes_of("a")
    assert given.scores.tolist() == [0.5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {**GOOD, "x2": 0.0}], r"boxes\.parquet: row 1: 0 <= x1 < x2"),
        ([{**GOOD, "y1": float("nan")}], "row 0: 0 <= x1 < x2"),
        ([{**GOOD, "x1": -1.0}], "row 0: 0 <= x1 < x2"),
        ([{**GOOD, "score": float("nan")}], "row 0: a finite score must hold"),
        ([{k: v for k, v in GOOD.items() if k != "object"}], "column 'object' is missing"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(TableError, match=message):
        BoxTable(write(tmp_path / "boxes.parquet", *rows))


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="expected a Parquet table of boxes"):
        BoxTable(tmp_path / "nowhere.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(TableError, match="not a readable Parquet file"):
        BoxTable(tmp_path / "x.parquet")


def test_a_network_has_cocos_names(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    assert len(set(COCO_NAMES)) == 80
    assert box_names(tmp_path / "x.onnx", whole_picture=True) == (*COCO_NAMES, WHOLE_PICTURE)
