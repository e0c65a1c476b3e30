"""Which proposals become regions.

The published rule: suppress class by class among the proposals; a region's selection score is its best
probability over the classes in which it survived; keep those at or above a threshold, at least `min_regions`
and at most `max_regions`, best first.

Walking all (region, class) pairs from the highest probability down gives the same without a pass per class:
whether a pair survives depends only on higher pairs of its class, a region's first surviving pair is its
selection score, and the walk may end as soon as enough regions were met. The suppressed regions of a class
are the bits of one integer, so that a pair costs a fraction of a microsecond, and nothing is approximated.

Source: Anderson et al. 2018, arXiv 1707.07998, sec. 3.1, and the authors' release (`generate_tsv.py`), whose
regions stay in proposal order where neither limit applies: an option here. `select_moved` is the rule of the
Hugging Face release.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from stage1_detect.boxes import as_continuous, at_least, thin
from stage1_detect.config import EqualScores, SelectionConfig


def select_regions(
    boxes: Tensor,
    class_probs: Tensor,
    config: SelectionConfig,
    *,
    inclusive: bool = False,
    ties: EqualScores = "index",
) -> Tensor:
    """Indices [K] int64 of the regions to keep, highest selection score first, ties in index order.

    Regions that survive in no class have score 0 and come last. Fewer than `min_regions` proposals are all
    kept. Probabilities must be finite.

    Args:
        boxes: [P, 4] float, the proposals.
        class_probs: [P, C] float, background 0.
        config: its order "proposal" gives the indices as they rise where neither limit applies.
        inclusive: the boxes hold their last pixels, and an overlap of just the threshold suppresses.
        ties: which of two regions equally probable in a class suppresses the other; see `DetectorConfig.equal_scores`.
    """
    most = config.max_regions + (config.order == "proposal")  # one more tells whether the limit applies
    selected, num_above = _best_regions(boxes, class_probs, config, most, inclusive=inclusive, ties=ties)
    kept = selected[: config.max_regions]
    if config.order == "proposal" and config.min_regions <= num_above <= config.max_regions:
        kept.sort()
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def select_moved(
    boxes: Tensor, scores: Tensor, config: SelectionConfig, *, inclusive: bool = False
) -> Tensor:
    """Indices [K] int64 by the rule of the Hugging Face release, highest score first.

    The boxes are thinned all together, at an overlap that rises in steps of .1 until `min_regions` are left. Where
    .9 leaves too few, the suppressed ones follow, best first (the release fails there).

    Args:
        boxes: [P, 4] float, the proposals moved as their best objects ask.
        scores: [P] float, the probabilities of these objects.
    """
    kept = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    for step in range(10):
        thresh = round(config.nms_thresh + 0.1 * step, 6)
        if thresh > _LAST_OVERLAP and step:
            break
        kept = thin(boxes, scores, thresh, inclusive=inclusive)
        if len(kept) >= config.min_regions:
            return kept[: config.max_regions]
    order = scores.argsort(descending=True, stable=True)
    rest = order[~torch.isin(order, kept)]
    return torch.cat([kept, rest])[: config.min_regions]


def completing_boxes(number: int, size: tuple[int, int]) -> Tensor:
    """[number, 4] boxes in a picture of (height, width): the whole of it, its quarters, its ninths and so on.

    What fills up a picture of which the detector proposes fewer regions than were promised.
    """
    cells: list[tuple[float, float, float, float]] = []
    parts = 1
    while len(cells) < number:
        edges = [place / parts for place in range(parts + 1)]
        cells += [(x1, y1, x2, y2) for y1, y2 in pairwise(edges) for x1, x2 in pairwise(edges)]
        parts += 1
    height, width = size
    return torch.tensor(cells[:number]).reshape(-1, 4) * torch.tensor([width, height, width, height])


def predicted_objects(class_probs: Tensor) -> tuple[Tensor, Tensor]:
    """The best object of each region over all classes: ids [P] int64 without background, and their probabilities."""
    scores, object_ids = class_probs[:, 1:].max(1)
    return object_ids, scores


def _best_regions(
    boxes: Tensor,
    class_probs: Tensor,
    config: SelectionConfig,
    most: int,
    *,
    inclusive: bool,
    ties: EqualScores,
) -> tuple[list[int], int]:
    """At most `most` regions, best first, of which so many reach the threshold."""
    overlaps = _overlap_bits(boxes, config.nms_thresh, inclusive=inclusive)
    score_thresh = float(np.float32(config.score_thresh))  # as tensors compare it
    suppressed: dict[int, int] = {}
    selected: dict[int, None] = {}  # in order of first survival
    num_above = 0
    min_regions, max_regions = min(config.min_regions, len(boxes)), min(most, len(boxes))
    for band in _descending_bands(class_probs[:, 1:], score_thresh, ties):
        for region, class_id, score in band:
            if len(selected) >= (max_regions if score >= score_thresh else min_regions):
                break
            blocked = suppressed.get(class_id, 0)
            if not blocked >> region & 1:
                suppressed[class_id] = blocked | overlaps[region]
                selected.setdefault(region)
                num_above = len(selected) if score >= score_thresh else num_above
        if len(selected) >= min_regions:  # the first band held every pair at or above the threshold
            break
    if score_thresh == 0:  # a score of 0 reaches the threshold
        min_regions = num_above = max_regions
    rest = (region for region in range(len(boxes)) if region not in selected)
    while len(selected) < min_regions:
        selected[next(rest)] = None
    return list(selected), num_above


def _overlap_bits(boxes: Tensor, nms_thresh: float, *, inclusive: bool) -> list[int]:
    """For each region an integer whose bit j is set where region j overlaps it by more than the threshold."""
    if inclusive:
        boxes, nms_thresh = as_continuous(boxes), at_least(nms_thresh)
    # float64 for the comparison alone: torchvision's NMS compares its float32 overlaps in the same way.
    over = (box_iou(boxes, boxes).double() > nms_thresh).cpu().numpy()
    packed = np.packbits(over, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _descending_bands(
    probs: Tensor, score_thresh: float, ties: EqualScores
) -> Iterator[Iterator[tuple[int, int, float]]]:
    """(region, class, probability) of all pairs above 0, highest first, ties by region, then class, in bands.

    Those at or above the threshold are in the first band; then the threshold sinks, a few pairs a region each
    time, so that the hundreds of thousands of improbable pairs of a large vocabulary are not sorted for nothing.
    """
    flat = probs.reshape(-1)
    upper = float("inf")
    lower = score_thresh if flat.numel() > _SORT_ALL_BELOW else 0.0
    while True:
        inside = flat >= lower if lower > 0 else flat > 0
        if upper < float("inf"):
            inside &= flat < upper
        band = inside.nonzero()[:, 0]
        scores, order = flat[band].sort(descending=True, stable=True)
        pairs = band[order]
        regions, classes = pairs // max(probs.shape[1], 1), pairs % max(probs.shape[1], 1)
        if ties != "index":
            regions = _sorted_as_released(regions, classes, scores, probs, ties)
        yield zip(regions.tolist(), classes.tolist(), scores.tolist(), strict=True)
        if lower <= 0:
            return
        upper = lower
        count = min(4 * probs.shape[0], flat.numel())
        lower = torch.where(flat < upper, flat, 0).topk(count).values[-1].item()


def _sorted_as_released(
    regions: Tensor, classes: Tensor, scores: Tensor, probs: Tensor, ties: EqualScores
) -> Tensor:
    """The regions [n] of pairs in falling order of score, equals of a class as its own sort leaves them."""
    by_class = classes.argsort(stable=True)
    same_class, same_score = (values[by_class].diff() == 0 for values in (classes, scores))
    regions = regions.clone()
    for class_id in set(classes[by_class[1:][same_class & same_score]].tolist()):
        column = probs[:, class_id]
        if ties == "torch_sort":
            order = column.sort(descending=True).indices
        else:
            order = torch.from_numpy(column.cpu().numpy().argsort()[::-1].copy()).to(regions.device)
        places = classes == class_id
        regions[places] = order[torch.isin(order, regions[places])]
    return regions


_SORT_ALL_BELOW = 8192
_LAST_OVERLAP = 0.9
