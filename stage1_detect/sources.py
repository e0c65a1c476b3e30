"""Find the pictures of a job and give each its `image_id`, without opening any.

A source is a folder (searched through), a folder of tables (`images.parquet` names pictures and ids), a pattern
with wildcards, a tar of pictures, a Parquet table of bytes, or files. Two pictures with one id are refused, since
the store is keyed by it. 10,000 files take 0.1 s.
"""

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stage1_detect.archives import ParquetCell, TarMember, is_archive, list_archive, read_member
from stage1_detect.images import printable, read_file
from store_schema.errors import InputNotFoundError, UsageError
from store_schema.tables import has_table, read_table

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".gif",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".jp2",
        ".avif",
    }
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)


@dataclass(frozen=True)
class ImageSource:
    """One picture of a job."""

    image_id: str
    path: Path
    """Its file, or the archive that holds it."""
    place: TarMember | ParquetCell | None = None
    """Where in the archive."""

    @property
    def name(self) -> str:
        """The picture's file in one printable line; of an archive's picture, archive and member."""
        return printable(self.path) + (f"/{printable(self.place.name)}" if self.place is not None else "")

    def read(self) -> bytes:
        """The bytes of the picture's file. Errors: `ImageReadError` with name and reason."""
        return read_file(self.path) if self.place is None else read_member(self.path, self.place)


def find_images(
    source: str | Path | Sequence[str | Path], *, root: str | Path | None = None, split: str | None = None
) -> list[ImageSource]:
    """List the pictures of a folder, of a data set's tables, of an archive, or of several such sources and files.

    In a folder the id is the path below it without the ending, and pictures come sorted by path; hidden files
    and folders are left out, links are followed, links that lead nowhere are listed (the job records them). A
    pattern's ids start after its last folder without wildcards. A single file's id is its name without the ending;
    in a tar it is the member's name up to its first dot (WebDataset's key), in a table of bytes its `image_id`.
    Names that are no UTF-8 get ids with their bytes escaped.

    Args:
        source: a folder, a folder with `images.parquet`, a pattern (`photos/**/*.jpg`), a `.tar`, a `.parquet` with
            a column of bytes, a file, or a list of these.
        root: where the paths of `images.parquet` start; the tables' folder if not given.
        split: only this split of the tables.

    Returns:
        At least one picture, each id once.

    Errors: `InputNotFoundError` where the source is missing or holds no picture; `UsageError` where two
    pictures have one id, naming both, or where `root` or `split` is given without tables.
    """
    if isinstance(source, str | Path):
        found = list(_images_of(Path(source), root, split))
        if not found:
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            wanted = f"of split {split!r}" if split is not None else f"with one of the endings {endings}"
            raise InputNotFoundError(f"{printable(source)}: no pictures found {wanted}")
    else:
        found = [image for one in source for image in find_images(one, root=root, split=split)]
        if not found:
            raise InputNotFoundError("no pictures given: expected a folder, a tables folder or picture files")
    _refuse_duplicates(found)
    return found


def _images_of(source: Path, root: str | Path | None, split: str | None) -> Iterator[ImageSource]:
    if source.is_dir() and has_table(source, "images"):
        yield from _images_of_tables(source, Path(root) if root is not None else source, split)
        return
    if root is not None or split is not None:
        option = "root" if root is not None else "split"
        raise UsageError(
            f"{printable(source)}: {option!r} needs a folder with images.parquet, and this is none"
        )
    if source.is_dir():
        for path in pictures_below(source):
            yield ImageSource(_as_id(path.relative_to(source)), path)
    elif source.is_file() and is_archive(source):
        for image_id, place in list_archive(source, sorted(IMAGE_SUFFIXES)):
            yield ImageSource(image_id, source, place)
    elif source.exists() or source.is_symlink():
        yield ImageSource(_as_id(Path(source.name)), source)
    elif glob.has_magic(str(source)):
        yield from _matching(source)
    else:
        raise InputNotFoundError(f"{printable(source)}: no such file or folder; expected pictures there")


def _matching(pattern: Path) -> Iterator[ImageSource]:
    """Pictures and archives that a pattern with wildcards matches, sorted; `**` stands for any folders."""
    fixed = next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))
    matches = glob.glob(str(pattern), recursive=True)
    for path in sorted(map(Path, matches), key=os.fsencode):
        if path.is_file() and is_archive(path):
            yield from _images_of(path, None, None)
        elif not path.is_dir() and path.suffix.lower() in IMAGE_SUFFIXES:
            yield ImageSource(_as_id(path.relative_to(fixed)), path)


def _images_of_tables(folder: Path, root: Path, split: str | None) -> Iterator[ImageSource]:
    if not root.is_dir():
        raise InputNotFoundError(
            f"{printable(root)}: no such folder; the paths in images.parquet start there"
        )
    images = read_table(folder, "images")
    if split is not None:
        images = images[images["split"] == split]
    for image_id, path in zip(images["image_id"], images["path"], strict=True):
        yield ImageSource(str(image_id), root / str(path))


def pictures_below(folder: Path, ancestors: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Pictures in a folder and the folders below it, linked ones too, sorted; hidden ones are left out.

    Args:
        ancestors: device and inode of the folders that we are inside of; a link back to one is not entered.

    Errors: `UsageError` for a folder that cannot be listed.
    """
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise UsageError(
            f"{printable(folder)}: folder cannot be listed ({error.strerror}); grant access or name other folders"
        ) from error
    here = (status.st_dev, status.st_ino)
    if here in ancestors:
        logger.warning("%s: a link back to a folder above it, not entered", printable(folder))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
            yield from pictures_below(path, (*ancestors, here))
        elif path.suffix.lower() in IMAGE_SUFFIXES and (entry.is_symlink() or entry.is_file()):
            yield path


def _as_id(path: Path) -> str:
    return os.fsencode(path.with_suffix("")).decode("utf-8", "backslashreplace")


def _refuse_duplicates(images: Iterable[ImageSource]) -> None:
    first: dict[str, ImageSource] = {}
    for image in images:
        other = first.setdefault(image.image_id, image)
        if other is not image:
            raise UsageError(
                f"two pictures have the id {image.image_id!r}: {other.name} and {image.name}; "
                "rename one, or name the folder above both as the source"
            )
