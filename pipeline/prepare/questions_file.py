"""Questions of one's own, or of any data set: a CSV or JSONL file beside its pictures.

Columns: `image` (path relative to the file's folder, or the file's name), `question`, and, where known, `answer` (in
JSONL also a list, one an annotator), `question_id`, `question_type`, `answer_type`, `split`. Without `split` a fifth of
the pictures becomes the validation part, chosen by hash. In a CSV, rows of the same question_id are the answers of
several people.
docs/data.md shows it for GQA.
"""

from pathlib import Path

import pandas as pd

from pipeline.prepare.pictures import only_found, split_by_hash, table_of
from pipeline.prepare.store_pictures import pictures_at
from store_schema.errors import InputNotFoundError, TableError
from store_schema.remote import StorePath
from store_schema.tables import write_table

_DEFAULTS = {"question_type": "question", "answer_type": "other"}


def prepare_questions_file(source: Path, out: Path, *, store: StorePath | None = None) -> dict[str, int]:
    """Write images, questions and answers tables; returns their numbers of rows.

    A `store` of regions takes the place of the pictures.

    Errors: `InputNotFoundError` without the file or pictures, `TableError` naming missing columns and rows.
    """
    rows = read_rows(source, ("image", "question"))
    if "question_id" not in rows:
        rows["question_id"] = [str(number) for number in range(len(rows))]
    names = dict.fromkeys(rows["image"])
    splits = (
        dict(zip(rows["image"], rows["split"], strict=True))
        if "split" in rows
        else split_by_hash(names, val_share=0.2)
    )
    pictures = pictures_at(source.parent, store, picture_id)
    found = pictures.named(names)
    asked = rows.drop_duplicates("question_id")["image"].tolist()
    only_found(asked, str, found, pictures, "questions are about pictures that")
    images = table_of(pictures, found.values(), {found[name].path: splits[name] for name in found})
    rows["image_id"] = rows["image"].map({name: picture.image_id for name, picture in found.items()})
    rows["split"] = rows["image"].map(splits)
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
