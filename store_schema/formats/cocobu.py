"""`cocobu`: the folders of ruotianluo/self-critical.pytorch (`scripts/make_bu_data.py`).

`<name>_att/<number>.npz` with `feat` [n, D] (older files: `z`), `<name>_box/<number>.npy` [n, 4] in pixels, and
`<name>_fc/<number>.npy`, the mean feature. No picture sizes, no labels. Named is the folder above, or `<name>_att`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from store_schema.errors import InputNotFoundError, MalformedRecordError
from store_schema.formats.folders import files_below, some_files
from store_schema.formats.npy_files import NpzFile, npy_shape, read_npy
from store_schema.formats.protocol import BadEntry, Entry, Format, Header, Picture, Reader, ReadOptions

_NAME = "cocobu"


def _recognises(path: Path) -> bool:
    try:
        return any(some_files(_feature_folder(path), ".npz"))
    except InputNotFoundError:
        return False


def _feature_folder(path: Path) -> Path:
    """The folder `<name>_att`, given itself or the one above it."""
    found = [path] if path.name.endswith("_att") else sorted(path.glob("*_att")) if path.is_dir() else []
    if len(found) != 1 or not found[0].is_dir():
        names = ", ".join(folder.name for folder in found) or "none"
        raise InputNotFoundError(f"{path}: one folder whose name ends in _att was expected, there is {names}")
    return found[0]


def _open(path: Path, options: ReadOptions) -> Reader:
    features = _feature_folder(path)
    boxes = features.with_name(f"{features.name.removesuffix('_att')}_box")
    if not boxes.is_dir():
        raise InputNotFoundError(
            f"{features}: its boxes were expected in {boxes}, which is not there; a store needs the boxes: make them "
            "with make_bu_data.py from the original files, or import those"
        )
    return _Reader(features, boxes)


class _Reader:
    def __init__(self, features: Path, boxes: Path) -> None:
        self._features = features
        self._boxes = boxes

    def entries(self) -> Iterator[Entry | BadEntry]:
        for image_id, file in files_below(self._features, ".npz"):
            try:
                num, dim = self._shape(image_id, file)
            except MalformedRecordError as error:
                yield BadEntry(image_id, str(file), str(error))
            else:
                yield Entry(image_id, num, dim, file, str(file))

    def read(self, entry: Entry) -> Picture:
        with NpzFile(entry.place) as npz:
            features = npz.array(_key(npz))
        boxes = read_npy(self._box_file(entry.image_id))
        return Picture(image_id=entry.image_id, width=None, height=None, boxes=boxes, features=features)

    def _shape(self, image_id: str, file: Path) -> tuple[int, int]:
        with NpzFile(file) as npz:
            shape = npz.shape(_key(npz))
        boxes = npy_shape(self._box_file(image_id))
        if len(shape) != 2 or boxes != (shape[0], 4):
            raise MalformedRecordError(
                f"features {list(shape)} and boxes {list(boxes)}: expected [n, D] and [n, 4]"
            )
        return shape[0], shape[1]

    def _box_file(self, image_id: str) -> Path:
        return self._boxes / f"{image_id}.npy"


def _key(npz: NpzFile) -> str:
    return "z" if "feat" not in npz and "z" in npz else "feat"


def _write(out: Path, pictures: Iterator[Picture], header: Header) -> None:
    folders = {kind: out / f"{_NAME}_{kind}" for kind in ("att", "box", "fc")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for picture in pictures:
        number = header.number_of(picture.image_id)
        features = picture.features.astype(np.float32)
        mean = features.mean(axis=0) if len(features) else np.zeros(header.feature_dim, np.float32)
        np.savez_compressed(folders["att"] / f"{number}.npz", feat=features)
        np.save(folders["box"] / f"{number}.npy", picture.boxes)
        np.save(folders["fc"] / f"{number}.npy", mean)


FORMAT = Format(
    name="cocobu",
    carries=frozenset({"features"}),
    recognises=_recognises,
    open=_open,
    write=_write,
    is_folder=True,
    numbers=True,
)
