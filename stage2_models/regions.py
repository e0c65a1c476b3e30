"""From the store's regions to a model's input: float32, z-scored, the boxes' geometry beside the features.

Features are z-scored by statistics of the training pictures, which live in the model's buffers and so in its
checkpoint. Padded slots are zero everywhere. Nothing here depends on where the regions came from.
Legend: B pictures, K region slots, D feature size.
"""

import logging
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from store_schema.reader import RegionStore

logger = logging.getLogger(__name__)

GEOMETRY_DIM = 8
"""Numbers that say where a box lies: see `box_geometry`."""


def region_mask(num_regions: Tensor, slots: int) -> Tensor:
    """Mark the real regions: [B] counts to a [B, slots] bool mask, True for the first `num_regions`."""
    return torch.arange(slots, device=num_regions.device) < num_regions.unsqueeze(1)


def mean_over_regions(values: Tensor, mask: Tensor) -> Tensor:
    """Average [B, K, D] over the real regions; a picture without regions gives zeros.

    Args:
        values: [B, K, D] float, zero at padded slots.
        mask: [B, K] bool, True where a region is real.
    """
    return values.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def box_geometry(boxes: Tensor, sizes: Tensor, mask: Tensor) -> Tensor:
    """Describe each box by eight numbers relative to its picture; zeros at padded slots.

    x1, y1, x2, y2, width, height, area as fractions of the picture's (0..1), and the aspect as
    log(width / height) in pixels, so that a flat and a tall box are equally far from a square.

    Args:
        boxes: [B, K, 4] float32, xyxy in pixels of the original picture.
        sizes: [B, 2] float32, width and height of the picture in pixels.
        mask: [B, K] bool, True where a region is real.

    Returns:
        [B, K, 8] float32.
    """
    corners = boxes / sizes.repeat(1, 2).unsqueeze(1)  # [B, K, 4]
    extent = corners[..., 2:] - corners[..., :2]  # [B, K, 2]
    area = extent.prod(-1, keepdim=True)
    pixels = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    aspect = (pixels[..., :1] / pixels[..., 1:]).log()
    return torch.cat([corners, extent, area, aspect], -1).masked_fill(~mask.unsqueeze(-1), 0.0)


class FeatureStatistics(nn.Module):
    """Z-scores features by the mean and deviation of the training regions, kept as buffers.

    Starts as the identity (mean 0, deviation 1); `fit` or a checkpoint fills it. A feature that never varies
    in training is only centred.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))

    @torch.no_grad()
    def fit(self, store: "RegionStore", rows: NDArray[np.int64], *, max_images: int = 4096) -> Self:
        """Take the statistics from the store's training rows, float64 sums over at most `max_images` of them.

        The pictures are evenly spaced among the sorted distinct rows, so the result depends on the rows alone.
        """
        distinct = np.unique(rows)
        spaced = np.linspace(0, len(distinct) - 1, min(len(distinct), max_images))
        chosen = distinct[spaced.round().astype(np.int64)]
        width = self.mean.numel()
        total, squares, count = np.zeros(width), np.zeros(width), 0
        for start in range(0, len(chosen), 128):
            block = np.concatenate(store.feature_views(chosen[start : start + 128])).astype(np.float64)
            total += block.sum(0)
            squares += np.square(block).sum(0)
            count += len(block)
        mean = total / max(count, 1)
        variance = np.maximum(squares / max(count, 1) - np.square(mean), 0.0)
        constant = variance <= 1e-10 * np.maximum(np.square(mean), 1e-10)
        deviation = np.where(constant, 1.0, np.sqrt(variance))
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(deviation))
        logger.info(
            "feature statistics from %s regions of %s pictures, %s of %s dimensions constant",
            count, len(chosen), int(constant.sum()), width,
        )  # fmt: skip
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Z-score [..., D]; padded slots must be masked afterwards."""
        return (features - self.mean) / self.deviation


class RegionInput(nn.Module):
    """Turns a batch of regions into what a model reads: [B, K, out_dim] float32, zero at padded slots.

    Args:
        feature_dim: D, as in the store.
        normalise: z-score by the training statistics (fill them with `statistics.fit`).
        use_geometry: append the eight numbers of `box_geometry`.
        geometry_scale: factor on those, so that they weigh as much as z-scored features (3 was found good;
            aspect, which is already of that order, is scaled alike).
    """

    def __init__(
        self, feature_dim: int, *, normalise: bool, use_geometry: bool, geometry_scale: float = 3.0
    ) -> None:
        super().__init__()
        self.statistics = FeatureStatistics(feature_dim) if normalise else None
        self.use_geometry = use_geometry
        self.geometry_scale = geometry_scale
        self.out_dim = feature_dim + (GEOMETRY_DIM if use_geometry else 0)

    def forward(self, features: Tensor, boxes: Tensor, sizes: Tensor, mask: Tensor) -> Tensor:
        """Prepare a batch.

        Args:
            features: [B, K, D] float16 or float32; converted to float32 once, here.
            boxes: [B, K, 4] float32 pixels. sizes: [B, 2] float32, width and height.
            mask: [B, K] bool, True where a region is real.
        """
        values = features.float()
        if self.statistics is not None:
            values = self.statistics(values)
        values = values.masked_fill(~mask.unsqueeze(-1), 0.0)
        if not self.use_geometry:
            return values
        return torch.cat([values, self.geometry_scale * box_geometry(boxes, sizes, mask)], -1)
