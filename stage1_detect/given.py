"""Regions whose boxes were found elsewhere: ground truth, or another detector's.

Features are pooled from a trained detector, as its own regions are, or averaged over the box from a pretrained
classifier's map. Objects and scores are those that came with the boxes; there are no attributes.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

from stage1_detect import transform
from stage1_detect.box_tables import BoxTable, GivenBoxes, box_names, is_table
from stage1_detect.classifier import Classifier
from stage1_detect.detector import Detector
from stage1_detect.fastestdet import FastestDet
from stage1_detect.spec import GivenBoxesConfig
from stage1_detect.transform import ImageBatch
from store_schema.records import ImageRecord

FindBoxes = Callable[[str, NDArray[np.uint8]], GivenBoxes]
"""The boxes of a picture, from its id and its pixels [H, W, 3]."""

_BINS = 4
"""A classifier's map is sampled at so many bins along each side of a box, 2 x 2 points each, and averaged."""


class GivenBoxExtractor:
    """The best given boxes of each picture, highest score first, after one box around the whole picture."""

    def __init__(self, network: Detector | Classifier, config: GivenBoxesConfig) -> None:
        """Open the boxes. Errors: those of `BoxTable` and `FastestDet`."""
        self.network = network
        self.config = config
        self._source = _open_source(config)
        self._picture_id = len(box_names(config.path, whole_picture=False))

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees of a picture."""
        return transform.network_size(height, width, self.network.config)

    @torch.inference_mode()
    def extract(self, images: Sequence[NDArray[np.uint8]], image_ids: Sequence[str]) -> list[ImageRecord]:
        """One record for each RGB picture [H, W, 3]; all must have one network size."""
        given = [
            self._choose(self._source(image_id, image), image.shape[0], image.shape[1])
            for image, image_id in zip(images, image_ids, strict=True)
        ]
        batch = self.network.prepare(images)
        feature_map = self.network.feature_map(batch)
        boxes = [
            transform.to_network_boxes(torch.from_numpy(item.boxes).to(batch.scales.device), batch, index)
            for index, item in enumerate(given)
        ]
        features = pool_boxes(self.network, feature_map, batch, boxes).cpu().numpy()
        parts = np.split(features, np.cumsum([len(item.boxes) for item in given])[:-1])
        return [
            ImageRecord(
                image_id=image_id,
                width=image.shape[1],
                height=image.shape[0],
                boxes=item.boxes,
                features=part,
                object_ids=item.object_ids,
                object_scores=item.scores,
            )
            for image, image_id, item, part in zip(images, image_ids, given, parts, strict=True)
        ]

    def _choose(self, given: GivenBoxes, height: int, width: int) -> GivenBoxes:
        """Cut the boxes to the picture, drop the empty and the unsure, keep the best; the whole picture first."""
        boxes = np.minimum(given.boxes, np.array([width, height, width, height], np.float32))
        real = (boxes[:, :2] < boxes[:, 2:]).all(1) & (given.scores >= self.config.score_thresh)
        order = np.argsort(-given.scores[real], kind="stable")[
            : self.config.max_regions - self.config.whole_picture
        ]
        kept = np.flatnonzero(real)[order]
        boxes, object_ids, scores = boxes[kept], given.object_ids[kept], given.scores[kept]
        if self.config.whole_picture:
            boxes = np.concatenate([np.array([[0, 0, width, height]], np.float32), boxes])
            object_ids = np.concatenate([[self._picture_id], object_ids])
            scores = np.concatenate([np.ones(1, np.float32), scores])
        return GivenBoxes(boxes, object_ids, scores)


def pool_boxes(
    network: Detector | Classifier, feature_map: Tensor, batch: ImageBatch, boxes: Sequence[Tensor]
) -> Tensor:
    """Features [n, D] of each picture's boxes [n_i, 4] in network pixels, in the order of the pictures."""
    if isinstance(network, Detector):
        return network.regions(feature_map, batch, boxes).features
    height, width = batch.network_size
    # The map's size is rounded up, so that its cells are a little less than the stride.
    scale = feature_map.new_tensor([feature_map.shape[3] / width, feature_map.shape[2] / height]).repeat(2)
    cells = [box * scale for box in boxes]
    pooled: Tensor = roi_align(feature_map.contiguous(), cells, _BINS, 1.0, sampling_ratio=2, aligned=True)
    return pooled.mean((2, 3))


def _open_source(config: GivenBoxesConfig) -> FindBoxes:
    if is_table(config.path):
        table = BoxTable(config.path)
        return lambda image_id, _: table.boxes_of(image_id)
    finder = FastestDet(config.path, score_thresh=config.score_thresh, nms_thresh=config.nms_thresh)
    return lambda _, image: finder.find(image)
