"""`lxmert-tsv`: the files of airsplay/lxmert (`data/*_imgfeat/extract_*_image.py`, 2019), labels included.

One line a picture, no header, ten columns; the height stands before the width, the id is a text. Object and
attribute ids are lines of the Visual Genome lists, without background. Files of airsplay/py-bottom-up-attention have
zeros for attributes: where all of a picture's confidences are zero, it has none.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from store_schema.formats.protocol import Format, Header, Picture, Reader, ReadOptions
from store_schema.formats.tsv_lines import (
    Fields,
    TsvReader,
    column_count,
    encode,
    matrix,
    whole_number,
    write_lines,
)

COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)


def _recognises(path: Path) -> bool:
    return column_count(path) == len(COLUMNS)


def _open(path: Path, options: ReadOptions) -> Reader:
    return TsvReader(path, COLUMNS, _picture)


def _picture(fields: Fields, num: int) -> Picture:
    attribute_scores = matrix(fields, "attrs_conf", "<f4", num, 1)[:, 0]
    has_attributes = num == 0 or bool(attribute_scores.any())
    return Picture(
        image_id=fields["img_id"].decode(),
        width=whole_number(fields, "img_w"),
        height=whole_number(fields, "img_h"),
        boxes=matrix(fields, "boxes", "<f4", num, 4),
        features=matrix(fields, "features", "<f4", num),
        object_ids=matrix(fields, "objects_id", "<i8", num, 1)[:, 0],
        object_scores=matrix(fields, "objects_conf", "<f4", num, 1)[:, 0],
        attribute_ids=matrix(fields, "attrs_id", "<i8", num, 1)[:, 0] if has_attributes else None,
        attribute_scores=attribute_scores if has_attributes else None,
    )


def _write(out: Path, pictures: Iterator[Picture], header: Header) -> None:
    write_lines(out, (_fields(picture) for picture in pictures))


def _fields(picture: Picture) -> Sequence[bytes]:
    zeros = np.zeros(len(picture.boxes))
    labels = []
    for ids, scores in (
        (picture.object_ids, picture.object_scores),
        (picture.attribute_ids, picture.attribute_scores),
    ):
        labels += [
            encode(zeros if ids is None else ids, "<i8"),
            encode(zeros if scores is None else scores, "<f4"),
        ]
    return [
        picture.image_id.encode(),
        str(picture.height).encode(),
        str(picture.width).encode(),
        *labels,
        str(len(picture.boxes)).encode(),
        encode(picture.boxes, "<f4"),
        encode(picture.features, "<f4"),
    ]


FORMAT = Format(
    name="lxmert-tsv",
    carries=frozenset({"features", "sizes", "objects", "attributes", "text ids"}),
    recognises=_recognises,
    open=_open,
    write=_write,
)
