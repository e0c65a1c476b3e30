"""`caffe-tsv`: the files of peteanderson80/bottom-up-attention (`tools/generate_tsv.py`, 2017).

One line a picture, no header: image_id (a whole number), image_w, image_h, num_boxes, boxes, features. No labels.
Lines are in random order; the last may be cut short, and lines may repeat, where a writer crashed and appended.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

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

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


def _recognises(path: Path) -> bool:
    return column_count(path) == len(COLUMNS)


def _open(path: Path, options: ReadOptions) -> Reader:
    return TsvReader(path, COLUMNS, _picture)


def _picture(fields: Fields, num: int) -> Picture:
    return Picture(
        image_id=fields["image_id"].decode(),
        width=whole_number(fields, "image_w"),
        height=whole_number(fields, "image_h"),
        boxes=matrix(fields, "boxes", "<f4", num, 4),
        features=matrix(fields, "features", "<f4", num),
    )


def _write(out: Path, pictures: Iterator[Picture], header: Header) -> None:
    def lines() -> Iterator[Sequence[bytes]]:
        for picture in pictures:
            numbers = (header.number_of(picture.image_id), picture.width, picture.height, len(picture.boxes))
            arrays = (encode(picture.boxes, "<f4"), encode(picture.features, "<f4"))
            yield [*(str(number).encode() for number in numbers), *arrays]

    write_lines(out, lines())


FORMAT = Format(
    name="caffe-tsv",
    carries=frozenset({"features", "sizes"}),
    recognises=_recognises,
    open=_open,
    write=_write,
    numbers=True,
)
