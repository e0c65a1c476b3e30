"""Small real stores: one of fixed k, one adaptive, the latter with pictures without regions and a bad picture."""

from pathlib import Path

import numpy as np
import pytest

from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord, Problem
from store_schema.writer import StoreWriter, write_block

NUM_IMAGES = 75
FEATURE_DIM = 48


def write_store(path: Path, *, min_regions: int, max_regions: int) -> Path:
    """Write a store of random regions, blocks of 16 pictures, so that a batch of any size meets several."""
    metadata = StoreMetadata(
        feature_dim=FEATURE_DIM,
        max_regions=max_regions,
        min_regions=min_regions,
        box_source="given",
        detector={"name": "random", "fingerprint": "none"},
        selection={},
        block_size=16,
    )
    rng = np.random.default_rng(0)

    def item(image_id: str, number: int) -> ImageRecord | Problem:
        if min_regions == 0 and number == 40:
            return Problem(image_id=image_id, path="bad.jpg", reason="not a picture")
        count = int(rng.integers(min_regions, max_regions + 1)) if number % 16 else min_regions
        corner = rng.integers(0, 50, size=(count, 2))
        return ImageRecord(
            image_id=image_id,
            width=100 + number,
            height=120,
            boxes=np.concatenate([corner, corner + 1 + rng.integers(0, 40, (count, 2))], 1).astype(
                np.float32
            ),
            features=rng.standard_normal((count, FEATURE_DIM)).astype(np.float16),
        )

    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan([f"picture:{number}" for number in range(NUM_IMAGES)]):
            items = [
                item(image_id, block.start_row + place) for place, image_id in enumerate(block.image_ids)
            ]
            writer.commit(block, write_block(path, metadata, block, items))
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    """Six regions a picture."""
    path = write_store(tmp_path_factory.mktemp("stores") / "fixed", min_regions=6, max_regions=6)
    return RegionStore.open(path)


@pytest.fixture(scope="session")
def adaptive_store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    """None to 25 regions a picture."""
    path = write_store(tmp_path_factory.mktemp("stores") / "adaptive", min_regions=0, max_regions=25)
    return RegionStore.open(path)


@pytest.fixture
def own_store(tmp_path: Path) -> RegionStore:
    """A fixed store that a test may damage."""
    return RegionStore.open(write_store(tmp_path / "own", min_regions=6, max_regions=6))
