"""What every reader needs: the images table of a folder of pictures, and a split where none is published."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError

from store_schema.errors import InputNotFoundError

logger = logging.getLogger(__name__)

# EXIF orientations 5 to 8 turn the picture by a quarter: width and height change places.
_ORIENTATION_TAG = 0x0112
_QUARTER_TURNS = frozenset({5, 6, 7, 8})


def turned_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as turned by EXIF; reads the header alone."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION_TAG) in _QUARTER_TURNS
    return (height, width) if turned else (width, height)


def images_table(root: Path, names: Iterable[str], splits: dict[str, str]) -> pd.DataFrame:
    """Build the images table of the named pictures; unreadable and missing ones are named in the log and left out.

    Args:
        root: folder that paths are relative to.
        names: file names below `root`; the image id is the name without its ending.
        splits: split by file name.

    Errors: `InputNotFoundError` where not one picture can be read.
    """
    rows, bad = [], []
    for name in sorted(set(names)):
        try:
            width, height = turned_size(root / name)
        except (OSError, UnidentifiedImageError) as error:
            bad.append(f"{name} ({error})")
            continue
        row = {
            "image_id": Path(name).stem,
            "path": name,
            "width": width,
            "height": height,
            "split": splits[name],
        }
        rows.append(row)
    if bad:
        logger.warning(
            "%d pictures named by the data set cannot be read and are left out, first %s", len(bad), bad[0]
        )
    if not rows:
        raise InputNotFoundError(
            f"pictures expected below {root}, not one named by the data set can be read there"
        )
    return pd.DataFrame(rows)


def split_by_hash(names: Iterable[str], *, val_share: float) -> dict[str, str]:
    """Give each name "train" or "val" by the rank of its SHA-256, the same on every machine.

    Of n names, round(n * val_share) are "val". For data sets that publish no split.
    """
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    first_val = len(ranked) - round(len(ranked) * val_share)
    return {name: "train" if place < first_val else "val" for place, name in enumerate(ranked)}
