"""Karpathy's splits: dataset_coco.json, dataset_flickr8k.json or dataset_flickr30k.json beside the pictures.

"restval" (pictures of COCO's val2014 that neither val nor test takes) is training data here, as in every published
result on this split. Words are those of our tokeniser from the sentence as it was written, not the file's "tokens".
"""

from pathlib import Path

from pipeline.prepare.described import Described, write_described
from pipeline.prepare.json_files import find_json, only_one, read_json, records
from pipeline.prepare.store_pictures import pictures_at
from store_schema.errors import TableError
from store_schema.remote import StorePath

_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def prepare_karpathy(source: Path, out: Path, *, store: StorePath | None = None) -> dict[str, int]:
    """Write images and captions tables; returns their numbers of rows.

    Args:
        source: the JSON file, or a folder with one of them; pictures are looked for below the (file's) folder.
        out: folder for the tables.
        store: has regions of the pictures; they themselves need not be there.

    Errors: `InputNotFoundError` without file or pictures, `TableError` naming file and record.
    """
    path = source if source.is_file() else only_one(find_json(source, "the splits", "dataset_*.json"))
    described = []
    for number, image in enumerate(
        records(read_json(path), path, "images", ("filename", "split", "sentences"))
    ):
        split = _SPLITS.get(image["split"])
        if split is None:
            raise TableError(
                f"{path}, images {number}: split {image['split']!r}; known are {', '.join(_SPLITS)}"
            )
        folder = image.get("filepath")
        name = f"{folder}/{image['filename']}" if folder else image["filename"]
        captions = [sentence["raw"] for sentence in records(image["sentences"], path, None, ("raw",))]
        described.append(Described(name, captions, split, image.get("cocoid")))
    return write_described(pictures_at(path.parent, store), described, out)
