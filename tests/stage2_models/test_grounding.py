"""What captions state and where attention points, by hand."""

import numpy as np
import pandas as pd
import pytest

from stage2_models.decoding import GeneratedCaption
from stage2_models.grounding import Lexicon, pairwise_iou, pointing, true_pairs

OBJECTS = pd.DataFrame(
    [
        ("p1", "o1", "ball", 0, 0, 10, 10),
        ("p1", "o2", "traffic light", 20, 0, 30, 10),
        ("p1", "o3", "berry", 40, 0, 50, 10),
        ("p2", "o4", "orange", 0, 0, 10, 10),
    ],
    columns=["image_id", "object_id", "object", "x1", "y1", "x2", "y2"],
)
ATTRIBUTES = pd.DataFrame(
    [("o1", "red"), ("o1", "striped"), ("o2", "dark green"), ("o3", "blue"), ("o4", "orange")],
    columns=["object_id", "attribute"],
)
LEXICON = Lexicon.from_tables(OBJECTS, ATTRIBUTES)


def _mentions(text: str) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(found.index, found.name, found.attributes) for found in LEXICON.mentions(text.split(" "))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red striped ball", [(3, "ball", ("red", "striped"))]),
        ("two red balls and three berries", [(2, "ball", ("red",)), (5, "berry", ())]),
        ("a dark green traffic light", [(4, "traffic light", ("dark green",))]),
        ("the traffic lights are red", [(2, "traffic light", ())]),
        ("a red shiny ball", [(3, "ball", ())]),
        ("a light", []),
        ("an orange ball and an orange", [(2, "ball", ("orange",)), (5, "orange", ())]),
        ("an orange orange", [(2, "orange", ("orange",))]),
    ],
)
def test_mentions_are_objects_with_the_attributes_right_before_them(
    text: str, expected: list[tuple[int, str, tuple[str, ...]]]
) -> None:
    assert _mentions(text) == expected


def test_true_pairs_counts_pairs_and_objects_of_the_captions_own_picture() -> None:
    captions = {
        "p1": ["a", "red", "striped", "ball", "and", "a", "blue", "traffic", "light"],
        "p2": ["a", "red", "ball"],
    }
    scores = true_pairs(captions, OBJECTS, ATTRIBUTES)
    assert (scores.pairs, scores.num_pairs) == (2 / 4, 4)
    assert (scores.objects, scores.num_objects) == (2 / 3, 3)


def test_an_attribute_of_another_object_of_the_picture_is_not_true() -> None:
    assert true_pairs({"p1": ["red", "berry"]}, OBJECTS, ATTRIBUTES).pairs == 0.0


def _caption(text: str, looked_at: list[int], slots: int = 4) -> GeneratedCaption:
    words = tuple(text.split(" "))
    attention = np.full((len(words), slots), 0.1, np.float32)
    attention[np.arange(len(words)), looked_at] = 0.5
    return GeneratedCaption(words, np.zeros(len(words), np.float32), 0.0, attention)


def test_pointing_looks_at_the_step_of_the_nouns_last_word() -> None:
    boxes = {"p1": np.array([[0, 0, 10, 9], [20, 0, 30, 10], [100, 100, 110, 110]], np.float32)}
    right = pointing({"p1": _caption("a ball and traffic light", [2, 0, 2, 2, 1])}, boxes, OBJECTS)
    assert (right.accuracy, right.num_words) == (1.0, 2)
    assert right.chance == pytest.approx(1 / 3)
    wrong = pointing({"p1": _caption("a ball and traffic light", [0, 1, 1, 1, 0])}, boxes, OBJECTS)
    assert wrong.accuracy == 0.0


def test_pointing_leaves_out_absent_objects_and_padded_slots() -> None:
    boxes = {"p1": np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)}
    scores = pointing({"p1": _caption("ball orange", [3, 0])}, boxes, OBJECTS)
    assert scores.num_words == 1
    assert scores.accuracy == 1.0, "slot 3 is padding: among the real ones the first has the highest weight"
    assert scores.chance == 0.5
    assert np.isnan(pointing({"p1": _caption("orange", [0])}, boxes, OBJECTS).accuracy)


def test_iou_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [5, 5, 15, 15]], np.float32)
    np.testing.assert_allclose(pairwise_iou(boxes[:1], boxes), [[1.0, 0.5, 25 / 175]])
