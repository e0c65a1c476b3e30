"""Visual Genome's questions: question_answers.json, image_data.json and the pictures (VG_100K, VG_100K_2).

Each question has one answer. The type is its first word, as the data set divides them (what, where, when, who, why,
how). A tenth of the pictures becomes the validation part, chosen by hash; pictures of COCO keep their coco_id, by
which an overlap with COCO's evaluation splits can be found. In a store, too, pictures go by Visual Genome's numbers.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.prepare.json_files import find_json, read_json, records
from pipeline.prepare.pictures import only_found, split_by_hash, table_of
from pipeline.prepare.store_pictures import pictures_at
from store_schema.errors import StoreMismatchError
from store_schema.remote import StorePath
from store_schema.tables import write_table

QUESTION_WORDS = frozenset({"what", "where", "when", "who", "why", "how"})


def prepare_visual_genome_qa(source: Path, out: Path, *, store: StorePath | None = None) -> dict[str, int]:
    """Write images, questions and answers tables; returns their numbers of rows.

    A `store` of regions takes the place of the pictures.

    Errors: `InputNotFoundError` without questions or pictures, `TableError` naming file and record;
    `StoreMismatchError` where the store's pictures are plainly others.
    """
    rows = _read_questions(source)
    pictures = pictures_at(source, store)
    found = pictures.numbered({row["number"] for row in rows})
    rows = only_found(rows, lambda row: row["number"], found, pictures, "questions are about pictures that")
    paths = [picture.path for picture in found.values()]
    images = table_of(pictures, found.values(), split_by_hash(paths, val_share=0.1))
    numbers = images["image_id"].map({picture.image_id: number for number, picture in found.items()})
    known = _known_pictures(source)
    if store is not None:
        _refuse_other_pictures(images, numbers, known, pictures.where)
    coco_ids = {n: int(record["coco_id"]) for n, record in known.items() if record.get("coco_id") is not None}
    if coco_ids:
        images["coco_id"] = numbers.map(coco_ids).astype("Int64")
    table = pd.DataFrame(rows)
    table["image_id"] = [found[row["number"]].image_id for row in rows]
    table["split"] = table["image_id"].map(images.set_index("image_id")["split"])
    table = table[table["split"].notna()].reset_index(drop=True)
    columns = ["question_id", "image_id", "text", "question_type", "answer_type", "split"]
    write_table(out, "images", images)
    write_table(out, "questions", table[columns])
    write_table(out, "answers", table[["question_id", "answer"]].assign(annotator=0))
    return {"images": len(images), "questions": len(table), "answers": len(table)}


def _read_questions(source: Path) -> list[dict[str, Any]]:
    (path, *_) = find_json(source, "the questions", "question_answers.json", "question_answers.json.gz")
    rows = []
    for picture in records(read_json(path), path, None, ("id", "qas")):
        for question in records(picture["qas"], path, None, ("qa_id", "question", "answer")):
            first = question["question"].split(" ", 1)[0].lower().strip("?,")
            rows.append(
                {
                    "number": int(picture["id"]),
                    "question_id": str(question["qa_id"]),
                    "text": question["question"].strip(),
                    "answer": question["answer"].strip().removesuffix("."),
                    "question_type": first if first in QUESTION_WORDS else "other",
                    "answer_type": "number" if question["answer"].strip(" .").isdigit() else "other",
                }
            )
    return rows


def _known_pictures(source: Path) -> dict[int, dict[str, Any]]:
    """What is known of each picture by its number; empty without image_data.json."""
    return {
        int(record["image_id"]): record
        for path in sorted(source.rglob("image_data.json"))
        for record in records(read_json(path), path, None, ("image_id",))
    }


def _refuse_other_pictures(
    images: pd.DataFrame, numbers: pd.Series, known: dict[int, dict[str, Any]], where: str
) -> None:
    """Refuse a store where most pictures have another size: COCO's, for one, has the same numbers for others."""
    stated = {
        n: (each["width"], each["height"]) for n, each in known.items() if {"width", "height"} <= each.keys()
    }
    sizes = dict(zip(numbers, zip(images["width"], images["height"], strict=True), strict=True))
    other = [number for number, size in sizes.items() if stated.get(number, size) != size]
    if 2 * len(other) > len(sizes):
        raise StoreMismatchError(
            f"{len(other)} of {len(sizes)} pictures {where} have another size than image_data.json says, such as "
            f"{other[0]}: {sizes[other[0]]} in place of {stated[other[0]]}; they are not Visual Genome's"
        )
