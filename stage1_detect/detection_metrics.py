"""How good a detector is: average precision, attributes, and whether objects are among the proposals.

Average precision is COCO's, computed by pycocotools. Objects whose names the detector does not know count as
missed. Attributes are judged on the true boxes, with the class that the detector itself predicts there: whether the
best attribute is one of the object's own, and each attribute's average precision over all boxes. "Weighted" means
over classes (or attributes) weighted by the number of their instances. Recall: true boxes that some proposal, or one
of the 36 regions that a store would keep, overlaps by half.

The four numbers of Anderson et al. 2018 (lib/datasets/vg_eval.py) are map_50, map_50_weighted, attribute_map and
attribute_map_weighted. There the area under VOC's curve counts objects (here COCO's 101 points), boxes count one pixel
more, 400 detections a picture are taken, and a class without an instance counts 0 in the plain mean (here: not at all).
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
from stage1_detect.config import SelectionConfig
from stage1_detect.detector import Detections, Detector, LoadedDetector
from stage1_detect.heads import split_regions
from stage1_detect.pictures import PictureSource
from stage1_detect.transform import ImageBatch
from store_schema.errors import UsageError

logger = logging.getLogger(__name__)

FIXED_REGIONS = SelectionConfig(min_regions=36, max_regions=36)
"""What recall_36 looks at: the regions of the published features of fixed number."""


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
        map_50, map_50_weighted, map (mean over IoU .5 to .95), recall, recall_36; attribute_accuracy, attribute_map
        and attribute_map_weighted where the detector has attributes and objects carry some; all 0..1. num_images and
        num_unreadable are counts.

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
    recalled_36: int = 0
    owned: list[NDArray[np.bool_]] = field(default_factory=list)
    """[n, A] attributes of the true boxes of a batch, those unknown to the detector last."""
    attribute_probs: list[NDArray[np.float32]] = field(default_factory=list)
    """[n, known A] of the same boxes."""
    truth: dict[int, ImageObjects] = field(default_factory=dict)
    detections: dict[int, Detections] = field(default_factory=dict)

    def scores(self, object_names: tuple[str, ...]) -> dict[str, float]:
        scores = coco_average_precision(self.truth, self.detections, len(object_names))
        scores["recall"] = self.recalled / self.objects
        scores["recall_36"] = self.recalled_36 / self.objects
        if self.owned:
            scores |= attribute_scores(np.concatenate(self.attribute_probs), np.concatenate(self.owned))
        return scores | {"num_images": float(len(self.truth)), "num_unreadable": float(self.unreadable)}


def _tally_batch(
    tally: _Tally, detector: Detector, batch: ImageBatch, members: list[int], images: AnnotatedImages
) -> None:
    feature_map = detector.feature_map(batch)
    proposals = detector.propose(feature_map, batch)
    outputs = detector.regions(feature_map, batch, proposals)
    detections = detector.detections(proposals, outputs, batch)
    truth = [images.objects(index) for index in members]
    single = [~objects.crowd for objects in truth]
    boxes = [
        detector.to_network(torch.from_numpy(objects.boxes[s]).to(detector.device), batch, i)
        for i, (objects, s) in enumerate(zip(truth, single, strict=True))
    ]
    for i, (index, regions) in enumerate(zip(members, split_regions(outputs), strict=True)):
        tally.truth[index], tally.detections[index] = truth[i], detections[i]
        tally.objects += len(boxes[i])
        tally.recalled += _count_covered(boxes[i], proposals[i])
        kept = detector.select(proposals[i], regions.class_logits.softmax(1), FIXED_REGIONS, batch, i)
        tally.recalled_36 += _count_covered(boxes[i], proposals[i][kept])
    if detector.num_attributes:
        on_truth = detector.regions(feature_map, batch, boxes)
        probs = detector.attribute_probs(on_truth.features, on_truth.class_logits.softmax(1))
        tally.attribute_probs.append(probs.float().cpu().numpy())
        tally.owned.extend(objects.attributes[s] for objects, s in zip(truth, single, strict=True))


def _count_covered(boxes: Tensor, others: Tensor) -> int:
    """How many of the boxes [n, 4] some of the others [m, 4] overlaps by half."""
    if not len(boxes) or not len(others):
        return 0
    return int((pairwise_iou(boxes, others).amax(1) >= 0.5).sum())


def attribute_scores(probs: NDArray[np.float32], owned: NDArray[np.bool_]) -> dict[str, float]:
    """attribute_accuracy, attribute_map and attribute_map_weighted; nothing where no box has an attribute.

    Args:
        probs: [n, K] of each box, any numbers that rise with what is thought of an attribute.
        owned: [n, A] whether the box has it; A >= K, the attributes behind the K-th are unknown and score 0.
    """
    labelled = owned.any(1)
    if not labelled.any():
        return {}
    best = probs.argmax(1)
    counts = owned.sum(0)
    known = range(probs.shape[1])
    precisions = np.zeros(owned.shape[1])
    precisions[: len(known)] = [average_precision(probs[:, k], owned[:, k]) for k in known]
    occurs = counts > 0
    return {
        "attribute_accuracy": float(owned[np.arange(len(owned)), best][labelled].mean()),
        "attribute_map": float(precisions[occurs].mean()),
        "attribute_map_weighted": float(np.average(precisions[occurs], weights=counts[occurs])),
    }


def average_precision(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Area under the curve of best precision at each recall, as VOC counts it since 2010; 0 where none is right.

    Equal scores are taken together, so that their order does not count.
    """
    if not right.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of those with its score
    hits = np.cumsum(right[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(hits, prepend=0) / right.sum()
    return float((gained * envelope).sum())


def coco_average_precision(
    truth: Mapping[int, ImageObjects], detections: Mapping[int, Detections], num_names: int
) -> dict[str, float]:
    """map_50, map_50_weighted and map over the classes that occur, by pycocotools; 100 detections a picture."""
    found = np.concatenate([_coco_rows(index, d) for index, d in detections.items()])
    if not len(found):
        return {"map_50": 0.0, "map_50_weighted": 0.0, "map": 0.0}
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
    by_class = precision[:, :, occurs].mean(1)  # [IoU, class]
    real = np.concatenate([objects.object_ids[~objects.crowd] for objects in truth.values()])
    counts = np.bincount(real, minlength=num_names)[occurs]
    return {
        "map_50": float(by_class[0].mean()),
        "map_50_weighted": float(np.average(by_class[0], weights=counts)),
        "map": float(by_class.mean()),
    }


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
