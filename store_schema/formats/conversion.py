"""From pictures as files have them to records as a store takes them, or the reason why one cannot be taken."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import MalformedRecordError, StoreError
from store_schema.formats.known_pictures import KnownPictures
from store_schema.formats.protocol import BadEntry, Entry, Picture, Reader
from store_schema.metadata import StoreMetadata
from store_schema.records import ImageRecord, Problem, check_record


@dataclass(frozen=True)
class Source:
    """A picture that was listed, and who reads it."""

    reader: Reader
    entry: Entry


class Converter:
    """Turns what a reader gives into what a store takes, or into a reason why it cannot."""

    def __init__(
        self,
        metadata: StoreMetadata,
        known: KnownPictures | None,
        *,
        first_label: int,
        tables: Path | None,
        strict: bool,
    ) -> None:
        """The arguments are those of `ImportConfig`; `tables` is what `known` was read from."""
        self.metadata = metadata
        self.num_clipped = 0
        self.largest_error = self.largest_value = 0.0
        self._known = known
        self._first_label = first_label
        self._tables = tables
        self._strict = strict

    def item(self, image_id: str, listed: Source | BadEntry | None) -> ImageRecord | Problem:
        """What the store gets for a picture; with `strict`, `MalformedRecordError` instead of a `Problem`."""
        if listed is None:
            return Problem(image_id, "", "planned by an earlier import, not in the files of this one")
        where = listed.where if isinstance(listed, BadEntry) else listed.entry.where
        if isinstance(listed, BadEntry):
            return Problem(image_id, where, listed.reason)
        try:
            record = self._record(image_id, listed.reader.read(listed.entry))
            check_record(record, self.metadata)
        except (MalformedRecordError, StoreError) as error:
            if self._strict:
                raise MalformedRecordError(f"{where}: {error}; without --strict it is left out") from error
            return Problem(image_id, where, str(error).removeprefix(f"picture {image_id!r}: "))
        return self._in_store_type(record)

    def _record(self, image_id: str, picture: Picture) -> ImageRecord:
        width, height = self._size(image_id, picture)
        num, features = len(picture.boxes), picture.features
        for name in ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores"):
            values = getattr(picture, name)
            if values is not None and values.dtype.kind not in "fiu":
                raise MalformedRecordError(f"{name} are {values.dtype}, numbers are expected")
        if picture.boxes.shape != (num, 4) or len(features) != num:
            raise MalformedRecordError(
                f"boxes {list(picture.boxes.shape)} do not fit features {list(features.shape)}"
            )
        if num == 0:
            features = np.zeros((0, self.metadata.feature_dim), np.float32)
        return ImageRecord(
            image_id=image_id,
            width=width,
            height=height,
            boxes=self._inside(np.asarray(picture.boxes, np.float32), width, height),
            features=features,
            **self._labels("object", picture.object_ids, picture.object_scores, num),
            **self._labels("attribute", picture.attribute_ids, picture.attribute_scores, num),
        )

    def _size(self, image_id: str, picture: Picture) -> tuple[int, int]:
        known = self._known.find(image_id) if self._known is not None else None
        if picture.width is not None and picture.height is not None:
            if known is not None and (known.width, known.height) != (picture.width, picture.height):
                raise MalformedRecordError(
                    f"the file says the picture has {picture.width}x{picture.height} pixels, {self._tables} "
                    f"says {known.width}x{known.height}"
                )
            return picture.width, picture.height
        if known is None:
            where = f"not in {self._tables}" if self._known is not None else "unknown"
            raise MalformedRecordError(
                f"the picture's size is not in the file and {where}; name the data set's tables, or a JSON with COCO's "
                "'images', with --tables"
            )
        return known.width, known.height

    def _inside(self, boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
        """Boxes that reach past the picture by rounding, at most a pixel, cut back to it; others as they are."""
        limits = np.array([width, height, width, height], np.float32)
        outside = ((boxes < 0) & (boxes >= -1)) | ((boxes > limits) & (boxes <= limits + 1))
        if not outside.any():
            return boxes
        self.num_clipped += int(outside.any(axis=1).sum())
        return np.where(outside, np.clip(boxes, 0, limits), boxes)

    def _labels(
        self, kind: str, ids: NDArray[np.int64] | None, scores: NDArray[Any] | None, num: int
    ) -> dict[str, Any]:
        names = self.metadata.object_names if kind == "object" else self.metadata.attribute_names
        if not names:
            return {}
        if ids is None or scores is None:
            raise MalformedRecordError(f"it has no {kind} labels, other pictures of the files have them")
        ids = ids - self._first_label
        if num and not 0 <= int(ids.min()) <= int(ids.max()) < len(names):
            wrong = int(ids[(ids < 0) | (ids >= len(names))][0]) + self._first_label
            raise MalformedRecordError(
                f"{kind} id {wrong} is none of the {len(names)} names; is 0 the background in this file "
                "(--first-label 1), or is the list another?"
            )
        return {f"{kind}_ids": ids, f"{kind}_scores": scores}

    def _in_store_type(self, record: ImageRecord) -> ImageRecord:
        """Features and scores in the store's number type; keeps the largest change for the summary."""
        dtype = np.dtype(self.metadata.feature_dtype)
        original = record.features
        features = original.astype(dtype)
        if len(original):
            self.largest_value = max(self.largest_value, float(np.abs(original).max()))
            if dtype != original.dtype:
                error = np.abs(features.astype(np.float32) - original.astype(np.float32))
                self.largest_error = max(self.largest_error, float(error.max()))
        scores: dict[str, Any] = {
            name: np.asarray(value).astype(dtype)
            for name in ("object_scores", "attribute_scores")
            if (value := getattr(record, name)) is not None
        }
        return replace(record, features=features, **scores)
