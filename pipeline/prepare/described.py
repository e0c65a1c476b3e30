"""Pictures with captions, from whatever file, into the images and captions tables."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.prepare.pictures import images_table, split_by_hash
from store_schema.errors import InputNotFoundError, TableError
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


def write_described(root: Path, pictures: Sequence[Described], out: Path) -> dict[str, int]:
    """Write the two tables; returns their numbers of rows.

    Pictures are found anywhere below `root`. Those that are not there or cannot be read, and empty captions, are
    counted in the log and left out. Without splits a quarter of the pictures is the validation part, chosen by hash.

    Errors: `InputNotFoundError` where no picture is there; `TableError` where a name fits two files, or a picture
    comes twice.
    """
    paths = find_pictures(root, [picture.name for picture in pictures])
    found = [picture for picture in pictures if picture.name in paths]
    if not found:
        raise InputNotFoundError(
            f"none of the {len(pictures)} pictures of the data set is below {root} (such as "
            f"{pictures[0].name if pictures else 'any'}); put the folders of pictures there"
        )
    if len(found) < len(pictures):
        missing = next(picture.name for picture in pictures if picture.name not in paths)
        logger.warning(
            "%d of %d pictures are not below %s and are left out, first %s",
            len(pictures) - len(found), len(pictures), root, missing,
        )  # fmt: skip
    by_path = {paths[picture.name]: picture for picture in found}
    if len(by_path) < len(found):
        raise TableError(f"{len(found) - len(by_path)} pictures come twice in the data set below {root}")
    splits = _splits(by_path)
    images = images_table(root, by_path, splits)
    described = [by_path[path] for path in images["path"]]
    if any(picture.coco_id is not None for picture in described):
        images["coco_id"] = [picture.coco_id for picture in described]
    captions = _captions_table(images, described)
    write_table(out, "images", images)
    write_table(out, "captions", captions)
    return {"images": len(images), "captions": len(captions)}


def find_pictures(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Where each named picture lies below the root: at its path, or by its file's name in any folder.

    Errors: `TableError` where a name fits two files.
    """
    by_name: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            by_name.setdefault(path.name, []).append(path.relative_to(root).as_posix())
    paths = {}
    for name in names:
        places = by_name.get(Path(name).name, [])
        if name in places or len(places) == 1:
            paths[name] = name if name in places else places[0]
        elif places:
            raise TableError(
                f"{root}: the picture {name} may be {places[0]} or {places[1]}; keep one of them"
            )
    return paths


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
