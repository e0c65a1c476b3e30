"""JSON files of raw data sets: found by pattern, read packed or not, and one clear error where they are not right."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store_schema.errors import InputNotFoundError, TableError


def find_json(folder: Path, what: str, *patterns: str) -> list[Path]:
    """The files below a folder that fit a pattern, packed (.gz) or not, sorted by name.

    Errors: `InputNotFoundError` where there is none.
    """
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})
    if not found:
        raise InputNotFoundError(
            f"{folder} lacks {what}: a file like {' or '.join(patterns)} is expected there"
        )
    return found


def only_one(paths: list[Path]) -> Path:
    """The only file of those found. Errors: `TableError` naming them where there are several."""
    if len(paths) > 1:
        raise TableError(
            f"{paths[0].parent} holds {', '.join(path.name for path in paths)}; name or keep one of them"
        )
    return paths[0]


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file, packed by gzip or not. Errors: `TableError` where it is cut short or no JSON."""
    try:
        content = path.read_bytes()
        return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, ValueError) as error:
        raise TableError(f"{path} cannot be read as JSON: {error}") from error


def records(content: Any, path: Path, key: str | None, fields: Sequence[str]) -> list[dict[str, Any]]:  # noqa: ANN401
    """A list of objects that all have these fields.

    Args:
        content: as read from `path`.
        key: where the list is in the content; None where it is the content.

    Errors: `TableError` naming the first record that is not right.
    """
    listed = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(listed, list):
        where = "a list of objects" if key is None else f"an object with the list {key!r}"
        raise TableError(f"{path}: {where} expected, got {type(content).__name__}")
    for number, record in enumerate(listed):
        check_record(record, path, key, number, fields)
    return listed


def check_record(record: Any, path: Path, key: str | None, number: int, fields: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse a record that lacks one of the fields. Errors: `TableError` naming file, place and fields."""
    missing = [name for name in fields if not isinstance(record, dict) or name not in record]
    if missing:
        raise TableError(f"{path}, {key or 'record'} {number}: {', '.join(missing)} missing")


def whole_number(value: Any, path: Path, what: str) -> int:  # noqa: ANN401
    """A number as JSON has it, also one in quotes. Errors: `TableError` naming file and what it should be."""
    is_text = isinstance(value, str) and value.strip().lstrip("-").isdecimal()
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    if not is_text and not is_whole:
        raise TableError(f"{path}: {what} must be a whole number, it is {value!r}")
    return int(value)


def box_of(values: Any, path: Path, what: str) -> list[float]:  # noqa: ANN401
    """Four numbers. Errors: `TableError` naming file and whose box it is."""
    fit = isinstance(values, list) and len(values) == 4
    if not fit or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise TableError(f"{path}: the box of {what} must be x, y, width and height, it is {values!r}")
    return [float(value) for value in values]
