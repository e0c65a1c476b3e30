"""The official forms and scores of answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from stage2_models.answers import (
    AnswerVocabulary,
    answer_score,
    most_common_answer,
    normalise_answer,
    normalise_punctuation,
)
from store_schema.errors import ConfigError
from tests.parity import parity_folders

each_folder = pytest.mark.parametrize(
    "folder", parity_folders("butd_vqa"), ids=lambda folder: folder.parent.name
)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The dog.", "dog"),
        ("an apple a day", "apple day"),
        ("Two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("t-shirt", "t shirt"),
        ("red, white and blue", "red white and blue"),
        ("1,000", "1000"),
        ("it's 1,5 or 2-3", "it's 15 or 23"),
        ("1.5", "1.5"),
        ("12:30", "12:30"),
        ("new\nline", "new line"),
        ("the", ""),
    ],
)
def test_normalise_answer_by_hand(raw: str, expected: str) -> None:
    assert normalise_answer(raw) == expected


@each_folder
def test_normalisation_equals_the_public_programs_parity(folder: Path) -> None:
    for case in _read(folder / "preprocess_answer.json"):
        assert normalise_punctuation(case["raw"]) == case["after_process_punctuation"], case
        assert normalise_answer(case["raw"]) == case["processed"], case


@each_folder
def test_soft_targets_equal_the_public_programs_parity(folder: Path) -> None:
    content = _read(folder / "compute_target.json")
    label_of = content["ans2label"]
    vocabulary = AnswerVocabulary(tuple(sorted(label_of, key=label_of.get)))
    for row in content["rows"]:
        expected = dict(zip(row["labels"], row["scores"], strict=True))
        assert vocabulary.soft_target(row["answers"]) == pytest.approx(expected), row


@each_folder
def test_kept_answers_equal_the_public_programs_parity(folder: Path) -> None:
    content = _read(folder / "filter_answers.json")
    questions = [[normalise_answer(answer)] for answer in content["multiple_choice_answers"]]
    vocabulary = AnswerVocabulary.build(questions, min_count=content["min_occurence"])
    assert set(vocabulary.answers) == set(content["kept"])


def test_score_of_ten_annotators_is_the_official_table() -> None:
    scores = [answer_score((True,) * equal + (False,) * (10 - equal)) for equal in range(11)]
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9] + [1] * 7)


@pytest.mark.parametrize("annotators", range(1, 12))
def test_a_unanimous_answer_scores_one_however_many_annotators(annotators: int) -> None:
    assert answer_score((True,) * annotators) == 1.0
    assert answer_score((False,) * annotators) == 0.0


def test_one_of_two_annotators_earns_half() -> None:
    assert answer_score((True, False)) == 0.5


def test_vocabulary_keeps_frequent_answers_most_frequent_first() -> None:
    questions = [["yes"], ["no"], ["no", "no", "yes"], ["red"], ["blue", "blue"], ["blue"], [""], [""]]
    assert AnswerVocabulary.build(questions, min_count=2).answers == ("blue", "no")
    assert AnswerVocabulary.build(questions).answers == ("blue", "no", "red", "yes")


def test_vocabulary_refuses_a_count_that_no_answer_reaches() -> None:
    with pytest.raises(ConfigError, match=r"the most frequent one has 2.*lower min_answer_count"):
        AnswerVocabulary.build([["yes"], ["yes"], ["no"]], min_count=3)


def test_vocabulary_refuses_an_answer_twice() -> None:
    with pytest.raises(ConfigError, match="'yes' is there twice"):
        AnswerVocabulary(("yes", "no", "yes"))


def test_soft_target_leaves_out_unknown_answers() -> None:
    target = AnswerVocabulary(("no", "yes")).soft_target(["yes"] * 8 + ["no", "perhaps"])
    assert target == pytest.approx({1: 1.0, 0: 0.3})


def test_most_common_answer_is_the_first_of_equally_frequent_ones() -> None:
    assert most_common_answer(["b", "a", "a", "b"]) == "b"
