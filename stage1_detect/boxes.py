"""Boxes and the deltas that move them; xyxy, continuous coordinates.

Deltas are (dx, dy, dw, dh): shifts of the centre in widths and heights, logarithms of the sizes' ratios.
Source: Ren et al. 2015, arXiv 1506.01497, sec. 3.1.2.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MAX_LOG_RATIO = math.log(1000.0 / 16)
"""A box grows at most 62.5 times, so that an untrained head cannot overflow exp."""


def encode(targets: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas [..., 4] that move `boxes` [..., 4] onto `targets` [..., 4], times the weights."""
    size, target_size = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    shift = (targets[..., :2] + targets[..., 2:] - boxes[..., :2] - boxes[..., 2:]) / (2 * size)
    return torch.cat([shift, torch.log(target_size / size)], -1) * boxes.new_tensor(weights)


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Move `boxes` [..., 4] by `deltas` [..., 4]; the inverse of `encode`."""
    deltas = deltas / boxes.new_tensor(weights)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + deltas[..., :2] * size
    half = torch.exp(deltas[..., 2:].clamp(max=_MAX_LOG_RATIO)) * size / 2
    return torch.cat([centre - half, centre + half], -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] cut to a picture of (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


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
