"""Every Python block of docs/ecosystem.md and docs/formats.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import main
from store_schema.reader import RegionStore
from tests.pipeline.conftest import K, World

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "docs", "exec"), names)
    return names


@pytest.fixture
def here(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegionStore:
    """A folder in which regions.zarr is a store."""
    (tmp_path / "regions.zarr").symlink_to(world.regions)
    (tmp_path / "tables").symlink_to(world.scenes)
    monkeypatch.chdir(tmp_path)
    return RegionStore.open(world.regions)


def test_every_block_about_a_store_runs(here: RegionStore) -> None:
    of_xarray, of_dask, of_pandas, of_tensorstore, of_coco = blocks("ecosystem.md")
    names = run(of_xarray)
    assert names["dims"] == ("image", "region", "feature")
    assert set(names["data"].coords) >= {"image_id", "width", "height", "num_regions"}
    assert np.array_equal(names["boxes"], here.image("s5-000000").boxes)
    batch = here.read_rows(here.all_rows)
    assert int(names["wide"]) == (batch.sizes[:, 0] > batch.sizes[:, 1]).sum()
    names = run(of_dask)
    assert names["features"].numblocks == (1, 1, 1)
    assert np.allclose(names["mean"], batch.features.astype(np.float32).mean(axis=(0, 1)), atol=1e-5)
    names = run(of_pandas)
    assert names["commonest"].sum() <= len(names["frame"]) == 40 * K
    names = run(of_tensorstore)
    assert np.array_equal(names["first"], batch.features[:2])
    assert names["ids"] == list(here.image_ids)
    command = re.search(r"^    butd (store export .*)$", (DOCS / "ecosystem.md").read_text(), re.M)
    assert command is not None
    assert main(command[1].split()) == 0
    names = run(of_coco)
    assert len(names["coco"].getImgIds()) == 40
    assert len(names["annotations"]) == K
    assert names["first_image"]["file_name"] == "images/000000.jpg"
    assert len(names["detections"].getAnnIds()) == 40 * K


def test_a_format_of_ones_own_as_the_page_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cadene").mkdir()
    features = np.arange(12, dtype=np.float32).reshape(2, 6)
    boxes = np.array([[0, 0, 5, 5], [1, 1, 9, 9]], np.float32)
    np.savez("cadene/7.npz", pooled_feat=features, rois=boxes, size=np.array([10, 20]))
    (block,) = blocks("formats.md")
    run(block)
    record = RegionStore.open("cadene.zarr").image("7")
    assert np.array_equal(record.features, features)
    assert (record.width, record.height) == (10, 20)
