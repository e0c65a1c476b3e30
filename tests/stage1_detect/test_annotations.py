import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stage1_detect.annotations import read_annotations
from store_schema.errors import TableError, UsageError
from store_schema.tables import read_table, write_table

IMAGES = [
    {"image_id": "b", "path": "b.png", "width": 40, "height": 30, "split": "train", "coco_id": 7},
    {"image_id": "a", "path": "a.png", "width": 20, "height": 20, "split": "train", "coco_id": None},
    {"image_id": "c", "path": "c.png", "width": 20, "height": 20, "split": "val", "coco_id": None},
]


def thing(
    image_id: str, object_id: str, name: str, x1: float = 0, *, crowd: bool = False
) -> dict[str, object]:
    box = {"x1": x1, "y1": 1.0, "x2": x1 + 4, "y2": 9.0}
    return {"image_id": image_id, "object_id": object_id, **box, "object": name, "crowd": crowd}


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    write_table(tmp_path, "images", IMAGES)
    objects = [
        thing("a", "1", "dog", 3),
        thing("b", "2", "cat", 5),
        thing("c", "3", "yak"),
        thing("a", "4", "cat", 6, crowd=True),
    ]
    write_table(tmp_path, "objects", objects)
    pairs = [("4", "red"), ("1", "small"), ("1", "red"), ("1", "red"), ("3", "odd")]
    write_table(tmp_path, "object_attributes", pd.DataFrame(pairs, columns=["object_id", "attribute"]))
    return tmp_path


def test_each_picture_has_its_own_objects_in_the_tables_order(tables: Path) -> None:
    images = read_annotations(tables, "train")
    assert images.image_ids == ("b", "a")
    assert images.object_names == ("cat", "dog")
    assert images.attribute_names == ("red", "small")
    assert images.coco_ids == (7,)
    assert images.paths[1] == tables / "a.png"
    first, second = images.objects(0), images.objects(1)
    assert first.object_ids.tolist() == [0]
    assert first.boxes.tolist() == [[5, 1, 9, 9]]
    assert not first.attributes.any()
    assert second.object_ids.tolist() == [1, 0]
    assert second.crowd.tolist() == [False, True]
    assert second.attributes.tolist() == [[True, True], [True, False]]


def test_names_outside_the_vocabulary_come_after_it_and_are_logged(
    tables: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        images = read_annotations(tables, "val", object_names=("cat", "dog"), attribute_names=("red",))
    assert images.object_names == ("cat", "dog", "yak")
    assert images.num_known_objects == 2
    assert images.objects(0).object_ids.tolist() == [2]
    assert images.objects(0).attributes.tolist() == [[False, True]]
    assert "1 of 1 objects in split val" in caplog.text
    assert "yak (1)" in caplog.text


def test_tables_without_attributes_have_none(tables: Path) -> None:
    (tables / "object_attributes.parquet").unlink()
    images = read_annotations(tables, "train")
    assert images.attribute_names == ()
    assert images.objects(1).attributes.shape == (2, 0)


def test_pictures_are_looked_for_below_the_given_root(tables: Path) -> None:
    assert read_annotations(tables, "train", images_root="/elsewhere").paths[0] == Path("/elsewhere/b.png")


def test_an_empty_split_is_refused_with_those_there_are(tables: Path) -> None:
    with pytest.raises(UsageError, match=r"no pictures of split 'test'.*\['train', 'val'\]"):
        read_annotations(tables, "test")


def test_an_attribute_of_an_unknown_object_is_refused(tables: Path) -> None:
    pairs = read_table(tables, "object_attributes")
    pairs.loc[len(pairs)] = ["99", "red"]
    write_table(tables, "object_attributes", pairs)
    with pytest.raises(TableError, match="row 5: object_id must be one of the objects"):
        read_annotations(tables, "train")


def test_every_object_is_found_once(detection_tables: Path) -> None:
    images = read_annotations(detection_tables, "train")
    boxes = np.concatenate([images.objects(i).boxes for i in range(len(images))])
    np.testing.assert_array_equal(boxes, images.boxes)
