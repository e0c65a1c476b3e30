"""`milvlg-npz`: a folder of .npz files, one a picture, of MILVLG/bottom-up-attention.pytorch.

Keys x [n, D], bbox [n, 4], num_bbox, image_h, image_w, and `info`: a pickled dict with the labels. Without trust in
pickles everything but the labels is read. The id is the file's name; older openvqa files hold x transposed.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import MalformedRecordError
from store_schema.formats.folders import file_of_id, files_below, some_files
from store_schema.formats.npy_files import NpzFile, mapping_of
from store_schema.formats.protocol import BadEntry, Entry, Format, Header, Picture, Reader, ReadOptions

logger = logging.getLogger(__name__)


def _recognises(path: Path) -> bool:
    return any(_has_boxes(file) for file in ([path] if path.suffix == ".npz" else some_files(path, ".npz")))


def _has_boxes(file: Path) -> bool:
    try:
        with NpzFile(file) as npz:
            return "bbox" in npz
    except MalformedRecordError:
        return False


def _open(path: Path, options: ReadOptions) -> Reader:
    return _Reader(path, trust_pickle=options.trust_pickle)


class _Reader:
    def __init__(self, path: Path, *, trust_pickle: bool) -> None:
        self._path = path
        self._trust_pickle = trust_pickle
        self._has_warned = False

    def entries(self) -> Iterator[Entry | BadEntry]:
        for image_id, file in files_below(self._path, ".npz"):
            try:
                with NpzFile(file) as npz:
                    num, dim = _shape(npz)
            except MalformedRecordError as error:
                yield BadEntry(image_id, str(file), str(error))
            else:
                yield Entry(image_id, num, dim, file, str(file))

    def read(self, entry: Entry) -> Picture:
        with NpzFile(entry.place) as npz:
            features = npz.array("x")
            if features.shape != (entry.num_regions, entry.feature_dim):
                features = features.T
            info: Mapping[str, Any] = {}
            if "info" in npz and self._trust_pickle:
                info = mapping_of(npz.pickled("info"), "info")
            elif "info" in npz and not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s: labels lie in pickles ('info') and are left out; --trust-pickle reads them, if you trust "
                    "where the files came from",
                    self._path,
                )
            return Picture(
                image_id=entry.image_id,
                width=_number(npz, "image_w"),
                height=_number(npz, "image_h"),
                boxes=npz.array("bbox"),
                features=features,
                **_labels(info, entry.num_regions),
            )


def _shape(npz: NpzFile) -> tuple[int, int]:
    """Regions and feature size; the number of boxes says which way round x lies."""
    num = npz.shape("bbox")[0] if npz.shape("bbox") else -1
    if "x" not in npz:
        raise MalformedRecordError(
            "it has boxes, but no features 'x': written with --mode bbox? Extract with roi_feats"
        )
    shape = npz.shape("x")
    if len(shape) != 2 or num not in shape:
        raise MalformedRecordError(
            f"x has shape {list(shape)}, bbox {list(npz.shape('bbox'))}: expected [n, D], [n, 4]"
        )
    return num, shape[1] if shape[0] == num else shape[0]


def _number(npz: NpzFile, name: str) -> int | None:
    if name not in npz:
        return None
    value = npz.array(name)
    if value.size != 1 or value.dtype.kind not in "iuf":
        raise MalformedRecordError(f"{name} is {value.dtype} {list(value.shape)}, expected one number")
    return int(value.reshape(()))


def _labels(info: Mapping[str, Any], num: int) -> dict[str, NDArray[Any]]:
    """Labels under the names of the Caffe and of the detectron2 form; the latter has probabilities of all classes."""
    labels: dict[str, NDArray[Any]] = {}
    for kind, ids_keys, scores_keys in (
        ("object", ("objects_id", "objects"), ("objects_conf", "cls_prob")),
        ("attribute", ("attrs_id",), ("attrs_conf", "attrs_scores")),
    ):
        ids = next((np.asarray(info[key]) for key in ids_keys if key in info), None)
        scores = next((np.asarray(info[key]) for key in scores_keys if key in info), None)
        if ids is None:
            continue
        if ids.ndim == 2 and ids.dtype.kind == "f" and len(ids) == num:
            ids, scores = ids.argmax(axis=1), ids.max(axis=1)
        elif (
            scores is not None
            and scores.ndim == 2
            and len(scores) == num == ids.size
            and ids.dtype.kind in "iu"
        ):
            scores = scores[np.arange(num), ids.astype(np.int64) % scores.shape[1]]
        if scores is None or ids.dtype.kind not in "iuf" or ids.shape != (num,) or scores.shape != (num,):
            raise MalformedRecordError(f"info holds {kind} labels {list(ids.shape)} for {num} regions")
        labels[f"{kind}_ids"], labels[f"{kind}_scores"] = ids.astype(np.int64), scores
    return labels


def _write(out: Path, pictures: Iterator[Picture], header: Header) -> None:
    out.mkdir()
    for picture in pictures:
        info: dict[str, Any] = {
            "image_id": picture.image_id,
            "image_h": picture.height,
            "image_w": picture.width,
            "num_boxes": len(picture.boxes),
        }
        if picture.object_ids is not None and picture.object_scores is not None:
            info["objects_id"] = picture.object_ids.astype(np.int64)
            info["objects_conf"] = picture.object_scores.astype(np.float32)
        if picture.attribute_ids is not None and picture.attribute_scores is not None:
            info["attrs_id"] = picture.attribute_ids.astype(np.int64)
            info["attrs_conf"] = picture.attribute_scores.astype(np.float32)
        arrays = {
            "x": picture.features.astype(np.float32),
            "bbox": picture.boxes,
            "num_bbox": np.array(len(picture.boxes)),
            "image_h": np.array(picture.height),
            "image_w": np.array(picture.width),
            "info": np.array(info, object),
        }
        np.savez_compressed(file_of_id(out, picture.image_id, ".npz"), **arrays)  # type: ignore[arg-type]


FORMAT = Format(
    name="milvlg-npz",
    carries=frozenset({"features", "sizes", "objects", "attributes", "text ids"}),
    recognises=_recognises,
    open=_open,
    write=_write,
    is_folder=True,
)
