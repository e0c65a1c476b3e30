from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr

from store_schema.layout import NO_LABEL, NOT_WRITTEN
from tests.store_schema.tiny import ADAPTIVE, METADATA


def test_num_regions_is_written_last() -> None:
    """Other readers take it as the sign that a row is complete."""
    assert list(METADATA.arrays())[-1] == "num_regions"


@pytest.mark.parametrize(
    ("name", "dims", "dtype", "fill"),
    [
        ("features", ("image", "region", "feature"), "float16", 0.0),
        ("boxes", ("image", "region", "xyxy"), "float32", 0.0),
        ("object_id", ("image", "region"), "uint16", NO_LABEL),
        ("object_score", ("image", "region"), "float16", 0.0),
        ("attribute_id", ("image", "region"), "uint16", NO_LABEL),
        ("attribute_score", ("image", "region"), "float16", 0.0),
        ("width", ("image",), "int32", 0),
        ("height", ("image",), "int32", 0),
        ("image_id", ("image",), "string", ""),
        ("image_id_utf8", ("image", "byte"), "uint8", 0),
        ("num_regions", ("image",), "uint16", NOT_WRITTEN),
    ],
)
def test_arrays_are_those_of_the_contract(name: str, dims: tuple[str, ...], dtype: str, fill: Any) -> None:
    spec = METADATA.arrays()[name]
    assert (spec.dims, spec.dtype, spec.fill) == (dims, dtype, fill)
    assert len(METADATA.arrays()) == 11


def test_arrays_without_names_are_absent() -> None:
    assert "object_id" not in replace(METADATA, object_names=()).arrays()
    assert "attribute_score" not in replace(METADATA, attribute_names=()).arrays()


def test_fixed_stores_have_a_chunk_an_image_and_adaptive_ones_a_chunk_for_ten_regions() -> None:
    fixed, adaptive = METADATA.arrays()["features"], ADAPTIVE.arrays()["features"]
    assert (fixed.chunk_shape, fixed.inner_chunk) == ((4, 4, 6), (1, 4, 6))
    assert (adaptive.chunk_shape, adaptive.inner_chunk) == ((4, 30, 6), (1, 10, 6))


def test_keys_are_flat_names() -> None:
    assert METADATA.arrays()["features"].chunk_key(12) == "c.12.0.0"
    assert METADATA.arrays()["image_id_utf8"].chunk_key(12, 3) == "c.12.3"
    assert METADATA.arrays()["width"].chunk_key(0) == "c.0"


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("metadata", [METADATA, ADAPTIVE])
def test_zarr_takes_every_description_for_its_own(tmp_path: Path, metadata: Any, codec: Any) -> None:
    """What zarr writes back for the same array is what we wrote, so both mean the same."""
    import json

    for spec in metadata.arrays().values():
        folder = tmp_path / spec.name
        folder.mkdir()
        ours = spec.zarr_json(100, codec)
        (folder / "zarr.json").write_text(json.dumps(ours))
        array: Any = zarr.open_array(str(folder), mode="r")
        theirs = array.metadata.to_dict()
        for key in (
            "shape",
            "chunk_grid",
            "dimension_names",
            "chunk_key_encoding",
            "fill_value",
            "attributes",
        ):
            assert normal(theirs[key]) == normal(ours[key]), (spec.name, key)
        assert [codec["name"] for codec in theirs["codecs"]] == [codec["name"] for codec in ours["codecs"]]


def normal(value: Any) -> Any:
    """Tuples as lists, numpy numbers as Python's."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [normal(item) for item in value]
    return value.item() if hasattr(value, "item") else value
