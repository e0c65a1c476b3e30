"""VQA v2 in its official files: questions, annotations with ten answers, and the pictures of COCO.

    v2_OpenEnded_mscoco_train2014_questions.json   v2_mscoco_train2014_annotations.json   train2014/*.jpg
    v2_mscoco_train2014_complementary_pairs.json   (balanced pairs, where there)

Files and pictures may lie anywhere below the folder; a picture is found by the number at the end of its name. The
split is that of the file's name (train2014, val2014, test2015, test-dev2015); where the name does not say it, a
fifth of the pictures becomes the validation part, chosen by hash. Questions of a test split have no answers.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.prepare.json_files import find_json, read_json, records
from pipeline.prepare.pictures import Picture, only_found, split_by_hash, table_of
from pipeline.prepare.store_pictures import pictures_at
from store_schema.remote import StorePath
from store_schema.tables import write_table

logger = logging.getLogger(__name__)

ANSWERS_EACH = 10
_SPLIT = re.compile(r"(test-dev|train|val|test)(?=\d{4})")


def prepare_vqa_v2(source: Path, out: Path, *, store: StorePath | None = None) -> dict[str, int]:
    """Write images, questions and answers tables; returns their numbers of rows.

    A `store` of regions takes the place of the pictures.

    Errors: `InputNotFoundError` without questions or pictures, `TableError` naming file and record.
    """
    files = find_json(source, "the questions", "*questions.json", "*questions.json.gz")
    asked = [question for file in files for question in _read_questions(file)]
    pictures = pictures_at(source, store)
    found = pictures.numbered({question["image_id"] for question in asked})
    asked = only_found(
        asked, lambda question: question["image_id"], found, pictures, "questions are about pictures that"
    )
    splits = _splits(asked, found)
    images = table_of(pictures, found.values(), splits)
    coco_ids = {picture.image_id: number for number, picture in found.items()}
    images["coco_id"] = images["image_id"].map(coco_ids)
    readable = set(images["image_id"])
    asked = [question for question in asked if found[question["image_id"]].image_id in readable]
    annotations = _read_annotations(source)
    questions = _questions_table(asked, found, splits, annotations, _read_pairs(source))
    answers = _answers_table(asked, annotations)
    write_table(out, "images", images)
    write_table(out, "questions", questions)
    write_table(out, "answers", answers)
    return {"images": len(images), "questions": len(questions), "answers": len(answers)}


def _read_questions(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    split = _split_of(path, content)
    fields = ("question_id", "image_id", "question")
    return [{**question, "split": split} for question in records(content, path, "questions", fields)]


def _split_of(path: Path, content: Any) -> str | None:  # noqa: ANN401
    subtype = str(content.get("data_subtype", "")) if isinstance(content, dict) else ""
    found = _SPLIT.search(path.name) or _SPLIT.search(subtype)
    return found[1] if found else None


def _splits(asked: Iterable[Mapping[str, Any]], found: Mapping[int, Picture]) -> dict[str, str]:
    """The split of each picture, by its path; a picture of two files (test, test-dev) keeps the first's."""
    splits: dict[str, str] = {}
    for question in asked:
        if question["split"] is not None:
            splits.setdefault(found[question["image_id"]].path, question["split"])
    unknown = [picture.path for picture in found.values() if picture.path not in splits]
    return split_by_hash(unknown, val_share=0.2) | splits


def _read_annotations(source: Path) -> dict[int, dict[str, Any]]:
    """Each question's annotation; none where the folder holds a test split alone."""
    annotations = {}
    for path in sorted([*source.rglob("*annotations.json"), *source.rglob("*annotations.json.gz")]):
        fields = ("question_id", "question_type", "answer_type", "answers")
        for annotation in records(read_json(path), path, "annotations", fields):
            annotations[annotation["question_id"]] = annotation
    if not annotations:
        logger.warning("no annotations in %s: the questions have no answers, as in a test split", source)
    return annotations


def _read_pairs(source: Path) -> dict[int, str]:
    """The balanced pair that a question belongs to."""
    return {
        question_id: "-".join(map(str, pair))
        for path in sorted(source.rglob("*complementary_pairs.json"))
        for pair in read_json(path)
        for question_id in pair
    }


def _questions_table(
    asked: Iterable[Mapping[str, Any]],
    found: Mapping[int, Picture],
    splits: Mapping[str, str],
    annotations: Mapping[int, Mapping[str, Any]],
    pairs: Mapping[int, str],
) -> pd.DataFrame:
    rows = []
    for question in asked:
        annotation = annotations.get(question["question_id"], {})
        picture = found[question["image_id"]]
        rows.append(
            {
                "question_id": str(question["question_id"]),
                "image_id": picture.image_id,
                "text": question["question"].strip(),
                "question_type": annotation.get("question_type", "unknown"),
                "answer_type": annotation.get("answer_type", "unknown"),
                "split": question["split"] or splits[picture.path],
                "pair_id": pairs.get(question["question_id"]),
            }
        )
    table = pd.DataFrame(rows).drop_duplicates("question_id", ignore_index=True)
    return table if table["pair_id"].notna().any() else table.drop(columns="pair_id")


def _answers_table(
    asked: Iterable[Mapping[str, Any]], annotations: Mapping[int, Mapping[str, Any]]
) -> pd.DataFrame:
    known = {question["question_id"] for question in asked} & annotations.keys()
    rows = [
        {"question_id": str(question_id), "answer": answer["answer"], "annotator": place}
        for question_id in sorted(known)
        for place, answer in enumerate(annotations[question_id]["answers"])
    ]
    odd = sum(len(annotations[question_id]["answers"]) != ANSWERS_EACH for question_id in known)
    if odd:
        logger.warning("%d questions have other than %d answers", odd, ANSWERS_EACH)
    return pd.DataFrame(rows, columns=["question_id", "answer", "annotator"])
