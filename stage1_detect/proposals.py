"""Where something might be: anchors and the region proposal network.

Source: Ren et al. 2015, arXiv 1506.01497, sec. 3.1; of each picture the best-scored anchors are moved, cut to
the picture, and thinned by non-maximum suppression.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from stage1_detect.boxes import clip, decode
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


class RegionProposalNetwork(nn.Module):
    """Scores and moves anchors; the boxes it proposes carry no gradient."""

    def __init__(self, config: DetectorConfig, *, channels: int, stride: int) -> None:
        super().__init__()
        self.config = config
        self.stride = stride * config.rpn_stride
        self.conv = nn.Conv2d(channels, config.rpn_channels, 3, stride=config.rpn_stride, padding=1)
        self.objectness = nn.Conv2d(config.rpn_channels, config.anchors_per_cell, 1)
        self.deltas = nn.Conv2d(config.rpn_channels, 4 * config.anchors_per_cell, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness logits [B, M], deltas [B, M, 4] and the anchors [M, 4] they belong to."""
        hidden = torch.relu_(self.conv(feature_map))
        batch, _, height, width = hidden.shape
        logits = self.objectness(hidden).permute(0, 2, 3, 1).reshape(batch, -1)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(batch, -1, 4)
        sizes, ratios = self.config.anchor_sizes, self.config.anchor_ratios
        return logits, deltas, grid_anchors(sizes, ratios, height, width, self.stride).to(hidden.device)

    @torch.no_grad()
    def propose(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Boxes [P, 4] of each picture in network pixels, best first; P may be 0, and differs.

        Args:
            logits, deltas, anchors: what `forward` gave.
            sizes: (height, width) in network pixels to which each picture's boxes are cut.
        """
        config = self.config
        pre_nms = config.rpn_pre_nms_train if self.training else config.rpn_pre_nms_test
        post_nms = config.rpn_post_nms_train if self.training else config.rpn_post_nms_test
        scores, order = logits.topk(min(pre_nms, logits.shape[1]), dim=1)  # [B, M']
        moved = decode(deltas.gather(1, order[..., None].expand(-1, -1, 4)), anchors[order], RPN_BOX_WEIGHTS)
        proposals = []
        for boxes, score, size in zip(moved, scores, sizes, strict=True):
            boxes = clip(boxes, size)
            large = ((boxes[:, 2:] - boxes[:, :2]) >= config.rpn_min_size).all(1)
            boxes, score = boxes[large], score[large]
            proposals.append(boxes[nms(boxes, score, config.rpn_nms_thresh)[:post_nms]])
        return proposals


def _grid_anchors(
    sizes: tuple[float, ...], ratios: tuple[float, ...], height: int, width: int, stride: int
) -> Tensor:
    size = torch.tensor(sizes)[:, None]
    root = torch.tensor(ratios)[None, :].sqrt()
    half = torch.stack([(size / root).flatten(), (size * root).flatten()], -1) / 2  # [A, 2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = (torch.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * stride  # [height * width, 1, 2]
    return torch.cat([centre - half, centre + half], -1).reshape(-1, 4)
