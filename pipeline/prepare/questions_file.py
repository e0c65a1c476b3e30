"""Questions of one's own, or of any data set: a CSV or JSONL file beside its pictures.

Columns: `image` (path relative to the file's folder), `question`, and, where known, `answer` (in JSONL also a list, one
an annotator), `question_id`, `question_type`, `answer_type`, `split`. Without `split` a fifth of the pictures becomes
the validation part, chosen by hash. In a CSV, rows of the same question_id are the answers of several people.
docs/data.md shows it for GQA.
"""

from pathlib import Path

import pandas as pd

from pipeline.prepare.pictures import images_table, split_by_hash
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import write_table

_DEFAULTS = {"question_type": "question", "answer_type": "other"}


def prepare_questions_file(source: Path, out: Path) -> dict[str, int]:
    """Write images, questions and answers tables; returns their numbers of rows.

    Errors: `InputNotFoundError` without the file or pictures, `TableError` naming missing columns and rows.
    """
    rows = read_rows(source, ("image", "question"))
    if "question_id" not in rows:
        rows["question_id"] = [str(number) for number in range(len(rows))]
    root, names = source.parent, rows["image"]
    splits = (
        dict(zip(names, rows["split"], strict=True))
        if "split" in rows
        else split_by_hash(names, val_share=0.2)
    )
    images = images_table(root, names, splits)
    images["image_id"] = images["path"].map(picture_id)
    rows["image_id"] = names.map(picture_id)
    rows["split"] = names.map(splits)
    rows = rows[rows["image_id"].isin(images["image_id"])].reset_index(drop=True)
    rows["text"] = rows["question"].str.strip()
    for column, value in _DEFAULTS.items():
        rows[column] = rows.get(column, value)
    columns = ["question_id", "image_id", "text", "question_type", "answer_type", "split"]
    questions = rows[columns].drop_duplicates("question_id", ignore_index=True)
    counts = {"images": len(images), "questions": len(questions)}
    write_table(out, "images", images)
    write_table(out, "questions", questions)
    if "answer" in rows:
        answers = rows[["question_id", "answer"]].explode("answer", ignore_index=True)
        answers["annotator"] = answers.groupby("question_id").cumcount()
        write_table(out, "answers", answers)
        counts["answers"] = len(answers)
    return counts


def read_rows(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV (with a header) or JSONL file as strings; values of JSONL may be lists of strings.

    Errors: `InputNotFoundError`, `TableError` naming what is not right.
    """
    if not path.is_file():
        raise InputNotFoundError(f"a CSV or JSONL file expected at {path}, there is none")
    try:
        if path.suffix == ".jsonl":
            frame = pd.read_json(path, lines=True, dtype=False)
            frame = frame.map(lambda value: value if isinstance(value, list) else str(value))
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    missing = [column for column in needed if column not in frame]
    if missing or frame.empty:
        raise TableError(
            f"{path}: rows with the columns {', '.join(needed)} expected, found {list(frame.columns)}"
        )
    return frame


def picture_id(name: str) -> str:
    """The path without its ending: unique in a data set, also with folders of like names."""
    return Path(name).with_suffix("").as_posix()
