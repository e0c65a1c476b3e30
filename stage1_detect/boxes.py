"""Boxes and the deltas that move them; xyxy, continuous coordinates unless `inclusive` says otherwise.

The corners (x2, y2) of inclusive boxes are their last pixels, as in Caffe: widths and heights count one more.
Deltas are (dx, dy, dw, dh): shifts of the centre in widths and heights, logarithms of the sizes' ratios.
Source: Ren et al. 2015, arXiv 1506.01497, sec. 3.1.2.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

_MAX_LOG_RATIO = math.log(1000.0 / 16)
"""A box grows at most 62.5 times, so that an untrained head cannot overflow exp."""


def encode(targets: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas [..., 4] that move `boxes` [..., 4] onto `targets` [..., 4], times the weights."""
    size, target_size = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    shift = (targets[..., :2] + targets[..., 2:] - boxes[..., :2] - boxes[..., 2:]) / (2 * size)
    return torch.cat([shift, torch.log(target_size / size)], -1) * boxes.new_tensor(weights)


def decode(
    deltas: Tensor, boxes: Tensor, weights: Sequence[float], *, inclusive: bool = False, clamp: bool = True
) -> Tensor:
    """Move `boxes` [..., 4] by `deltas` [..., 4]; the inverse of `encode`.

    The corner that comes out of inclusive boxes is not reduced by one again: so does the Caffe release.
    """
    deltas = deltas / boxes.new_tensor(weights)
    size = boxes[..., 2:] - boxes[..., :2]
    if inclusive:
        size = size + 1
        middle = boxes[..., :2] + size / 2
    else:
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    centre = middle + deltas[..., :2] * size
    ratio = deltas[..., 2:].clamp(max=_MAX_LOG_RATIO) if clamp else deltas[..., 2:]
    half = torch.exp(ratio) * size / 2
    return torch.cat([centre - half, centre + half], -1)


def clip(boxes: Tensor, size: tuple[int, int], *, inclusive: bool = False) -> Tensor:
    """Boxes [..., 4] cut to a picture of (height, width)."""
    height, width = (size[0] - 1, size[1] - 1) if inclusive else size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def thin(boxes: Tensor, scores: Tensor, thresh: float, *, inclusive: bool = False) -> Tensor:
    """Indices [n] of the boxes [N, 4] left by non-maximum suppression, best first.

    A box goes where it overlaps a better one by more than the threshold; inclusive boxes also by just that, as in
    the CPU form of the Caffe release, which is the one that made the published features.
    """
    if inclusive:
        boxes, thresh = as_continuous(boxes), at_least(thresh)
    kept: Tensor = nms(boxes, scores, thresh)
    return kept


def as_continuous(boxes: Tensor) -> Tensor:
    """Inclusive boxes [..., 4] with the corner behind their last pixel, so that areas and overlaps count it."""
    return boxes + boxes.new_tensor([0, 0, 1, 1])


def at_least(thresh: float) -> float:
    """The threshold that is exceeded by whatever reaches the given one."""
    return math.nextafter(thresh, -math.inf)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """[..., n, m] intersection over union of [..., n, 4] with [..., m, 4]; 0 where both are empty."""
    inter = intersection(boxes, others)
    union = area(boxes)[..., :, None] + area(others)[..., None, :] - inter
    return inter / union.clamp(min=1e-9)


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """[..., n, m] shared area of [..., n, 4] with [..., m, 4]."""
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    return (high - low).clamp(min=0).prod(-1)


def area(boxes: Tensor) -> Tensor:
    """[...] areas of [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
