"""Where a detector's training starts: a classifier's weights in its backbone, and parts that do not learn.

The original starts from an ImageNet ResNet-101, keeps conv1, conv2_x and conv3_x as they are, and every BatchNorm.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stage1_detect.backbones import MobileNetC4, ResNetC4
from stage1_detect.classifier import read_body
from stage1_detect.detector import Detector
from stage1_detect.heads import RegionHead
from store_schema.errors import ConfigError
from store_schema.fingerprint import file_sha256

_CONV5 = "7."
"""A ResNet's last stage among the names of `build_body`."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What the backbone starts from and how much of it learns."""

    weights: str = ""
    """File of a classifier with the backbone's name, by torchvision's names or in their order, as `butd detect
    --classifier` takes it; empty: random. The region head's conv5 is taken from it too."""
    frozen_stages: int = 0
    """So many parts keep their weights: 1 the stem, 2 also what is at stride 4, 3 stride 8, 4 stride 16."""
    frozen_batch_norm: bool = False
    """Every BatchNorm of the backbone and conv5 keeps its statistics, scale and shift, as for small batches."""

    def __post_init__(self) -> None:
        if not 0 <= self.frozen_stages <= 4:
            raise ConfigError(f"backbone.frozen_stages must be 0 to 4, it is {self.frozen_stages}")


def load_backbone(detector: Detector, weights: str | Path) -> dict[str, str]:
    """Fill the backbone, and a conv5 head, from a classifier's file; returns the file's name and hash.

    What the detector has no place for (the classifier's last layers) is left out.

    Errors: `InputNotFoundError`; `CheckpointError` for another network's weights; `ConfigError` where the backbone is
    no classifier's.
    """
    name, backbone = detector.config.backbone, detector.backbone
    if not isinstance(backbone, ResNetC4 | MobileNetC4) or name == "bottleneck":
        raise ConfigError(f"backbone.weights has no effect with {name!r}, which is no known classifier's")
    state = read_body(weights, name)
    body = {key: tensor for key, tensor in state.items() if key in backbone.body.state_dict()}
    backbone.body.load_state_dict(body, strict=False)  # the counters of training steps stay
    if (conv5 := _conv5(detector)) is not None:
        rest = {key[len(_CONV5) :]: tensor for key, tensor in state.items() if key.startswith(_CONV5)}
        conv5.load_state_dict(rest, strict=False)
    return {"file": Path(weights).name, "sha256": file_sha256(Path(weights))}


def freeze_backbone(detector: Detector, config: BackboneConfig) -> list[nn.BatchNorm2d]:
    """Take what does not learn out of training; returns the BatchNorms that must stay in evaluation mode.

    Errors: `ConfigError` where the backbone has no stages, or nothing that is worth keeping.
    """
    if not config.frozen_stages and not config.frozen_batch_norm:
        return []
    backbone = detector.backbone
    if not isinstance(backbone, ResNetC4 | MobileNetC4):
        raise ConfigError(
            f"backbone.frozen_stages and frozen_batch_norm have no effect with {detector.config.backbone!r}, which "
            "is trained from the beginning: leave them out"
        )
    if not config.weights:
        raise ConfigError(
            "backbone.frozen_stages and frozen_batch_norm keep what backbone.weights brings, and there are none: "
            f"give a classifier's file (--set backbone.weights=...), such as torchvision's {detector.config.backbone}"
        )
    frozen: list[nn.Module] = list(backbone.body[: backbone.stage_ends[config.frozen_stages]])
    norms = [m for part in frozen for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    if config.frozen_batch_norm:
        conv5 = _conv5(detector)
        learning = [backbone.body, *([conv5] if conv5 is not None else [])]
        norms = [m for part in learning for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    for part in (*frozen, *norms):
        part.requires_grad_(False)
    return norms


def _conv5(detector: Detector) -> nn.Module | None:
    """The ResNet stage in the region head, where there is one."""
    if detector.config.head != "conv5" or not isinstance(detector.head, RegionHead):
        return None
    trunk = detector.head.trunk
    assert isinstance(trunk, nn.Sequential)
    return trunk[0]
