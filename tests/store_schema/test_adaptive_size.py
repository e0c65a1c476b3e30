"""What an adaptive store costs on the disk above the numbers that it holds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from store_schema.metadata import FeatureDtype
from store_schema.records import ImageRecord
from store_schema.writer import StoreWriter, write_block
from tests.store_schema.tiny import METADATA


@pytest.mark.parametrize(("dtype", "num_bytes"), [("float16", 2), ("float32", 4)])
def test_ten_to_a_hundred_regions_cost_at_most_a_tenth_more(
    tmp_path: Path, dtype: FeatureDtype, num_bytes: int
) -> None:
    """Every number from 10 to 100 once, as many bytes a region as published features have."""
    metadata = replace(
        METADATA,
        feature_dim=2048,
        min_regions=10,
        max_regions=100,
        feature_dtype=dtype,
        block_size=91,
        object_names=(),
        attribute_names=(),
    )
    records = [
        ImageRecord(
            str(num), 9, 9, np.tile(np.array([0, 0, 5, 5], np.float32), (num, 1)), np.ones((num, 2048), dtype)
        )
        for num in range(10, 101)
    ]
    with StoreWriter.open(tmp_path, metadata) as writer:
        block = writer.plan([record.image_id for record in records])[0]
        writer.commit(block, write_block(tmp_path, metadata, block, records))
    stored = (tmp_path / "features" / "c.0.0.0").stat().st_size
    held = sum(len(record.boxes) for record in records) * 2048 * num_bytes
    assert 1.05 < stored / held <= 1.10
