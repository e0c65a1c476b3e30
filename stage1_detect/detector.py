"""The detector: pictures in, proposals and what is known of each region out.

The parts are called one by one, in the order in which they stand in `Detector`, because extraction needs
what torchvision's assembly hides: which proposal each feature, class and attribute belongs to. Pictures are
batched at equal network size only, and each picture's regions go through the head alone, so that company
does not change a feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import batched_nms

from stage1_detect import transform
from stage1_detect.backbones import (
    MobileNetC4,
    ResNetC4,
    SmallBackbone,
    build_backbone,
    fold_batch_norm,
)
from stage1_detect.boxes import as_continuous, clip, decode, pairwise_iou
from stage1_detect.config import TORCHVISION_SIZES, DetectorConfig, SelectionConfig
from stage1_detect.heads import RegionHead, RegionOutputs
from stage1_detect.proposals import RegionProposalNetwork
from stage1_detect.select import select_regions
from stage1_detect.torchvision_parts import (
    Levels,
    PyramidBackbone,
    PyramidHead,
    PyramidProposals,
    build_parts,
)
from stage1_detect.transform import ImageBatch
from store_schema.artifacts import find_model_dir, model_fingerprint, read_model_json
from store_schema.errors import CheckpointError


@dataclass(frozen=True)
class Detections:
    """What the detector says of one picture, best first: for evaluation, not for the store."""

    boxes: Tensor
    """[n, 4] pixels of the original picture, refined for the class."""
    class_ids: Tensor
    """[n] int64, 0-based among the object names (no background)."""
    scores: Tensor
    """[n] float32, the class's probability."""
    proposals: Tensor
    """[n] int64, the proposal that each was moved from; one may appear in several classes."""


class Detector(nn.Module):
    """Faster R-CNN with an attribute head, assembled from a configuration; weights from torch's generator."""

    def __init__(self, config: DetectorConfig, *, num_objects: int, num_attributes: int = 0) -> None:
        """Build with random weights; `num_objects` without background, 0 attributes for no attribute head."""
        super().__init__()
        self.config = config
        self.num_objects = num_objects
        self.num_attributes = num_attributes
        self.backbone: SmallBackbone | MobileNetC4 | ResNetC4 | PyramidBackbone
        self.rpn: RegionProposalNetwork | PyramidProposals
        self.head: RegionHead | PyramidHead
        if config.backbone in TORCHVISION_SIZES:
            self.backbone, self.rpn, self.head = build_parts(config, num_objects + 1)
            return
        self.backbone, conv5 = build_backbone(config)
        channels, stride = self.backbone.channels, self.backbone.stride
        self.rpn = RegionProposalNetwork(config, channels=channels, stride=stride)
        self.head = RegionHead(
            config,
            channels=channels,
            stride=stride,
            num_classes=num_objects + 1,
            num_attributes=num_attributes,
            conv5=conv5,
        )

    @property
    def backbone_channels(self) -> int:
        """Channels of the feature map."""
        return self.backbone.channels

    @property
    def feature_dim(self) -> int:
        """D, the size of a region's feature."""
        return self.head.feature_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.rpn.device

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> ImageBatch:
        """One batch of RGB pictures [H, W, 3]. Errors: `ValueError` where their network sizes differ."""
        return transform.prepare(images, self.config, self.device)

    def prepare_groups(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageBatch]:
        """Batches of equal network size that together hold every picture; `indices` says which."""
        groups = transform.group_by_size(images, self.config)
        return [transform.prepare([images[i] for i in g], self.config, self.device, g) for g in groups]

    def feature_map(self, batch: ImageBatch) -> Tensor:
        """[B, C, h, w], the backbone's map; the `Levels` of a pyramid, which the other methods take as well."""
        images = transform.in_company(batch.images, batch)
        features: Tensor = self.backbone(images)
        return features[: len(batch)]

    def grid_map(self, batch: ImageBatch) -> Tensor:
        """[B, C, h, w], the map whose cells are grid features: of a pyramid its coarsest level."""
        feature_map: Tensor | Levels = self.feature_map(batch)
        return feature_map.coarsest(batch.network_size) if isinstance(feature_map, Levels) else feature_map

    def propose(self, feature_map: Tensor, batch: ImageBatch) -> list[Tensor]:
        """Each picture's proposals [P, 4] in network pixels, best first; P differs and may be 0."""
        sizes, scales = [batch.network_size] * len(batch), batch.scales[:, 0].tolist()
        return self.rpn.proposals(_in_company(feature_map, batch), sizes, scales)

    def regions(self, feature_map: Tensor, batch: ImageBatch, boxes: Sequence[Tensor]) -> RegionOutputs:
        """Feature, class and box of each region, from each picture's boxes [P, 4] in network pixels."""
        if len(boxes) != len(batch):
            raise ValueError(f"{len(batch)} pictures need {len(batch)} lists of boxes, {len(boxes)} came")
        region_map = self.head.region_map(_in_company(feature_map, batch))
        outputs = [
            self.head(self.head.pool(region_map[i : i + 1], [part]))
            for i, picture_boxes in enumerate(boxes)
            for part in self._at_once(picture_boxes)
        ]
        features, logits, deltas = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return RegionOutputs(features, logits, deltas, [len(b) for b in boxes])

    def attribute_logits(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """[n, A] from features [n, D] and class ids [n] int64 with background 0 (object id + 1), without "none"."""
        logits = self._attribute_columns(features, class_ids)
        return logits[:, 1:] if self.config.no_attribute != "absent" else logits

    def attribute_probs(self, features: Tensor, class_probs: Tensor) -> Tensor:
        """[n, A], the probability of each attribute, from features [n, D] and class probabilities [n, C].

        Of a head that counts "none", what is missing to 1 is its share.
        """
        foreground = class_probs[:, 1:].argmax(1) + 1
        class_ids = class_probs.argmax(1) if self.config.background_embedding else foreground
        if self.config.no_attribute == "counted":
            return self._attribute_columns(features, class_ids).softmax(1)[:, 1:]
        return self.attribute_logits(features, class_ids).softmax(1)

    def refine(self, box_deltas: Tensor, boxes: Tensor, class_ids: Tensor, batch: ImageBatch) -> Tensor:
        """Boxes [n, 4] moved by the deltas [n, C or 1, 4] of the given classes [n] and cut to the picture."""
        if box_deltas.shape[1] == 1:
            chosen = box_deltas[:, 0]
        else:
            chosen = box_deltas[torch.arange(len(boxes), device=boxes.device), class_ids]
        config = self.config
        inclusive = config.box_convention == "inclusive"
        moved = decode(chosen, boxes, config.box_weights, inclusive=inclusive, clamp=config.clamp_deltas)
        return clip(moved, batch.network_size, inclusive=inclusive)

    def to_original(self, boxes: Tensor, batch: ImageBatch, index: int) -> Tensor:
        """Boxes [n, 4] of the batch's picture `index`, from network pixels to pixels of the original."""
        return transform.to_original(boxes, batch, index)

    def to_network(self, boxes: Tensor, batch: ImageBatch, index: int) -> Tensor:
        """Boxes [n, 4] of the batch's picture `index`, from pixels of the original to network pixels."""
        return transform.to_network_boxes(boxes, batch, index)

    def select(
        self, boxes: Tensor, class_probs: Tensor, selection: SelectionConfig, batch: ImageBatch, index: int
    ) -> Tensor:
        """`select_regions` by this detector's rules: which boxes of the batch's picture `index` become regions.

        Args:
            boxes: [P, 4] in network pixels; inclusive ones are compared in the original's, as the Caffe release does.
            class_probs: [P, C], background 0.
        """
        inclusive = self.config.box_convention == "inclusive"
        compared = self.to_original(boxes, batch, index) if inclusive else boxes
        ties = self.config.equal_scores
        return select_regions(compared, class_probs, selection, inclusive=inclusive, ties=ties)

    @torch.no_grad()
    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Refined boxes of each picture with their classes, thinned class by class."""
        found: dict[int, Detections] = {}
        for batch in self.prepare_groups(images):
            feature_map = self.feature_map(batch)
            proposals = self.propose(feature_map, batch)
            detections = self.detections(proposals, self.regions(feature_map, batch, proposals), batch)
            found.update(zip(batch.indices, detections, strict=True))
        return [found[index] for index in range(len(images))]

    @torch.no_grad()
    def detections(
        self, proposals: list[Tensor], outputs: RegionOutputs, batch: ImageBatch
    ) -> list[Detections]:
        """`detect` from what the head said of each picture's proposals."""
        logits = torch.split(outputs.class_logits, outputs.regions_per_image)
        deltas = torch.split(outputs.box_deltas, outputs.regions_per_image)
        return [self._detections(p, logits[i], deltas[i], batch, i) for i, p in enumerate(proposals)]

    def _detections(
        self, proposals: Tensor, class_logits: Tensor, deltas: Tensor, batch: ImageBatch, index: int
    ) -> Detections:
        config = self.config
        probs = class_logits.softmax(1)[:, 1:]
        region, class_ids = (probs > config.detection_score_thresh).nonzero(as_tuple=True)
        scores = probs[region, class_ids]
        boxes = self.refine(deltas[region], proposals[region], class_ids + 1, batch)
        counted = as_continuous(boxes) if config.box_convention == "inclusive" else boxes
        keep = batched_nms(counted, scores, class_ids, config.detection_nms_thresh)[: config.max_detections]
        kept = boxes[keep]
        if config.detection_vote_iou and len(keep):
            of_class = class_ids[keep][:, None] == class_ids
            kept = _voted(kept, boxes, scores * of_class, config.detection_vote_iou)
        return Detections(self.to_original(kept, batch, index), class_ids[keep], scores[keep], region[keep])

    def _attribute_columns(self, features: Tensor, class_ids: Tensor) -> Tensor:
        if self.head.attributes is None:
            raise ValueError("this detector has no attribute head")
        logits: Tensor = self.head.attributes(features, class_ids)
        return logits

    def _at_once(self, boxes: Tensor) -> tuple[Tensor, ...]:
        """A picture's boxes in parts, where each is so large in memory that all at once would not fit."""
        return (
            torch.split(boxes, _REGIONS_AT_ONCE) if self.config.head == "conv5" and len(boxes) else (boxes,)
        )


def _voted(kept: Tensor, boxes: Tensor, weights: Tensor, least_iou: float) -> Tensor:
    """[k, 4] means of boxes [n, 4] by weights [k, n] over those that overlap kept ones [k, 4] enough, these included.

    Several proposals of an object are moved onto it with errors of their own, which average out. On scenes: map .7885
    without, .7985, .8014 and .8035 from an overlap of .6, .7 and .8 on; map_50 .970 to .971.
    """
    votes = (pairwise_iou(kept, boxes) >= least_iou) * weights
    total = votes.sum(1, keepdim=True)  # 0 for a box without area
    return torch.where(total > 0, votes @ boxes / total.clamp(min=1e-12), kept)


def _in_company(feature_map: Any, batch: ImageBatch) -> Any:  # noqa: ANN401  (a map, or a pyramid's levels)
    if isinstance(feature_map, Levels):
        return feature_map.each(lambda level: transform.in_company(level, batch))
    return transform.in_company(feature_map, batch)


_REGIONS_AT_ONCE = 50
"""300 regions of a ResNet-101 C4 at once take 2 GB, 50 take a sixth of it and no longer."""


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector with what is needed to use it and to say later which it was."""

    detector: Detector
    object_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    preprocessing: dict[str, Any]
    fingerprint: str
    path: Path


def load_detector(path: str | Path, device: str | torch.device = "cpu") -> LoadedDetector:
    """Load for inference: evaluation mode, BatchNorm folded into the convolutions, channels last.

    Args:
        path: a folder with model.safetensors and model.json, a checkpoint, or a run.

    Errors: `InputNotFoundError` or `CheckpointError` where there is no detector, or one that does not fit.
    """
    model_dir = find_model_dir(Path(path))
    described = read_model_json(model_dir)
    if described.get("task") != "detector":
        raise CheckpointError(f"{model_dir}: a detector expected, model.json says {described.get('task')!r}")
    object_names, attribute_names = tuple(described["object_names"]), tuple(described["attribute_names"])
    config = DetectorConfig.from_dict(described["config"])
    detector = Detector(config, num_objects=len(object_names), num_attributes=len(attribute_names))
    try:
        detector.load_state_dict(load_file(model_dir / "model.safetensors"))
    except RuntimeError as error:
        raise CheckpointError(f"{model_dir}: the weights do not fit model.json: {error}") from error
    detector.eval().requires_grad_(False)
    fold_batch_norm(detector)
    detector.to(device).to(memory_format=torch.channels_last)
    return LoadedDetector(
        detector=detector,
        object_names=object_names,
        attribute_names=attribute_names,
        preprocessing=config.preprocessing(),
        fingerprint=model_fingerprint(model_dir),
        path=model_dir,
    )
