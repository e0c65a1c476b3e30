"""DAQUAR's CSV becomes questions and answers with types and splits."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.prepare.daquar import prepare_daquar
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import check_references, read_table


def test_questions_keep_their_answers_and_get_their_types(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    for name in ("one.jpg", "two.jpg", "three.jpg", "four.jpg", "five.jpg"):
        Image.new("RGB", (8, 6)).save(raw / "images" / name)
    rows = [
        "0,one.jpg,how many chairs are there?,2",
        '1,one.jpg,what is on the desk?,"book, papers"',
        "2,two.jpg,what color is the door?,white",
        "3,three.jpg,what is left?,bed",
        "4,four.jpg,what is left?,bed",
        "5,five.jpg,what is left?,lamp",
    ]
    (raw / "qa.csv").write_text("question_id,image,question,answer\n" + "\n".join(rows))
    assert prepare_daquar(raw, tmp_path / "out") == {"images": 5, "questions": 6, "answers": 6}
    images = read_table(tmp_path / "out", "images")
    questions = read_table(tmp_path / "out", "questions").set_index("question_id")
    answers = read_table(tmp_path / "out", "answers").set_index("question_id")
    check_references(tmp_path / "out", "questions", questions.reset_index(), images)
    assert questions["question_type"].tolist()[:3] == ["count", "object", "color"]
    assert questions.loc["0", "answer_type"] == "number"
    assert answers.loc["1", "answer"] == "book, papers"
    assert images["split"].value_counts().to_dict() == {"train": 4, "val": 1}


def test_missing_file_and_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"qa\.csv expected"):
        prepare_daquar(tmp_path, tmp_path / "out")
    (tmp_path / "qa.csv").write_text("question_id,image,question\n0,a.jpg,why?\n")
    with pytest.raises(TableError, match="columns \\['answer'\\] are missing"):
        prepare_daquar(tmp_path, tmp_path / "out")
