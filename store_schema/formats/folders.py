"""Folders with a file a picture: the id is the file's path below the folder without its ending."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from store_schema.errors import UsageError

_LOOKED_AT = 64


def files_below(path: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """Identifier and file of every file with this ending, sorted; of a file, itself. Hidden ones are left out."""
    if path.is_file():
        yield path.name.removesuffix(ending), path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(ending) and not name.startswith("."):
                file = Path(folder, name)
                yield str(file.relative_to(path))[: -len(ending)], file


def some_files(path: Path, ending: str) -> Iterator[Path]:
    """A few files with this ending in a folder or its first subfolders, found without listing them whole."""
    if not path.is_dir():
        return
    folders: list[Path] = []
    with os.scandir(path) as entries:
        for entry in islice(entries, _LOOKED_AT):
            if entry.name.endswith(ending) and entry.is_file():
                yield Path(entry.path)
            elif entry.is_dir() and not entry.name.startswith("."):
                folders.append(Path(entry.path))
    for folder in folders[:10]:
        yield from some_files(folder, ending)


def file_of_id(folder: Path, image_id: str, ending: str) -> Path:
    """The file of a picture, its folder made.

    Errors: `UsageError` for an id that would lead out of the folder or cannot be a name.
    """
    parts = PurePosixPath(image_id).parts
    if not parts or image_id.startswith("/") or ".." in parts or "\0" in image_id:
        raise UsageError(
            f"picture {image_id!r} cannot become a file in {folder}: its id is no plain name; export it as lxmert-tsv"
        )
    file = folder / f"{image_id}{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
