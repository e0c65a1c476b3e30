"""COCO's boxes in the official files: instances_train2017.json, instances_val2014.json, ... beside the pictures.

Files and pictures may lie anywhere below the folder. The split is that of the file's name; where the name does not
say it, a share of the pictures becomes the validation part, chosen by hash. Pictures without an object are kept: all
80 categories were looked for in every picture. Crowds are kept as such. Files are streamed.
"""

import re
from pathlib import Path

from pipeline.prepare.described import VAL_SHARE
from pipeline.prepare.held_out import HeldOut
from pipeline.prepare.json_files import box_of, check_record, find_json, whole_number
from pipeline.prepare.json_stream import stream_records
from pipeline.prepare.object_rows import ObjectRows
from pipeline.prepare.pictures import find_pictures, images_table
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import write_table

_SPLIT = re.compile(r"(train|val|test)(?=\d{4})")
_FIELDS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def prepare_coco(
    source: Path,
    out: Path,
    *,
    val_share: float = VAL_SHARE,
    val_pictures: Path | None = None,
    test_pictures: Path | None = None,
) -> dict[str, int]:
    """Write images and objects tables; returns their numbers of rows, and counts of what was left out.

    Args:
        source: folder with the files and the pictures.
        out: folder for the tables.
        val_share: of the pictures of a file whose name states no split.
        val_pictures, test_pictures: lists of pictures that go to these splits whatever their file.

    Errors: `InputNotFoundError` without files or pictures, `TableError` naming file and record.
    """
    held_out = HeldOut.read(val_pictures, test_pictures)
    files = find_json(source, "the boxes", "*instances*.json", "*instances*.json.gz")
    names, categories, splits = _read_pictures(files)
    paths = find_pictures(source, list(names.values()))
    if not paths:
        raise InputNotFoundError(
            f"none of the {len(names)} pictures that the boxes of {source} are in is below it; put COCO's folders "
            "of pictures there"
        )
    numbers = {paths[name]: number for number, name in names.items() if name in paths}
    given = {path: splits[number] for path, number in numbers.items() if number in splits}
    images = images_table(source, numbers, held_out.splits(numbers, given=given, val_share=val_share))
    images["coco_id"] = images["path"].map(numbers)
    sizes = {
        number: (image_id, (width, height))
        for number, image_id, width, height in images[["coco_id", "image_id", "width", "height"]].itertuples(
            index=False
        )
    }
    rows = ObjectRows()
    rows.counts["pictures that are not there or cannot be read"] = len(names) - len(images)
    for path in files:
        _read_boxes(path, sizes, categories, rows)
    write_table(out, "images", images)
    return {"images": len(images), **rows.write(out, attributes=False)}


def _read_pictures(files: list[Path]) -> tuple[dict[int, str], dict[int, str], dict[int, str]]:
    """The file's name of each picture, the name of each category, and the split of each picture that has one."""
    names: dict[int, str] = {}
    categories: dict[int, str] = {}
    splits: dict[int, str] = {}
    for path in files:
        split = _SPLIT.search(path.name)
        for place, (key, record) in enumerate(stream_records(path)):
            if key == "images":
                check_record(record, path, key, place, _FIELDS[key])
                number = whole_number(record["id"], path, "a picture's id")
                names[number] = str(record["file_name"])
                if split is not None:
                    splits[number] = split[1]
            elif key == "categories":
                check_record(record, path, key, place, _FIELDS[key])
                name = " ".join(str(record["name"]).split())
                number = whole_number(record["id"], path, "a category's id")
                if (other := categories.setdefault(number, name)) != name:
                    raise TableError(f"{path}: category {number} is both {name!r} and {other!r}")
    if not names or not categories:
        raise TableError(
            f"{files[0]}: an object with the lists 'images', 'annotations', 'categories' expected"
        )
    return names, categories, splits


def _read_boxes(
    path: Path,
    sizes: dict[int, tuple[str, tuple[int, int]]],
    categories: dict[int, str],
    rows: ObjectRows,
) -> None:
    for place, (key, record) in enumerate(stream_records(path)):
        if key != "annotations":
            continue
        check_record(record, path, key, place, _FIELDS[key])
        picture = sizes.get(whole_number(record["image_id"], path, "image_id"))
        if picture is None:
            rows.counts["boxes in pictures that are not there"] += 1
            continue
        name = categories.get(whole_number(record["category_id"], path, "category_id"))
        if name is None:
            raise TableError(
                f"{path}: annotation {record['id']}: category {record['category_id']} is not listed"
            )
        box = box_of(record["bbox"], path, f"annotation {record['id']}")
        rows.add(picture[0], str(record["id"]), name, box, picture[1], crowd=bool(record.get("iscrowd", 0)))
