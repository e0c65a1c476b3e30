"""Visual Genome's questions: question_answers.json, image_data.json and the pictures (VG_100K, VG_100K_2).

Each question has one answer. The type is its first word, as the data set divides them (what, where, when, who, why,
how). A tenth of the pictures becomes the validation part, chosen by hash; pictures of COCO keep their coco_id, by
which an overlap with COCO's evaluation splits can be found.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.prepare.json_files import find_json, read_json, records
from pipeline.prepare.pictures import images_table, split_by_hash
from pipeline.prepare.vqa_v2 import numbered_pictures
from store_schema.errors import InputNotFoundError
from store_schema.tables import write_table

QUESTION_WORDS = frozenset({"what", "where", "when", "who", "why", "how"})


def prepare_visual_genome_qa(source: Path, out: Path) -> dict[str, int]:
    """Write images, questions and answers tables; returns their numbers of rows.

    Errors: `InputNotFoundError` without questions or pictures, `TableError` naming file and record.
    """
    paths = numbered_pictures(source)
    rows = [row for row in _read_questions(source) if row["number"] in paths]
    if not rows:
        raise InputNotFoundError(f"none of the pictures that the questions of {source} are about is there")
    names = [paths[row["number"]] for row in rows]
    images = images_table(source, names, split_by_hash(names, val_share=0.1))
    coco_ids = _coco_ids(source)
    if coco_ids:
        images["coco_id"] = (
            images["image_id"].map(lambda image_id: coco_ids.get(int(image_id))).astype("Int64")
        )
    table = pd.DataFrame(rows)
    table["image_id"] = [Path(name).stem for name in names]
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


def _coco_ids(source: Path) -> dict[int, int]:
    """The number in COCO of each picture that has one; empty without image_data.json."""
    return {
        int(record["image_id"]): int(record["coco_id"])
        for path in sorted(source.rglob("image_data.json"))
        for record in records(read_json(path), path, None, ("image_id",))
        if record.get("coco_id") is not None
    }
