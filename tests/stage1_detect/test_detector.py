import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from stage1_detect.config import DetectorConfig
from stage1_detect.detector import Detector, load_detector
from stage1_detect.heads import RegionOutputs
from store_schema.errors import CheckpointError

SMALL = DetectorConfig(
    widths=(4, 8, 8, 16), short_side=64, long_side=128, region_channels=8, hidden_dim=24, rpn_post_nms_test=20
)
C4 = DetectorConfig.resnet_c4(
    "resnet18",
    short_side=64,
    long_side=128,
    pooler_size=4,
    rpn_min_size=2.0,
    rpn_post_nms_test=10,
    rpn_channels=16,
)


def pictures(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def build(config: DetectorConfig, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return Detector(config, num_objects=5, num_attributes=4).eval()


def extract(detector: Detector, images: list[NDArray[np.uint8]]) -> list[tuple[Tensor, ...]]:
    """Of each picture: boxes, features, class logits, box deltas."""
    found: dict[int, tuple[Tensor, ...]] = {}
    with torch.inference_mode():
        for batch in detector.prepare_groups(images):
            feature_map = detector.feature_map(batch)
            boxes = detector.propose(feature_map, batch)
            outputs = detector.regions(feature_map, batch, boxes)
            parts = [torch.split(tensor, outputs.regions_per_image) for tensor in outputs[:3]]
            for i, index in enumerate(batch.indices):
                found[index] = (boxes[i], *(part[i] for part in parts))
    return [found[i] for i in range(len(images))]


@pytest.mark.parametrize("config", [SMALL, C4])
def test_a_picture_gives_the_same_bits_alone_and_in_any_batch(config: DetectorConfig) -> None:
    detector = build(config)
    images = pictures((64, 64), (64, 96), (100, 100), (64, 64), (64, 64), (96, 64), (64, 64), (64, 64))
    together = extract(detector, images)
    for image, expected in zip(images, together, strict=True):
        (alone,) = extract(detector, [image])
        assert len(alone[0]) > 0
        assert all(torch.equal(a, b) for a, b in zip(alone, expected, strict=True))


def test_outputs_have_the_promised_shapes() -> None:
    for config, deltas in ((SMALL, 1), (C4, 6)):
        detector = build(config)
        batch = detector.prepare(pictures((64, 64), (64, 64)))
        feature_map = detector.feature_map(batch)
        assert feature_map.shape[1] == detector.backbone_channels
        boxes = [torch.tensor([[4.0, 4, 30, 40]]), torch.zeros(0, 4)]
        outputs = detector.regions(feature_map, batch, boxes)
        assert outputs.features.shape == (1, detector.feature_dim)
        assert outputs.class_logits.shape == (1, 6)
        assert outputs.box_deltas.shape == (1, deltas, 4)
        assert outputs.regions_per_image == [1, 0]
        assert detector.attribute_logits(outputs.features, torch.tensor([2])).shape == (1, 4)


def test_the_attribute_depends_on_the_class() -> None:
    detector = build(SMALL)
    features = torch.randn(1, detector.feature_dim).expand(2, -1)
    one, two = detector.attribute_logits(features, torch.tensor([1, 2]))
    assert not torch.equal(one, two)


def test_a_detector_without_attributes_says_so() -> None:
    detector = Detector(SMALL, num_objects=5)
    with pytest.raises(ValueError, match="no attribute head"):
        detector.attribute_logits(torch.zeros(1, 24), torch.tensor([1]))


def test_refining_uses_the_deltas_of_the_class() -> None:
    detector = build(C4)
    batch = detector.prepare(pictures((64, 64)))
    deltas = torch.zeros(1, 6, 4)
    deltas[0, 3, 0] = 10.0  # one box width to the right, as weights are 10
    box = torch.tensor([[10.0, 10, 20, 30]])
    assert detector.refine(deltas, box, torch.tensor([3]), batch).tolist() == [[20, 10, 30, 30]]
    assert detector.refine(deltas, box, torch.tensor([2]), batch).tolist() == box.tolist()


def test_detections_are_in_the_original_picture_best_first_and_apart() -> None:
    detector = build(DetectorConfig.from_dict(SMALL.to_dict() | {"detection_score_thresh": 0.0}))
    images = pictures((200, 300), (64, 64))
    for image, found in zip(images, detector.detect(images), strict=True):
        height, width = image.shape[:2]
        assert len(found.scores) > 0
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes[:, 2] <= width).all()
        assert (found.boxes[:, 3] <= height).all()
        assert found.class_ids.min() >= 0
        assert found.class_ids.max() < 5


def outputs_for(class_logits: list[list[float]]) -> RegionOutputs:
    """Regions whose boxes stay where their proposals are."""
    n = len(class_logits)
    return RegionOutputs(torch.zeros(n, 24), torch.tensor(class_logits), torch.zeros(n, 1, 4), [n])


def test_boxes_of_a_class_that_overlap_enough_vote_by_their_scores() -> None:
    detector = build(replace(SMALL, detection_vote_iou=0.8))
    batch = detector.prepare(pictures((64, 64)))
    proposals = torch.tensor(
        [[10.0, 10, 30, 30], [11, 10, 31, 30], [10, 10, 30, 30], [10, 10, 20, 30], [40, 40, 40, 60]]
    )
    first, weaker, other, small = (
        [0.0, 9, 0, 0, 0, 0],
        [0.0, 8, 0, 0, 0, 0],
        [0.0, 0, 9, 0, 0, 0],
        [0.0, 7, 0, 0, 0, 0],
    )
    outputs = outputs_for([first, weaker, other, small, first])
    (found,) = detector.detections([proposals], outputs, batch)
    plain = build(SMALL).detections([proposals], outputs, batch)[0]
    scores = outputs.class_logits.softmax(1)[:2, 1]
    voted = (scores[:, None] * proposals[:2]).sum(0) / scores.sum()
    places = {int(p): box for p, box in zip(found.proposals, found.boxes, strict=True)}
    assert torch.allclose(places[0], voted)
    assert torch.allclose(places[2], proposals[2])  # of another class
    assert torch.equal(places[4], proposals[4])  # without area
    assert torch.equal(found.proposals, plain.proposals)
    assert torch.equal(found.scores, plain.scores)
    assert torch.equal(plain.boxes, proposals[plain.proposals])


def test_an_empty_picture_is_no_error() -> None:
    """One pixel, where no box is large enough."""
    detector = build(DetectorConfig.from_dict(SMALL.to_dict() | {"rpn_min_size": 65.0}))
    assert len(detector.detect(pictures((1, 1)))[0].boxes) == 0


def save_model(folder: Path, detector: Detector, **changes: object) -> Path:
    folder.mkdir()
    described = {
        "task": "detector",
        "config": detector.config.to_dict(),
        "object_names": ["a", "b", "c", "d", "e"],
        "attribute_names": ["p", "q", "r", "s"],
    }
    (folder / "model.json").write_text(json.dumps(described | changes))
    save_file(detector.state_dict(), folder / "model.safetensors")
    return folder


def test_a_loaded_detector_answers_as_the_trained_one(tmp_path: Path) -> None:
    detector = build(SMALL)
    with torch.no_grad():  # statistics that make folding matter
        detector.train().backbone(torch.randn(4, 3, 64, 64))
    detector.eval()
    loaded = load_detector(save_model(tmp_path / "m", detector))
    assert loaded.object_names == ("a", "b", "c", "d", "e")
    assert loaded.preprocessing["short_side"] == 64
    assert len(loaded.fingerprint) == 64
    batch = detector.prepare(pictures((64, 64)))
    boxes = [torch.tensor([[4.0, 4, 30, 40]])]

    def answer(model: Detector) -> RegionOutputs:
        return model.regions(model.feature_map(batch), batch, boxes)

    with torch.no_grad():
        torch.testing.assert_close(answer(loaded.detector)[:3], answer(detector)[:3], atol=1e-4, rtol=1e-3)


def test_a_foreign_model_is_refused(tmp_path: Path) -> None:
    detector = build(SMALL)
    with pytest.raises(CheckpointError, match="a detector expected"):
        load_detector(save_model(tmp_path / "m", detector, task="caption"))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_detector(save_model(tmp_path / "n", detector, object_names=["a"]))
