"""`coco-json`: the regions as detections in COCO's JSON, for FiftyOne, CVAT, pycocotools and others; only written.

OUT is a data set (images, annotations with bbox xywh, score and attribute, categories); beside it lies
`<name>_detections.json`, the flat list of results that `COCO.loadRes` takes. No features. Category ids begin at 1.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from store_schema.formats.protocol import Format, Header, Picture


def _write(out: Path, pictures: Iterator[Picture], header: Header) -> None:
    names = header.object_names or ("region",)
    categories = [{"id": place + 1, "name": name, "supercategory": ""} for place, name in enumerate(names)]
    images = out.with_name(f"{out.name}.images")  # the pictures' part, appended when all are known
    results_path = out.with_name(f"{out.stem}_detections.json")
    with out.open("w") as data, images.open("w+") as image_list, results_path.open("w") as results:
        data.write(
            f'{{"info": {{"description": "regions of a butd store"}}, "categories": {json.dumps(categories)},\n'
        )
        data.write('"annotations": [')
        results.write("[")
        number = 0
        for place, picture in enumerate(pictures):
            image = _image(picture, header)
            image_list.write(f"{',' if place else ''}\n{json.dumps(image)}")
            for annotation in _annotations(picture, image["id"], header):
                number += 1
                comma = "," if number > 1 else ""
                result = {key: annotation[key] for key in ("image_id", "category_id", "bbox", "score")}
                data.write(f"{comma}\n{json.dumps({'id': number, **annotation})}")
                results.write(f"{comma}\n{json.dumps(result)}")
        results.write("\n]\n")
        data.write('\n],\n"images": [')
        image_list.seek(0)
        _copy(image_list, data)
        data.write("\n]}\n")
        data.flush()
        os.fsync(data.fileno())
    images.unlink()


def _image(picture: Picture, header: Header) -> dict[str, Any]:
    return {
        "id": header.number_of(picture.image_id),
        "file_name": header.file_name_of(picture.image_id),
        "width": picture.width,
        "height": picture.height,
        "image_id": picture.image_id,
    }


def _annotations(picture: Picture, image_number: int, header: Header) -> Iterator[dict[str, Any]]:
    """One a region; a store without labels has the one category "region" with score 1."""
    for region, (x1, y1, x2, y2) in enumerate(picture.boxes.tolist()):
        label, score = 0, 1.0
        if picture.object_ids is not None and picture.object_scores is not None:
            label, score = int(picture.object_ids[region]), float(picture.object_scores[region])
        annotation: dict[str, Any] = {
            "image_id": image_number,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": score,
        }
        if picture.attribute_ids is not None and picture.attribute_scores is not None:
            annotation["attributes"] = {
                "attribute": header.attribute_names[int(picture.attribute_ids[region])],
                "attribute_score": float(picture.attribute_scores[region]),
            }
        yield annotation


def _copy(source: IO[str], target: IO[str]) -> None:
    while text := source.read(1 << 20):
        target.write(text)


FORMAT = Format(
    name="coco-json",
    carries=frozenset({"sizes", "objects", "attributes", "text ids"}),
    recognises=None,
    open=None,
    write=_write,
    numbers=True,
)
