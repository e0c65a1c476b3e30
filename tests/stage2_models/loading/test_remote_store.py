"""Batches from a store behind a URL are those of the store on disk, whoever reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stage2_models.loader import build_loader
from store_schema.reader import RegionStore
from tests.store_schema.range_server import serve
from tests.store_schema.tiny import ADAPTIVE, write_store


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_reads_from_a_url_as_from_the_disk(tmp_path: Path, workers: int) -> None:
    local = RegionStore.open(write_store(tmp_path / "store", ADAPTIVE))
    with serve(tmp_path) as served:
        store = RegionStore.open(f"{served.url}/store")
        with (
            build_loader(local, local.all_rows, batch_size=4, seed=1, workers=0) as expected,
            build_loader(store, store.all_rows, batch_size=4, seed=1, workers=workers) as loader,
        ):
            pairs = list(zip(expected.epoch(0), loader.epoch(0), strict=True))
    assert len(pairs) == 3
    for left, right in pairs:
        assert np.array_equal(left.indices, right.indices)
        for name in ("features", "boxes", "sizes", "num_regions", "mask"):
            assert torch.equal(getattr(left.regions, name), getattr(right.regions, name)), name
