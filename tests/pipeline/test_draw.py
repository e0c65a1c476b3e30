"""Drawn pictures show what they claim: boxes at their place, light where the weights are."""

import numpy as np

from pipeline.draw import contact_sheet, draw_answer, draw_regions, draw_word_attention

GREY = np.full((40, 60, 3), 128, dtype=np.uint8)
BOXES = np.array([[0, 0, 20, 20], [30, 10, 60, 40]], dtype=np.float32)


def test_a_region_is_outlined_at_its_scaled_place() -> None:
    drawn = np.asarray(draw_regions(GREY, BOXES, ["a", "b"], short_side=80))
    assert drawn.shape == (80, 120, 3)
    assert (drawn[30, 41:60] == 128).all()  # between the boxes nothing is drawn
    assert (drawn[50, 60] != 128).any()  # the left edge of the second box, at x = 30 * 2
    assert (drawn[60, 80] == 128).all()  # its inside stays the picture


def test_no_regions_leave_the_picture_as_it_is() -> None:
    drawn = np.asarray(draw_regions(GREY, BOXES[:0], [], short_side=40))
    assert (drawn == 128).all()


def test_word_attention_lights_the_region_with_the_weight() -> None:
    weights = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    sheet = np.asarray(draw_word_attention(GREY, BOXES, ["left", "right"], weights, tile=60)).astype(int)
    cell = 68
    first, second = sheet[4:44, cell + 4 : cell + 64], sheet[4:44, 2 * cell + 4 : 2 * cell + 64]
    assert first[10, 10].sum() > 3 * 100 > first[25, 45].sum()
    assert second[25, 45].sum() > 3 * 100 > second[10, 10].sum()


def test_an_answer_is_darkest_where_no_region_has_weight() -> None:
    weights = np.array([0.9, 0.1], dtype=np.float32)
    drawn = np.asarray(
        draw_answer(GREY, BOXES, np.array([3.0, 0.8], dtype=np.float32), weights, short_side=80)
    )
    outside = drawn[70, 20].astype(int).sum()
    inside = drawn[34, 34].astype(int).sum()
    assert inside > 2 * outside


def test_a_contact_sheet_holds_every_picture() -> None:
    picture = draw_regions(GREY, BOXES, ["a", "b"], short_side=40)
    sheet = contact_sheet([picture] * 5, columns=2)
    assert sheet.size == (2 * 66, 3 * 46)
