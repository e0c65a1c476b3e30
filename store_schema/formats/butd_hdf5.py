"""`butd-hdf5`: the files of hengyuan-hu/bottom-up-attention-vqa (`tools/detection_features_converter.py`).

`image_features` [N, 36, D], `image_bb` [N, 36, 4] in pixels, `spatial_features` [N, 36, 6] = x1, y1, x2, y2, w, h as
fractions of the picture. Adaptive files lay all regions end to end and add `pos_boxes` [N, 2]: first row, row after
the last. Identifiers lie outside, in a pickled dict `<name>_imgid2idx.pkl`; ours also write them as a dataset `ids`.
Picture sizes are recovered from boxes and fractions. No labels.
"""

import io
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from store_schema.errors import InputNotFoundError, MalformedRecordError, UsageError
from store_schema.formats.npy_files import load_pickle
from store_schema.formats.protocol import (
    MAX_PICTURE_BYTES,
    BadEntry,
    Entry,
    Format,
    Header,
    Picture,
    Reader,
    ReadOptions,
)

logger = logging.getLogger(__name__)

_MAX_CHUNK_BYTES = 4 * MAX_PICTURE_BYTES
_MAX_PICKLE_BYTES = 1 << 30
_SIZE_TOLERANCE = 1e-3
"""By which a recovered side may differ from a whole number, for each 100 pixels of it; float32 fractions give a side
of 640 to 0.0001."""


def _recognises(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _open(path: Path, options: ReadOptions) -> Reader:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UsageError(f"{path} is no whole HDF5 file ({error}); copy it again") from error
    return _Reader(path, file, options)


class _Reader:
    def __init__(self, path: Path, file: h5py.File, options: ReadOptions) -> None:
        self._path = path
        self._features = _dataset(path, file, "image_features")
        self._boxes = _dataset(path, file, "image_bb")
        self._spatial = _dataset(path, file, "spatial_features") if "spatial_features" in file else None
        self._ranges = _ranges(path, file, self._features, self._boxes)
        self._rows = _rows_by_id(path, file, options, len(self._ranges))
        without = len(self._ranges) - len({row for _, row in self._rows})
        if without > 0:
            logger.warning("%s: %d of %d rows have no id and are left out", path, without, len(self._ranges))

    def entries(self) -> Iterator[Entry | BadEntry]:
        dim = self._features.shape[-1]
        total = len(self._boxes) if self._features.ndim == 2 else None
        for image_id, row in sorted(self._rows, key=lambda item: item[1]):
            where = f"{self._path}, row {row}"
            if not 0 <= row < len(self._ranges):
                yield BadEntry(image_id, where, f"the file has only {len(self._ranges)} rows")
                continue
            first, end = (int(bound) for bound in self._ranges[row])
            if not 0 <= first <= end or (total is not None and end > total):
                yield BadEntry(image_id, where, f"pos_boxes gives rows {first} to {end} of {total}")
            else:
                yield Entry(image_id, end - first, dim, row, where)

    def read(self, entry: Entry) -> Picture:
        if self._features.ndim == 3:
            at: Any = entry.place
        else:
            at = slice(*(int(bound) for bound in self._ranges[entry.place]))
        try:
            boxes, features = self._boxes[at], self._features[at]
            spatial = None if self._spatial is None else self._spatial[at]
        except OSError as error:
            raise MalformedRecordError(f"its rows cannot be read ({error})") from error
        if self._features.ndim == 3:
            real = np.flatnonzero(boxes.any(axis=1))  # boxes of zeros pad the end
            num = int(real[-1]) + 1 if len(real) else 0
            boxes, features = boxes[:num], features[:num]
            spatial = None if spatial is None else spatial[:num]
        width, height = (None, None) if spatial is None else _picture_size(boxes, spatial)
        return Picture(image_id=entry.image_id, width=width, height=height, boxes=boxes, features=features)


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values lie in this very file, in chunks that memory can hold."""
    link = file.get(name, getlink=True) if name in file else None
    if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise UsageError(
            f"{path}: dataset {name!r} is expected in the file, there are {', '.join(sorted(file)[:8]) or 'none'}; "
            "is it a butd-hdf5 file?"
        )
    dataset = file[name]
    if dataset.is_virtual or dataset.external:
        raise UsageError(
            f"{path}: the values of {name!r} lie in other files, which are not followed; copy them in"
        )
    if dataset.dtype.kind not in "fiu":
        raise UsageError(f"{path}: {name!r} holds {dataset.dtype}, numbers are expected")
    rows = dataset.shape[1:] if dataset.ndim == 3 else ()
    largest = max(math.prod(rows) * dataset.dtype.itemsize, 0)
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize if dataset.chunks else 0
    if largest > MAX_PICTURE_BYTES or chunk > _MAX_CHUNK_BYTES:
        raise UsageError(
            f"{path}: {name!r} unpacks in pieces of {max(largest, chunk):,} bytes, more than a picture may take; "
            "it is not read"
        )
    return dataset


def _ranges(path: Path, file: h5py.File, features: h5py.Dataset, boxes: h5py.Dataset) -> NDArray[np.int64]:
    """[N, 2], for each row of the index its first region and the one after its last; checks the shapes."""
    lead = features.shape[:-1]
    if features.ndim not in (2, 3) or boxes.shape != (*lead, 4):
        raise UsageError(
            f"{path}: image_features has shape {list(features.shape)} and image_bb {list(boxes.shape)}; expected are "
            "[N, k, D] and [N, k, 4], or [regions, D] and [regions, 4] with pos_boxes"
        )
    if features.ndim == 3:
        return np.stack([np.zeros(lead[0], np.int64), np.full(lead[0], lead[1])], axis=1)
    pos_boxes: NDArray[np.int64] = _dataset(path, file, "pos_boxes")[:].astype(np.int64)
    if pos_boxes.ndim != 2 or pos_boxes.shape[1] != 2:
        raise UsageError(f"{path}: pos_boxes has shape {list(pos_boxes.shape)}, [N, 2] is expected")
    return pos_boxes


_Rows = list[tuple[str, int]]
"""Identifiers with their rows; a list, so that one that stands twice is noticed."""


def _rows_by_id(path: Path, file: h5py.File, options: ReadOptions, num_rows: int) -> _Rows:
    """From --ids, from a dataset `ids` in the file, or from the pickle beside it."""
    pickled = path.with_name(f"{path.stem}_imgid2idx.pkl")
    if options.ids is not None:
        return _read_ids(options.ids)
    for name in ("ids", "image_ids"):
        if name in file:
            return _read_id_dataset(path, file, name, num_rows)
    if not pickled.is_file():
        raise InputNotFoundError(
            f"{path}: which row is which picture was expected in {pickled}, which is not there; name a JSON of "
            "{id: row} or a list of ids with --ids"
        )
    if not options.trust_pickle:
        raise UsageError(
            f"{path}: which row is which picture lies in a pickle ({pickled.name}), and a pickle can run any program; "
            "say --trust-pickle if you trust where it came from, or name a JSON of {id: row} with --ids"
        )
    if pickled.stat().st_size > _MAX_PICKLE_BYTES:
        raise UsageError(
            f"{pickled} has more than {_MAX_PICKLE_BYTES >> 30} GB; an index of ids was expected"
        )
    try:
        return _as_rows(load_pickle(io.BytesIO(pickled.read_bytes()), pickled.name), pickled)
    except MalformedRecordError as error:
        raise UsageError(f"{pickled}: {error}") from error


def _read_id_dataset(path: Path, file: h5py.File, name: str, num_rows: int) -> _Rows:
    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != (num_rows,) or dataset.external:
        raise UsageError(f"{path}: {name!r} is no list of {num_rows} ids; name a JSON or a list with --ids")
    values = (value.decode() if isinstance(value, bytes) else str(value) for value in dataset[:])
    return [(value, row) for row, value in enumerate(values)]


def _read_ids(path: Path) -> _Rows:
    if not path.is_file():
        raise InputNotFoundError(f"--ids {path}: there is no such file")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return _as_rows(text.split(), path)
    try:
        return _as_rows(json.loads(text), path)
    except ValueError as error:
        raise UsageError(f"--ids {path} is no JSON ({error})") from error


def _as_rows(content: object, path: Path) -> _Rows:
    if isinstance(content, list):
        return [(str(image_id), row) for row, image_id in enumerate(content)]
    if not isinstance(content, dict) or not all(
        isinstance(row, int | np.integer) for row in content.values()
    ):
        raise UsageError(f"{path}: a dict of id and row, or a list of ids was expected")
    return [(str(image_id), int(row)) for image_id, row in content.items()]


def _picture_size(boxes: NDArray[Any], spatial: NDArray[Any]) -> tuple[int | None, int | None]:
    """Width and height from corners in pixels and as fractions: the largest corner gives the most digits."""
    sizes: list[int | None] = []
    for axis in (0, 1):
        if not len(boxes):
            sizes.append(None)
            continue
        pixels = np.concatenate([boxes[:, axis], boxes[:, axis + 2]]).astype(np.float64)
        fractions = np.concatenate([spatial[:, axis], spatial[:, axis + 2]]).astype(np.float64)
        largest = int(pixels.argmax())
        with np.errstate(divide="ignore", invalid="ignore"):
            size = pixels[largest] / fractions[largest]
        if (
            not np.isfinite(size)
            or size < 1
            or abs(size - round(size)) > _SIZE_TOLERANCE * max(1.0, size / 100)
        ):
            raise MalformedRecordError(
                f"boxes and spatial_features do not fit: corner {pixels[largest]:g} is {fractions[largest]:g} of a side"
            )
        sizes.append(round(size))
    return sizes[0], sizes[1]


def _write(out: Path, pictures: Iterator[Picture], header: Header) -> None:
    import pickle

    k, num, dim = header.regions_per_image, header.num_images, header.feature_dim
    lead = (header.num_regions,) if k is None else (num, k)
    ids: list[int] = []
    with h5py.File(out, "w") as file:
        features = file.create_dataset("image_features", (*lead, dim), "f4")
        boxes = file.create_dataset("image_bb", (*lead, 4), "f4")
        spatial = file.create_dataset("spatial_features", (*lead, 6), "f4")
        pos_boxes, first = np.zeros((num, 2), np.int64), 0
        for row, picture in enumerate(pictures):
            end = first + len(picture.boxes)
            at: Any = slice(first, end) if k is None else row
            features[at], boxes[at], spatial[at] = picture.features, picture.boxes, _fractions(picture)
            pos_boxes[row] = first, end
            first = end
            ids.append(header.number_of(picture.image_id))
        if k is None:
            file["pos_boxes"] = pos_boxes
        file["ids"] = np.array(ids, np.int64)
    index = {image_id: row for row, image_id in enumerate(ids)}
    out.with_name(f"{out.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(index, protocol=2))


def _fractions(picture: Picture) -> NDArray[np.float32]:
    """[n, 6], rounded once; the public converter adds two rounded numbers for x2 and y2, which may differ in the last
    place."""
    assert picture.width is not None
    assert picture.height is not None
    sides = np.array([picture.width, picture.height], np.float64)
    first, last = picture.boxes[:, :2] / sides, picture.boxes[:, 2:] / sides
    return np.concatenate([first, last, last - first], axis=1).astype(np.float32)


FORMAT = Format(
    name="butd-hdf5",
    carries=frozenset({"features", "sizes"}),
    recognises=_recognises,
    open=_open,
    write=_write,
    numbers=True,
)
