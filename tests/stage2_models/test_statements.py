"""Relations and numbers that captions state, by hand."""

import math

import pandas as pd
import pytest

from stage2_models.statements import StatementScores, judge_statements

OBJECTS = pd.DataFrame(
    [
        ("p1", "o1", "ball", 0, 0, 10, 10),
        ("p1", "o2", "ball", 0, 40, 10, 50),
        ("p1", "o3", "star", 40, 20, 50, 30),
        ("p2", "o4", "star", 0, 0, 10, 10),
    ],
    columns=["image_id", "object_id", "object", "x1", "y1", "x2", "y2"],
)
ATTRIBUTES = pd.DataFrame([("o1", "red"), ("o2", "blue"), ("o3", "red")], columns=["object_id", "attribute"])


def judged(**captions: str) -> StatementScores:
    words = {image_id: [text.split(" ")] for image_id, text in captions.items()}
    return judge_statements(words, OBJECTS, ATTRIBUTES)


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("a ball to the left of a star", True),
        ("a picture of a star to the right of the blue ball", True),
        ("a ball to the right of a red star", False),
        ("a red ball above a star", True),
        ("a blue ball above a star", False),
        ("a ball above a star", True),  # one of the balls is
        ("a blue ball below the red ball", True),
        ("a ball above a blue star", False),  # there is none
    ],
)
def test_a_relation_is_true_where_two_objects_that_it_could_name_stand_so(text: str, true: bool) -> None:
    scores = judged(p1=text)
    assert (scores.relations, scores.num_relations) == (float(true), 1)


def test_objects_that_are_only_listed_are_not_related() -> None:
    assert judged(p1="a ball and a star at the left").num_relations == 0


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("two balls and a red star", True),
        ("there are three balls", False),
        ("one blue ball", True),
        ("two red balls", False),
        ("three objects including a star", True),
        ("two stars", False),
    ],
)
def test_a_number_is_true_of_all_objects_with_the_name_and_the_attributes(text: str, true: bool) -> None:
    scores = judged(p1=text)
    assert (scores.numbers, scores.num_numbers) == (float(true), 1)


def test_chance_is_the_same_statements_with_words_drawn_from_all_that_are_stated() -> None:
    """Of p1's ball both "left of" (1 of 2 stated) and nothing else is true; p2 has no ball."""
    scores = judged(p1="a ball to the left of a star", p2="a ball to the right of a star")
    assert (scores.relations, scores.relations_chance) == (0.5, 0.25)
    scores = judged(p1="two balls", p2="three stars")
    assert (scores.numbers, scores.numbers_chance) == (0.5, 0.25)


def test_where_nothing_is_stated_there_is_no_share() -> None:
    scores = judged(p1="a ball")
    assert math.isnan(scores.relations)
    assert math.isnan(scores.numbers_chance)
    assert (scores.num_relations, scores.num_numbers) == (0, 0)


def test_every_caption_of_a_picture_counts() -> None:
    several = {"p1": [["two", "balls"], ["three", "balls"]], "p2": [["a", "star"]]}
    scores = judge_statements(several, OBJECTS, ATTRIBUTES)
    assert (scores.numbers, scores.num_numbers) == (0.5, 2)
