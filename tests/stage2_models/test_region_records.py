"""Pictures straight from stage one give the batch that the store would give."""

import numpy as np
import pytest

from stage2_models.region_records import batch_of_records
from store_schema.errors import UsageError
from store_schema.records import ImageRecord


def _record(name: str, count: int) -> ImageRecord:
    boxes = np.tile(np.array([1, 1, 5, 4], np.float32), (count, 1))
    return ImageRecord(name, 20, 10, boxes, np.full((count, 3), 0.1, np.float32))


def test_pictures_are_padded_to_the_most_regions() -> None:
    batch = batch_of_records([_record("a", 2), _record("b", 0)])
    assert batch.features.shape == (2, 2, 3)
    assert batch.num_regions.tolist() == [2, 0]
    assert batch.mask.tolist() == [[True, True], [False, False]]
    assert batch.features[1].abs().max() == 0
    assert batch.features[0, 0, 0].item() == float(np.float16(0.1))
    assert batch.sizes.tolist() == [[20.0, 10.0]] * 2


def test_pictures_without_any_region_keep_one_empty_slot() -> None:
    assert batch_of_records([_record("a", 0)]).features.shape == (1, 1, 3)


def test_no_picture_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="at least one picture expected"):
        batch_of_records([])
