"""Counting regions without counting an object twice that several boxes cover.

A soft form of non-maximum suppression inside the model: every region counts by how strongly it is attended,
divided by how many attended regions overlap it. Works on the same unnormalised weights as the attention,
since their softmax, which sums to one, has lost the number.
Legend: B pictures, G glimpses or likenesses, K region slots, D region feature.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_COUNT = 6
"""Counts of 0 to 6 have an indicator each; higher ones look like 6 there, and are told apart by n / 4."""
COUNT_DIM = MAX_COUNT + 2
"""Numbers that describe a count: an indicator for each of 0..6, and n / 4."""
LIKENESS_DIM = 32
"""Size of what regions are compared by."""
LIKENESS_SCALE = 3.0
"""On the numbers of a `LikenessCounter`, as on geometry: among z-scored features they are learned sooner with it."""


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
        return _distinct(meant, iou, self.sharpness, self.same_iou)


class LikenessCounter(nn.Module):
    """Tells each region how many objects of its picture are like it, itself included, in several learned ways:

        p_gij = sigmoid(s_g (cos(U_g v_i, U_g v_j) - t_g))      how much i and j are alike
        n_gi = sum_j p_gij / (1 + sum_{k != j} S_jk p_gik)

    with S as of `RegionCounter`. What an attended region says of its number ("two red balls"), no attention that
    finds one region after the other can see: the number comes first, before it is clear of what. Depends on the
    picture alone, so it costs nothing at the steps of a caption.

    Args:
        region_dim: D. likenesses: G.
    """

    def __init__(self, region_dim: int, likenesses: int) -> None:
        super().__init__()
        self.likenesses = likenesses
        self.out_dim = likenesses * COUNT_DIM
        self.project = nn.Linear(region_dim, likenesses * LIKENESS_DIM)
        self.scale = nn.Parameter(torch.full((likenesses, 1, 1), 10.0))
        # From alike in most to alike in anything.
        self.threshold = nn.Parameter(torch.linspace(0.5, 0.0, likenesses).view(-1, 1, 1))
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        self.same_iou = nn.Parameter(torch.tensor(0.4))

    def forward(self, regions: Tensor, boxes: Tensor, mask: Tensor) -> Tensor:
        """Describe each region's numbers, [B, K, out_dim]; zeros at padded slots.

        Args:
            regions: [B, K, D] float. boxes: [B, K, 4] float, xyxy. mask: [B, K] bool, True where a region is real.
        """
        projected = self.project(regions).unflatten(-1, (self.likenesses, LIKENESS_DIM))
        directions = functional.normalize(projected, dim=-1).transpose(1, 2)  # [B, G, K, 32]
        cosines = directions @ directions.transpose(2, 3)  # [B, G, K, K]
        alike = torch.sigmoid(self.scale * (cosines - self.threshold)) * mask[:, None, None]
        counts = _distinct(alike.flatten(1, 2), pairwise_iou(boxes), self.sharpness, self.same_iou)
        described = describe_counts(counts.view(alike.shape[:3]))  # [B, G, K, 8]
        return LIKENESS_SCALE * described.transpose(1, 2).flatten(2) * mask.unsqueeze(-1)


def _distinct(meant: Tensor, iou: Tensor, sharpness: Tensor, same_iou: Tensor) -> Tensor:
    """Sum how much the regions are meant [..., K], each divided by how many meant ones are the same object: [...]."""
    same = torch.sigmoid(sharpness * (iou - same_iou))
    same = same * (1.0 - torch.eye(iou.shape[-1], device=iou.device, dtype=iou.dtype))
    copies = torch.bmm(meant, same)  # the overlap is symmetric
    return (meant / (1.0 + copies)).sum(-1)


def describe_counts(counts: Tensor) -> Tensor:
    """Turn counts [...] into [..., 8]: a soft one-hot over 0..6 (2.3 is .7 of 2 and .3 of 3), and n / 4."""
    values = torch.arange(MAX_COUNT + 1, device=counts.device, dtype=counts.dtype)
    distance = (counts.clamp(max=MAX_COUNT).unsqueeze(-1) - values).abs()
    return torch.cat([(1.0 - distance).clamp(min=0.0), counts.unsqueeze(-1) / 4.0], -1)
