"""torchvision's COCO detectors in our assembly answer as torchvision's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.faster_rcnn import FasterRCNN

from pipeline.conversion import convert
from stage1_detect.config import TORCHVISION_SIZES, DetectorConfig, SelectionConfig
from stage1_detect.detector import Detector, load_detector
from stage1_detect.extract import RegionExtractor
from stage1_detect.grid import GridExtractor
from stage1_detect.torchvision_parts import build_network
from store_schema.errors import CheckpointError, ConfigError, UsageError

SMALLEST = "fasterrcnn_mobilenet_v3_large_320_fpn"


def lively(network: FasterRCNN) -> FasterRCNN:
    """Statistics as after training, and heads that tell regions apart."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=4)
    nn.init.normal_(network.rpn.head.cls_logits.weight, std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[FasterRCNN, Path]:
    """The smallest of them, and its state dict as torchvision publishes it: without counters."""
    torch.manual_seed(0)
    network = lively(build_network(SMALLEST, 91))
    path = tmp_path_factory.mktemp("coco") / f"{SMALLEST}-907ea3f9.pth"
    torch.save({n: t for n, t in network.state_dict().items() if "num_batches" not in n}, path)
    return network, path


def test_detections_equal_torchvisions(published: tuple[FasterRCNN, Path], tmp_path: Path) -> None:
    network, path = published
    convert(path, tmp_path / "model", "torchvision")
    loaded = load_detector(tmp_path / "model")
    assert loaded.object_names[:2] == ("person", "bicycle")
    assert len(loaded.object_names) == 90
    assert loaded.attribute_names == ()
    thresh = 0.2
    loaded.detector.config = DetectorConfig.torchvision(
        SMALLEST,  # type: ignore[arg-type]
        detection_score_thresh=thresh,
        max_detections=5000,
    )
    network.roi_heads.score_thresh, network.roi_heads.detections_per_img = thresh, 5000
    rng = np.random.default_rng(0)
    for size in ((200, 330), (97, 64)):
        patches = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        image = np.array(patches.resize(size[::-1], Image.Resampling.BICUBIC))
        with torch.no_grad():
            expected = network([torch.from_numpy(image.copy()).permute(2, 0, 1) / 255])[0]
        (found,) = loaded.detector.detect([image])
        assert len(found.scores) > 3
        torch.testing.assert_close(found.scores, expected["scores"], atol=1e-4, rtol=1e-4)
        # Scores of exactly 1 tie, so that the order among them is open: boxes with their labels as sets.
        ours = torch.cat([found.boxes, 1000.0 * (found.class_ids + 1)[:, None]], 1)
        theirs = torch.cat([expected["boxes"], 1000.0 * expected["labels"][:, None]], 1)
        distance = torch.cdist(ours, theirs, p=float("inf"))
        assert distance.amin(1).max() < 0.1
        assert distance.amin(0).max() < 0.1


def test_regions_of_a_pyramid_do_not_depend_on_company() -> None:
    torch.manual_seed(0)
    detector = Detector(DetectorConfig.torchvision(SMALLEST), num_objects=4).eval()  # type: ignore[arg-type]
    nn.init.normal_(detector.head.predictor.cls_score.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    extractor = RegionExtractor(detector, SelectionConfig(min_regions=5, max_regions=5))
    for size in ((64, 70), (2, 300)):
        images = list(np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8))
        together = extractor.extract(images, ["a", "b"])
        for image, expected in zip(images, together, strict=True):
            (alone,) = extractor.extract([image], ["a"])
            assert alone.features.shape == (5, 1024)
            np.testing.assert_array_equal(alone.features, expected.features)
            np.testing.assert_array_equal(alone.boxes, expected.boxes)
            assert alone.attribute_ids is None
    (record,) = GridExtractor(detector, (2, 3)).extract(images[:1], ["a"])
    assert record.features.shape == (6, detector.config.map_channels)


@pytest.mark.parametrize("name", list(TORCHVISION_SIZES))
def test_an_assembly_has_exactly_torchvisions_tensors(name: Any) -> None:
    with torch.device("meta"):
        ours = Detector(DetectorConfig.torchvision(name), num_objects=90).state_dict()
        theirs = build_network(name, 91).state_dict()
    assert sorted(tuple(t.shape) for t in ours.values()) == sorted(tuple(t.shape) for t in theirs.values())


def test_foreign_and_ambiguous_files_are_named(published: tuple[FasterRCNN, Path], tmp_path: Path) -> None:
    _, path = published
    renamed = tmp_path / "coco.pth"
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"may be any of .*--set name="):
        convert(renamed, tmp_path / "a", "torchvision")
    with pytest.raises(UsageError, match="must be one of"):
        convert(renamed, tmp_path / "b", "torchvision", ["name=vgg"])
    with pytest.raises(CheckpointError, match="not those of fasterrcnn_resnet50_fpn"):
        convert(renamed, tmp_path / "c", "torchvision", ["name=fasterrcnn_resnet50_fpn"])
    assert not any((tmp_path / name).exists() for name in "abc")


def test_settings_that_torchvisions_modules_would_not_read_are_refused() -> None:
    with pytest.raises(ConfigError, match="rpn_nms_thresh has no effect"):
        DetectorConfig.torchvision(SMALLEST, rpn_nms_thresh=0.5)  # type: ignore[arg-type]
