"""Visual Genome's objects and attributes: objects.json, attributes.json, image_data.json and the pictures.

Files of versions 1.2 and 1.4, packed (.gz) or not, and pictures (VG_100K, VG_100K_2) anywhere below the folder; the
files are streamed. Names and attributes become those of the vocabularies, 1,600 and 400 by default, other spellings
the first one; what is on neither list is left out and counted, and so is a picture in which nothing is left.

Cleaning as in the release of Anderson et al. 2018 (data/genome/setup_vg.py): lower case, no final full stop; common
adjectives before a name are attributes ("white dog"); "red and blue" are two. Departures: a box without area inside its
picture is left out (there it becomes the whole picture), and attributes are kept in the order of the file.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.prepare.held_out import HeldOut
from pipeline.prepare.json_files import box_of, check_record, find_json, only_one, whole_number
from pipeline.prepare.json_stream import stream_records
from pipeline.prepare.object_rows import ObjectRows
from pipeline.prepare.pictures import images_table, numbered_pictures
from store_schema.errors import InputNotFoundError, TableError
from store_schema.formats.vocabulary import VISUAL_GENOME, read_spellings
from store_schema.tables import write_table

logger = logging.getLogger(__name__)

VAL_SHARE = 0.05
"""5,000 pictures, as many as the original takes."""
_ADJECTIVES = """white black blue green red brown yellow small large silver wooden orange gray grey metal pink
tall long dark"""
COMMON_ADJECTIVES = frozenset(_ADJECTIVES.split())
"""Split from a name and taken as attributes (setup_vg.py, `common_attributes`)."""


@dataclass(frozen=True)
class _Picture:
    image_id: str
    size: tuple[int, int]


def prepare_visual_genome(
    source: Path,
    out: Path,
    *,
    val_pictures: Path | None = None,
    test_pictures: Path | None = None,
    val_share: float = VAL_SHARE,
    objects: str = VISUAL_GENOME,
    attributes: str = VISUAL_GENOME,
) -> dict[str, int]:
    """Write images, objects and object_attributes tables; returns their rows, and counts of what was left out.

    Args:
        source: folder with the files and the pictures.
        out: folder for the tables.
        val_pictures, test_pictures: lists of COCO's pictures that go to these splits and are not trained on.
        val_share: of the pictures that becomes the validation part where there is no list of validation pictures.
        objects, attributes: vocabularies: a file with a name a line, or "vg".

    Errors: `InputNotFoundError` without files or pictures, `TableError` naming file and record.
    """
    object_names = read_spellings(objects, "objects")
    attribute_names = read_spellings(attributes, "attributes")
    held_out = HeldOut.read(val_pictures, test_pictures)
    if not held_out:
        logger.warning(
            "no list of pictures to keep out of training: captions and VQA on COCO's val and test pictures would be "
            "scored on pictures that the detector has seen; give --val-pictures and --test-pictures"
        )
    rows = ObjectRows()
    images = _read_images(source, held_out, val_share, rows.counts)
    by_number = {
        int(number): _Picture(image_id, (width, height))
        for number, image_id, width, height in images[["number", "image_id", "width", "height"]].itertuples(
            index=False
        )
    }
    owned = _read_attributes(source, by_number, attribute_names, rows.counts)
    _read_objects(source, by_number, owned, object_names, attribute_names, rows)
    with_objects = images["image_id"].isin(rows.image_ids)
    if not with_objects.any():
        raise TableError(f"{source}: no object of its pictures is in the vocabulary {objects!r}")
    rows.counts["pictures without an object of the vocabulary, left out"] += int((~with_objects).sum())
    images = images[with_objects].drop(columns="number").reset_index(drop=True)
    for split, count in images["split"].value_counts().items():
        rows.counts[f"pictures for {split}"] = int(count)
    write_table(out, "images", images)
    return {"images": len(images), **rows.write(out, attributes=True)}


def _read_images(source: Path, held_out: HeldOut, val_share: float, counts: Counter[str]) -> pd.DataFrame:
    """The images table, and each picture's number; those whose size is not the annotated one are left out."""
    path = only_one(find_json(source, "the list of pictures", "image_data.json", "image_data.json.gz"))
    paths = numbered_pictures(source)
    coco_ids: dict[str, int | None] = {}
    stated: dict[str, tuple[int, tuple[int, int]]] = {}
    for number, record in _pictures_of(path, "width", "height"):
        if number not in paths:
            counts["pictures that are not there or cannot be read"] += 1
            continue
        size = (whole_number(record["width"], path, "width"), whole_number(record["height"], path, "height"))
        stated[paths[number]] = (number, size)
        coco_id = record.get("coco_id")
        coco_ids[paths[number]] = None if coco_id is None else whole_number(coco_id, path, "coco_id")
    if not stated:
        raise InputNotFoundError(f"none of the pictures that {path} lists is below {source}")
    images = images_table(source, stated, held_out.splits(coco_ids, val_share=val_share))
    counts["pictures that are not there or cannot be read"] += len(stated) - len(images)
    images["coco_id"] = images["path"].map(coco_ids).astype("Int64")
    images["number"] = [stated[path][0] for path in images["path"]]
    fits = [
        stated[path][1] == (width, height)
        for path, width, height in images[["path", "width", "height"]].itertuples(index=False)
    ]
    if not all(fits):
        wrong = images["path"][[not fit for fit in fits]]
        logger.warning(
            "%d pictures have another size than image_data.json says, their boxes would not fit: left out, first %s",
            len(wrong),
            wrong.iloc[0],
        )
        counts["pictures of another size than annotated, left out"] += len(wrong)
    return images[fits].reset_index(drop=True)


def _read_attributes(
    source: Path, pictures: Mapping[int, _Picture], names: Mapping[str, str], counts: Counter[str]
) -> dict[int, tuple[str, ...]]:
    """The attributes of each object that has some of the vocabulary."""
    path = only_one(find_json(source, "the attributes", "attributes.json", "attributes.json.gz"))
    owned: dict[int, tuple[str, ...]] = {}
    for number, picture in _pictures_of(path, "attributes"):
        if number not in pictures:
            continue
        for place, outer in enumerate(picture["attributes"] or ()):
            record = outer.get("attribute", outer) if isinstance(outer, dict) else outer
            check_record(record, path, f"picture {number}, attributes", place, ("object_id",))
            spelled = [part for text in _texts(record.get("attributes")) for part in _split_attributes(text)]
            known = [names[text] for text in spelled if text in names]
            counts["attributes outside the vocabulary, left out"] += len(spelled) - len(known)
            if known:
                object_id = whole_number(record["object_id"], path, "object_id")
                owned[object_id] = (*owned.get(object_id, ()), *known)
    return owned


def _read_objects(
    source: Path,
    pictures: Mapping[int, _Picture],
    owned: Mapping[int, tuple[str, ...]],
    object_names: Mapping[str, str],
    attribute_names: Mapping[str, str],
    rows: ObjectRows,
) -> None:
    path = only_one(find_json(source, "the objects", "objects.json", "objects.json.gz"))
    seen: set[int] = set()
    for number, listed in _pictures_of(path, "objects"):
        if number not in pictures:
            continue
        picture = pictures[number]
        for place, record in enumerate(listed["objects"] or ()):
            check_record(record, path, f"picture {number}, objects", place, ("object_id", "x", "y", "w", "h"))
            object_id = whole_number(record["object_id"], path, "object_id")
            texts = _texts(record.get("names", record.get("name")))
            name, adjectives = _split_name(texts[0]) if texts else ("", ())
            if name not in object_names:
                rows.counts["objects outside the vocabulary, left out"] += 1
                continue
            if object_id in seen:
                rows.counts["objects that come twice, left out"] += 1
                continue
            seen.add(object_id)
            prefixed = [attribute_names[word] for word in adjectives if word in attribute_names]
            rows.add(
                picture.image_id,
                str(object_id),
                object_names[name],
                box_of([record[key] for key in "xywh"], path, f"object {object_id}"),
                picture.size,
                attributes=(*prefixed, *owned.get(object_id, ())),
            )


def _pictures_of(path: Path, *fields: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each record's picture, and the record."""
    for place, (key, record) in enumerate(stream_records(path)):
        if key is not None:
            raise TableError(f"{path}: a list of pictures expected, got an object with {key!r}")
        check_record(record, path, None, place, ("image_id", *fields))
        yield whole_number(record["image_id"], path, f"image_id of record {place}"), record


def _texts(value: Any) -> list[str]:  # noqa: ANN401
    """Names as they are written: a list, one alone, or nothing; cleaned, empty ones left out."""
    listed = value if isinstance(value, list) else [value]
    cleaned = [_clean(text) for text in listed if isinstance(text, str)]
    return [text for text in cleaned if text]


def _clean(text: str) -> str:
    return text.lower().strip().removesuffix(".").strip()


def _split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """A name without the common adjectives before it, and these."""
    *before, last = name.split()
    if before and COMMON_ADJECTIVES.issuperset(before):
        return last, tuple(before)
    return name, ()


def _split_attributes(text: str) -> list[str]:
    if text == "black and white":
        return [text]
    return [part.strip() for part in text.split(" and ") if part.strip()]
