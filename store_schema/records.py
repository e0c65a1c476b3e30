"""What passes between stage one, the store and its readers, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreError
from store_schema.layout import IMAGE_NOTES
from store_schema.metadata import StoreMetadata

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """The regions of one picture, best first.

    Labels and scores are present exactly where the store's metadata has names for them.
    """

    image_id: str
    width: int
    height: int
    """Pixels of the picture as turned by EXIF."""
    boxes: NDArray[np.float32]
    """[n, 4] xyxy in pixels of the picture."""
    features: FloatArray
    """[n, D]."""
    object_ids: IntArray | None = None
    """[n], 0-based into the metadata's names; background is not among them."""
    object_scores: FloatArray | None = None
    attribute_ids: IntArray | None = None
    attribute_scores: FloatArray | None = None
    notes: tuple[str, ...] = ()
    """What was done to the picture's file before it was seen: words of `layout.IMAGE_NOTES`."""


@dataclass(frozen=True)
class Problem:
    """A quarantined picture: why it has no regions."""

    image_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Block:
    """The images of one shard, written whole by one task."""

    index: int
    start_row: int
    image_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """What tells a file from others: its size, and a digest of its chunks' checksums (`shards.file_stamp`)."""

    num_bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a task wrote for a block; can be pickled and turned into JSON."""

    block: int
    files: Mapping[str, FileStamp]
    """By path relative to the store."""
    num_images: int
    """Pictures with regions recorded, zero regions included; quarantined ones are not counted."""
    num_regions: int
    problems: tuple[Problem, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By image_id, of pictures that have any."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        notes = {"notes": {name: list(notes) for name, notes in self.notes.items()}} if self.notes else {}
        return notes | {
            "block": self.block,
            "files": {name: [stamp.num_bytes, stamp.digest] for name, stamp in self.files.items()},
            "num_images": self.num_images,
            "num_regions": self.num_regions,
            "problems": [[item.image_id, item.path, item.reason] for item in self.problems],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave. Errors: `KeyError`, `TypeError` or `ValueError` where it does not fit."""
        return cls(
            block=int(content["block"]),
            files={
                str(name): FileStamp(num_bytes=int(size), digest=str(digest))
                for name, (size, digest) in content["files"].items()
            },
            num_images=int(content["num_images"]),
            num_regions=int(content["num_regions"]),
            problems=tuple(
                Problem(image_id=image_id, path=path, reason=reason)
                for image_id, path, reason in content["problems"]
            ),
            notes={str(name): tuple(map(str, notes)) for name, notes in content.get("notes", {}).items()},
        )


@dataclass(eq=False)
class RegionArrays:
    """The regions of a batch of pictures, padded with zeros to the store's K slots."""

    features: FloatArray
    """[B, K, D] in the store's type."""
    boxes: NDArray[np.float32]
    """[B, K, 4] xyxy in pixels."""
    num_regions: NDArray[np.int64]
    """[B], 0 to K."""
    sizes: NDArray[np.float32]
    """[B, 2], width and height in pixels."""

    @classmethod
    def empty(cls, num_images: int, metadata: StoreMetadata) -> Self:
        """Buffers for batches of up to `num_images` pictures, to be filled again and again."""
        slots = metadata.max_regions
        return cls(
            features=np.zeros((num_images, slots, metadata.feature_dim), metadata.feature_dtype),
            boxes=np.zeros((num_images, slots, 4), np.float32),
            num_regions=np.zeros(num_images, np.int64),
            sizes=np.zeros((num_images, 2), np.float32),
        )

    def first(self, num_images: int) -> Self:
        """Views of the first pictures of the buffers."""
        return type(self)(
            features=self.features[:num_images],
            boxes=self.boxes[:num_images],
            num_regions=self.num_regions[:num_images],
            sizes=self.sizes[:num_images],
        )


def check_record(record: ImageRecord, metadata: StoreMetadata) -> None:
    """Refuse a record that the store could not hold as it is.

    Errors: `StoreError` that names the picture, the rule and the value.
    """
    num = len(record.boxes)
    if num > metadata.max_regions:
        _refuse(record, f"at most {metadata.max_regions} regions, got {num}")
    if record.width < 1 or record.height < 1:
        _refuse(record, f"a positive size, got {record.width}x{record.height}")
    _check_shape(record, "boxes", record.boxes, (num, 4))
    _check_shape(record, "features", record.features, (num, metadata.feature_dim))
    _check_boxes(record)
    _check_features(record, metadata)
    if not set(record.notes) <= IMAGE_NOTES.keys():
        _refuse(record, f"notes out of {', '.join(IMAGE_NOTES)}, got {', '.join(record.notes)}")
    for kind, names in (("object", metadata.object_names), ("attribute", metadata.attribute_names)):
        _check_labels(record, kind, len(names), num)


def _check_boxes(record: ImageRecord) -> None:
    boxes = np.asarray(record.boxes)
    x1, y1, x2, y2 = boxes.T
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= record.width) & (y1 >= 0) & (y1 < y2) & (y2 <= record.height)
    if not inside.all():  # NaN is not inside either
        region = int((~inside).argmax())
        _refuse(
            record,
            f"boxes with 0 <= x1 < x2 <= width and the same for y, in the picture of {record.width}x"
            f"{record.height}, got {boxes[region].tolist()} at region {region}",
        )


def _check_features(record: ImageRecord, metadata: StoreMetadata) -> None:
    features = np.asarray(record.features)
    if features.dtype == np.float16:
        # numpy computes float16 one number at a time; as integers, magnitudes from 0x7c00 on are infinity and NaN
        if int((features.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00:
            return
        largest = np.nan
    else:
        largest = float(max(features.max(initial=0), -features.min(initial=0)))  # NaN where any is NaN
    if not np.isfinite(largest):
        region = int((~np.isfinite(features).all(axis=1)).argmax())
        _refuse(record, f"finite features, got NaN or infinity at region {region}")
    if largest > float(np.finfo(metadata.feature_dtype).max):
        _refuse(
            record, f"features that fit {metadata.feature_dtype}, got {largest:g}; use feature_dtype float32"
        )


def _check_labels(record: ImageRecord, kind: str, num_names: int, num: int) -> None:
    ids: IntArray | None = getattr(record, f"{kind}_ids")
    scores: FloatArray | None = getattr(record, f"{kind}_scores")
    if num_names == 0:
        if ids is not None or scores is not None:
            _refuse(record, f"no {kind} labels, since the store has no {kind} names")
        return
    if ids is None or scores is None:
        _refuse(record, f"{kind} ids and scores, since the store has {num_names} {kind} names")
        return
    _check_shape(record, f"{kind}_ids", ids, (num,))
    _check_shape(record, f"{kind}_scores", scores, (num,))
    if num and not (int(np.min(ids)) >= 0 and int(np.max(ids)) < num_names):
        _refuse(record, f"{kind} ids from 0 to {num_names - 1}, got {int(np.min(ids))} to {int(np.max(ids))}")
    if not np.isfinite(scores).all():
        _refuse(record, f"finite {kind} scores")


def _check_shape(record: ImageRecord, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if np.shape(array) != shape:
        _refuse(record, f"{name} of shape {list(shape)}, got {list(np.shape(array))}")


def _refuse(record: ImageRecord, rule: str) -> None:
    raise StoreError(f"picture {record.image_id!r}: the store takes {rule}")
