"""Two stores compared: each kind of change is seen, with numbers that can be worked out by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from store_schema.diff import StoreDiff, diff_stores, match_regions
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord
from store_schema.writer import StoreWriter, write_block
from tests.store_schema import tiny
from tests.store_schema.tiny import IDS, METADATA

FLOAT32 = replace(METADATA, feature_dtype="float32")


def store(
    path: Path,
    change: Callable[[ImageRecord], ImageRecord] = lambda record: record,
    metadata: StoreMetadata = FLOAT32,
    ids: list[str] = IDS[:4],
) -> RegionStore:
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan(ids):
            items = [change(tiny.record(image_id, FLOAT32, num_regions=3)) for image_id in block.image_ids]
            writer.commit(block, write_block(path, metadata, block, items))
    return RegionStore.open(path)


@pytest.fixture
def against(tmp_path: Path) -> Callable[[Callable[[ImageRecord], ImageRecord]], StoreDiff]:
    a = store(tmp_path / "a")

    def compare(change: Callable[[ImageRecord], ImageRecord]) -> StoreDiff:
        return diff_stores(a, store(tmp_path / "b", change))

    return compare


def test_equal_stores_are_equal(against: Callable[..., StoreDiff]) -> None:
    diff = against(lambda record: record)
    assert diff.equal
    assert (diff.num_common, diff.num_matched, diff.num_changed, diff.metadata) == (4, 12, 0, {})
    assert (diff.largest_feature_difference, diff.typical_feature_difference, diff.least_iou) == (0, 0, 1)


def test_pictures_of_one_side_only(tmp_path: Path) -> None:
    diff = diff_stores(store(tmp_path / "a", ids=IDS[:3]), store(tmp_path / "b", ids=IDS[1:5]))
    assert (diff.only_in_a, diff.only_in_b, diff.num_common) == (IDS[:1], IDS[3:5], 2)
    assert not diff.equal


def test_features_largest_and_typical_difference(against: Callable[..., StoreDiff]) -> None:
    """One feature of one region by 0.5, all of the others by 0.125: of 12 regions the median is 0.125."""

    def change(record: ImageRecord) -> ImageRecord:
        features = record.features + np.float32(0.125)
        features[0, 0] += np.float32(0.375) * (record.image_id == IDS[0])
        return replace(record, features=features)

    diff = against(change)
    assert diff.largest_feature_difference == pytest.approx(0.5, abs=1e-6)
    assert diff.typical_feature_difference == pytest.approx(0.125, abs=1e-6)
    assert diff.num_changed == 4
    assert diff.first_changed == IDS[:4]


def test_labels_are_compared_by_name(tmp_path: Path) -> None:
    """Another order of the names is no change; another name is."""
    other = replace(FLOAT32, object_names=("tree", "dog", "cat"))
    a = store(tmp_path / "a")
    places = np.array([1, 2, 0])  # of dog, cat and tree among the others

    def renumbered(record: ImageRecord) -> ImageRecord:
        assert record.object_ids is not None
        return replace(record, object_ids=places[record.object_ids])

    same = diff_stores(a, store(tmp_path / "b", renumbered, other))
    assert same.equal
    assert same.labels_changed == {"object": 0, "attribute": 0}
    assert list(same.metadata) == ["object_names"]

    def all_dogs(record: ImageRecord) -> ImageRecord:
        return replace(record, object_ids=np.zeros(3, np.int64))

    changed = diff_stores(a, store(tmp_path / "c", all_dogs))
    labels = [METADATA.object_names[i] for name in IDS[:4] for i in a.image(name).object_ids.tolist()]  # type: ignore[union-attr]
    assert changed.labels_changed["object"] == sum(label != "dog" for label in labels) > 0
    counts = {(old, new): count for old, new, count in changed.commonest_label_changes["object"]}
    assert counts == {(old, "dog"): labels.count(old) for old in set(labels) - {"dog"}}


def test_another_order_of_regions_matches_and_is_a_difference(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 80, 30]], np.float32)

    def apart(record: ImageRecord) -> ImageRecord:
        return replace(record, boxes=boxes)

    def reversed_(record: ImageRecord) -> ImageRecord:
        record = apart(record)
        names = ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores")
        return replace(record, **{name: getattr(record, name)[::-1] for name in names})

    diff = diff_stores(store(tmp_path / "a", apart), store(tmp_path / "b", reversed_))
    assert (diff.num_matched, diff.largest_feature_difference, diff.largest_box_difference) == (12, 0, 0)
    assert diff.labels_changed == {"object": 0, "attribute": 0}
    assert not diff.equal


def test_moved_and_lost_boxes(tmp_path: Path) -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 80, 30]], np.float32)
    moved = np.array([[0, 0, 10, 8], [60, 60, 70, 70], [50, 0, 80, 30]], np.float32)
    a = store(tmp_path / "a", lambda record: replace(record, boxes=boxes))
    b = store(tmp_path / "b", lambda r: replace(r, boxes=moved if r.image_id == IDS[0] else boxes))
    diff = diff_stores(a, b)
    assert (diff.num_matched, diff.num_unmatched_a, diff.num_unmatched_b) == (11, 1, 1)
    assert diff.least_iou == pytest.approx(0.8)
    assert diff.largest_box_difference == 2
    assert diff.first_changed == IDS[:1]


def test_a_box_moved_a_little_is_a_difference(tmp_path: Path) -> None:
    a = store(tmp_path / "a", lambda r: replace(r, boxes=np.array([[0, 0, 10, 10]] * 3, np.float32)))
    b = store(tmp_path / "b", lambda r: replace(r, boxes=np.array([[0, 0, 10, 10.5]] * 3, np.float32)))
    diff = diff_stores(a, b)
    assert (diff.num_matched, diff.num_changed, diff.largest_box_difference) == (12, 4, 0.5)


def test_matching_takes_the_best_overlap_first() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 9]], np.float32)
    b = np.array([[0, 0, 10, 9.5], [0, 0, 10, 9], [90, 90, 99, 99]], np.float32)
    assert [pair[:2] for pair in match_regions(a, b)] == [(1, 1), (0, 0)]
    assert match_regions(a[:0], b) == []


def test_a_float16_store_differs_by_its_rounding(tmp_path: Path) -> None:
    diff = diff_stores(store(tmp_path / "a"), store(tmp_path / "b", metadata=METADATA))
    assert diff.largest_feature_difference is not None
    assert 0 < diff.largest_feature_difference < 0.002
    assert diff.metadata == {"feature_dtype": ["float32", "float16"]}
