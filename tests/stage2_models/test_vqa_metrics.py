"""Accuracy against the official evaluation program's own output, and by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from stage2_models.vqa_metrics import (
    AnsweredQuestion,
    most_common_predictions,
    pair_consistency,
    question_accuracy,
    vqa_accuracy,
)
from store_schema.errors import UsageError

OFFICIAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vqa_eval"


def _read(name: str) -> Any:
    return json.loads((OFFICIAL / name).read_text(encoding="utf-8"))


def _question(name: str, *answers: str, kind: str = "what") -> AnsweredQuestion:
    return AnsweredQuestion(question_id=name, answers=answers, question_type=kind, answer_type="other")


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"no {OFFICIAL}")
@pytest.mark.parametrize("name", ["first_annotator", "most_common", "always_yes", "noisy_format"])
def test_accuracies_equal_the_official_program_to_the_last_digit(name: str) -> None:
    questions = [
        AnsweredQuestion(
            question_id=str(item["question_id"]),
            answers=tuple(answer["answer"] for answer in item["answers"]),
            question_type=item["question_type"],
            answer_type=item["answer_type"],
        )
        for item in _read("annotations.json")["annotations"]
    ]
    predictions = {str(item["question_id"]): item["answer"] for item in _read(f"{name}_results.json")}
    official = _read(f"{name}_scores.json")

    scores = vqa_accuracy(predictions, questions)

    assert scores.printed == official["accuracy"]
    rounded = {question: round(100 * value, 2) for question, value in scores.per_question.items()}
    assert rounded == official["per_question"]


def test_only_differing_answers_are_normalised() -> None:
    unanimous, differing = ["yes"] * 10, ["yes"] * 9 + ["no"]
    assert question_accuracy("Yes.", unanimous) == 0.0
    assert question_accuracy("Yes.", differing) == 1.0


def test_a_single_annotators_answer_must_be_equal_after_normalisation() -> None:
    assert question_accuracy("the Dog.", ["dog"]) == 1.0
    assert question_accuracy("cat", ["dog"]) == 0.0


def test_accuracy_by_type_is_the_mean_over_its_questions() -> None:
    questions = [_question("1", "a"), _question("2", "b"), _question("3", "c", kind="where")]
    scores = vqa_accuracy({"1": "a", "2": "x", "3": "c"}, questions)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.by_question_type == {"what": 0.5, "where": 1.0}
    assert scores.by_answer_type == {"other": pytest.approx(2 / 3)}


def test_an_incomplete_set_of_predictions_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1 of 2 questions have no predicted answer, the first is '2'"):
        vqa_accuracy({"1": "a"}, [_question("1", "a"), _question("2", "b")])


def test_a_balanced_pair_is_as_right_as_the_less_right_of_its_answers() -> None:
    accuracy = {"1": 1.0, "2": 0.3, "3": 1.0, "4": 1.0, "5": 1.0}
    pairs = {"1": "a", "2": "a", "3": "b", "4": "b", "5": "alone", "6": "alone"}
    assert pair_consistency(accuracy, pairs) == pytest.approx((0.3 + 1.0) / 2)
    assert pair_consistency(accuracy, {}) is None


def test_most_common_answer_overall_and_of_the_question_type() -> None:
    training = [
        _question("1", "red"),
        _question("2", "Red."),
        _question("3", "blue"),
        _question("4", "left", kind="where"),
    ]
    asked = [_question("5", "?"), _question("6", "?", kind="where"), _question("7", "?", kind="new")]
    assert most_common_predictions(training, asked) == {"5": "red", "6": "red", "7": "red"}
    by_type = most_common_predictions(training, asked, by_question_type=True)
    assert by_type == {"5": "red", "6": "left", "7": "red"}
