"""Pictures of one split with their objects, read from the annotation tables into flat arrays."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from store_schema.errors import TableError, UsageError
from store_schema.tables import check_references, has_table, read_table, table_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageObjects:
    """The objects of one picture, in pixels of the upright original."""

    boxes: NDArray[np.float32]
    """[G, 4] xyxy."""
    object_ids: NDArray[np.int64]
    """[G] into the vocabulary."""
    crowd: NDArray[np.bool_]
    """[G]."""
    attributes: NDArray[np.bool_]
    """[G, A], several for an object, or none."""


@dataclass(frozen=True)
class AnnotatedImages:
    """One split. Names unknown to a given vocabulary are appended to it, after `num_known_*`."""

    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    sizes: NDArray[np.int64]
    """[N, 2] height, width."""
    coco_ids: tuple[int, ...]
    """Of the pictures that have one."""
    object_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    num_known_objects: int
    num_known_attributes: int
    boxes: NDArray[np.float32]
    object_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    starts: NDArray[np.int64]
    """[N + 1]: the objects of picture i are starts[i]..starts[i + 1]."""
    attribute_pairs: NDArray[np.int64]
    """[n, 2] (object, attribute), ordered by object."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects(self, index: int) -> ImageObjects:
        """The objects of picture `index`."""
        low, high = self.starts[index : index + 2]
        first, last = np.searchsorted(self.attribute_pairs[:, 0], [low, high])
        attributes = np.zeros((high - low, len(self.attribute_names)), dtype=bool)
        pairs = self.attribute_pairs[first:last]
        attributes[pairs[:, 0] - low, pairs[:, 1]] = True
        return ImageObjects(self.boxes[low:high], self.object_ids[low:high], self.crowd[low:high], attributes)


def read_annotations(
    tables: str | Path,
    split: str,
    *,
    images_root: str | Path | None = None,
    object_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
) -> AnnotatedImages:
    """Read one split's pictures and objects, in the order of the images table.

    Args:
        tables: the data set's folder.
        split: "train", "val" or "test".
        images_root: what the pictures' paths are relative to; by default the tables' folder.
        object_names, attribute_names: the vocabulary; by default the names of this split, sorted.

    Errors: `InputNotFoundError`, `TableError`; `UsageError` where the split has no pictures.
    """
    images, objects, pairs = _read_split(tables, split)
    rows = pd.Series(np.arange(len(images)), index=images["image_id"])
    objects = objects.assign(row=objects["image_id"].map(rows)).sort_values("row", kind="stable")
    attributes = pairs.assign(place=pairs["object_id"].map(_places(objects["object_id"]))).sort_values(
        ["place", "attribute"], kind="stable"
    )
    object_vocabulary = _vocabulary(objects["object"], object_names, "object", split)
    attribute_vocabulary = _vocabulary(attributes["attribute"], attribute_names, "attribute", split)
    root = Path(images_root) if images_root is not None else Path(tables)
    coco_ids = images["coco_id"].dropna().tolist() if "coco_id" in images.columns else []
    return AnnotatedImages(
        image_ids=tuple(images["image_id"]),
        paths=tuple(root / path for path in images["path"]),
        sizes=images[["height", "width"]].to_numpy(dtype=np.int64),
        coco_ids=tuple(int(value) for value in coco_ids),
        object_names=object_vocabulary,
        attribute_names=attribute_vocabulary,
        num_known_objects=len(object_vocabulary) if object_names is None else len(object_names),
        num_known_attributes=len(attribute_vocabulary) if attribute_names is None else len(attribute_names),
        boxes=objects[["x1", "y1", "x2", "y2"]].to_numpy(dtype=np.float32, copy=True),
        object_ids=np.array(objects["object"].map(_places(object_vocabulary)), dtype=np.int64),
        crowd=objects["crowd"].to_numpy(dtype=bool, copy=True),
        starts=np.searchsorted(objects["row"].to_numpy(dtype=np.int64), np.arange(len(images) + 1)),
        attribute_pairs=np.stack(
            [
                attributes["place"].to_numpy(dtype=np.int64),
                attributes["attribute"].map(_places(attribute_vocabulary)).to_numpy(dtype=np.int64),
            ],
            axis=1,
        ),
    )


def _read_split(tables: str | Path, split: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The images, objects and (object, attribute) pairs of a split."""
    all_images = read_table(tables, "images")
    images = all_images[all_images["split"] == split]
    if images.empty:
        raise UsageError(
            f"{table_path(tables, 'images')} has no pictures of split {split!r}; "
            f"its splits are {sorted(set(all_images['split']))}"
        )
    objects = read_table(tables, "objects")
    if len(objects):
        check_references(tables, "objects", objects, all_images)
    pairs = pd.DataFrame({"object_id": [], "attribute": []}, dtype=str)
    if has_table(tables, "object_attributes"):
        pairs = read_table(tables, "object_attributes")
        unknown = ~pairs["object_id"].isin(objects["object_id"])
        if unknown.any():
            row = int(unknown.to_numpy().argmax())
            raise TableError(
                f"{table_path(tables, 'object_attributes')}: row {row}: object_id must be one of the objects "
                f"table; it is {pairs['object_id'].iloc[row]!r}"
            )
    objects = objects[objects["image_id"].isin(images["image_id"])]
    pairs = pairs.drop_duplicates(["object_id", "attribute"])
    return images, objects, pairs[pairs["object_id"].isin(objects["object_id"])]


def _vocabulary(
    present: "pd.Series[str]", given: Sequence[str] | None, kind: str, split: str
) -> tuple[str, ...]:
    if given is None:
        return tuple(sorted(set(present)))
    unknown = sorted(set(present) - set(given))
    if unknown:
        counts = present[present.isin(unknown)].value_counts()
        listed = ", ".join(f"{name} ({counts[name]})" for name in unknown[:8])
        logger.warning(
            "%d of %d %ss in split %s have names that the detector does not know, and count as missed: %s%s",
            int(counts.sum()),
            len(present),
            kind,
            split,
            listed,
            ", ..." if len(unknown) > 8 else "",
        )
    return (*given, *unknown)


def _places(values: Any) -> "pd.Series[int]":  # noqa: ANN401  (a series or a tuple of names)
    index = pd.Index(values)
    return pd.Series(np.arange(len(index)), index=index)
