"""Cells as regions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stage1_detect.detector import load_detector
from stage1_detect.extract import build_extractor
from stage1_detect.grid import cell_boxes
from stage1_detect.spec import ExtractorSpec
from store_schema.records import check_record


def test_cells_tile_the_picture_in_rows() -> None:
    boxes = cell_boxes(90, 120, (3, 4))
    assert boxes[0].tolist() == [0, 0, 30, 30]
    assert boxes[1].tolist() == [30, 0, 60, 30]
    assert boxes[-1].tolist() == [90, 60, 120, 90]
    assert ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum() == 90 * 120


def test_features_are_means_of_the_detectors_own_map(detector_dir: Path) -> None:
    spec = ExtractorSpec(weights=str(detector_dir), mode="grid", cells=(2, 4))
    metadata = spec.store_metadata()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (record,) = build_extractor(spec, metadata.detector["fingerprint"]).extract([image], ["a"])
    check_record(record, metadata)
    detector = load_detector(detector_dir).detector
    with torch.inference_mode():
        feature_map = detector.feature_map(detector.prepare([image]))[0]
    assert feature_map.shape[1:] == (16, 16)
    for index, (row, column) in enumerate((r, c) for r in range(2) for c in range(4)):
        part = feature_map[:, 8 * row : 8 * row + 8, 4 * column : 4 * column + 4]
        np.testing.assert_allclose(record.features[index], part.mean((1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 400)])
def test_every_shape_gives_the_same_number_of_cells(detector_dir: Path, size: tuple[int, int]) -> None:
    spec = ExtractorSpec(weights=str(detector_dir), mode="grid", cells=(4, 4))
    metadata = spec.store_metadata()
    image = np.full((*size, 3), 90, np.uint8)
    (record,) = build_extractor(spec, metadata.detector["fingerprint"]).extract([image], ["a"])
    assert len(record.boxes) == 16
    check_record(record, metadata)
