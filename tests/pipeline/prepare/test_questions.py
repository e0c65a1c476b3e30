"""Readers of question data sets, on small files in the published layouts."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from pipeline.prepare.easy_vqa import prepare_easy_vqa
from pipeline.prepare.questions_file import prepare_questions_file
from pipeline.prepare.visual_genome_qa import prepare_visual_genome_qa
from pipeline.prepare.vqa_v2 import prepare_vqa_v2
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import check_references, has_table, read_table

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def _tables(out: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    images, questions = read_table(out, "images"), read_table(out, "questions")
    check_references(out, "questions", questions, images)
    answers = read_table(out, "answers")
    return images.set_index("image_id"), questions.set_index("question_id"), answers


def _vqa_v2(folder: Path) -> Path:
    """Two training pictures, one of the validation split, one that is not there; a balanced pair."""
    for split, numbers in (("train2014", (25, 71)), ("val2014", (42,))):
        for number in numbers:
            _picture(folder / split / f"COCO_{split}_{number:012}.jpg")
    asked = {"train2014": ((25000, 25), (71000, 71), (99000, 99)), "val2014": ((42000, 42),)}
    for split, questions in asked.items():
        rows = [{"question_id": q, "image_id": i, "question": f"Is it {q}? "} for q, i in questions]
        content = {"data_subtype": split, "questions": rows}
        _write(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", content)
        annotations = [
            {
                "question_id": question_id,
                "image_id": image_id,
                "question_type": "is it",
                "answer_type": "yes/no",
                "multiple_choice_answer": "yes",
                "answers": [{"answer": "yes" if n else "No", "answer_id": n + 1} for n in range(10)],
            }
            for question_id, image_id in questions
        ]
        _write(folder / f"v2_mscoco_{split}_annotations.json.gz", {"annotations": annotations})
    _write(folder / "v2_mscoco_train2014_complementary_pairs.json", [[25000, 71000]])
    return folder


def test_vqa_v2_gives_its_splits_ten_answers_and_pairs(tmp_path: Path) -> None:
    counts = prepare_vqa_v2(_vqa_v2(tmp_path / "raw"), tmp_path / "out")
    assert counts == {"images": 3, "questions": 3, "answers": 30}
    images, questions, answers = _tables(tmp_path / "out")
    assert images["split"].to_dict() == {
        "COCO_train2014_000000000025": "train",
        "COCO_train2014_000000000071": "train",
        "COCO_val2014_000000000042": "val",
    }
    assert images["coco_id"].tolist() == [25, 71, 42]
    assert questions.loc["42000"].drop("pair_id").to_dict() == {
        "image_id": "COCO_val2014_000000000042",
        "text": "Is it 42000?",
        "question_type": "is it",
        "answer_type": "yes/no",
        "split": "val",
    }
    assert questions["pair_id"].fillna("").to_dict() == {
        "25000": "25000-71000", "71000": "25000-71000", "42000": "",
    }  # fmt: skip
    assert answers[answers["question_id"] == "25000"]["answer"].tolist() == ["No"] + ["yes"] * 9


def test_vqa_v2_finds_pictures_in_a_linked_folder(tmp_path: Path) -> None:
    raw = _vqa_v2(tmp_path / "raw")
    coco = tmp_path / "coco"
    for folder in [path for path in raw.iterdir() if path.is_dir()]:
        folder.rename(coco.with_name(f"coco-{folder.name}"))
        folder.symlink_to(coco.with_name(f"coco-{folder.name}"))
    assert prepare_vqa_v2(raw, tmp_path / "out")["images"] == 3


def test_a_test_split_has_questions_without_answers(tmp_path: Path) -> None:
    _picture(tmp_path / "test2015" / "COCO_test2015_000000000001.jpg")
    for split in ("test-dev2015", "test2015"):
        rows = [{"question_id": 10, "image_id": 1, "question": "Why?"}]
        _write(tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json", {"questions": rows})
    assert prepare_vqa_v2(tmp_path, tmp_path / "out") == {"images": 1, "questions": 1, "answers": 0}
    _, questions, _ = _tables(tmp_path / "out")
    assert questions["split"].tolist() == ["test-dev"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"question": []}', "an object with the list 'questions' expected"),
        ('{"questions": [{"question_id": 1, "image_id": 2}]}', "questions 0: question missing"),
    ],
)
def test_a_wrong_questions_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    _picture(tmp_path / "2.jpg")
    (tmp_path / "a_questions.json").write_text(content)
    with pytest.raises(TableError, match=message):
        prepare_vqa_v2(tmp_path, tmp_path / "out")


def test_missing_pictures_and_two_of_one_number_are_named(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image_id": 2, "question": "Why?"}]
    _write(tmp_path / "questions.json", {"questions": rows})
    with pytest.raises(InputNotFoundError, match="none of the data set's 1 pictures is below"):
        prepare_vqa_v2(tmp_path, tmp_path / "out")
    _picture(tmp_path / "a" / "3.jpg")
    with pytest.raises(InputNotFoundError, match=r"such as 2\); put the folders of pictures there"):
        prepare_vqa_v2(tmp_path, tmp_path / "out")
    _picture(tmp_path / "b" / "003.jpg")
    with pytest.raises(TableError, match="have the same number 3"):
        prepare_vqa_v2(tmp_path, tmp_path / "out")


def test_easy_vqa_keeps_its_two_parts_apart(tmp_path: Path) -> None:
    for part in ("train", "test"):
        _picture(tmp_path / part / "images" / "0.png")
        asked = [
            ["what color is the shape?", "red", 0],
            ["is there a circle?", "no", 0],
            ["what shape?", "circle", 0],
        ]
        _write(tmp_path / part / "questions.json", asked)
    assert prepare_easy_vqa(tmp_path, tmp_path / "out") == {"images": 2, "questions": 6, "answers": 6}
    images, questions, _ = _tables(tmp_path / "out")
    assert images["split"].to_dict() == {"test/0": "val", "train/0": "train"}
    assert questions.loc["train/0", "question_type"] == "color"
    assert questions["question_type"].tolist() == ["color", "exist", "shape"] * 2
    assert dict(questions.loc["test/1", ["answer_type", "split"]]) == {
        "answer_type": "yes/no",
        "split": "val",
    }


@pytest.mark.skipif(not (SHARED / "easy_vqa").is_dir(), reason=f"no {SHARED / 'easy_vqa'}")
def test_the_real_easy_vqa_is_read_whole(tmp_path: Path) -> None:
    assert prepare_easy_vqa(SHARED / "easy_vqa", tmp_path) == {
        "images": 4000,
        "questions": 38575,
        "answers": 38575,
    }


def test_visual_genome_questions_keep_their_coco_ids(tmp_path: Path) -> None:
    for number in range(1, 11):
        _picture(tmp_path / "VG_100K" / f"{number}.jpg")
    asked = [
        {"id": n, "qas": [{"qa_id": 10 * n, "image_id": n, "question": "How many?", "answer": "2."}]}
        for n in range(1, 12)
    ]
    _write(tmp_path / "question_answers.json", asked)
    _write(tmp_path / "image_data.json", [{"image_id": 3, "coco_id": 777}, {"image_id": 4, "coco_id": None}])
    assert prepare_visual_genome_qa(tmp_path, tmp_path / "out") == {
        "images": 10,
        "questions": 10,
        "answers": 10,
    }
    images, questions, answers = _tables(tmp_path / "out")
    assert images["coco_id"].dropna().to_dict() == {"3": 777}
    assert images["split"].value_counts().to_dict() == {"train": 9, "val": 1}
    assert set(questions["question_type"]) == {"how"}
    assert set(questions["answer_type"]) == {"number"}
    assert set(answers["answer"]) == {"2"}


def test_rows_of_one_question_in_a_csv_are_the_answers_of_several_people(tmp_path: Path) -> None:
    _picture(tmp_path / "a" / "x.jpg")
    _picture(tmp_path / "b" / "x.jpg")
    path = tmp_path / "questions.csv"
    path.write_text(
        "image,question,answer,question_id,split\n"
        'a/x.jpg,"what, is it?",cat,q1,train\na/x.jpg,"what, is it?",dog,q1,train\nb/x.jpg,who?,me,q2,val\n'
    )
    assert prepare_questions_file(path, tmp_path / "out") == {"images": 2, "questions": 2, "answers": 3}
    _, questions, answers = _tables(tmp_path / "out")
    assert list(questions.loc[["q1"], "image_id"]) == ["a/x"]
    assert list(questions.loc[["q1"], "text"]) == ["what, is it?"]
    assert answers["annotator"].tolist() == [0, 1, 0]


def test_jsonl_may_list_the_answers_or_leave_them_out(tmp_path: Path) -> None:
    _picture(tmp_path / "x.jpg")
    path = tmp_path / "questions.jsonl"
    path.write_text('{"image": "x.jpg", "question": "who?", "answer": ["me", "you"]}\n')
    assert prepare_questions_file(path, tmp_path / "out")["answers"] == 2
    path.write_text('{"image": "x.jpg", "question": "who?"}\n')
    assert prepare_questions_file(path, tmp_path / "bare") == {"images": 1, "questions": 1}
    assert not has_table(tmp_path / "bare", "answers")


def test_a_questions_file_without_its_columns_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    with pytest.raises(InputNotFoundError, match="a CSV or JSONL file expected"):
        prepare_questions_file(path, tmp_path / "out")
    path.write_text("picture,question\nx.jpg,who?\n")
    with pytest.raises(
        TableError, match=r"columns image, question expected, found \['picture', 'question'\]"
    ):
        prepare_questions_file(path, tmp_path / "out")


def test_a_questions_file_may_name_pictures_by_path_through_a_link_or_by_file_name(tmp_path: Path) -> None:
    _picture(tmp_path / "elsewhere" / "x.jpg")
    _picture(tmp_path / "raw" / "b" / "x.jpg")
    _picture(tmp_path / "raw" / "c" / "y.jpg")
    (tmp_path / "raw" / "a").symlink_to(tmp_path / "elsewhere")
    path = tmp_path / "raw" / "questions.csv"
    path.write_text("image,question\na/x.jpg,who?\nb/x.jpg,who?\ny.jpg,who?\n")
    prepare_questions_file(path, tmp_path / "out")
    assert read_table(tmp_path / "out", "images")["image_id"].tolist() == ["a/x", "b/x", "c/y"]
