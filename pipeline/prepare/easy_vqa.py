"""easy-VQA: questions about pictures of single shapes, as its package carries them.

    train/questions.json  train/images/0.png ..   test/questions.json  test/images/0.png ..

or one part alone in the folder. questions.json lists [question, answer, picture's number]. The folder "test" becomes
the split val; of a part alone a fifth of the pictures does, chosen by hash.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.prepare.json_files import find_json, read_json
from pipeline.prepare.pictures import images_table, split_by_hash
from store_schema.errors import TableError
from store_schema.tables import write_table

_SPLITS = {"train": "train", "test": "val"}


def prepare_easy_vqa(source: Path, out: Path) -> dict[str, int]:
    """Write images, questions and answers tables; returns their numbers of rows.

    Errors: `InputNotFoundError` without questions or pictures, `TableError` naming the entry that is not right.
    """
    files = find_json(source, "the questions", "questions.json")
    rows = [row for file in files for row in _read(file, source, alone=len(files) == 1)]
    names = sorted({row["name"] for row in rows})
    splits = {row["name"]: row["split"] for row in rows if row["split"]} or split_by_hash(
        names, val_share=0.2
    )
    images = images_table(source, names, splits)
    images["image_id"] = images["path"].map(_image_id)
    table = pd.DataFrame(rows)
    table["image_id"], table["split"] = table["name"].map(_image_id), table["name"].map(splits)
    table = table[table["image_id"].isin(images["image_id"])].reset_index(drop=True)
    write_table(out, "images", images)
    columns = ["question_id", "image_id", "text", "question_type", "answer_type", "split"]
    write_table(out, "questions", table[columns])
    write_table(out, "answers", table[["question_id", "answer"]].assign(annotator=0))
    return {"images": len(images), "questions": len(table), "answers": len(table)}


def _read(path: Path, source: Path, *, alone: bool) -> list[dict[str, Any]]:
    content = read_json(path)
    part = path.parent.relative_to(source).as_posix()
    prefix = "" if part == "." else f"{part}/"
    rows = []
    for number, entry in enumerate(content if isinstance(content, list) else [None]):
        if not (isinstance(entry, list) and len(entry) == 3):
            raise TableError(
                f"{path}, entry {number}: [question, answer, picture's number] expected, got {entry!r}"
            )
        question, answer, picture = entry
        rows.append(
            {
                "question_id": f"{prefix}{number}",
                "name": f"{prefix}images/{picture}.png",
                "text": question,
                "answer": answer,
                "question_type": _question_type(question),
                "answer_type": "yes/no" if answer in ("yes", "no") else "other",
                "split": None if alone else _SPLITS.get(path.parent.name, path.parent.name),
            }
        )
    return rows


def _image_id(name: str) -> str:
    """The path without `images/` and ending: numbers alone occur in both parts."""
    return name.replace("images/", "").removesuffix(".png")


def _question_type(question: str) -> str:
    words = question.lower().split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "exist"
