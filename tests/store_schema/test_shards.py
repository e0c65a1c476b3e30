"""Our shards against zarr-python's own, and by hand."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from store_schema.layout import ArraySpec, Codec
from store_schema.shards import (
    EMPTY_CHUNK,
    decode_chunk,
    decode_index,
    decode_strings,
    encode_chunk,
    encode_shard,
    encode_strings,
    file_stamp,
    index_bytes,
)
from tests.store_schema.tiny import ADAPTIVE, METADATA

FIXED = METADATA.arrays()["features"]
CHUNKED = ADAPTIVE.arrays()["features"]


def test_a_shard_of_one_image_by_hand() -> None:
    """Four images, the third has two of four regions: one chunk with its checksum, then the index with its own."""
    features = np.arange(12, dtype=np.float16).reshape(2, 6)
    body = features.tobytes() + bytes(24)
    chunk = body + struct.pack("<I", google_crc32c.value(body))
    empty = (EMPTY_CHUNK, EMPTY_CHUNK)
    index = struct.pack("<8Q", *empty, *empty, 0, len(chunk), *empty)
    expected = chunk + index + struct.pack("<I", google_crc32c.value(index))
    assert encode_shard([None, None, features], FIXED, "none").tobytes() == expected


def test_an_adaptive_image_takes_a_chunk_for_ten_regions() -> None:
    features = np.ones((21, 6), np.float16)
    shard = encode_shard([np.ones((10, 6), np.float16), features], CHUNKED, "none")
    index = decode_index(shard[-index_bytes(CHUNKED) :], len(shard), CHUNKED, "none")
    chunk_bytes = 10 * 6 * 2 + 4
    assert index.offsets.tolist() == [
        [0, -1, -1],
        [chunk_bytes, 2 * chunk_bytes, 3 * chunk_bytes],
        [-1, -1, -1],
        [-1, -1, -1],
    ]


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("spec", [FIXED, CHUNKED])
def test_zarr_reads_our_shard(tmp_path: Path, spec: ArraySpec, codec: Codec) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(num, 6)).astype(np.float16) for num in (1, spec.row_shape[0], 0)]
    _write_array(tmp_path, spec, codec, encode_shard(rows, spec, codec))
    array: Any = zarr.open_array(str(tmp_path), mode="r")
    expected = np.zeros((4, *spec.row_shape), np.float16)
    for place, row in enumerate(rows):
        expected[place, : len(row)] = row
    assert np.array_equal(array[:], expected)


@pytest.mark.parametrize("spec", [FIXED, CHUNKED])
def test_we_read_zarrs_shard(tmp_path: Path, spec: ArraySpec) -> None:
    """zarr-python orders chunks in its own way: only the index says where they are."""
    _write_array(tmp_path, spec, "none", None)
    values = np.random.default_rng(0).normal(size=(4, *spec.row_shape)).astype(np.float16)
    array: Any = zarr.open_array(str(tmp_path), mode="r+")
    array[:] = values
    data = np.fromfile(tmp_path / "c.0.0.0", np.uint8)
    index = decode_index(data[-index_bytes(spec) :], len(data), spec, "none")
    assert spec.inner_chunk is not None
    for place in range(4):
        start, length = int(index.offsets[place, 0]), int(index.lengths[place, 0])
        chunk = decode_chunk(
            data[start : start + length], replace(spec, chunk_shape=spec.inner_chunk), "none"
        )
        slots = min(spec.inner_chunk[1], spec.row_shape[0])
        assert np.array_equal(chunk[0, :slots], values[place, :slots])


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("spec", [FIXED, CHUNKED])
def test_stamps_tell_shards_of_equal_size_apart(spec: ArraySpec, codec: Codec) -> None:
    """A CRC-32C of the whole file would not: every chunk ends in its own."""
    values = np.ones((3, 6), np.float16)
    other = np.ones((3, 6), np.float16)
    other[2, 5] = 2
    one, two = (encode_shard([values, rows, values], spec, "none") for rows in (values, other))
    assert google_crc32c.value(one) == google_crc32c.value(two)
    assert file_stamp(one, spec, "none") != file_stamp(two, spec, "none")
    assert file_stamp(one, spec, "none") == file_stamp(one.copy(), spec, "none")
    plain = [np.frombuffer(encode_chunk(rows, codec), np.uint8) for rows in (values, other)]
    boxes = METADATA.arrays()["boxes"]
    assert file_stamp(plain[0], boxes, codec) != file_stamp(plain[1], boxes, codec)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_strings_and_back(codec: Codec) -> None:
    values = ["", "ein Bär", "x" * 300, "日本"]
    assert decode_strings(np.frombuffer(encode_strings(values, codec), np.uint8), codec) == values


def test_strings_cut_short_are_refused() -> None:
    data = np.frombuffer(encode_strings(["abc", "def"], "none"), np.uint8)
    with pytest.raises(ValueError, match="cut short"):
        decode_strings(data[:-5], "none")


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_a_flipped_bit_in_a_chunk_is_seen(codec: Codec, place: int) -> None:
    spec = METADATA.arrays()["boxes"]
    data = np.frombuffer(bytearray(encode_chunk(np.zeros(spec.chunk_shape, np.float32), codec)), np.uint8)
    data[place] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        decode_chunk(data, spec, codec)


def test_a_flipped_bit_in_the_index_is_seen() -> None:
    shard = encode_shard([np.ones((4, 6), np.float16)], FIXED, "none")
    shard[-20] ^= 1
    with pytest.raises(ValueError, match="checksum of its index"):
        decode_index(shard[-index_bytes(FIXED) :], len(shard), FIXED, "none")


@pytest.mark.parametrize(
    "entry", [(0, 51), (10**6, 52), (2**63, 52), (1, 2**64 - 2), (2**64 - 1, 52), (53, 52)]
)
def test_an_index_that_points_outside_is_refused(entry: tuple[int, int]) -> None:
    """Its checksum fits, so somebody wrote it like that."""
    pairs = np.full((4, 1, 2), EMPTY_CHUNK, "<u8")
    pairs[2, 0] = entry
    tail = np.frombuffer(encode_chunk(pairs, "none"), np.uint8)
    with pytest.raises(ValueError, match="chunk 0 of its image 2"):
        decode_index(tail, 104 + len(tail), FIXED, "none")


def _write_array(path: Path, spec: ArraySpec, codec: Codec, shard: np.ndarray[Any, Any] | None) -> None:
    (path / "zarr.json").write_text(json.dumps(spec.zarr_json(4, codec)))
    if shard is not None:
        (path / spec.chunk_key(0)).write_bytes(shard.tobytes())
