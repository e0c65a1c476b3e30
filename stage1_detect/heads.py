"""What each region is: its feature, class, box and attribute.

The feature is the vector that class and box are linear in, and that the store keeps. The attribute head sees
the feature beside an embedding of the region's class: the true class in training, the predicted one after.

Source: Anderson et al. 2018, arXiv 1707.07998, sec. 3.1.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from stage1_detect.config import DetectorConfig
from stage1_detect.pooling import separable_roi_align, tabled_roi_pool

SEPARABLE_MAX_CELLS = 64 * 64
"""Maps up to this size are pooled by matrix products on the CPU, larger ones by torchvision."""


class RegionOutputs(NamedTuple):
    """Of all regions of a batch, in the order of its pictures."""

    features: Tensor
    """[n, D] float32."""
    class_logits: Tensor
    """[n, C], background 0."""
    box_deltas: Tensor
    """[n, C, 4], or [n, 1, 4] where one box serves every class; scaled by the config's `box_weights`."""
    regions_per_image: list[int]


def split_regions(outputs: RegionOutputs) -> list[RegionOutputs]:
    """Each picture's share."""
    sizes = outputs.regions_per_image
    features, class_logits, box_deltas = (torch.split(tensor, sizes) for tensor in outputs[:3])
    parts = zip(features, class_logits, box_deltas, sizes, strict=True)
    return [RegionOutputs(part, logits, deltas, [size]) for part, logits, deltas, size in parts]


def take_regions(outputs: RegionOutputs, indices: Tensor) -> RegionOutputs:
    """The given regions [n] of one picture, in that order."""
    features, class_logits, box_deltas = (tensor[indices] for tensor in outputs[:3])
    return RegionOutputs(features, class_logits, box_deltas, [len(indices)])


class RegionHead(nn.Module):
    """Pools regions from the map and says what they are."""

    def __init__(
        self,
        config: DetectorConfig,
        *,
        channels: int,
        stride: int,
        num_classes: int,
        num_attributes: int,
        conv5: nn.Module | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.stride = stride
        self.num_classes = num_classes
        self.reduce: nn.Module = nn.Identity()
        pooled = config.region_channels or channels
        if config.region_channels:  # normalised: the linear layer after it then learns from the first steps
            self.reduce = nn.Sequential(nn.Conv2d(channels, pooled, 1, bias=False), nn.BatchNorm2d(pooled))
        if conv5 is None:
            self.feature_dim = config.hidden_dim
            self.trunk: nn.Module = PooledVector(pooled, config.pooler_size, config.hidden_dim)
        else:
            self.feature_dim = 2 * channels
            self.trunk = nn.Sequential(conv5, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classes = nn.Linear(self.feature_dim, num_classes)
        self.boxes = nn.Linear(self.feature_dim, 4 * (1 if config.class_agnostic_boxes else num_classes))
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.boxes.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.boxes.bias)
        self.attributes: AttributeHead | None = None
        if num_attributes:
            self.attributes = AttributeHead(config, self.feature_dim, num_classes, num_attributes)

    def region_map(self, feature_map: Any) -> Any:  # noqa: ANN401  (a map here, levels in a pyramid)
        """[B, c, h, w], the map that regions are pooled from."""
        reduced: Tensor = self.reduce(feature_map)
        return reduced

    def pool(self, region_map: Any, boxes: list[Tensor]) -> Tensor:  # noqa: ANN401
        """[n, c, s, s] from each picture's boxes [P, 4] in network pixels."""
        size, scale, sampling = self.config.pooler_size, 1 / self.stride, self.config.pooler_sampling
        on_cpu, trains = region_map.device.type == "cpu", torch.is_grad_enabled() and region_map.requires_grad
        small = region_map.shape[2] * region_map.shape[3] <= SEPARABLE_MAX_CELLS
        maps = zip(region_map, boxes, strict=True)
        if self.config.pooler == "roi_pool" and on_cpu and not trains:
            pooled = torch.cat([tabled_roi_pool(m, b, size, scale) for m, b in maps])
        elif self.config.pooler == "roi_pool":
            pooled = roi_pool(region_map.contiguous(), boxes, size, scale)
        elif small and on_cpu:
            pooled = torch.cat([separable_roi_align(m, b, size, scale, sampling) for m, b in maps])
        else:
            pooled = roi_align(region_map.contiguous(), boxes, size, scale, sampling, aligned=True)
        return pooled

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [n, D], class logits [n, C], box deltas [n, C or 1, 4]."""
        features: Tensor = self.trunk(pooled)
        return features, self.classes(features), self.boxes(features).unflatten(1, (-1, 4))


class PooledVector(nn.Module):
    """relu(W vec(pooled) + V mean(pooled) + b): the "fc" head's feature.

    The mean adds nothing that W could not express; it offers what holds wherever it is seen, as a texture does,
    through weights that all bins share. Measured alone on scenes, 700 steps, attributes by "mean": a tie (map .747
    with it, .753 without), and patterns stayed at .50.
    """

    def __init__(self, channels: int, size: int, features: int) -> None:
        super().__init__()
        self.bins = nn.Linear(channels * size**2, features)
        self.mean = nn.Linear(channels, features, bias=False)
        for layer in (self.bins, self.mean):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(self.bins.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """[n, D] from [n, c, s, s]."""
        return torch.relu_(self.bins(pooled.flatten(1)) + self.mean(pooled.mean((2, 3))))


class AttributeHead(nn.Module):
    """softmax(W2 relu(W1 [feature; embedding of the class])); published heads have "none" as their first column."""

    def __init__(
        self, config: DetectorConfig, feature_dim: int, num_classes: int, num_attributes: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, config.class_embedding_dim)
        self.hidden = nn.Linear(feature_dim + config.class_embedding_dim, config.attribute_hidden_dim)
        none = config.no_attribute != "absent"
        self.logits = nn.Linear(config.attribute_hidden_dim, num_attributes + none)

    def forward(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """[n, A] logits from features [n, D] and class ids [n] int64, background 0; one more with "none" first."""
        hidden = torch.relu(self.hidden(torch.cat([features, self.embedding(class_ids)], 1)))
        logits: Tensor = self.logits(hidden)
        return logits
