"""The text of the contract: which arrays a region store holds, and what each byte of them means.

`docs/store-format.md` says the same for people. A change of meaning here is a new `SCHEMA_VERSION`. This module
only describes; it reads and writes nothing. The zarr.json documents are written from it directly, so that
every version of zarr-python writes the same store.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1

ROOT_ATTRIBUTE = "butd_region_store"
"""The key of the metadata in the root group's attributes."""

NOT_WRITTEN = 65535
"""`num_regions` of a row that holds no picture: not written yet, quarantined, or past a partial block."""

NO_LABEL = 65535
"""`object_id` and `attribute_id` of a slot without a region."""

ADAPTIVE_CHUNK = 10
"""Region slots of one inner chunk where the number of regions varies; chunks without a region are not stored."""

ID_CHUNK_BYTES = 32
"""Bytes of an identifier in one chunk of `image_id_utf8`; longer identifiers take several chunks."""

MAX_ID_BYTES = 1024

ZSTD_LEVEL = 1

COORDINATES = "image_id width height num_regions"
"""Arrays that xarray shows as coordinates of the arrays of regions."""

IMAGE_NOTES = {
    "exif_turned": "its EXIF orientation turned or mirrored it; size and boxes are of the turned picture",
    "first_frame": "its file holds several pictures or an animation; the first was taken",
}
"""What a block's record may note of a picture, and what the word means."""

Codec = Literal["none", "zstd"]


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of the store.

    The first dimension is always the image; its length grows by blocks and is not part of the description.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    """A numpy and Zarr name, or "string" for variable-length UTF-8."""
    fill: int | float | str
    """What a reader sees where nothing is written."""
    unit: str
    meaning: str
    row_shape: tuple[int, ...]
    """Shape of one row, without the image dimension."""
    chunk_shape: tuple[int, ...]
    """Shape of one file: the first number is the block size."""
    inner_chunk: tuple[int, ...] | None = None
    """Shape of a chunk within a sharded file; None where the file is one plain chunk."""

    def zarr_json(self, num_rows: int, codec: Codec) -> dict[str, Any]:
        """The array's zarr.json with `num_rows` images."""
        codecs = [_array_codec(self.dtype), *_byte_codecs(codec)]
        if self.inner_chunk is not None:
            codecs = [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": list(self.inner_chunk),
                        "codecs": codecs,
                        "index_codecs": [_array_codec("uint64"), {"name": "crc32c"}],
                        "index_location": "end",
                    },
                }
            ]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [num_rows, *self.row_shape],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": self.fill,
            "codecs": codecs,
            "attributes": {"unit": self.unit, "meaning": self.meaning, **self._coordinates()},
            "dimension_names": list(self.dims),
            "storage_transformers": [],
        }

    def _coordinates(self) -> dict[str, str]:
        """What tells xarray (the CF conventions) which arrays say what a row of regions belongs to."""
        return {"coordinates": COORDINATES} if "region" in self.dims else {}

    def chunk_key(self, block: int, *rest: int) -> str:
        """The name of a block's file within the array's folder; further indexes default to 0."""
        indexes = (block, *rest, *([0] * (len(self.dims) - 1 - len(rest))))
        return ".".join(["c", *map(str, indexes)])


def array_specs(
    *,
    feature_dim: int,
    max_regions: int,
    adaptive: bool,
    feature_dtype: str,
    block_size: int,
    has_objects: bool,
    has_attributes: bool,
    id_bytes: int = ID_CHUNK_BYTES,
) -> dict[str, ArraySpec]:
    """Every array of a store by name, in the order in which a block's files are written.

    `num_regions` is last: where it is not 65535, every other array of the row is complete.

    Args:
        feature_dim: 0 for a store of boxes and labels only: the array `features` is absent.
        adaptive: whether the number of regions varies: chunks of ten regions instead of one chunk an image.
        has_objects, has_attributes: whether the detector names classes and attributes; otherwise the arrays
            are absent.
        id_bytes: width of `image_id_utf8`, a multiple of 32 that holds the longest identifier.
    """
    slots = ADAPTIVE_CHUNK if adaptive else max_regions
    features = ArraySpec(
        name="features",
        dims=("image", "region", "feature"),
        dtype=feature_dtype,
        fill=0.0,
        unit="1",
        meaning="feature of each region, regions in the order of their selection score",
        row_shape=(max_regions, feature_dim),
        chunk_shape=(block_size, math.ceil(max_regions / slots) * slots, feature_dim),
        inner_chunk=(1, slots, feature_dim),
    )
    specs = [
        *([features] if feature_dim else []),
        ArraySpec(
            name="boxes",
            dims=("image", "region", "xyxy"),
            dtype="float32",
            fill=0.0,
            unit="pixel",
            meaning="x1, y1, x2, y2 in the original picture as turned by EXIF",
            row_shape=(max_regions, 4),
            chunk_shape=(block_size, max_regions, 4),
        ),
    ]
    for kind, present in (("object", has_objects), ("attribute", has_attributes)):
        if present:
            specs += _label_specs(kind, feature_dtype, max_regions, block_size)
    return {spec.name: spec for spec in [*specs, *_image_specs(block_size, id_bytes)]}


def _label_specs(kind: str, score_dtype: str, max_regions: int, block_size: int) -> list[ArraySpec]:
    return [
        ArraySpec(
            name=f"{kind}_id",
            dims=("image", "region"),
            dtype="uint16",
            fill=NO_LABEL,
            unit="1",
            meaning=f"0-based place in the metadata's {kind}_names; 65535 where there is no region",
            row_shape=(max_regions,),
            chunk_shape=(block_size, max_regions),
        ),
        ArraySpec(
            name=f"{kind}_score",
            dims=("image", "region"),
            dtype=score_dtype,
            fill=0.0,
            unit="1",
            meaning=f"probability of the {kind} under {kind}_id",
            row_shape=(max_regions,),
            chunk_shape=(block_size, max_regions),
        ),
    ]


def _image_specs(block_size: int, id_bytes: int) -> list[ArraySpec]:
    image = ("image",)
    one = (block_size,)
    return [
        ArraySpec(
            name="width",
            dims=image,
            dtype="int32",
            fill=0,
            unit="pixel",
            meaning="of the picture as turned by EXIF",
            row_shape=(),
            chunk_shape=one,
        ),
        ArraySpec(
            name="height",
            dims=image,
            dtype="int32",
            fill=0,
            unit="pixel",
            meaning="of the picture as turned by EXIF",
            row_shape=(),
            chunk_shape=one,
        ),
        ArraySpec(
            name="image_id",
            dims=image,
            dtype="string",
            fill="",
            unit="1",
            meaning="the key; empty where the row holds no picture",
            row_shape=(),
            chunk_shape=one,
        ),
        ArraySpec(
            name="image_id_utf8",
            dims=("image", "byte"),
            dtype="uint8",
            fill=0,
            unit="1",
            meaning="the key in UTF-8, padded with zero bytes, for readers without Zarr strings",
            row_shape=(id_bytes,),
            chunk_shape=(block_size, ID_CHUNK_BYTES),
        ),
        ArraySpec(
            name="num_regions",
            dims=image,
            dtype="uint16",
            fill=NOT_WRITTEN,
            unit="1",
            meaning="regions of the picture; 65535 where the row holds no picture",
            row_shape=(),
            chunk_shape=one,
        ),
    ]


def _array_codec(dtype: str) -> dict[str, Any]:
    if dtype == "string":
        return {"name": "vlen-utf8"}
    if dtype == "uint8":
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _byte_codecs(codec: Codec) -> list[dict[str, Any]]:
    checksum = {"name": "crc32c"}
    if codec == "zstd":
        return [{"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}, checksum]
    return [checksum]
