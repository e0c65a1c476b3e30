"""Readers of boxes: COCO's instances, Visual Genome's objects and attributes."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.prepare.coco import prepare_coco
from pipeline.prepare.visual_genome import prepare_visual_genome
from store_schema.errors import InputNotFoundError, TableError, UsageError
from store_schema.tables import has_table, read_table

SHARED = Path(__file__).resolve().parents[4] / "shared/data"


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def coco_folder(folder: Path, **split_boxes: list[dict[str, Any]]) -> Path:
    """One picture a split, with these annotations."""
    for number, (split, boxes) in enumerate(split_boxes.items(), 1):
        name = f"{number:012}.jpg"
        content = {
            "info": {"year": 2017},
            "images": [{"id": number, "file_name": name, "width": 40, "height": 30}],
            "annotations": [{"image_id": number, "category_id": 7, "iscrowd": 0} | box for box in boxes],
            "categories": [{"id": 7, "name": "cat"}, {"id": 90, "name": "traffic  light"}],
        }
        write(folder / f"annotations/instances_{split}.json", content)
        picture(folder / split / name)
    return folder


def test_coco_boxes_crowds_and_splits(tmp_path: Path) -> None:
    source = coco_folder(
        tmp_path / "coco",
        train2017=[
            {"id": 11, "bbox": [1.5, 2, 10, 5.25]},
            {"id": 12, "bbox": [0, 0, 40, 30], "iscrowd": 1, "category_id": 90},
            {"id": 13, "bbox": [35, 25, 20, 20]},
            {"id": 14, "bbox": [5, 5, 0, 3]},
        ],
        val2017=[],
    )
    counts = prepare_coco(source, tmp_path / "out")
    assert counts == {
        "images": 2, "objects": 3, "crowds": 1, "boxes cut to the picture": 1,
        "boxes without area inside the picture, left out": 1,
    }  # fmt: skip
    images, objects = read_table(tmp_path / "out", "images"), read_table(tmp_path / "out", "objects")
    assert images[["image_id", "split", "coco_id"]].to_numpy().tolist() == [
        ["000000000001", "train", 1],
        ["000000000002", "val", 2],
    ]
    assert objects[["object_id", "object", "crowd", "x1", "y1", "x2", "y2"]].to_numpy().tolist() == [
        ["11", "cat", False, 1.5, 2, 11.5, 7.25],
        ["12", "traffic light", True, 0, 0, 40, 30],
        ["13", "cat", False, 35, 25, 40, 30],
    ]
    assert not has_table(tmp_path / "out", "object_attributes")


def test_listed_pictures_leave_cocos_own_split(tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "coco", train2014=[], val2014=[{"id": 1, "bbox": [1, 1, 2, 2]}])
    lists = write(tmp_path / "test.txt", "train2014/COCO_train2014_000000000001.jpg 1\n")
    prepare_coco(source, tmp_path / "out", test_pictures=lists)
    assert read_table(tmp_path / "out", "images")["split"].tolist() == ["test", "val"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 1, "bbox": [1, 1, 2]}, r"the box of annotation 1 must be x, y, width and height"),
        ({"id": 1, "bbox": [1, 1, 2, "3"]}, r"the box of annotation 1 must be"),
        ({"id": 1, "bbox": [1, 1, 2, 2], "category_id": 8}, r"annotation 1: category 8 is not listed"),
        ({"id": 1, "bbox": [1, 1, 2, 2], "image_id": "one"}, r"image_id must be a whole number"),
        ({"bbox": [1, 1, 2, 2]}, r"annotations \d+: id missing"),
    ],
)
def test_wrong_coco_records_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = coco_folder(tmp_path / "coco", train2017=[change])
    with pytest.raises(TableError, match=message):
        prepare_coco(source, tmp_path / "out")


def test_coco_without_files_or_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="lacks the boxes"):
        prepare_coco(tmp_path, tmp_path / "out")
    source = coco_folder(tmp_path / "coco", train2017=[])
    (source / "train2017/000000000001.jpg").unlink()
    with pytest.raises(InputNotFoundError, match="none of the 1 pictures"):
        prepare_coco(source, tmp_path / "out")


def test_real_coco_boxes_are_read_whole(tmp_path: Path) -> None:
    source = SHARED / "coco_mini"
    if not source.is_dir():
        pytest.skip("../shared/data/coco_mini is not here")
    counts = prepare_coco(source, tmp_path, val_share=0.5)
    official = json.loads((source / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in official["categories"]}
    objects = read_table(tmp_path, "objects")
    assert counts["images"] == 80
    assert objects["object"].tolist() == [names[a["category_id"]] for a in official["annotations"]]
    assert objects["crowd"].tolist() == [a["iscrowd"] == 1 for a in official["annotations"]]
    for corners, annotation in zip(
        objects[["x1", "y1", "x2", "y2"]].to_numpy(), official["annotations"], strict=True
    ):
        x, y, w, h = annotation["bbox"]
        assert corners == pytest.approx([x, y, x + w, y + h], abs=1e-6)
    assert read_table(tmp_path, "images")["split"].value_counts().to_dict() == {"train": 40, "val": 40}


def thing(object_id: int, *names: str, box: tuple[int, int, int, int] = (2, 3, 10, 8)) -> dict[str, Any]:
    return {
        "object_id": object_id,
        "names": list(names),
        "synsets": [],
        **dict(zip("xywh", box, strict=True)),
    }


def genome_folder(
    folder: Path,
    objects: dict[int, list[dict[str, Any]]],
    attributes: dict[int, list[dict[str, Any]]] | None = None,
    coco_ids: dict[int, int] | None = None,
) -> Path:
    """Pictures of 40 x 30 with these numbers, half of them in the second folder."""
    numbers = list(objects)
    data = [
        {"image_id": n, "width": 40, "height": 30, "coco_id": (coco_ids or {}).get(n), "url": "http://x"}
        for n in numbers
    ]
    write(folder / "image_data.json", data)
    write(folder / "objects.json", [{"image_id": n, "objects": listed} for n, listed in objects.items()])
    owned = [{"image_id": n, "attributes": (attributes or {}).get(n, [])} for n in numbers]
    write(folder / "attributes.json", owned)
    for place, number in enumerate(numbers):
        picture(folder / ("VG_100K_2" if place % 2 else "VG_100K") / f"{number}.jpg")
    return folder


def test_names_and_attributes_become_those_of_the_vocabularies(tmp_path: Path) -> None:
    source = genome_folder(
        tmp_path / "vg",
        {
            1: [
                thing(10, "Fridge.", "appliance"),
                thing(11, "white dog"),
                thing(12, "no such thing"),
                thing(13, "tshirt"),
            ]
        },
        {
            1: [
                {"object_id": 10, "attributes": ["Grey", "black and white", "no such look", "grey"]},
                {"attribute": {"object_id": 11, "attributes": ["brown and small", "white"]}},
                {"object_id": 13, "attributes": None},
                {"object_id": 13},
                {"object_id": 12, "attributes": ["red"]},
            ]
        },
    )
    counts = prepare_visual_genome(source, tmp_path / "out")
    objects = read_table(tmp_path / "out", "objects").set_index("object_id")["object"].to_dict()
    assert objects == {"10": "refrigerator", "11": "dog", "13": "tshirt"}
    pairs = read_table(tmp_path / "out", "object_attributes")
    assert pairs.groupby("object_id")["attribute"].apply(list).to_dict() == {
        "10": ["gray", "black and white"],
        "11": ["white", "brown", "small"],
    }
    assert counts["objects outside the vocabulary, left out"] == 1
    assert counts["attributes outside the vocabulary, left out"] == 1
    assert (counts["images"], counts["objects"], counts["object_attributes"]) == (1, 3, 5)


def test_a_single_name_and_a_single_attribute_are_taken(tmp_path: Path) -> None:
    source = genome_folder(
        tmp_path / "vg",
        {1: [{"object_id": 1, "name": "dog", "x": 0, "y": 0, "w": 5, "h": 5}]},
        {1: [{"object_id": 1, "attributes": "wet"}]},
    )
    prepare_visual_genome(source, tmp_path / "out")
    assert read_table(tmp_path / "out", "object_attributes")["attribute"].tolist() == ["wet"]


def test_boxes_are_cut_and_an_object_keeps_sixteen_attributes(tmp_path: Path) -> None:
    vocabulary = write(tmp_path / "attributes.txt", "\n".join(f"look{n}" for n in range(20)))
    source = genome_folder(
        tmp_path / "vg",
        {
            1: [
                thing(1, "dog", box=(-1, 25, 10, 10)),
                thing(2, "dog", box=(40, 0, 5, 5)),
                thing(3, "dog", box=(4, 4, 0, 9)),
                thing(1, "cat"),
            ]
        },
        {1: [{"object_id": 1, "attributes": [f"look{n}" for n in range(20)]}]},
    )
    counts = prepare_visual_genome(source, tmp_path / "out", attributes=str(vocabulary))
    (row,) = read_table(tmp_path / "out", "objects")[["x1", "y1", "x2", "y2"]].to_numpy().tolist()
    assert row == [0, 25, 9, 30]
    assert counts["boxes cut to the picture"] == 1
    assert counts["boxes without area inside the picture, left out"] == 2
    assert counts["objects that come twice, left out"] == 1
    assert counts["attributes beyond 16 of an object, left out"] == 4
    assert counts["object_attributes"] == 16


def test_cocos_evaluation_pictures_are_kept_out_of_training(tmp_path: Path) -> None:
    source = genome_folder(
        tmp_path / "vg", {n: [thing(n, "dog")] for n in range(1, 41)}, coco_ids={3: 333, 4: 444, 5: 555}
    )
    val = write(tmp_path / "val.txt", "val2014/COCO_val2014_000000000333.jpg 333\n\n")
    test = write(tmp_path / "test.txt", "val2014/COCO_val2014_000000000444.jpg 444\n9 9\n")
    counts = prepare_visual_genome(source, tmp_path / "out", val_pictures=val, test_pictures=test)
    images = read_table(tmp_path / "out", "images").set_index("image_id")
    assert images.index[images["split"] == "val"].tolist() == ["3"]
    assert images.index[images["split"] == "test"].tolist() == ["4"]
    assert images["coco_id"].dropna().to_dict() == {"3": 333, "4": 444, "5": 555}
    assert counts["pictures for train"] == 38


def test_the_published_lists_are_read(tmp_path: Path) -> None:
    folder = SHARED / "vg_vocab"
    if not folder.is_dir():
        pytest.skip("../shared/data/vg_vocab is not here")
    source = genome_folder(
        tmp_path / "vg",
        {n: [thing(n, "dog")] for n in (1, 2, 3)},
        coco_ids={1: 11169, 2: 391895, 3: 9},
    )
    val, test = (folder / f"karpathy_{split}_images.txt" for split in ("val", "test"))
    prepare_visual_genome(source, tmp_path / "out", val_pictures=val, test_pictures=test)
    images = read_table(tmp_path / "out", "images").set_index("image_id")["split"]
    assert images.to_dict() == {"1": "val", "2": "test", "3": "train"}


def test_without_lists_a_share_becomes_val_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = genome_folder(tmp_path / "vg", {n: [thing(n, "dog")] for n in range(1, 21)})
    counts = prepare_visual_genome(source, tmp_path / "out", val_share=0.25)
    assert (counts["pictures for train"], counts["pictures for val"]) == (15, 5)
    assert "keep out of training" in caplog.text


def test_a_picture_on_both_lists_is_refused(tmp_path: Path) -> None:
    source = genome_folder(tmp_path / "vg", {1: [thing(1, "dog")]})
    lists = write(tmp_path / "list.txt", "5\n")
    with pytest.raises(UsageError, match="1 pictures stand on both lists"):
        prepare_visual_genome(source, tmp_path / "out", val_pictures=lists, test_pictures=lists)
    with pytest.raises(TableError, match="line 1: a picture's number in COCO expected"):
        prepare_visual_genome(source, tmp_path / "out", val_pictures=write(tmp_path / "bad.txt", "nothing\n"))


def test_pictures_of_another_size_and_without_objects_are_left_out(tmp_path: Path) -> None:
    source = genome_folder(
        tmp_path / "vg", {1: [thing(1, "dog")], 2: [thing(2, "dog")], 3: [thing(3, "no such thing")]}
    )
    picture(source / "VG_100K_2/2.jpg", (30, 40))
    counts = prepare_visual_genome(source, tmp_path / "out")
    assert counts["images"] == counts["pictures of another size than annotated, left out"] == 1
    assert counts["pictures without an object of the vocabulary, left out"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("objects.json", [{"image_id": 1, "objects": [{"object_id": 1}]}], "picture 1, objects 0: x, y, w, h missing"),
        ("objects.json", [{"image_id": 1}], "record 0: objects missing"),
        ("objects.json", {"image_id": 1}, "a list of pictures expected"),
        ("objects.json", '[{"image_id": 1, "objects": [', "is no whole JSON"),
        ("attributes.json", [{"image_id": 1, "attributes": [{}]}], "picture 1, attributes 0: object_id missing"),
        ("image_data.json", [{"image_id": 1.5, "width": 1, "height": 1}], "must be a whole number"),
    ],
)  # fmt: skip
def test_wrong_genome_records_are_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    source = genome_folder(tmp_path / "vg", {1: [thing(1, "dog")]})
    write(source / name, content)
    with pytest.raises(TableError, match=message):
        prepare_visual_genome(source, tmp_path / "out")


def test_an_option_of_another_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "daquar", str(tmp_path), str(tmp_path / "out"), "--objects", "vg"]) == 2
    assert "--objects has no effect on daquar; it is for visual-genome" in capsys.readouterr().err


def test_the_command_ends_with_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = genome_folder(tmp_path / "vg", {1: [thing(1, "dog"), thing(2, "no such thing")]})
    assert main(["prepare", "visual-genome", str(source), str(tmp_path / "out")]) == 0
    assert (
        "1 images, 1 objects, 0 object_attributes, 1 objects outside the vocabulary"
        in capsys.readouterr().out
    )
