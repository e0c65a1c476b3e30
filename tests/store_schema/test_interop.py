"""Other people's programs open our stores as they are, and find in them what was written."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from numpy.typing import NDArray

from store_schema.ledger import ledger_folder
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.writer import StoreWriter
from tests.store_schema.tiny import ADAPTIVE, BAD_ID, IDS, METADATA, finish, write_store

NUMBERS = [name for name in METADATA.arrays() if name != "image_id"]


def expected(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of numbers as our reader gives it, whole, with fill values where there is no picture."""
    store = RegionStore.open(path)
    metadata, rows = store.metadata, store.all_rows
    shapes = {"image_id_utf8": (96,)}
    arrays = {
        name: np.full((11, *shapes.get(name, spec.row_shape)), spec.fill, spec.dtype)
        for name, spec in metadata.arrays().items()
        if name != "image_id"
    }
    batch = store.read_rows(rows)
    arrays["features"][rows], arrays["boxes"][rows] = batch.features, batch.boxes
    arrays["num_regions"][rows] = batch.num_regions
    arrays["width"][rows], arrays["height"][rows] = batch.sizes.T
    for row, image_id in zip(rows.tolist(), store.image_ids, strict=True):
        encoded = image_id.encode()
        arrays["image_id_utf8"][row, : len(encoded)] = list(encoded)
        record = store.image(image_id)
        for name in ("object_id", "object_score", "attribute_id", "attribute_score"):
            arrays[name][row, : len(record.boxes)] = getattr(record, f"{name}s")
    return arrays


@pytest.fixture(params=["none", "zstd"])
def codec(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[METADATA, ADAPTIVE], ids=["fixed", "adaptive"])
def path(request: pytest.FixtureRequest, codec: Any, tmp_path: Path) -> Path:
    from dataclasses import replace

    metadata: StoreMetadata = replace(request.param, codec=codec)
    return write_store(tmp_path / "store", metadata)


def test_zarr_opens_the_group_without_a_warning(path: Path) -> None:
    group = zarr.open_group(str(path), mode="r")
    assert {name for name, _ in group.arrays()} == set(METADATA.arrays())
    assert [name for name, _ in group.groups()] == []
    for name, values in expected(path).items():
        array: Any = group[name]
        assert array.dtype == values.dtype
        assert np.array_equal(array[:], values), name
    assert dict(group.attrs)["butd_region_store"] == RegionStore.open(path).metadata.to_json()


def test_zarr_reads_the_identifiers_as_strings(path: Path) -> None:
    array: Any = zarr.open_group(str(path), mode="r")["image_id"]
    assert array[:].tolist() == [image_id if image_id != BAD_ID else "" for image_id in IDS]


def test_tensorstore_reads_every_array_but_the_strings(path: Path) -> None:
    for name, values in expected(path).items():
        array = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}, read=True
        ).result()
        assert np.array_equal(array.read().result(), values), name
        assert array.domain.labels == METADATA.arrays()[name].dims


def test_xarray_gives_named_dimensions(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(path, chunks=None, consolidated=False)
    for name, values in expected(path).items():
        assert data[name].dims == METADATA.arrays()[name].dims
        assert np.array_equal(data[name].values, values), name
    assert data["image_id"].values.tolist() == [image_id if image_id != BAD_ID else "" for image_id in IDS]
    assert data["features"].attrs["unit"] == "1"


def test_dask_reads_the_features(path: Path) -> None:
    from_zarr: Any = dask.array.from_zarr
    array = from_zarr(str(path / "features"), chunks=(4, -1, -1))
    assert np.array_equal(array.compute(scheduler="synchronous"), expected(path)["features"])


def test_what_is_not_written_yet_shows_in_num_regions(tmp_path: Path) -> None:
    """Block 1 of a store in writing; the others are planned."""
    with StoreWriter.open(tmp_path, METADATA) as writer:
        finish(writer, writer.plan(IDS)[1])
        group = zarr.open_group(str(tmp_path), mode="r")
        num_regions: Any = group["num_regions"]
        features: Any = group["features"]
        assert (num_regions[:] != 65535).tolist() == [False] * 4 + [True, False, True, True] + [False] * 3
        assert features.shape == (11, 4, 6)
        assert not features[:4].any()


def test_a_copy_that_zarr_made_is_read(fixed_path: Path, tmp_path: Path) -> None:
    """Other chunks, other codecs, no records: the same regions."""
    source = zarr.open_group(str(fixed_path), mode="r")
    copy = zarr.create_group(str(tmp_path / "copy"), attributes=dict(source.attrs))
    for name in NUMBERS:
        array: Any = source[name]
        made: Any = copy.create_array(
            name, shape=array.shape, chunks=array.shape, dtype=array.dtype, fill_value=array.fill_value
        )
        made[:] = array[:]
    store, original = RegionStore.open(tmp_path / "copy"), RegionStore.open(fixed_path)
    assert list(store.image_ids) == list(original.image_ids)
    assert store.features_fingerprint == original.features_fingerprint
    assert len(store.fingerprint) == 64
    assert store.read(IDS[:3]).features.tobytes() == original.read(IDS[:3]).features.tobytes()
    assert store.problems() == []


def test_no_hidden_folder_lies_where_zarr_looks_for_arrays(fixed_path: Path, tmp_path: Path) -> None:
    """Our records hide inside an array's folder; in the group itself zarr-python would warn of them."""
    copy = shutil.copytree(fixed_path, tmp_path / "copy")
    assert sorted(item.name for item in copy.iterdir()) == sorted([*METADATA.arrays(), "zarr.json"])
    assert ledger_folder(copy).is_dir()
