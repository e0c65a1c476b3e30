"""From pictures in memory to the records of the store.

An extractor takes pictures of one network size and gives each its regions. The network is loaded once a process,
whatever number of blocks it works on. A picture's record does not depend on the pictures beside it.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_detect import transform
from stage1_detect.classifier import Classifier, load_classifier
from stage1_detect.config import SelectionConfig
from stage1_detect.detector import Detector, load_detector
from stage1_detect.given import GivenBoxExtractor
from stage1_detect.grid import GridExtractor
from stage1_detect.heads import RegionOutputs
from stage1_detect.select import predicted_objects, select_regions
from stage1_detect.spec import ExtractorSpec, classifier_fingerprint
from stage1_detect.transform import ImageBatch
from store_schema.errors import CheckpointError
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


class RegionExtractor:
    """The detector's own regions, with objects and, where it has a head for them, attributes.

    Where it proposes fewer than `min_regions`, those that there are become regions: none is made up.
    """

    def __init__(self, detector: Detector, selection: SelectionConfig, *, refined: bool) -> None:
        """Keep the proposals, or (`refined`) move their boxes first and pool the kept ones again."""
        self.detector = detector
        self.selection = selection
        self.refined = refined

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees of a picture."""
        return transform.network_size(height, width, self.detector.config)

    @torch.inference_mode()
    def extract(self, images: Sequence[NDArray[np.uint8]], image_ids: Sequence[str]) -> list[ImageRecord]:
        """One record for each RGB picture [H, W, 3]; all must have one network size."""
        detector = self.detector
        batch = detector.prepare(images)
        feature_map = detector.feature_map(batch)
        proposals = [self._real(b, batch, i) for i, b in enumerate(detector.propose(feature_map, batch))]
        outputs = detector.regions(feature_map, batch, proposals)
        kept, regions = self._choose(feature_map, batch, proposals, outputs)
        features = torch.split(regions.features, regions.regions_per_image)
        probs = torch.split(regions.class_logits.softmax(1), regions.regions_per_image)
        return [
            self._record(image_id, batch, index, kept[index], features[index], probs[index])
            for index, image_id in enumerate(image_ids)
        ]

    def _choose(
        self, feature_map: Tensor, batch: ImageBatch, proposals: list[Tensor], outputs: RegionOutputs
    ) -> tuple[list[Tensor], RegionOutputs]:
        """The boxes [K, 4] that each picture keeps, and what the head says of these."""
        sizes = outputs.regions_per_image
        probs = torch.split(outputs.class_logits.softmax(1), sizes)
        if not self.refined:
            kept = [select_regions(*pair, self.selection) for pair in zip(proposals, probs, strict=True)]
            starts = np.cumsum([0, *sizes[:-1]]).tolist()
            rows = torch.cat([index + start for index, start in zip(kept, starts, strict=True)])
            boxes = [box[index] for box, index in zip(proposals, kept, strict=True)]
            features, logits, deltas = (part[rows] for part in outputs[:3])
            return boxes, RegionOutputs(features, logits, deltas, [len(box) for box in boxes])
        boxes = []
        for index, (box, prob, delta) in enumerate(
            zip(proposals, probs, torch.split(outputs.box_deltas, sizes), strict=True)
        ):
            # Moved as their best class asks; what they then hold is seen by pooling again.
            moved = self.detector.refine(delta, box, predicted_objects(prob)[0] + 1, batch)
            real = _inside(self.detector.to_original(moved, batch, index))
            boxes.append(moved[real][select_regions(moved[real], prob[real], self.selection)])
        return boxes, self.detector.regions(feature_map, batch, boxes)

    def _real(self, boxes: Tensor, batch: ImageBatch, index: int) -> Tensor:
        """Without the boxes that are empty once they are in pixels of the original."""
        return boxes[_inside(self.detector.to_original(boxes, batch, index))]

    def _record(
        self, image_id: str, batch: ImageBatch, index: int, boxes: Tensor, features: Tensor, probs: Tensor
    ) -> ImageRecord:
        height, width = batch.sizes[index]
        object_ids, object_scores = predicted_objects(probs)
        attribute_ids = attribute_scores = None
        if self.detector.num_attributes:
            attribute_probs = self.detector.attribute_logits(features, object_ids + 1).softmax(1)
            attribute_scores, attribute_ids = attribute_probs.max(1)
        return ImageRecord(
            image_id=image_id,
            width=width,
            height=height,
            boxes=self.detector.to_original(boxes, batch, index).cpu().numpy(),
            features=features.cpu().numpy(),
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
    return RegionExtractor(network, spec.selection, refined=spec.mode == "refined")


def _inside(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] < boxes[:, 2:]).all(1)
