"""`mmf-npy`: pairs <id>.npy and <id>_info.npy of facebookresearch/mmf (`extract_features_vmb.py`).

The first file is features [n, D]; the second a pickled dict with bbox, num_boxes, objects, cls_prob, image_width and
image_height: without trust in pickles there are no boxes, so nothing can be read. No attributes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from store_schema.errors import MalformedRecordError, UsageError
from store_schema.formats.folders import file_of_id, files_below, some_files
from store_schema.formats.npy_files import mapping_of, npy_shape, read_npy, read_pickled_npy
from store_schema.formats.protocol import BadEntry, Entry, Format, Header, Picture, Reader, ReadOptions

_INFO = "_info.npy"


def _recognises(path: Path) -> bool:
    return any(some_files(path, _INFO))


def _open(path: Path, options: ReadOptions) -> Reader:
    if not options.trust_pickle:
        raise UsageError(
            f"{path}: boxes and picture sizes of mmf-npy lie in pickles (*{_INFO}), and a pickle can run any program; "
            "say --trust-pickle if you trust where the files came from"
        )
    return _Reader(path)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Iterator[Entry | BadEntry]:
        for image_id, file in files_below(self._path, ".npy"):
            if file.name.endswith(_INFO):
                continue
            try:
                num, dim = _shape(file)
            except MalformedRecordError as error:
                yield BadEntry(image_id, str(file), str(error))
            else:
                yield Entry(image_id, num, dim, file, str(file))

    def read(self, entry: Entry) -> Picture:
        file: Path = entry.place
        name = f"{file.name.removesuffix('.npy')}{_INFO}"
        info = mapping_of(read_pickled_npy(file.with_name(name)), name)
        try:
            labels: dict[str, Any] = {}
            if "objects" in info and "cls_prob" in info:
                ids, probs = np.asarray(info["objects"]), np.asarray(info["cls_prob"])
                labels = {
                    "object_ids": ids.astype(np.int64),
                    "object_scores": probs[np.arange(len(ids)), ids] if probs.ndim == 2 else probs,
                }
            return Picture(
                image_id=entry.image_id,
                width=int(info["image_width"]),
                height=int(info["image_height"]),
                boxes=np.asarray(info["bbox"]),
                features=read_npy(file),
                **labels,
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise MalformedRecordError(f"{name} lacks or mistypes {error}") from error


def _shape(file: Path) -> tuple[int, int]:
    shape = npy_shape(file)
    if len(shape) != 2:
        raise MalformedRecordError(f"features have shape {list(shape)}, expected [n, D]")
    return shape[0], shape[1]


def _write(out: Path, pictures: Iterator[Picture], header: Header) -> None:
    out.mkdir()
    for picture in pictures:
        info: dict[str, Any] = {
            "bbox": picture.boxes,
            "num_boxes": len(picture.boxes),
            "image_width": picture.width,
            "image_height": picture.height,
        }
        if picture.object_ids is not None and picture.object_scores is not None:
            # The store keeps one class's probability; those of the others are unknown and stand as 0.
            probs = np.zeros((len(picture.boxes), len(header.object_names)), np.float32)
            probs[np.arange(len(probs)), picture.object_ids] = picture.object_scores
            info |= {"objects": picture.object_ids.astype(np.int64), "cls_prob": probs}
        np.save(file_of_id(out, picture.image_id, ".npy"), picture.features.astype(np.float32))
        np.save(file_of_id(out, picture.image_id, _INFO), np.array(info, object))


FORMAT = Format(
    name="mmf-npy",
    carries=frozenset({"features", "sizes", "objects", "text ids"}),
    recognises=_recognises,
    open=_open,
    write=_write,
    is_folder=True,
)
