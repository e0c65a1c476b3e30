"""DAQUAR: questions about indoor pictures, as one CSV beside a folder of pictures.

qa.csv has the columns `question_id`, `image`, `question` and `answer`; an answer may be a set, separated by
commas, and is kept as one answer. The official lists of pictures are used where they lie in the folder;
otherwise a fifth of the pictures becomes the validation part, chosen by hash.
"""

from pathlib import Path

import pandas as pd

from pipeline.prepare.pictures import images_table, split_by_hash
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import write_table


def prepare_daquar(source: Path, out: Path) -> dict[str, int]:
    """Write images, questions and answers tables; returns their numbers of rows.

    Errors: `InputNotFoundError` without qa.csv or pictures, `TableError` where columns are missing.
    """
    path = source / "qa.csv"
    if not path.is_file():
        raise InputNotFoundError(f"qa.csv expected in {source}, it is not there")
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = {"question_id", "image", "question", "answer"} - set(rows.columns)
    if missing:
        raise TableError(f"{path}: columns {sorted(missing)} are missing, found {list(rows.columns)}")
    images = images_table(source / "images", rows["image"], _splits(source, rows["image"]))
    images["path"] = "images/" + images["path"]
    rows = rows[rows["image"].map(lambda name: Path(name).stem).isin(images["image_id"])].reset_index(
        drop=True
    )
    image_ids = rows["image"].map(lambda name: Path(name).stem)
    questions = pd.DataFrame(
        {
            "question_id": rows["question_id"],
            "image_id": image_ids,
            "text": rows["question"].str.strip(),
            "question_type": rows["question"].map(_question_type),
            "answer_type": rows["answer"].map(
                lambda answer: "number" if answer.strip().isdigit() else "other"
            ),
            "split": image_ids.map(images.set_index("image_id")["split"]),
        }
    )
    answers = pd.DataFrame(
        {"question_id": rows["question_id"], "answer": rows["answer"].str.strip(), "annotator": 0}
    )
    write_table(out, "images", images)
    write_table(out, "questions", questions)
    write_table(out, "answers", answers)
    return {"images": len(images), "questions": len(questions), "answers": len(answers)}


def _question_type(question: str) -> str:
    """The three kinds of question of the DAQUAR paper (Malinowski and Fritz 2014): number, colour, object."""
    words = question.lower().split()
    if words[:2] == ["how", "many"]:
        return "count"
    if "color" in words or "colour" in words or "colors" in words:
        return "color"
    return "object"


def _splits(source: Path, names: pd.Series) -> dict[str, str]:
    lists = {"train": source / "train_images_list.txt", "val": source / "test_images_list.txt"}
    if not all(path.is_file() for path in lists.values()):
        return split_by_hash(names, val_share=0.2)
    stems = {stem: split for split, path in lists.items() for stem in path.read_text().split()}
    return {name: stems.get(name, stems.get(Path(name).stem, "train")) for name in names}
