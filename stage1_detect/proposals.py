"""Where something might be: anchors and the region proposal network.

Source: Ren et al. 2015, arXiv 1506.01497, sec. 3.1; of each picture the best-scored anchors are moved, cut to
the picture, and thinned by non-maximum suppression. What the public implementations do differently (anchors,
softmax, where sizes are tested) is a choice in the config.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from stage1_detect.boxes import clip, decode, thin
from stage1_detect.config import DetectorConfig

RPN_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@lru_cache(maxsize=64)
def grid_anchors(
    sizes: tuple[float, ...], ratios: tuple[float, ...], height: int, width: int, stride: int
) -> Tensor:
    """[height * width * A, 4] float32 boxes in network pixels, cell by cell in rows; A is size-major.

    Centres lie in the middle of their cell. The result is shared: do not change it.
    """
    with torch.inference_mode(False):  # the cached tensor must serve training too
        return _grid_anchors(sizes, ratios, height, width, stride)


@lru_cache(maxsize=64)
def listed_anchors(
    cell_anchors: tuple[tuple[float, ...], ...], height: int, width: int, stride: int
) -> Tensor:
    """[height * width * A, 4]: the given boxes around the upper left corner of each cell, cell by cell in rows."""
    with torch.inference_mode(False):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        corner = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) * stride
        return (corner + torch.tensor(cell_anchors)).reshape(-1, 4)


class RegionProposalNetwork(nn.Module):
    """Scores and moves anchors; the boxes it proposes carry no gradient."""

    def __init__(self, config: DetectorConfig, *, channels: int, stride: int) -> None:
        super().__init__()
        self.config = config
        self.stride = stride * config.rpn_stride
        self.conv = nn.Conv2d(channels, config.rpn_channels, 3, stride=config.rpn_stride, padding=1)
        scores = 2 if config.rpn_objectness == "softmax" else 1
        self.objectness = nn.Conv2d(config.rpn_channels, scores * config.anchors_per_cell, 1)
        self.deltas = nn.Conv2d(config.rpn_channels, 4 * config.anchors_per_cell, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness logits [B, M], deltas [B, M, 4] and the anchors [M, 4] they belong to.

        Of a softmax the logit is the foreground's less the background's: its sigmoid is the same probability.
        """
        hidden = torch.relu_(self.conv(feature_map))
        batch, _, height, width = hidden.shape
        scores = self.objectness(hidden)
        if self.config.rpn_objectness == "softmax":
            background, foreground = scores.chunk(2, 1)
            scores = foreground - background
        logits = scores.permute(0, 2, 3, 1).reshape(batch, -1)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(batch, -1, 4)
        return logits, deltas, self._anchors(height, width).to(hidden.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.conv.weight.device

    @torch.no_grad()
    def proposals(
        self, feature_map: Tensor, sizes: list[tuple[int, int]], scales: list[float]
    ) -> list[Tensor]:
        """`propose` for the first pictures of a map, as many as there are sizes."""
        logits, deltas, anchors = self(feature_map)
        return self.propose(logits[: len(sizes)], deltas[: len(sizes)], anchors, sizes, scales)

    @torch.no_grad()
    def propose(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        sizes: list[tuple[int, int]],
        scales: Sequence[float] | None = None,
    ) -> list[Tensor]:
        """Boxes [P, 4] of each picture in network pixels, best first; P may be 0, and differs.

        Args:
            logits, deltas, anchors: what `forward` gave.
            sizes: (height, width) in network pixels to which each picture's boxes are cut.
            scales: network pixels per original pixel of each picture; inclusive boxes need them.
        """
        config = self.config
        pre_nms = config.rpn_pre_nms_train if self.training else config.rpn_pre_nms_test
        post_nms = config.rpn_post_nms_train if self.training else config.rpn_post_nms_test
        if config.box_convention == "inclusive":
            scales = scales or [1.0] * len(sizes)
            return [
                self._propose_inclusive(*picture, anchors, pre_nms, post_nms)
                for picture in zip(logits, deltas, sizes, scales, strict=True)
            ]
        scores, order = logits.topk(min(pre_nms, logits.shape[1]), dim=1)  # [B, M']
        deltas = deltas.gather(1, order[..., None].expand(-1, -1, 4))
        moved = decode(deltas, anchors[order], RPN_BOX_WEIGHTS, clamp=config.clamp_deltas)
        proposals = []
        for boxes, score, size in zip(moved, scores, sizes, strict=True):
            boxes = clip(boxes, size)
            large = self._large_enough(boxes[:, 2:] - boxes[:, :2], config.rpn_min_size)
            boxes, score = boxes[large], score[large]
            proposals.append(boxes[thin(boxes, score, config.rpn_nms_thresh)[:post_nms]])
        return proposals

    def _propose_inclusive(
        self,
        logits: Tensor,
        deltas: Tensor,
        size: tuple[int, int],
        scale: float,
        anchors: Tensor,
        pre_nms: int,
        post_nms: int,
    ) -> Tensor:
        """As the Caffe release: what is too small in the original goes first, then the best are taken."""
        config = self.config
        moved = decode(deltas, anchors, RPN_BOX_WEIGHTS, inclusive=True, clamp=config.clamp_deltas)
        boxes = clip(moved, size, inclusive=True)
        large = self._large_enough(boxes[:, 2:] - boxes[:, :2] + 1, config.rpn_min_size * scale)
        boxes, scores = boxes[large], logits[large]
        scores, order = scores.topk(min(pre_nms, len(scores)))
        boxes = boxes[order]
        return boxes[thin(boxes, scores, config.rpn_nms_thresh, inclusive=True)[:post_nms]]

    def _large_enough(self, sides: Tensor, least: float) -> Tensor:
        return (sides >= least if self.config.rpn_min_size_kept else sides > least).all(1)

    def _anchors(self, height: int, width: int) -> Tensor:
        config = self.config
        if config.cell_anchors:
            return listed_anchors(config.cell_anchors, height, width, self.stride)
        return grid_anchors(config.anchor_sizes, config.anchor_ratios, height, width, self.stride)


def _grid_anchors(
    sizes: tuple[float, ...], ratios: tuple[float, ...], height: int, width: int, stride: int
) -> Tensor:
    size = torch.tensor(sizes)[:, None]
    root = torch.tensor(ratios)[None, :].sqrt()
    half = torch.stack([(size / root).flatten(), (size * root).flatten()], -1) / 2  # [A, 2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = (torch.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * stride  # [height * width, 1, 2]
    return torch.cat([centre - half, centre + half], -1).reshape(-1, 4)
