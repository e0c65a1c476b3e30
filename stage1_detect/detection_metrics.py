"""How good a detector is: average precision, attributes, and whether objects are among the proposals.

Average precision is COCO's, computed by pycocotools. Objects whose names the detector does not know count as
missed. Attributes are judged on the true boxes, with the class that the detector itself predicts there: right
where the best attribute is one of the object's own. Recall: true boxes that some proposal overlaps by half.
"""

import contextlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from stage1_detect.annotations import AnnotatedImages, ImageObjects, read_annotations
from stage1_detect.boxes import pairwise_iou
from stage1_detect.detector import Detections, Detector, LoadedDetector
from stage1_detect.pictures import PictureSource
from stage1_detect.transform import ImageBatch
from store_schema.errors import UsageError

logger = logging.getLogger(__name__)


def evaluate_detector(
    loaded: LoadedDetector,
    tables: str | Path,
    *,
    images_root: str | Path | None = None,
    split: str = "test",
    max_images: int = 0,
    batch_size: int = 16,
    num_workers: int = 1,
) -> dict[str, float]:
    """Score a trained detector on a split of any tables; 0 images for all of them. Keys: see `evaluate`."""
    images = read_annotations(
        tables,
        split,
        images_root=images_root,
        object_names=loaded.object_names,
        attribute_names=loaded.attribute_names,
    )
    pictures = PictureSource(images.paths, images.sizes, num_workers=num_workers, cache_megabytes=0)
    return evaluate(loaded.detector, images, pictures, max_images=max_images, batch_size=batch_size)


@torch.no_grad()
def evaluate(
    detector: Detector, images: AnnotatedImages, pictures: PictureSource, *, max_images: int, batch_size: int
) -> dict[str, float]:
    """Score a detector, in evaluation mode, on the first `max_images` pictures (0: all).

    Returns:
        map_50, map (mean over IoU .5 to .95), recall, and attribute_accuracy where the detector has attributes
        and objects carry some; all 0..1. num_images and num_unreadable are counts.

    Errors: `UsageError` where none of the pictures holds an object.
    """
    indices = np.arange(min(len(images), max_images or len(images)))
    groups = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    tally = _Tally()
    for group, loaded in zip(groups, pictures.batches(groups), strict=True):
        present = [(int(i), picture) for i, picture in zip(group, loaded, strict=True) if picture is not None]
        tally.unreadable += len(group) - len(present)
        for batch in detector.prepare_groups([picture for _, picture in present]):
            members = [present[i][0] for i in batch.indices]
            _tally_batch(tally, detector, batch, members, images)
    if not tally.objects:
        raise UsageError(f"none of the {len(indices)} pictures to be scored holds an object")
    return tally.scores(images.object_names)


@dataclass
class _Tally:
    """What was counted so far."""

    unreadable: int = 0
    objects: int = 0
    recalled: int = 0
    attributed: int = 0
    attribute_right: int = 0
    truth: dict[int, ImageObjects] = field(default_factory=dict)
    detections: dict[int, Detections] = field(default_factory=dict)

    def scores(self, object_names: tuple[str, ...]) -> dict[str, float]:
        scores = coco_average_precision(self.truth, self.detections, len(object_names))
        scores["recall"] = self.recalled / self.objects
        if self.attributed:
            scores["attribute_accuracy"] = self.attribute_right / self.attributed
        return scores | {"num_images": float(len(self.truth)), "num_unreadable": float(self.unreadable)}


def _tally_batch(
    tally: _Tally, detector: Detector, batch: ImageBatch, members: list[int], images: AnnotatedImages
) -> None:
    feature_map = detector.feature_map(batch)
    proposals = detector.propose(feature_map, batch)
    detections = detector.detect_among(proposals, feature_map, batch)
    truth = [images.objects(index) for index in members]
    single = [~objects.crowd for objects in truth]
    boxes = [
        detector.to_network(torch.from_numpy(objects.boxes[s]).to(detector.device), batch, i)
        for i, (objects, s) in enumerate(zip(truth, single, strict=True))
    ]
    for i, index in enumerate(members):
        tally.truth[index], tally.detections[index] = truth[i], detections[i]
        tally.objects += len(boxes[i])
        if len(boxes[i]) and len(proposals[i]):
            tally.recalled += int((pairwise_iou(boxes[i], proposals[i]).amax(1) >= 0.5).sum())
    if detector.num_attributes:
        owned = np.concatenate([objects.attributes[s] for objects, s in zip(truth, single, strict=True)])
        labelled = owned.any(1)
        right = owned[np.arange(len(owned)), _predicted_attributes(detector, feature_map, batch, boxes)]
        tally.attributed += int(labelled.sum())
        tally.attribute_right += int(right[labelled].sum())


def _predicted_attributes(
    detector: Detector, feature_map: Tensor, batch: ImageBatch, boxes: list[Tensor]
) -> NDArray[np.int64]:
    """[n] best attribute of each box, given the best object there."""
    outputs = detector.regions(feature_map, batch, boxes)
    class_ids = outputs.class_logits[:, 1:].argmax(1) + 1
    best: NDArray[np.int64] = detector.attribute_logits(outputs.features, class_ids).argmax(1).cpu().numpy()
    return best


def coco_average_precision(
    truth: Mapping[int, ImageObjects], detections: Mapping[int, Detections], num_names: int
) -> dict[str, float]:
    """map_50 and map over the classes that occur, by pycocotools; 100 detections a picture, all sizes."""
    found = np.concatenate([_coco_rows(index, d) for index, d in detections.items()])
    if not len(found):
        return {"map_50": 0.0, "map": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco = COCO()
        coco.dataset = _coco_dataset(truth, num_names)
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes(found), "bbox")
        scorer.params.areaRng, scorer.params.areaRngLbl = [[0, 1e10]], ["all"]
        scorer.params.maxDets = [100]
        scorer.evaluate()
        scorer.accumulate()
    precision = scorer.eval["precision"][..., 0, 0]  # [IoU, recall, class]; -1: the class does not occur
    occurs = (precision > -1).all((0, 1))
    precision = precision[:, :, occurs]
    return {"map_50": float(precision[0].mean()), "map": float(precision.mean())}


def _coco_dataset(truth: Mapping[int, ImageObjects], num_names: int) -> dict[str, object]:
    annotations: list[dict[str, object]] = []
    for index, objects in truth.items():
        for box, object_id, crowd in zip(objects.boxes, objects.object_ids, objects.crowd, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": int(object_id),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(crowd),
                }
            )
    return {
        "info": {},
        "images": [{"id": index} for index in truth],
        "categories": [{"id": i} for i in range(num_names)],
        "annotations": annotations,
    }


def _coco_rows(index: int, detections: Detections) -> NDArray[np.float64]:
    """[n, 7]: picture, x, y, width, height, score, class."""
    boxes = detections.boxes.double().cpu().numpy()
    scores, class_ids = detections.scores.cpu().numpy()[:, None], detections.class_ids.cpu().numpy()[:, None]
    picture = np.full((len(boxes), 1), index)
    rows: NDArray[np.float64] = np.hstack(
        [picture, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, class_ids]
    )
    return rows
