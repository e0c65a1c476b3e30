"""Captions of one's own, or of any data set: a CSV or JSONL file beside its pictures.

Columns: `image` (path relative to the file's folder, or the file's name), `caption` (in JSONL also a list), and
perhaps `split`. Rows of the same picture are its captions. Without `split` a quarter of the pictures becomes the
validation part, chosen by hash.
"""

from pathlib import Path

from pipeline.prepare.described import Described, write_described
from pipeline.prepare.questions_file import read_rows
from pipeline.prepare.store_pictures import pictures_at
from store_schema.errors import TableError
from store_schema.remote import StorePath


def prepare_captions_file(source: Path, out: Path, *, store: StorePath | None = None) -> dict[str, int]:
    """Write images and captions tables; returns their numbers of rows.

    A `store` of regions takes the place of the pictures.

    Errors: `InputNotFoundError` without the file or pictures, `TableError` naming missing columns, or a picture that
    is in two splits.
    """
    rows = read_rows(source, ("image", "caption")).explode("caption", ignore_index=True)
    described = []
    for name, group in rows.groupby("image", sort=False):
        splits = sorted(set(group["split"])) if "split" in rows else []
        if len(splits) > 1:
            raise TableError(f"{source}: the picture {name} is in the splits {', '.join(splits)}; choose one")
        split = splits[0] if splits else None
        described.append(Described(str(name), group["caption"].tolist(), split))
    return write_described(pictures_at(source.parent, store), described, out)
