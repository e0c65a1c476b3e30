from itertools import pairwise
from random import Random

import pytest

from pipeline.scenes.captions import make_captions
from pipeline.scenes.layout import PlacedObject, SceneObject
from tests.pipeline.scenes.scene_checks import Thing, caption_is_true, names_an_attribute_or_number

Layouts = list[list[PlacedObject]]


def test_every_caption_is_true(layouts: Layouts) -> None:
    wrong = [
        (caption, placed)
        for placed, captions in captioned(layouts)
        for caption in captions
        if not caption_is_true(caption, things_of(placed))
    ]
    assert not wrong, wrong[:3]


def test_the_check_finds_false_captions(layouts: Layouts) -> None:
    """Captions of one scene are nearly all false of another: the test above can fail."""
    pairs = captioned(layouts[:200])
    foreign = [
        caption_is_true(caption, things_of(other))
        for (_, captions), (other, _) in pairwise(pairs)
        for caption in captions
    ]
    assert sum(foreign) < 0.03 * len(foreign)


@pytest.mark.parametrize(
    ("caption", "is_true"),
    [
        ("a red ball to the left of a blue star", True),
        ("a red ball to the right of a blue star", False),
        ("two red balls", False),
        ("there are two balls and a blue star", True),
        ("we see three balls", False),
        ("three objects including a blue star", True),
        ("a blue star at the right", True),
        ("a blue star at the top right", False),
        ("the star is blue", True),
        ("the ball is red", False),
        ("a red ball and a red striped ball", False),
    ],
)
def test_the_check_on_a_scene_by_hand(caption: str, is_true: bool) -> None:
    things = [
        Thing("ball", frozenset({"red", "striped"}), 0.2, 0.5, 0.05),
        Thing("ball", frozenset({"green"}), 0.5, 0.5, 0.04),
        Thing("star", frozenset({"blue"}), 0.8, 0.5, 0.03),
    ]
    assert caption_is_true(caption, things) == is_true


def test_five_different_captions_an_image_in_lower_case(layouts: Layouts) -> None:
    for _, captions in captioned(layouts):
        assert len(captions) == len(set(captions)) == 5
        assert all(caption == caption.lower().strip() for caption in captions)


def test_captions_say_attributes_or_numbers(layouts: Layouts) -> None:
    for placed, captions in captioned(layouts):
        assert all(names_an_attribute_or_number(caption, things_of(placed)) for caption in captions)


def test_vocabulary_and_forms_are_varied(layouts: Layouts) -> None:
    captions = [caption for _, five in captioned(layouts) for caption in five]
    words = {word for caption in captions for word in caption.replace(",", "").split()}
    assert 60 <= len(words) <= 120
    for form in ("to the left of", " above ", "two ", " including ", "the ", " at the ", ", "):
        assert sum(form in caption for caption in captions) > 0.005 * len(captions), form


def test_large_objects_are_mentioned_first(layouts: Layouts) -> None:
    """The habit that makes captions of one picture agree with each other."""
    largest = [max((item.facts for item in placed), key=lambda thing: thing.area).name for placed in layouts]
    mentioned = [
        name in caption
        for name, (_, captions) in zip(largest, captioned(layouts), strict=True)
        for caption in captions
    ]
    assert sum(mentioned) > 0.9 * len(mentioned)


@pytest.mark.slow
def test_a_caption_agrees_with_the_other_four(layouts: Layouts) -> None:
    """CIDEr-D of one caption against the rest, by the official tool: 3.4 when this was written."""
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    five = [[caption.replace(",", "") for caption in captions] for _, captions in captioned(layouts)]
    score, _ = cider.compute_score(
        {index: captions[1:] for index, captions in enumerate(five)},
        {index: captions[:1] for index, captions in enumerate(five)},
    )
    assert 2.9 < score < 3.9


def captioned(layouts: Layouts) -> list[tuple[list[PlacedObject], list[str]]]:
    return [
        (placed, make_captions([item.facts for item in placed], Random(seed)))
        for seed, placed in enumerate(layouts)
    ]


def things_of(placed: list[PlacedObject]) -> list[Thing]:
    return [thing_of(item.facts) for item in placed]


def thing_of(facts: SceneObject) -> Thing:
    x1, y1, x2, y2 = (value / facts.image_size for value in facts.box)
    return Thing(facts.name, frozenset(facts.attributes), (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) * (y2 - y1))
