"""JSON files too large to be held at once: one record after the other, packed or not.

For a file that is a list, or an object whose lists are long (COCO's instances_*.json). Memory is that of the largest
record and a few megabytes besides. What is not read on is not checked: the end of a file is seen only at the end.
"""

import gzip
import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from store_schema.errors import TableError

CHUNK = 1 << 20
LONGEST_RECORD = 1 << 28
"""Characters; what is not complete after so many is no JSON, or none that is meant to be streamed."""
_SPACE = " \t\n\r"
_OF_A_NUMBER = re.compile(r"[-+.eE0-9]*")


def stream_records(path: Path, *, chunk: int = CHUNK) -> Iterator[tuple[str | None, Any]]:
    """The records of a JSON file in its order.

    Args:
        path: ends in .gz or .xz where it is packed.
        chunk: characters read at a time.

    Yields:
        (key, record) for each element of the list under a key of the outer object, and (key, value) where the value is
        no list; the key is None where the file itself is a list.

    Errors: `TableError` with the number of the record where the file is cut short or is no JSON.
    """
    try:
        with _open(path) as file:
            yield from _Scanner(file, path, chunk).records()
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise TableError(f"{path} cannot be read as JSON: {error}") from error


def _open(path: Path) -> TextIO:
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    file: TextIO = opener(path, "rt", encoding="utf-8-sig")  # type: ignore[operator]
    return file


class _Scanner:
    """The text that is read but not yet taken, and where in it we are."""

    def __init__(self, file: TextIO, path: Path, chunk: int) -> None:
        self._file, self._path, self._chunk = file, path, chunk
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._place, self._taken = "", 0, 0

    def records(self) -> Iterator[tuple[str | None, Any]]:
        if self._next() == "[":
            yield from ((None, record) for record in self._elements())
        elif self._next() == "{":
            self._place += 1
            for _ in self._members("}"):
                key = self._value()
                if not isinstance(key, str) or self._next() != ":":
                    raise self._error("a key and ':' expected")
                self._place += 1
                if self._next() == "[":
                    yield from ((key, record) for record in self._elements())
                else:
                    yield key, self._value()
        else:
            raise self._error("a list or an object expected")
        if self._next():
            raise self._error("more text after the end")

    def _elements(self) -> Iterator[Any]:
        """The elements of the list whose '[' is next."""
        self._place += 1
        for _ in self._members("]"):
            self._taken += 1
            yield self._value()

    def _members(self, closing: str) -> Iterator[None]:
        """Stop before each member of a list or object; take the commas, and the closing bracket at the end."""
        if self._next() != closing:
            yield
            while self._next() == ",":
                self._place += 1
                yield
        if self._next() != closing:
            raise self._error(f"',' or {closing!r} expected")
        self._place += 1

    def _next(self) -> str:
        """The next character that is no space, '' at the end of the file; it is not taken."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _SPACE:
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read():
                return ""

    def _value(self) -> Any:  # noqa: ANN401  (any JSON value)
        """Take the value that is next. What was read may end within a number ("0." of 0.5 is a 0 to the decoder)."""
        self._next()
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if len(self._text) - self._place > LONGEST_RECORD or not self._read():
                    raise self._error(error.msg) from error
                continue
            number = _OF_A_NUMBER.match(self._text, end)
            if (number and number.end() < len(self._text)) or not self._read():
                self._place = end
                return value

    def _read(self) -> bool:
        """Read on, each time as much as is waiting, so that a long value is not decoded too often; False at the end."""
        self._text = self._text[self._place :]
        self._place = 0
        more = self._file.read(max(self._chunk, len(self._text)))
        self._text += more
        return bool(more)

    def _error(self, what: str) -> TableError:
        return TableError(
            f"{self._path} is no whole JSON: {what} after {self._taken:,} records; was it cut short in a download?"
        )
