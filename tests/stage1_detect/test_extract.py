"""Records of the detector's regions: what they hold, and that company does not change them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stage1_detect.boxes import pairwise_iou
from stage1_detect.config import SelectionConfig
from stage1_detect.detector import load_detector
from stage1_detect.extract import RegionExtractor, build_extractor
from stage1_detect.images import load_image
from stage1_detect.select import select_regions
from stage1_detect.spec import ExtractorSpec
from store_schema.errors import CheckpointError, ConfigError
from store_schema.metadata import BoxSource, StoreMetadata
from store_schema.records import ImageRecord, check_record

SELECTION = SelectionConfig(min_regions=4, max_regions=8, score_thresh=0.5)


def spec_of(detector_dir: Path, mode: str = "proposal") -> ExtractorSpec:
    return ExtractorSpec(weights=str(detector_dir), mode=mode, selection=SELECTION)  # type: ignore[arg-type]


def extract(spec: ExtractorSpec, images: list[NDArray[np.uint8]]) -> tuple[StoreMetadata, list[ImageRecord]]:
    metadata = spec.store_metadata()
    extractor = build_extractor(spec, metadata.detector["fingerprint"])
    return metadata, extractor.extract(images, [str(n) for n in range(len(images))])


@pytest.fixture(scope="module")
def images(
    tmp_path_factory: pytest.TempPathFactory, draw_pictures: Callable[..., list[Path]]
) -> list[NDArray[np.uint8]]:
    return [load_image(path) for path in draw_pictures(tmp_path_factory.mktemp("images"), 8, ((96, 80),))]


@pytest.mark.parametrize("mode", ["proposal", "refined"])
def test_records_fit_the_store_that_the_spec_describes(
    detector_dir: Path, images: list[NDArray[np.uint8]], mode: str
) -> None:
    metadata, records = extract(spec_of(detector_dir, mode), images)
    assert metadata.box_source == mode
    for record in records:
        check_record(record, metadata)
        assert (record.width, record.height) == (96, 80)
        assert 4 <= len(record.boxes) <= 8


@pytest.mark.parametrize("mode", ["proposal", "refined"])
def test_a_picture_alone_and_in_a_batch_gives_the_same_bits(
    detector_dir: Path, images: list[NDArray[np.uint8]], mode: str
) -> None:
    spec = spec_of(detector_dir, mode)
    _, together = extract(spec, images)
    for image, expected in zip(images, together, strict=True):
        (alone,) = extract(spec, [image])[1]
        for name in ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(expected, name), err_msg=name)


def test_stored_features_objects_and_attributes_belong_to_the_stored_boxes(
    detector_dir: Path, images: list[NDArray[np.uint8]]
) -> None:
    """Pool each stored box once more, by itself, and ask the heads again."""
    _, records = extract(spec_of(detector_dir), images[:2])
    detector = load_detector(detector_dir).detector
    for image, record in zip(images, records, strict=False):
        with torch.inference_mode():
            batch = detector.prepare([image])
            boxes = detector.to_network(torch.from_numpy(record.boxes), batch, 0)
            outputs = detector.regions(detector.feature_map(batch), batch, [boxes])
            probs = outputs.class_logits.softmax(1)[:, 1:]
            assert record.object_ids is not None
            assert record.object_scores is not None
            attributes = detector.attribute_logits(outputs.features, torch.from_numpy(record.object_ids) + 1)
        np.testing.assert_allclose(record.features, outputs.features, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(record.object_ids, probs.argmax(1))
        np.testing.assert_allclose(record.object_scores, probs.amax(1), rtol=1e-3)
        np.testing.assert_array_equal(record.attribute_ids, attributes.argmax(1))


def test_proposals_are_kept_as_the_selection_says(
    detector_dir: Path, images: list[NDArray[np.uint8]]
) -> None:
    _, (record,) = extract(spec_of(detector_dir), images[:1])
    detector = load_detector(detector_dir).detector
    with torch.inference_mode():
        batch = detector.prepare(images[:1])
        feature_map = detector.feature_map(batch)
        (boxes,) = detector.propose(feature_map, batch)
        probs = detector.regions(feature_map, batch, [boxes]).class_logits.softmax(1)
        kept = select_regions(boxes, probs, SELECTION)
        expected = detector.to_original(boxes[kept], batch, 0)
    np.testing.assert_array_equal(record.boxes, expected)


def test_refined_boxes_are_other_boxes_with_features_of_their_own(
    detector_dir: Path, images: list[NDArray[np.uint8]]
) -> None:
    proposals, refined = (
        extract(spec_of(detector_dir, mode), images[:1])[1][0] for mode in ("proposal", "refined")
    )
    overlap = pairwise_iou(torch.from_numpy(proposals.boxes), torch.from_numpy(refined.boxes))
    assert overlap.amax(0).min() < 0.999
    detector = load_detector(detector_dir).detector
    with torch.inference_mode():
        batch = detector.prepare(images[:1])
        boxes = detector.to_network(torch.from_numpy(refined.boxes), batch, 0)
        features = detector.regions(detector.feature_map(batch), batch, [boxes]).features
    np.testing.assert_allclose(refined.features, features, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["proposal", "refined", "regressed"])
def test_too_few_proposals_are_completed_by_parts_of_the_picture(
    detector_dir: Path, images: list[NDArray[np.uint8]], mode: Any
) -> None:
    detector = load_detector(detector_dir).detector
    fewer = SelectionConfig(min_regions=1, max_regions=40, score_thresh=0.0)
    asked = SelectionConfig(min_regions=30, max_regions=40, score_thresh=0.0)  # it proposes 20 at most
    records = RegionExtractor(detector, fewer, mode=mode).extract(images[:2], ["a", "b"])
    completed = RegionExtractor(detector, asked, mode=mode).extract(images[:2], ["a", "b"])
    for record, full in zip(records, completed, strict=True):
        found = len(record.boxes)
        assert 0 < found <= 20
        assert len(full.boxes) == 30
        np.testing.assert_array_equal(full.boxes[:found], record.boxes)
        np.testing.assert_array_equal(full.features[:found], record.features)
        width, height = record.width, record.height
        np.testing.assert_allclose(full.boxes[found], [0, 0, width, height])
        np.testing.assert_allclose(full.boxes[found + 1], [0, 0, width / 2, height / 2])


def test_regressed_boxes_stand_beside_the_features_of_their_proposals(
    detector_dir: Path, images: list[NDArray[np.uint8]]
) -> None:
    """Every feature is that of some proposal, and its box is the proposal moved."""
    _, (record,) = extract(spec_of(detector_dir, "regressed"), images[:1])
    detector = load_detector(detector_dir).detector
    with torch.inference_mode():
        batch = detector.prepare(images[:1])
        feature_map = detector.feature_map(batch)
        (boxes,) = detector.propose(feature_map, batch)
        outputs = detector.regions(feature_map, batch, [boxes])
        objects = outputs.class_logits[:, 1:].argmax(1)
        moved = detector.to_original(
            detector.refine(outputs.box_deltas, boxes, objects + 1, batch), batch, 0
        ).numpy()
    for box, feature in zip(record.boxes, record.features, strict=True):
        (proposal,) = np.flatnonzero((outputs.features.numpy() == feature).all(1))
        np.testing.assert_array_equal(moved[proposal], box)
    assert np.abs(moved - detector.to_original(boxes, batch, 0).numpy()).max() > 1


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3)])
@pytest.mark.parametrize("mode", ["proposal", "refined"])
def test_extreme_shapes_give_records_that_the_store_takes(
    detector_dir: Path, size: tuple[int, int], mode: str
) -> None:
    metadata, (record,) = extract(spec_of(detector_dir, mode), [np.full((*size, 3), 90, np.uint8)])
    check_record(record, metadata)


def test_weights_that_changed_since_the_job_began_are_refused(detector_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="the job began with 000000"):
        build_extractor(spec_of(detector_dir), "0" * 64)


def test_the_network_is_loaded_once_a_process(detector_dir: Path) -> None:
    spec = spec_of(detector_dir)
    fingerprint = spec.store_metadata().detector["fingerprint"]
    assert build_extractor(spec, fingerprint) is build_extractor(spec, fingerprint)


@pytest.mark.parametrize("mode", ["proposal", "refined", "regressed"])
def test_boxes_alone_are_those_that_come_with_features(detector_dir: Path, mode: BoxSource) -> None:
    selection = SelectionConfig(min_regions=4, max_regions=8)
    whole = ExtractorSpec(weights=str(detector_dir), mode=mode, selection=selection)
    alone = replace(whole, features=False)
    assert (whole.store_metadata().feature_dim, alone.store_metadata().feature_dim) == (24, 0)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    records = []
    for spec in (whole, alone):
        metadata = spec.store_metadata()
        records += build_extractor(spec, metadata.detector["fingerprint"]).extract([image], ["a"])
        check_record(records[-1], metadata)
    assert records[1].features.shape == (len(records[0].boxes), 0)
    np.testing.assert_array_equal(records[0].boxes, records[1].boxes)
    assert records[0].object_ids is not None
    assert records[1].object_ids is not None
    np.testing.assert_array_equal(records[0].object_ids, records[1].object_ids)


def test_boxes_alone_are_a_detectors_own() -> None:
    with pytest.raises(ConfigError, match="mode 'grid' has no boxes of its own"):
        ExtractorSpec(weights="x", mode="grid", cells=(2, 2), features=False)
