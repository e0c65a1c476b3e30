"""Flickr8k in its common form: captions.txt or captions.csv beside a folder of pictures.

The file has a header and the columns `image` and `caption` (others are ignored), five rows a picture. The
official split lists (Flickr_8k.trainImages.txt, ...) are used where they lie in the folder; otherwise a quarter
of the pictures becomes the validation part, chosen by hash.
"""

import logging
from pathlib import Path

import pandas as pd

from pipeline.prepare.pictures import images_table, split_by_hash
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import write_table

logger = logging.getLogger(__name__)

_OFFICIAL_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


def prepare_flickr8k(source: Path, out: Path) -> dict[str, int]:
    """Write images and captions tables; returns their numbers of rows.

    Errors: `InputNotFoundError` without captions file or pictures, `TableError` where columns are missing.
    """
    captions = _read_captions(source)
    root = next((source / name for name in ("images", "Images") if (source / name).is_dir()), source)
    images = images_table(root, captions["image"], _splits(source, captions["image"]))
    images["path"] = [
        f"{root.relative_to(source)}/{path}" if root != source else path for path in images["path"]
    ]
    captions = captions[captions["image"].map(lambda name: Path(name).stem).isin(images["image_id"])]
    captions = captions[captions["caption"].str.strip() != ""].reset_index(drop=True)
    image_ids = captions["image"].map(lambda name: Path(name).stem)
    number = captions.groupby("image").cumcount()
    table = pd.DataFrame(
        {
            "image_id": image_ids,
            "caption_id": image_ids + "#" + number.astype(str),
            "text": captions["caption"].str.strip(),
            "split": image_ids.map(images.set_index("image_id")["split"]),
        }
    )
    write_table(out, "images", images)
    write_table(out, "captions", table)
    return {"images": len(images), "captions": len(table)}


def _read_captions(source: Path) -> pd.DataFrame:
    path = next(
        (source / name for name in ("captions.csv", "captions.txt") if (source / name).is_file()), None
    )
    if path is None:
        raise InputNotFoundError(f"captions.csv or captions.txt expected in {source}, neither is there")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = {"image", "caption"} - set(frame.columns)
    if missing:
        raise TableError(f"{path}: columns image and caption expected, found {list(frame.columns)}")
    return frame


def _splits(source: Path, names: pd.Series) -> dict[str, str]:
    lists = {split: source / name for split, name in _OFFICIAL_LISTS.items()}
    if not all(path.is_file() for path in lists.values()):
        logger.info("no official split lists in %s: a quarter of the pictures is the validation part", source)
        return split_by_hash(names, val_share=0.25)
    official = {name: split for split, path in lists.items() for name in path.read_text().split()}
    left_out = sorted(set(names) - set(official))
    if left_out:
        logger.warning(
            "%d pictures are in no official split list and go to train, first %s", len(left_out), left_out[0]
        )
    return {name: official.get(name, "train") for name in names}
