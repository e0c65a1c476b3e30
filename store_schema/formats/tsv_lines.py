"""Lines of tab-separated base64 arrays: what `caffe-tsv` and `lxmert-tsv` share.

A line is cut at its tabs as bytes; the csv module would limit a field's length and hold the whole line as text. The
first walk looks at lengths only. An array's length follows from its base64 text: 4 characters for 3 bytes.
"""

import base64
import binascii
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import MalformedRecordError
from store_schema.formats.protocol import MAX_PICTURE_BYTES, BadEntry, Entry, Picture

MAX_LINE_BYTES = 2 * MAX_PICTURE_BYTES
_MAX_REGIONS = 65534

Fields = Mapping[str, bytes]


class TsvReader:
    """The pictures of one file; `read` seeks back to a line by its offset."""

    def __init__(self, path: Path, columns: Sequence[str], picture: Callable[[Fields, int], Picture]) -> None:
        """`picture` turns a line's fields, of so many regions, into a picture."""
        self._path = path
        self._columns = columns
        self._picture = picture

    def entries(self) -> Iterator[Entry | BadEntry]:
        """Every line, judged by its columns and their lengths."""
        for number, offset, line in _lines(self._path):
            where = f"{self._path}, line {number}"
            try:
                fields = self._fields(line)
                num, dim = _shape(fields)
            except MalformedRecordError as error:
                yield BadEntry(_first_field(line), where, str(error))
            else:
                yield Entry(fields[self._columns[0]].decode(), num, dim, offset, where)

    def read(self, entry: Entry) -> Picture:
        """Decode one line."""
        with self._path.open("rb") as file:
            file.seek(entry.place)
            fields = self._fields(file.readline(MAX_LINE_BYTES))
        return self._picture(fields, whole_number(fields, "num_boxes"))

    def _fields(self, line: bytes) -> Fields:
        if len(line) >= MAX_LINE_BYTES:
            raise MalformedRecordError(f"the line has more than {MAX_LINE_BYTES} bytes")
        values = line.rstrip(b"\r\n").split(b"\t")
        if len(values) != len(self._columns):
            raise MalformedRecordError(
                f"it has {len(values)} columns instead of {len(self._columns)}; cut short?"
            )
        fields = dict(zip(self._columns, values, strict=True))
        image_id = values[0]
        if not image_id or b"\0" in image_id or not _is_text(image_id):
            raise MalformedRecordError(f"its picture's id {image_id[:40]!r} is no text")
        return fields


def whole_number(fields: Fields, name: str) -> int:
    """A field that must hold a whole number. Errors: `MalformedRecordError`."""
    try:
        return int(fields[name].decode("ascii"))
    except ValueError as error:
        raise MalformedRecordError(f"{name} is {fields[name][:40]!r}, no whole number") from error


def matrix(fields: Fields, name: str, dtype: str, num: int, columns: int | None = None) -> NDArray[Any]:
    """A base64 field as [num, columns], any number of columns where None.

    Errors: `MalformedRecordError` for characters that are no base64, or another length.
    """
    try:
        data = base64.b64decode(fields[name], validate=True)
    except binascii.Error as error:
        raise MalformedRecordError(f"{name} is no base64 ({error})") from error
    row_bytes = np.dtype(dtype).itemsize * (columns or 1)
    fits = len(data) == num * row_bytes if columns else len(data) % max(1, num * row_bytes) == 0
    if not fits:
        of_each = f"{columns} numbers" if columns else "numbers"
        raise MalformedRecordError(
            f"{name} has {len(data)} bytes, which are not {of_each} of {dtype} for {num} regions"
        )
    return np.frombuffer(data, dtype).reshape(num, -1 if num else columns or 0)


def column_count(path: Path) -> int:
    """Columns of a file's first line; 0 where it is no text with tabs or not a file."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        line = file.readline(MAX_LINE_BYTES)
    return 0 if b"\0" in line else line.count(b"\t") + 1 if b"\t" in line else 0


def encode(values: NDArray[Any], dtype: str) -> bytes:
    """An array as base64 without line breaks."""
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes())


def write_lines(out: Path, lines: Iterator[Sequence[bytes]]) -> None:
    """Write lines of fields, flushed to the disk."""
    with out.open("wb") as file:
        for fields in lines:
            file.write(b"\t".join(fields) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, offset and bytes of each line; of an overlong one its beginning."""
    number = offset = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            length, ended = len(line), line.endswith(b"\n")
            while not ended and (rest := file.readline(1 << 20)):
                length, ended = length + len(rest), rest.endswith(b"\n")
            if line.strip():
                yield number, offset, line
            offset += length


def _shape(fields: Fields) -> tuple[int, int]:
    """Regions and feature size by the lengths of the arrays."""
    num = whole_number(fields, "num_boxes")
    if not 0 <= num <= _MAX_REGIONS:
        raise MalformedRecordError(f"num_boxes is {num}, expected 0 to {_MAX_REGIONS}")
    boxes, features = (_decoded_length(fields[name]) for name in ("boxes", "features"))
    if boxes != num * 16:
        raise MalformedRecordError(f"boxes has {boxes} bytes, {num} boxes of 4 float32 have {num * 16}")
    if features % max(1, num * 4) or (features == 0) != (num == 0):
        raise MalformedRecordError(
            f"features has {features} bytes, which is no float32 matrix of {num} rows; cut short?"
        )
    return num, features // (num * 4) if num else 0


def _decoded_length(text: bytes) -> int:
    return len(text) * 3 // 4 - (len(text) - len(text.rstrip(b"=")))


def _first_field(line: bytes) -> str | None:
    first = line.split(b"\t", 1)[0].strip()
    return first.decode() if first and len(first) <= 200 and _is_text(first) and b"\0" not in first else None


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
