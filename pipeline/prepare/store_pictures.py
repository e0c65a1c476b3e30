"""Pictures of a data set that are not there themselves: only their regions are, in a store.

The tables get the store's own ids and sizes, so that they fit it whatever its feature file called the pictures. The
paths are as the data set gives them, for the day on which the pictures come.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from pipeline.prepare.pictures import FolderPictures, Picture, Pictures, below_root, file_stem
from stage1_detect.sources import IMAGE_SUFFIXES
from store_schema.errors import StoreMismatchError, TableError
from store_schema.formats.known_pictures import last_number
from store_schema.reader import RegionStore
from store_schema.remote import StorePath


def pictures_at(
    folder: Path, store: StorePath | None, image_id: Callable[[str], str] = file_stem
) -> Pictures:
    """The pictures of a store where one is named, else those below the folder.

    Args:
        folder: of the data set.
        store: a folder or URL.
        image_id: of a path below the folder.

    Errors: those of `RegionStore.open`; `StoreMismatchError` for a store without pictures.
    """
    if store is not None:
        return StorePictures(RegionStore.open(store))
    return FolderPictures(folder, image_id)


class StorePictures:
    """Pictures that a store has regions of.

    One is found by its exact id (a name with or without its ending), else by the name of its file, else by the number
    at the end. Numbers count only where one side is nothing but a number, as in COCO's and VQA's files: dog_3.jpg is
    not cat_3.
    """

    def __init__(self, store: RegionStore) -> None:
        """Read the ids. Errors: `StoreMismatchError` where the store has none."""
        self.where = f"in the store {store.path}"
        self._store = store
        self._rows = dict(zip(store.image_ids, store.all_rows.tolist(), strict=True))
        if not self._rows:
            raise StoreMismatchError(f"no picture is {self.where}{_why_none(store)}")
        self.remedy = f"the store's ids are like {next(iter(self._rows))!r}: is it a store of this data set?"
        self._by_stem: dict[str, list[str]] = {}
        self._by_number: dict[int, list[str]] = {}
        for image_id in self._rows:
            self._by_stem.setdefault(_stem(image_id), []).append(image_id)
            if (number := last_number(_stem(image_id))) is not None:
                self._by_number.setdefault(number, []).append(image_id)

    def named(self, names: Mapping[str, int | None]) -> dict[str, Picture]:
        """See `Pictures`."""
        found: dict[str, Picture] = {}
        owners: dict[str, str] = {}
        for name, number in names.items():
            image_id = self._find(name, number)
            if image_id is None:
                continue
            if (other := owners.setdefault(image_id, name)) != name:
                raise TableError(f"{other} and {name} would both be {image_id!r} {self.where}; keep one")
            found[name] = Picture(image_id, below_root(name))
        return found

    def numbered(self, numbers: Iterable[int]) -> dict[int, Picture]:
        """See `Pictures`; a path is the id with .jpg, the data set gives none."""
        ids = {number: self._find(str(number), number) for number in numbers}
        return {
            n: Picture(image_id, f"{image_id}.jpg") for n, image_id in ids.items() if image_id is not None
        }

    def size(self, picture: Picture) -> tuple[int, int]:
        """See `Pictures`."""
        width, height = self._store.sizes([self._rows[picture.image_id]])[0].tolist()
        return int(width), int(height)

    def _find(self, name: str, number: int | None) -> str | None:
        for image_id in (name, name.removesuffix(PurePosixPath(name).suffix)):
            if image_id in self._rows:
                return image_id
        stem = _stem(name)
        alike = self._by_stem.get(stem, [])
        if not alike:
            wanted = last_number(stem) if number is None else number
            alike = [] if wanted is None else self._by_number.get(wanted, [])
            if number is None and not stem.isdecimal():
                alike = [image_id for image_id in alike if _stem(image_id).isdecimal()]
        if len(alike) > 1:
            raise TableError(
                f"the picture {name} may be {alike[0]!r} or {alike[1]!r} {self.where}; copy the pictures of one data "
                "set into a store of their own ('butd store copy')"
            )
        return alike[0] if alike else None


def _why_none(store: RegionStore) -> str:
    problems = store.problems()
    if not problems:
        return ""
    first = problems[0]
    named = f"{len(problems)} are quarantined, such as {first.image_id!r} ({first.reason})"
    return f": {named}; import them into a new store"


def _stem(name: str) -> str:
    """The file's name without its ending; ids may hold dots."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
