"""Pictures with captions, from whatever file, into the images and captions tables."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.prepare.pictures import Pictures, only_found, split_by_hash, table_of
from store_schema.errors import TableError
from store_schema.tables import write_table

logger = logging.getLogger(__name__)

VAL_SHARE = 0.25


@dataclass(frozen=True)
class Described:
    """A picture of a data set. name: its file's name, or its path below the data set's folder."""

    name: str
    captions: Sequence[str]
    split: str | None = None
    """None where the data set does not say it."""
    coco_id: int | None = None


def write_described(pictures: Pictures, described: Sequence[Described], out: Path) -> dict[str, int]:
    """Write the two tables; returns their numbers of rows.

    Pictures that are not there or cannot be read, and empty captions, are counted in the log and left out. Without
    splits a quarter of the pictures is the validation part, chosen by hash.

    Errors: `InputNotFoundError` where no picture is there; `TableError` where a name fits two files, or a picture
    comes twice.
    """
    found = pictures.named({picture.name: picture.coco_id for picture in described})
    there = only_found(described, lambda picture: picture.name, found, pictures, "pictures")
    by_path = {found[picture.name].path: picture for picture in there}
    if len(by_path) < len(there):
        raise TableError(f"{len(there) - len(by_path)} pictures come twice in the data set {pictures.where}")
    images = table_of(pictures, (found[picture.name] for picture in there), _splits(by_path))
    described = [by_path[path] for path in images["path"]]
    if any(picture.coco_id is not None for picture in described):
        images["coco_id"] = [picture.coco_id for picture in described]
    captions = _captions_table(images, described)
    write_table(out, "images", images)
    write_table(out, "captions", captions)
    return {"images": len(images), "captions": len(captions)}


def _splits(by_path: dict[str, Described]) -> dict[str, str]:
    without = [path for path, picture in by_path.items() if picture.split is None]
    if without:
        logger.info("%d pictures have no split: a quarter of them becomes the validation part", len(without))
    given = {path: picture.split for path, picture in by_path.items() if picture.split is not None}
    return split_by_hash(without, val_share=VAL_SHARE) | given


def _captions_table(images: pd.DataFrame, described: Sequence[Described]) -> pd.DataFrame:
    rows, num_empty = [], 0
    for image_id, split, picture in zip(images["image_id"], images["split"], described, strict=True):
        for place, caption in enumerate(picture.captions):
            text = " ".join(caption.split())
            num_empty += not text
            if text:
                row = {
                    "image_id": image_id,
                    "caption_id": f"{image_id}#{place}",
                    "text": text,
                    "split": split,
                }
                rows.append(row)
    if num_empty:
        logger.warning("%d captions are empty and are left out", num_empty)
    if not rows:
        raise TableError("the data set has no captions for the pictures that are there")
    return pd.DataFrame(rows)
