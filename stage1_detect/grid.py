"""Cells of a feature map as regions: the baseline that bottom-up regions are compared with.

The map is a trained detector's own or a pretrained classifier's, averaged to the same number of cells for every
picture. A cell's box is its share of the picture; what the network sees of it is wider.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from stage1_detect import transform
from stage1_detect.classifier import Classifier
from stage1_detect.detector import Detector
from store_schema.records import ImageRecord


class GridExtractor:
    """Rows times columns regions a picture, in rows from the top left; no labels."""

    def __init__(self, network: Detector | Classifier, cells: tuple[int, int]) -> None:
        """Average `network`'s map to `cells` = (rows, columns)."""
        self.network = network
        self.cells = cells

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network sees of a picture."""
        return transform.network_size(height, width, self.network.config)

    @torch.inference_mode()
    def extract(self, images: Sequence[NDArray[np.uint8]], image_ids: Sequence[str]) -> list[ImageRecord]:
        """One record for each RGB picture [H, W, 3]; all must have one network size."""
        feature_map = self.network.grid_map(self.network.prepare(images))
        pooled = F.adaptive_avg_pool2d(feature_map, self.cells).flatten(2).transpose(1, 2)  # [B, cells, D]
        features = pooled.contiguous().cpu().numpy()
        return [
            ImageRecord(
                image_id=image_id,
                width=image.shape[1],
                height=image.shape[0],
                boxes=cell_boxes(image.shape[0], image.shape[1], self.cells),
                features=features[index],
            )
            for index, (image, image_id) in enumerate(zip(images, image_ids, strict=True))
        ]


def cell_boxes(height: int, width: int, cells: tuple[int, int]) -> NDArray[np.float32]:
    """[rows * columns, 4] xyxy pixels: the picture in equal parts, in rows from the top left."""
    rows, columns = cells
    y = np.linspace(0, height, rows + 1, dtype=np.float32)
    x = np.linspace(0, width, columns + 1, dtype=np.float32)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([x[column], y[row], x[column + 1], y[row + 1]], 1)
