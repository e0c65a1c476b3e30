"""What a data set knows of its pictures: sizes, identifiers, files; for formats that know only a number.

Read from tables (`images.parquet`), or from a JSON with COCO's `images` list, which instances_*.json, captions_*.json
and self-critical's cocotalk.json have.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store_schema.errors import InputNotFoundError, UsageError
from store_schema.tables import read_table


@dataclass(frozen=True)
class KnownPicture:
    """One picture of a data set."""

    image_id: str | None
    """None: the JSON knows a number only, and files keep their own identifiers."""
    width: int
    height: int
    path: str
    number: int | None
    """Its coco_id, where there is one."""


@dataclass(frozen=True)
class KnownPictures:
    """Pictures by identifier, and by the other names that a feature file may use."""

    by_id: dict[str, KnownPicture] = field(default_factory=dict)
    by_stem: dict[str, KnownPicture] = field(default_factory=dict)
    by_number: dict[int, KnownPicture] = field(default_factory=dict)

    def find(self, image_id: str) -> KnownPicture | None:
        """The picture of this identifier, this file name without ending, or the number at this identifier's end."""
        found = self.by_id.get(image_id) or self.by_stem.get(image_id)
        if found is None and (number := last_number(image_id)) is not None:
            found = self.by_number.get(number)
        return found


def read_known_pictures(path: Path) -> KnownPictures:
    """Read tables or a JSON. Errors: `InputNotFoundError`, `TableError`, `UsageError`."""
    if path.is_dir():
        frame = read_table(path, "images")
        numbers = frame["coco_id"].tolist() if "coco_id" in frame.columns else [None] * len(frame)
        columns = (frame[name].tolist() for name in ("image_id", "width", "height", "path"))
        rows = [
            KnownPicture(
                image_id,
                width,
                height,
                file,
                int(number) if number is not None and number == number else None,
            )
            for image_id, width, height, file, number in zip(*columns, numbers, strict=True)
        ]
    else:
        rows = _read_json(path)
    stems: dict[str, KnownPicture] = {}
    repeated: set[str] = set()
    for row in rows:
        stem = Path(row.path).stem
        if stems.setdefault(stem, row) is not row:
            repeated.add(stem)
    return KnownPictures(
        {row.image_id: row for row in rows if row.image_id is not None},
        {stem: row for stem, row in stems.items() if stem and stem not in repeated},
        {row.number: row for row in rows if row.number is not None},
    )


def last_number(image_id: str) -> int | None:
    """The whole number that an identifier ends in: 318556 of "COCO_train2014_000000318556" and of "coco:318556"."""
    digits = re.search(r"[0-9]+\Z", image_id)
    return int(digits[0]) if digits and len(digits[0]) <= 18 else None


def _read_json(path: Path) -> list[KnownPicture]:
    if not path.is_file():
        raise InputNotFoundError(f"--tables {path}: there is no such folder or file")
    try:
        images = json.loads(path.read_bytes())["images"]
        return [_from_json(image) for image in images]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--tables {path}: expected a folder of tables, or a JSON whose 'images' have id, width and height "
            f"({error!r})"
        ) from error


def _from_json(image: dict[str, Any]) -> KnownPicture:
    """`image_id` is a key of our own exports; others have the number `id`."""
    number = int(image["id"]) if str(image["id"]).isdecimal() else None
    image_id = image.get("image_id", None if number is not None else str(image["id"]))
    file = str(image.get("file_name") or image.get("file_path") or "")
    return KnownPicture(image_id, int(image["width"]), int(image["height"]), file, number)
