"""torchvision's COCO detectors as backbone, proposals and region head of our assembly.

The modules are torchvision's own, so that its weights answer as there; only what follows the heads is ours, since
torchvision's assembly does not say which proposal a detection came from. The maps of a feature pyramid travel as
`Levels`. For inference: training goes through the other backbones.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork as TorchvisionRpn
from torchvision.models.detection.rpn import concat_box_prediction_layers

from stage1_detect.config import DetectorConfig

_DIVISIBLE = 32
"""Pictures are padded to sides that this number divides, each by itself, as torchvision does."""


@dataclass(frozen=True)
class Levels:
    """A feature pyramid of a batch: maps of falling size by their names."""

    maps: "OrderedDict[str, Tensor]"
    padded_size: tuple[int, int]
    """(height, width) of the picture that the maps belong to, padding included."""

    def __getitem__(self, pictures: slice) -> "Levels":
        return self.each(lambda level: level[pictures])

    def each(self, change: Callable[[Tensor], Tensor]) -> "Levels":
        """The levels with a function applied to each map."""
        return Levels(OrderedDict((n, change(m)) for n, m in self.maps.items()), self.padded_size)

    def coarsest(self, size: tuple[int, int]) -> Tensor:
        """The coarsest map that is no pooled copy of another, without the cells of the padding alone."""
        level = [level for name, level in self.maps.items() if name != "pool"][-1]
        rows, columns = (
            -(-side * cells // padded)
            for side, cells, padded in zip(size, level.shape[2:], self.padded_size, strict=True)
        )
        return level[:, :, :rows, :columns]


class PyramidBackbone(nn.Module):
    """A pyramid of `channels` at each level; the coarsest with content of its own serves as a grid."""

    channels = 256

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Levels:
        """[B, 3, h, w] to the levels."""
        height, width = (-(-side // _DIVISIBLE) * _DIVISIBLE for side in images.shape[2:])
        padded = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
        return Levels(self.body(padded), (height, width))


class PyramidProposals(nn.Module):
    """torchvision's region proposal network."""

    def __init__(self, rpn: TorchvisionRpn) -> None:
        super().__init__()
        self.rpn = rpn

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def proposals(self, levels: Levels, sizes: list[tuple[int, int]], scales: list[float]) -> list[Tensor]:
        """Boxes [P, 4] of each picture in network pixels, best first; the scales do not matter here."""
        maps = [level[: len(sizes)] for level in levels.maps.values()]
        logits, deltas = self.rpn.head(maps)
        pictures = ImageList(torch.empty(len(sizes), 0, *levels.padded_size), sizes)
        anchors = self.rpn.anchor_generator(pictures, maps)
        numbers = [level[0].numel() for level in logits]
        logits, deltas = concat_box_prediction_layers(logits, deltas)
        moved = self.rpn.box_coder.decode(deltas, anchors).view(len(sizes), -1, 4)
        boxes: list[Tensor] = self.rpn.filter_proposals(moved, logits, sizes, numbers)[0]
        return boxes


class PyramidHead(nn.Module):
    """torchvision's region head; the feature is what classes and boxes are linear in."""

    attributes = None

    def __init__(self, heads: RoIHeads) -> None:
        super().__init__()
        self.pooler = heads.box_roi_pool
        self.trunk = heads.box_head
        self.predictor = heads.box_predictor
        self.feature_dim = heads.box_predictor.cls_score.in_features

    def region_map(self, feature_map: Any) -> Any:  # noqa: ANN401  (levels here, a map in other detectors)
        """The maps that regions are pooled from."""
        return feature_map

    def pool(self, region_map: Any, boxes: list[Tensor]) -> Tensor:  # noqa: ANN401
        """[n, c, s, s] from each picture's boxes [P, 4] in network pixels."""
        pooled: Tensor = self.pooler(region_map.maps, boxes, [region_map.padded_size] * len(boxes))
        return pooled

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [n, D], class logits [n, C], box deltas [n, C, 4]."""
        features = self.trunk(pooled)
        logits, deltas = self.predictor(features)
        return features, logits, deltas.unflatten(1, (-1, 4))


def build_parts(
    config: DetectorConfig, num_classes: int
) -> tuple[PyramidBackbone, PyramidProposals, PyramidHead]:
    """Backbone, proposals and head of the detector that the config names; weights from torch's generator."""
    network = build_network(config.backbone, num_classes)
    return PyramidBackbone(network.backbone), PyramidProposals(network.rpn), PyramidHead(network.roi_heads)


def build_network(name: str, num_classes: int) -> FasterRCNN:
    """torchvision's detector with ordinary BatchNorm, which can be folded, where its own is frozen."""
    network: FasterRCNN = models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
    if name == "fasterrcnn_resnet50_fpn":  # torchvision sets this for the weights that it publishes
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
    return network
