"""The detector's losses, computed for all pictures of a batch at once.

Anchors and proposals are matched to the true boxes by their overlap, a few of each kind are drawn at random
(from torch's global generator), and classes, boxes and attributes are scored on those. Crowds are neither
object nor background: what lies mostly inside one takes no part.

Source: Ren et al. 2015, arXiv 1506.01497; attributes as in the release of Anderson et al. 2018: the cross
entropy averaged over an object's attributes, then over the objects that have any.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from stage1_detect.boxes import area, encode, intersection, pairwise_iou
from stage1_detect.detector import Detector
from stage1_detect.proposals import RPN_BOX_WEIGHTS, RegionProposalNetwork
from store_schema.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Matching, sampling and the weights of the parts. Overlaps are intersections over unions."""

    rpn_positive_iou: float = 0.7
    """From here on an anchor is an object; the best anchors of each object always are."""
    rpn_negative_iou: float = 0.3
    rpn_samples: int = 64
    rpn_positive_fraction: float = 0.5
    region_positive_iou: float = 0.5
    region_samples: int = 64
    region_positive_fraction: float = 0.5
    crowd_overlap: float = 0.5
    """A box of which at least this share lies in a crowd is no background."""

    objectness_weight: float = 1.0
    rpn_box_weight: float = 4.0
    class_weight: float = 3.0
    box_weight: float = 4.0
    """Measured on scenes, 700 steps, weights (rpn_box, class, box) of (1, 2, 1), (4, 2, 2), (4, 3, 4): map .710, .728,
    .753; (8, 5, 8) with attributes x1.5: .752 and worse attributes."""
    attribute_weight: float = 1.0
    attribute_reduction: Literal["mean", "sum"] = "mean"
    """Of an object's attributes: "mean" as in the original; "sum" lets each count in full, so that a pattern is learned
    beside colour and size. Measured on scenes, right one of three patterns: .53 with "mean" after 1,300 steps, .78
    with "sum" (chance .33)."""
    rpn_box_beta: float = 1 / 9
    """Where the box loss turns from quadratic to linear; sigma 3 in the original."""
    box_beta: float = 0.2
    """Smaller than the original's 1: tighter boxes."""

    def __post_init__(self) -> None:
        for name in (
            "rpn_positive_fraction",
            "region_positive_fraction",
            "crowd_overlap",
            "region_positive_iou",
        ):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"losses.{name} must lie in 0..1 and not be 0, it is {getattr(self, name)}")
        if not 0 <= self.rpn_negative_iou <= self.rpn_positive_iou <= 1:
            raise ConfigError(
                "losses need 0 <= rpn_negative_iou <= rpn_positive_iou <= 1, "
                f"not {self.rpn_negative_iou} and {self.rpn_positive_iou}"
            )
        if self.attribute_reduction not in ("mean", "sum"):
            raise ConfigError(
                f"losses.attribute_reduction must be 'mean' or 'sum', not {self.attribute_reduction!r}"
            )
        for name in ("rpn_samples", "region_samples", "rpn_box_beta", "box_beta"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"losses.{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True)
class DetectionBatch:
    """Pictures with what is known of them, in network pixels; smaller pictures are padded with zeros."""

    images: Tensor
    """[B, 3, h, w] float32, normalised."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each picture without padding."""
    boxes: Tensor
    """[B, G, 4] float32."""
    class_ids: Tensor
    """[B, G] int64, background 0; 0 where a slot is empty or holds a crowd."""
    crowd: Tensor
    """[B, G] bool."""
    attributes: Tensor
    """[B, G, A] float32: 1/n for each of an object's n attributes, all 0 for an object without."""
    image_ids: tuple[str, ...]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """The batch on another device."""
        names = ("images", "boxes", "class_ids", "crowd", "attributes")
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=non_blocking) for n in names})


@dataclass(frozen=True)
class _Match:
    """For each of N boxes: its overlap with the best object, which one that is, whether a crowd holds it."""

    iou: Tensor
    target: Tensor
    in_crowd: Tensor


def detection_losses(detector: Detector, batch: DetectionBatch, config: LossConfig) -> dict[str, Tensor]:
    """Mean losses by name, weighted: objectness, rpn_box, class, box, attribute (0 where nothing carries it)."""
    feature_map = detector.backbone(batch.images)
    assert isinstance(detector.rpn, RegionProposalNetwork)  # the task refuses to train the others
    logits, deltas, anchors = detector.rpn(feature_map)
    proposals = detector.rpn.propose(logits, deltas, anchors, list(batch.sizes))
    return {
        **_proposal_losses(logits, deltas, anchors, batch, config),
        **_region_losses(detector, feature_map, proposals, batch, config),
    }


def _proposal_losses(
    logits: Tensor, deltas: Tensor, anchors: Tensor, batch: DetectionBatch, config: LossConfig
) -> dict[str, Tensor]:
    match = _match(anchors.expand(len(batch.sizes), -1, -1), batch, config)
    labels = torch.full_like(match.target, -1)
    labels[(match.iou < config.rpn_negative_iou) & ~match.in_crowd & _centred_inside(anchors, batch)] = 0
    labels[(match.iou >= config.rpn_positive_iou) | _best_of_an_object(anchors, batch)] = 1
    positive, negative = _sample(labels, config.rpn_samples, config.rpn_positive_fraction)
    picture, anchor = (positive | negative).nonzero(as_tuple=True)
    count = max(len(picture), 1)
    objectness = F.binary_cross_entropy_with_logits(
        logits[picture, anchor], positive[picture, anchor].float(), reduction="sum"
    )
    picture, anchor = positive.nonzero(as_tuple=True)
    targets = encode(batch.boxes[picture, match.target[picture, anchor]], anchors[anchor], RPN_BOX_WEIGHTS)
    box = F.smooth_l1_loss(deltas[picture, anchor], targets, beta=config.rpn_box_beta, reduction="sum")
    return {
        "objectness": config.objectness_weight * objectness / count,
        "rpn_box": config.rpn_box_weight * box / count,
    }


def _region_losses(
    detector: Detector,
    feature_map: Tensor,
    proposals: list[Tensor],
    batch: DetectionBatch,
    config: LossConfig,
) -> dict[str, Tensor]:
    boxes, class_ids, picture, targets, attributes = _sample_regions(proposals, batch, config)
    counts = torch.bincount(picture, minlength=len(batch.sizes)).tolist()
    pooled = detector.head.pool(detector.head.region_map(feature_map), list(torch.split(boxes, counts)))
    features, class_logits, deltas = detector.head(pooled)
    count = max(len(boxes), 1)
    losses = {
        "class": config.class_weight * F.cross_entropy(class_logits, class_ids, reduction="sum") / count
    }

    real = class_ids.nonzero()[:, 0]
    chosen = deltas[real, 0] if deltas.shape[1] == 1 else deltas[real, class_ids[real]]
    goal = encode(targets[real], boxes[real], detector.config.box_weights)
    box = F.smooth_l1_loss(chosen, goal, beta=config.box_beta, reduction="sum")
    losses["box"] = config.box_weight * box / count

    if detector.num_attributes:
        known = (attributes.sum(1) > 0).nonzero()[:, 0]
        log_probs = detector.attribute_logits(features[known], class_ids[known]).log_softmax(1)
        shares = attributes[known]  # [n, A], each object's sum to 1
        if config.attribute_reduction == "sum":
            shares = (shares > 0).to(log_probs.dtype)
        entropy = -(shares * log_probs).sum() / max(len(known), 1)
        losses["attribute"] = config.attribute_weight * entropy
    return losses


@torch.no_grad()
def _sample_regions(
    proposals: list[Tensor], batch: DetectionBatch, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Boxes to train the region head on, in the order of their pictures.

    The true boxes are among the candidates, so that the head sees every object from the first step.

    Returns:
        boxes [n, 4], class ids [n] with background 0, picture [n], true box [n, 4], true attributes [n, A];
        the last two mean nothing for background, whose attributes are 0.
    """
    padded = torch.nn.utils.rnn.pad_sequence(proposals, batch_first=True)  # [B, P, 4]
    lengths = torch.tensor([len(p) for p in proposals], device=padded.device)
    exists = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    boxes = torch.cat([padded, batch.boxes], 1)
    exists = torch.cat([exists, batch.class_ids > 0], 1)
    match = _match(boxes, batch, config)
    labels = batch.class_ids.gather(1, match.target) if batch.class_ids.shape[1] else match.target
    labels = torch.where(match.iou >= config.region_positive_iou, labels, 0)
    labels[~exists | (match.in_crowd & (labels == 0))] = -1
    positive, negative = _sample(labels, config.region_samples, config.region_positive_fraction)
    picture, slot = (positive | negative).nonzero(as_tuple=True)
    class_ids = labels[picture, slot]
    if not batch.class_ids.shape[1]:  # no picture of the batch holds an object
        nothing = boxes.new_zeros(len(picture), batch.attributes.shape[2])
        return boxes[picture, slot], class_ids, picture, boxes[picture, slot], nothing
    target = match.target[picture, slot]
    attributes = batch.attributes[picture, target] * (class_ids > 0)[:, None]
    return boxes[picture, slot], class_ids, picture, batch.boxes[picture, target], attributes


def _match(boxes: Tensor, batch: DetectionBatch, config: LossConfig) -> _Match:
    """Compare boxes [B, N, 4] with the batch's objects and crowds."""
    if batch.class_ids.shape[1] == 0:
        none = boxes.new_zeros(boxes.shape[:2])
        return _Match(none, none.long(), none.bool())
    overlap = pairwise_iou(boxes, batch.boxes).masked_fill(batch.class_ids[:, None] == 0, 0.0)
    iou, target = overlap.max(2)
    in_crowd = torch.zeros_like(iou, dtype=torch.bool)
    if bool(batch.crowd.any()):
        share = intersection(boxes, batch.boxes) / area(boxes).clamp(min=1e-9)[..., None]
        in_crowd = ((share >= config.crowd_overlap) & batch.crowd[:, None]).any(2)
    return _Match(iou, target, in_crowd)


def _best_of_an_object(anchors: Tensor, batch: DetectionBatch) -> Tensor:
    """[B, M] bool: no anchor overlaps some object more than this one, ties included."""
    if batch.class_ids.shape[1] == 0:
        return torch.zeros(len(batch.sizes), len(anchors), dtype=torch.bool, device=anchors.device)
    overlap = pairwise_iou(anchors.expand(len(batch.sizes), -1, -1), batch.boxes)
    overlap = overlap.masked_fill(batch.class_ids[:, None] == 0, 0.0)
    best = overlap.amax(1, keepdim=True)
    return ((overlap == best) & (best > 0)).any(2)


def _centred_inside(anchors: Tensor, batch: DetectionBatch) -> Tensor:
    """[B, M] bool: the anchor's centre lies in its picture, not in the padding."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    limits = torch.tensor([(w, h) for h, w in batch.sizes], device=anchors.device)
    return (centres < limits[:, None]).all(2)


def _sample(labels: Tensor, num: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Masks [B, N] of at most `num` entries a row: positives (labels > 0) up to their fraction, then negatives (0)."""
    keys = torch.rand(labels.shape, device=labels.device)
    positive = _draw(keys, labels > 0, int(num * positive_fraction))
    room = num - positive.sum(1, keepdim=True)
    return positive, _draw(keys, labels == 0, num, room)


def _draw(keys: Tensor, allowed: Tensor, num: int, room: Tensor | None = None) -> Tensor:
    """Mask of the `num` allowed entries with the highest keys in each row; `room` [B, 1] limits single rows."""
    num = min(num, keys.shape[1])
    top, index = keys.masked_fill(~allowed, -1.0).topk(num, dim=1)
    wanted = top >= 0
    if room is not None:
        wanted &= torch.arange(num, device=keys.device) < room
    return torch.zeros_like(allowed).scatter(1, index, wanted)
