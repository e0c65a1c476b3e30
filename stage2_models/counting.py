"""Counting attended regions without counting an object twice that several boxes cover.

A soft form of non-maximum suppression inside the model: every region counts by how strongly it is attended,
divided by how many attended regions overlap it. Works on the same unnormalised weights as the attention,
since their softmax, which sums to one, has lost the number.
Legend: B pictures, G glimpses, K region slots.
"""

import torch
from torch import Tensor, nn

MAX_COUNT = 6
"""Counts of 0 to 6 have an indicator each; higher ones look like 6 there, and are told apart by n / 4."""
COUNT_DIM = MAX_COUNT + 2
"""Numbers that describe a count: an indicator for each of 0..6, and n / 4."""


def pairwise_iou(boxes: Tensor) -> Tensor:
    """Give intersection over union of every two boxes of a picture; 0 where both are empty (padded slots).

    Args:
        boxes: [B, K, 4] float, xyxy.

    Returns:
        [B, K, K] float, symmetric, 1 on the diagonal of real boxes.
    """
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)  # [B, K, K]
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)  # [B, K]
    union = area[:, :, None] + area[:, None, :] - intersection
    return intersection / union.clamp(min=1e-6)


class RegionCounter(nn.Module):
    """Counts regions from their attention logits l_i and overlaps:

        p_i = sigmoid(s l_i + b)                      how much region i is meant
        S_ij = sigmoid(d0 (IoU_ij - d1))              how surely i and j are the same object
        n = sum_i p_i / (1 + sum_{j != i} S_ij p_j)

    s, b, d0 and d1 are learned, from 1, 0, 10 and .4. Four copies of one meant object count .25 each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(0.0))
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        self.same_iou = nn.Parameter(torch.tensor(0.4))

    def forward(self, logits: Tensor, iou: Tensor, mask: Tensor) -> Tensor:
        """Give the counts [B, G] of real regions.

        Args:
            logits: [B, G, K] float, unnormalised attention.
            iou: [B, K, K] float, from `pairwise_iou`.
            mask: [B, K] bool, True where a region is real.
        """
        meant = torch.sigmoid(self.scale * logits + self.offset) * mask.unsqueeze(1)  # [B, G, K]
        same = torch.sigmoid(self.sharpness * (iou - self.same_iou))
        same = same * (1.0 - torch.eye(iou.shape[-1], device=iou.device, dtype=iou.dtype))
        copies = torch.bmm(meant, same)  # [B, G, K]; the overlap is symmetric
        return (meant / (1.0 + copies)).sum(-1)


def describe_counts(counts: Tensor) -> Tensor:
    """Turn counts [...] into [..., 8]: a soft one-hot over 0..6 (2.3 is .7 of 2 and .3 of 3), and n / 4."""
    values = torch.arange(MAX_COUNT + 1, device=counts.device, dtype=counts.dtype)
    distance = (counts.clamp(max=MAX_COUNT).unsqueeze(-1) - values).abs()
    return torch.cat([(1.0 - distance).clamp(min=0.0), counts.unsqueeze(-1) / 4.0], -1)
