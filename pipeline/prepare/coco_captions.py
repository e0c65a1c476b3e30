"""COCO captions in the official files: captions_train2014.json, captions_val2017.json, ... beside the pictures.

Files and pictures may lie anywhere below the folder. The split is that of the file's name (train2014, val2017);
where the name does not say it, a quarter of the pictures becomes the validation part, chosen by hash. For
Karpathy's split of COCO, which most papers report on, take `butd prepare karpathy`.
"""

import re
from pathlib import Path

from pipeline.prepare.described import Described, write_described
from pipeline.prepare.json_files import find_json, read_json, records
from pipeline.prepare.store_pictures import pictures_at
from store_schema.remote import StorePath

_SPLIT = re.compile(r"(train|val|test)(?=\d{4})")


def prepare_coco_captions(source: Path, out: Path, *, store: StorePath | None = None) -> dict[str, int]:
    """Write images and captions tables; returns their numbers of rows.

    A `store` of regions takes the place of the pictures.

    Errors: `InputNotFoundError` without captions or pictures, `TableError` naming file and record.
    """
    described = []
    for path in find_json(source, "the captions", "*captions*.json", "*captions*.json.gz"):
        content = read_json(path)
        split = _SPLIT.search(path.name)
        texts: dict[int, list[str]] = {}
        for annotation in records(content, path, "annotations", ("image_id", "caption")):
            texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
        for image in records(content, path, "images", ("id", "file_name")):
            captions = texts.get(image["id"], [])
            described.append(
                Described(image["file_name"], captions, split[1] if split else None, image["id"])
            )
    return write_described(pictures_at(source, store), described, out)
