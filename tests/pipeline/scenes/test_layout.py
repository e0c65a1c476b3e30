import numpy as np

from pipeline.scenes import specification as spec
from pipeline.scenes.layout import PlacedObject

Layouts = list[list[PlacedObject]]


def test_scenes_have_two_to_six_objects_each_number_as_often(layouts: Layouts) -> None:
    counts = np.bincount([len(placed) for placed in layouts], minlength=8)
    assert counts[:2].sum() == counts[7:].sum() == 0
    assert counts[2:7].min() > 0.7 * len(layouts) / 5


def test_both_sides_of_a_box_are_a_sixth_to_half_of_the_picture(layouts: Layouts) -> None:
    boxes = np.array([item.facts.box for placed in layouts for item in placed])
    sides = (boxes[:, 2:] - boxes[:, :2]) / 96
    assert sides.min() >= 1 / 6 - 1e-9
    assert sides.max() <= 1 / 2 + 1e-9
    assert boxes.min() >= 0
    assert boxes.max() <= 96


def test_no_object_is_hidden_by_more_than_thirty_percent(layouts: Layouts) -> None:
    """Counted anew from the masks, one full canvas an object."""
    shares = [share for placed in layouts[:200] for share in hidden_shares(placed)]
    assert max(shares) <= 0.30
    assert np.mean(np.array(shares) > 0.05) > 0.15  # hiding does happen


def test_hidden_share_is_what_the_masks_say(layouts: Layouts) -> None:
    for placed in layouts[:50]:
        np.testing.assert_allclose([item.hidden for item in placed], hidden_shares(placed), atol=1e-12)


def test_box_is_tight_around_the_whole_mask(layouts: Layouts) -> None:
    for placed in layouts[:50]:
        for item in placed:
            rows, columns = np.nonzero(full_mask(item))
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(np.array(edges) / spec.SUPERSAMPLING, item.facts.box)


def test_every_class_color_pattern_and_size_occurs(layouts: Layouts) -> None:
    objects = [item.facts for placed in layouts for item in placed]
    names = [thing.name for thing in objects]
    assert min(names.count(name) for name in spec.OBJECT_NAMES) > 0.5 * len(names) / len(spec.OBJECT_NAMES)
    values = [value for thing in objects for value in thing.attributes]
    assert set(values) == set(spec.ATTRIBUTE_NAMES)
    assert min(values.count(value) for value in spec.ATTRIBUTE_NAMES) > 0.05 * len(objects)


def test_sizes_are_stated_only_outside_the_gap(layouts: Layouts) -> None:
    for thing in (item.facts for placed in layouts for item in placed):
        x1, y1, x2, y2 = thing.box
        long_side = max(x2 - x1, y2 - y1) / 96
        assert ("small" in thing.attributes) == (long_side <= 0.27)
        assert ("large" in thing.attributes) == (long_side >= 0.38)


def test_small_objects_have_no_pattern(layouts: Layouts) -> None:
    for thing in (item.facts for placed in layouts for item in placed):
        x1, y1, x2, y2 = thing.box
        assert thing.pattern is None or min(x2 - x1, y2 - y1) >= spec.PATTERN_MIN_SIDE * 96 - 1e-9


def full_mask(item: PlacedObject) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    canvas = np.zeros((96 * spec.SUPERSAMPLING,) * 2, dtype=bool)
    height, width = item.masks.solid.shape
    canvas[item.top : item.top + height, item.left : item.left + width] = item.masks.solid
    return canvas


def hidden_shares(placed: list[PlacedObject]) -> list[float]:
    masks = [full_mask(item) for item in placed]
    shares = []
    for index, mask in enumerate(masks):
        front = np.zeros_like(mask)
        for other in masks[index + 1 :]:
            front |= other
        shares.append(float((mask & front).sum() / mask.sum()))
    return shares
