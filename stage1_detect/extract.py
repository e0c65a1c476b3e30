"""From pictures in memory to the records of the store.

An extractor takes pictures of one network size and gives each its regions. The network is loaded once a process,
whatever number of blocks it works on. A picture's record does not depend on the pictures beside it.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_detect import transform
from stage1_detect.boxes import clip
from stage1_detect.classifier import Classifier, load_classifier
from stage1_detect.config import SelectionConfig
from stage1_detect.detector import Detector, load_detector
from stage1_detect.given import GivenBoxExtractor
from stage1_detect.grid import GridExtractor
from stage1_detect.heads import RegionOutputs, split_regions, take_regions
from stage1_detect.select import completing_boxes, predicted_objects, select_moved
from stage1_detect.spec import ExtractorSpec, classifier_fingerprint
from stage1_detect.transform import ImageBatch
from store_schema.errors import CheckpointError
from store_schema.metadata import BoxSource
from store_schema.records import ImageRecord


class Extractor(Protocol):
    """What makes records; `build_extractor` gives one."""

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees of a picture."""
        ...

    def extract(self, images: Sequence[NDArray[np.uint8]], image_ids: Sequence[str]) -> list[ImageRecord]:
        """One record for each RGB picture [H, W, 3]; all must have one network size."""
        ...


_building = threading.Lock()


def build_extractor(spec: ExtractorSpec, fingerprint: str) -> Extractor:
    """Load the extractor of a spec, once a process; its threads share it.

    Args:
        fingerprint: of the weights, as the store's metadata has it.

    Errors: `CheckpointError` where the weights are others by now; what `load_detector`, `load_classifier`,
    `BoxTable` and `FastestDet` raise.
    """
    with _building:  # two threads would load the network twice
        return _build(spec, fingerprint)


@dataclass(frozen=True)
class Seen:
    """What a detector says of all its proposals."""

    batch: ImageBatch
    feature_map: Tensor
    proposals: list[Tensor]
    """[P, 4] of each picture, in network pixels."""
    regions: list[RegionOutputs]


class RegionExtractor:
    """The detector's own regions, with objects and, where it has a head for them, attributes.

    Where it proposes fewer than `min_regions`, parts of the picture complete them: see `completing_boxes`.
    """

    def __init__(
        self,
        detector: Detector,
        selection: SelectionConfig,
        *,
        mode: BoxSource = "proposal",
        features: bool = True,
    ) -> None:
        """Keep the proposals ("proposal"); or move their boxes and pool these ("refined"), or do not ("regressed").

        Without `features` the records' features are [n, 0]: boxes and labels alone.
        """
        self.detector = detector
        self.selection = selection
        self.mode = mode
        self.features = features
        self._inclusive = detector.config.box_convention == "inclusive"

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees of a picture."""
        return transform.network_size(height, width, self.detector.config)

    @torch.inference_mode()
    def extract(self, images: Sequence[NDArray[np.uint8]], image_ids: Sequence[str]) -> list[ImageRecord]:
        """One record for each RGB picture [H, W, 3]; all must have one network size."""
        return self.choose(self.look(images), image_ids)

    @torch.inference_mode()
    def look(self, images: Sequence[NDArray[np.uint8]]) -> Seen:
        """What the network sees, before any choice: nearly all of the time goes here."""
        detector = self.detector
        batch = detector.prepare(images)
        feature_map = detector.feature_map(batch)
        proposals = [
            boxes[_inside(detector.to_original(boxes, batch, index))]
            for index, boxes in enumerate(detector.propose(feature_map, batch))
        ]
        regions = split_regions(detector.regions(feature_map, batch, proposals))
        return Seen(batch, feature_map, proposals, regions)

    @torch.inference_mode()
    def choose(self, seen: Seen, image_ids: Sequence[str]) -> list[ImageRecord]:
        """The records of the pictures that were looked at."""
        batch, feature_map = seen.batch, seen.feature_map
        chosen = [
            self._choose(*pair, batch, index)
            for index, pair in enumerate(zip(seen.proposals, seen.regions, strict=True))
        ]
        if self.mode == "refined":
            boxes = [boxes for boxes, _ in chosen]
            pooled = split_regions(self.detector.regions(feature_map, batch, boxes))
            chosen = list(zip(boxes, pooled, strict=True))
        return [
            self._record(image_id, batch, index, *self._complete(*chosen[index], feature_map, batch, index))
            for index, image_id in enumerate(image_ids)
        ]

    def _choose(
        self, proposals: Tensor, regions: RegionOutputs, batch: ImageBatch, index: int
    ) -> tuple[Tensor, RegionOutputs]:
        """The boxes [K, 4] that a picture keeps, and what the head says of the proposals that they come from."""
        detector, selection = self.detector, self.selection
        probs = regions.class_logits.softmax(1)
        object_ids, scores = predicted_objects(probs)
        boxes = proposals
        if self.mode != "proposal" or selection.rule == "max_nms":
            moved = detector.refine(regions.box_deltas, proposals, object_ids + 1, batch)
            real = _inside(detector.to_original(moved, batch, index)).nonzero()[:, 0]
            moved, proposals, probs, scores = moved[real], proposals[real], probs[real], scores[real]
            regions = take_regions(regions, real)
            boxes = proposals if self.mode == "proposal" else moved
        if selection.rule == "max_nms":
            kept = select_moved(moved, scores, selection, inclusive=self._inclusive)
        else:
            compared = boxes if self.mode == "refined" else proposals
            kept = detector.select(compared, probs, selection, batch, index)
        return boxes[kept], take_regions(regions, kept)

    def _complete(
        self, boxes: Tensor, regions: RegionOutputs, feature_map: Tensor, batch: ImageBatch, index: int
    ) -> tuple[Tensor, RegionOutputs]:
        """The same with parts of the picture behind, up to `min_regions`."""
        missing = self.selection.min_regions - len(boxes)
        if missing <= 0:
            return boxes, regions
        parts = completing_boxes(missing, batch.network_size).to(boxes.device)
        parts = clip(parts, batch.network_size, inclusive=self._inclusive)
        empty = parts[:0]
        alone = [parts if place == index else empty for place in range(len(batch))]
        added = self.detector.regions(feature_map, batch, alone)
        pairs = zip(regions[:3], added[:3], strict=True)
        features, class_logits, box_deltas = (torch.cat(pair) for pair in pairs)
        completed = RegionOutputs(features, class_logits, box_deltas, [len(boxes) + missing])
        return torch.cat([boxes, parts]), completed

    def _record(
        self, image_id: str, batch: ImageBatch, index: int, boxes: Tensor, regions: RegionOutputs
    ) -> ImageRecord:
        height, width = batch.sizes[index]
        probs = regions.class_logits.softmax(1)
        object_ids, object_scores = predicted_objects(probs)
        attribute_ids = attribute_scores = None
        if self.detector.num_attributes:
            attribute_probs = self.detector.attribute_probs(regions.features, probs)
            attribute_scores, attribute_ids = attribute_probs.max(1)
        return ImageRecord(
            image_id=image_id,
            width=width,
            height=height,
            boxes=self.detector.to_original(boxes, batch, index).cpu().numpy(),
            features=regions.features[:, : None if self.features else 0].cpu().numpy(),
            object_ids=object_ids.cpu().numpy(),
            object_scores=object_scores.cpu().numpy(),
            attribute_ids=None if attribute_ids is None else attribute_ids.cpu().numpy(),
            attribute_scores=None if attribute_scores is None else attribute_scores.cpu().numpy(),
        )


@lru_cache(maxsize=2)
def _build(spec: ExtractorSpec, fingerprint: str) -> Extractor:
    network: Detector | Classifier
    if spec.classifier is not None:
        network = load_classifier(spec.weights, spec.classifier, spec.device)
        found = classifier_fingerprint(Path(spec.weights), spec.classifier)
    else:
        loaded = load_detector(spec.weights, spec.device)
        network, found = loaded.detector, loaded.fingerprint
    if found != fingerprint:
        raise CheckpointError(
            f"{spec.weights}: the weights are {found[:12]}, the job began with {fingerprint[:12]}; "
            "run it again with the weights it began with, or into another store"
        )
    if spec.cells is not None:
        return GridExtractor(network, spec.cells)
    if spec.boxes is not None:
        return GivenBoxExtractor(network, spec.boxes)
    assert isinstance(network, Detector)  # held by ExtractorSpec, and so is the next
    assert spec.selection is not None
    return RegionExtractor(network, spec.selection, mode=spec.mode, features=spec.features)


def _inside(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] < boxes[:, 2:]).all(1)
