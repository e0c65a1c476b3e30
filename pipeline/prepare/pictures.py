"""Where the pictures of a data set are, the images table of them, and a split where none is published.

They lie in a folder (here), or only their regions do, in a store (store_pictures.py).
"""

import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import pandas as pd
from PIL import Image, UnidentifiedImageError

from stage1_detect.sources import pictures_below
from store_schema.errors import InputNotFoundError, TableError
from store_schema.formats.known_pictures import last_number

logger = logging.getLogger(__name__)

# EXIF orientations 5 to 8 turn the picture by a quarter: width and height change places.
_ORIENTATION_TAG = 0x0112
_QUARTER_TURNS = frozenset({5, 6, 7, 8})

Record = TypeVar("Record")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Picture:
    """A picture of the data set that is there."""

    image_id: str
    path: str
    """Below the images' root."""


class Pictures(Protocol):
    """Where a data set's pictures are: finds them by what the data set calls them."""

    where: str
    """For messages: "below /data/coco"."""
    remedy: str
    """For the message that none is there."""

    def named(self, names: Mapping[str, int | None]) -> dict[str, Picture]:
        """Those of the named pictures that are there, by name.

        Args:
            names: files' names, or paths below the data set's folder; each with its number in COCO, or None.

        Errors: `TableError` where a name fits two pictures.
        """

    def numbered(self, numbers: Iterable[int]) -> dict[int, Picture]:
        """Those that are there, by number. Errors: `TableError` where two have one number."""

    def size(self, picture: Picture) -> tuple[int, int]:
        """Width and height in pixels. Errors: `OSError` where the picture cannot be read."""


def file_stem(path: str) -> str:
    """The file's name without its ending."""
    return Path(path).stem


class FolderPictures:
    """Pictures anywhere below a folder."""

    def __init__(self, root: Path, image_id: Callable[[str], str] = file_stem) -> None:
        """Args: image_id: of a path below the folder."""
        self.root = root
        self.where = f"below {root}"
        self.remedy = (
            "put the folders of pictures there, or name a store that has regions of them with --store"
        )
        self._image_id = image_id

    def named(self, names: Mapping[str, int | None]) -> dict[str, Picture]:
        """See `Pictures`; a picture is found at its path, or by its file's name in any folder."""
        return {name: self.at(path) for name, path in find_pictures(self.root, names).items()}

    def numbered(self, numbers: Iterable[int]) -> dict[int, Picture]:
        """See `Pictures`; the number is that at the end of the file's name."""
        paths = numbered_pictures(self.root)
        return {number: self.at(paths[number]) for number in numbers if number in paths}

    def size(self, picture: Picture) -> tuple[int, int]:
        """See `Pictures`; as turned by EXIF. Reads the header alone."""
        return turned_size(self.root / picture.path)

    def at(self, path: str) -> Picture:
        """The picture of a path, whether it is there or not."""
        return Picture(self._image_id(path), path)


def turned_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as turned by EXIF; reads the header alone."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION_TAG) in _QUARTER_TURNS
    return (height, width) if turned else (width, height)


def find_pictures(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Where each named picture lies below the root: at its path, or by its file's name in any folder.

    Errors: `TableError` where a name fits two files.
    """
    by_name: dict[str, list[str]] = {}
    for path in pictures_below(root):
        by_name.setdefault(path.name, []).append(path.relative_to(root).as_posix())
    paths = {}
    for name in names:
        places = by_name.get(Path(name).name, [])
        if below_root(name) == PurePosixPath(name).as_posix() and os.path.isfile(root / name):
            paths[name] = below_root(name)
        elif len(places) == 1:
            paths[name] = places[0]
        elif places:
            raise TableError(
                f"{root}: the picture {name} may be {places[0]} or {places[1]}; keep one of them"
            )
    return paths


def below_root(name: str) -> str:
    """The name as a path that stays below the images' root, as the tables demand."""
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", ".."))


def numbered_pictures(folder: Path) -> dict[int, str]:
    """The pictures below a folder by the number at the end of their names, as paths relative to it.

    Errors: `TableError` where two have the same number.
    """
    paths: dict[int, str] = {}
    for path in pictures_below(folder):
        number = last_number(path.stem)
        if number is None:
            continue
        name = path.relative_to(folder).as_posix()
        if (other := paths.setdefault(number, name)) != name:
            raise TableError(f"{folder}: {other} and {name} have the same number {number}; keep one")
    return paths


def only_found(
    records: Sequence[Record],
    key: Callable[[Record], Key],
    found: Mapping[Key, Picture],
    pictures: Pictures,
    what: str,
) -> list[Record]:
    """Leave out the records whose picture is not there, with a warning that counts them.

    Args:
        key: what a record calls its picture, as in `found`.
        what: "pictures" or, of records about them, "questions are about pictures that".

    Errors: `InputNotFoundError` where not one is there.
    """
    kept = [record for record in records if key(record) in found]
    missing = next((str(key(record)) for record in records if key(record) not in found), "any")
    if not kept:
        raise InputNotFoundError(
            f"none of the data set's {len(set(map(key, records)))} pictures is {pictures.where} (such as {missing}); "
            f"{pictures.remedy}"
        )
    if len(kept) < len(records):
        logger.warning(
            "%d of %d %s are not %s and are left out, first %s",
            len(records) - len(kept), len(records), what, pictures.where, missing,
        )  # fmt: skip
    return kept


def images_table(root: Path, names: Iterable[str], splits: Mapping[str, str]) -> pd.DataFrame:
    """`table_of` pictures in a folder by their paths below it, whether they are there or not."""
    folder = FolderPictures(root)
    return table_of(folder, map(folder.at, names), splits)


def table_of(pictures: Pictures, found: Iterable[Picture], splits: Mapping[str, str]) -> pd.DataFrame:
    """Build the images table, sorted by path; unreadable pictures are named in the log and left out.

    Args:
        pictures: where they are.
        found: some of them; one that comes twice counts once.
        splits: split by path.

    Errors: `InputNotFoundError` where not one picture can be read.
    """
    rows, bad = [], []
    for picture in sorted(set(found), key=lambda picture: picture.path):
        try:
            width, height = pictures.size(picture)
        except (OSError, UnidentifiedImageError) as error:
            bad.append(f"{picture.path} ({error})")
            continue
        row = {
            "image_id": picture.image_id,
            "path": picture.path,
            "width": width,
            "height": height,
            "split": splits[picture.path],
        }
        rows.append(row)
    if bad:
        logger.warning(
            "%d pictures named by the data set cannot be read and are left out, first %s", len(bad), bad[0]
        )
    if not rows:
        raise InputNotFoundError(
            f"pictures expected {pictures.where}, not one named by the data set can be read there"
        )
    return pd.DataFrame(rows)


def split_by_hash(names: Iterable[str], *, val_share: float) -> dict[str, str]:
    """Give each name "train" or "val" by the rank of its SHA-256, the same on every machine.

    Of n names, round(n * val_share) are "val". For data sets that publish no split.
    """
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    first_val = len(ranked) - round(len(ranked) * val_share)
    return {name: "train" if place < first_val else "val" for place, name in enumerate(ranked)}
