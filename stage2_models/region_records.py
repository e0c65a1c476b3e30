"""Regions that come straight from stage one, without a store, as a batch for a model."""

from collections.abc import Sequence

import numpy as np
import torch

from stage2_models.loading.batch import RegionBatch
from store_schema.errors import UsageError
from store_schema.records import ImageRecord


def batch_of_records(records: Sequence[ImageRecord]) -> RegionBatch:
    """Put pictures into a batch, padded to the most regions of any of them (at least one slot).

    Features are rounded to float16, as the store keeps them by default, so that a picture gets the same caption
    either way.
    """
    if not records:
        raise UsageError("regions of at least one picture expected, none came")
    slots = max(1, *(len(record.boxes) for record in records))
    features = np.zeros((len(records), slots, records[0].features.shape[1]), np.float16)
    boxes = np.zeros((len(records), slots, 4), np.float32)
    for index, record in enumerate(records):
        features[index, : len(record.boxes)] = record.features
        boxes[index, : len(record.boxes)] = record.boxes
    return RegionBatch(
        features=torch.from_numpy(features),
        boxes=torch.from_numpy(boxes),
        sizes=torch.tensor([[record.width, record.height] for record in records], dtype=torch.float32),
        num_regions=torch.tensor([len(record.boxes) for record in records]),
    )
