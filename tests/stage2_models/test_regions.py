"""Region input: geometry by hand, statistics against numpy, padding that stays zero."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stage2_models.regions import (
    FeatureStatistics,
    RegionInput,
    box_geometry,
    mean_over_regions,
    region_mask,
)
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord
from store_schema.writer import StoreWriter, write_block


def test_geometry_of_a_box_by_hand() -> None:
    boxes = torch.tensor([[[50.0, 20.0, 150.0, 70.0], [9.0, 9.0, 9.0, 9.0]]])
    geometry = box_geometry(boxes, torch.tensor([[200.0, 100.0]]), torch.tensor([[True, False]]))
    expected = [0.25, 0.2, 0.75, 0.7, 0.5, 0.5, 0.25, float(np.log(2.0))]
    torch.testing.assert_close(geometry, torch.tensor([[expected, [0.0] * 8]]))


def test_mean_is_over_real_regions_and_zero_without_any() -> None:
    values = torch.tensor([[[2.0], [4.0], [0.0]], [[0.0], [0.0], [0.0]]])
    mask = region_mask(torch.tensor([2, 0]), 3)
    assert mean_over_regions(values, mask).tolist() == [[3.0], [0.0]]


def _store(path: Path, features: list[np.ndarray]) -> RegionStore:
    metadata = StoreMetadata(
        feature_dim=3, max_regions=4, min_regions=0, box_source="given",
        detector={"name": "none", "fingerprint": "0"}, selection={}, feature_dtype="float32", block_size=8,
    )  # fmt: skip
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan([str(index) for index in range(len(features))]):
            records = [
                ImageRecord(
                    name, 10, 10, np.tile(np.array([1, 1, 5, 5], np.float32), (len(values), 1)), values
                )
                for name, values in ((name, features[int(name)]) for name in block.image_ids)
            ]
            writer.commit(block, write_block(path, metadata, block, records))
    return RegionStore.open(path)


def test_statistics_are_those_of_the_real_regions_of_the_given_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(5, 3, (n, 3)).astype(np.float32) for n in (2, 4, 0, 1, 3)]
    for block in features:
        block[:, 2] = 7.0
    store = _store(tmp_path / "store", features)
    statistics = FeatureStatistics(3).fit(store, store.rows(["0", "1", "1", "2", "3"]))
    chosen = np.concatenate([features[i] for i in (0, 1, 2, 3)])
    np.testing.assert_allclose(statistics.mean.numpy(), chosen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.deviation.numpy()[:2], chosen.std(0)[:2], rtol=1e-5)
    assert statistics.deviation[2] == 1.0, "a constant feature must not be divided by nothing"


def test_statistics_travel_in_the_state() -> None:
    trained = RegionInput(3, normalise=True, use_geometry=False)
    assert trained.statistics is not None
    trained.statistics.mean.fill_(2.0)
    fresh = RegionInput(3, normalise=True, use_geometry=False)
    fresh.load_state_dict(trained.state_dict())
    assert fresh.statistics is not None
    assert fresh.statistics.mean.tolist() == [2.0] * 3


@pytest.mark.parametrize("use_geometry", [False, True])
def test_input_is_float32_and_zero_where_padded(use_geometry: bool) -> None:
    module = RegionInput(3, normalise=True, use_geometry=use_geometry)
    assert module.statistics is not None
    module.statistics.mean.fill_(1.0)
    features = torch.zeros(2, 4, 3, dtype=torch.float16)
    mask = region_mask(torch.tensor([1, 0]), 4)
    result = module(features, torch.rand(2, 4, 4) + 1, torch.full((2, 2), 50.0), mask)
    assert result.shape == (2, 4, module.out_dim)
    assert result.dtype == torch.float32
    assert result[~mask].abs().max() == 0
    assert result[0, 0, :3].tolist() == [-1.0] * 3
