"""A reader written from docs/store-format.md alone, without zarr and without our code.

struct, json and numpy do; pyarrow is for Zstandard.
It checks what the document says can be checked, with plain `assert`: what it reads was made for it.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

NOT_WRITTEN = 65535
NOT_STORED = 2**64 - 1


class DocumentReader:
    """One store, all of it in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        root = json.loads((path / "zarr.json").read_text())
        assert (root["zarr_format"], root["node_type"]) == (3, "group")
        self.metadata: dict[str, Any] = root["attributes"]["butd_region_store"]
        assert self.metadata["schema_version"] == 1
        self.block_size: int = self.metadata["block_size"]
        self.records = {
            int(file.stem): unsealed(file)
            for file in sorted((path / "num_regions/.butd/blocks").glob("*.json"))
        }
        for record in self.records.values():
            assert record["detector"] == self.metadata["detector"]["fingerprint"]
            for name, (size, _) in record["files"].items():
                assert (path / name).stat().st_size == size

    def planned_ids(self) -> dict[int, str]:
        """By row, the pictures that were planned."""
        rows: dict[int, str] = {}
        block = 0
        for number, file in enumerate(sorted((self.path / "num_regions/.butd/plan").glob("*.json"))):
            plan = unsealed(file)
            assert (int(file.stem), plan["first_block"], plan["schema_version"]) == (number, block, 1)
            rows |= {block * self.block_size + place: name for place, name in enumerate(plan["image_ids"])}
            block += -(-len(plan["image_ids"]) // self.block_size)
        return rows

    def problems(self) -> dict[int, list[str]]:
        """By row, identifier, path and reason of quarantined pictures."""
        return {
            row: problem
            for record in self.records.values()
            for row, problem in zip(record["problem_rows"], record["problems"], strict=True)
        }

    def notes(self) -> dict[str, list[str]]:
        return {
            name: notes for record in self.records.values() for name, notes in record.get("notes", {}).items()
        }

    def image(self, row: int) -> dict[str, Any] | None:
        """Everything about the picture in a row; None where the row holds none."""
        block, place = divmod(row, self.block_size)
        if block not in self.records:
            return None
        num = int(self.plain("num_regions", block, "<u2", ())[place])
        if num == NOT_WRITTEN:
            return None
        slots, score = self.metadata["max_regions"], self.float_type
        values: dict[str, Any] = {
            "image_id": self.utf8_id(block, place),
            "width": int(self.plain("width", block, "<i4", ())[place]),
            "height": int(self.plain("height", block, "<i4", ())[place]),
            "boxes": self.plain("boxes", block, "<f4", (slots, 4))[place, :num],
            "features": self.features(block, place, num),
        }
        assert values["image_id"] == self.string_ids(block)[place]
        for kind in ("object", "attribute"):
            if self.metadata[f"{kind}_names"]:
                values[f"{kind}_id"] = self.plain(f"{kind}_id", block, "<u2", (slots,))[place, :num]
                values[f"{kind}_score"] = self.plain(f"{kind}_score", block, score, (slots,))[place, :num]
        return values

    @property
    def float_type(self) -> str:
        return {"float16": "<f2", "float32": "<f4"}[self.metadata["feature_dtype"]]

    def plain(self, array: str, block: int, dtype: str, row_shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        key = ".".join(["c", str(block), *"0" * len(row_shape)])
        shape = (self.block_size, *row_shape)
        name = f"{array}/{key}"
        data = self.committed(name)
        self.check_digest(block, name, data[-4:])
        body = self.decoded(data, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.frombuffer(body, dtype).reshape(shape)

    def utf8_id(self, block: int, place: int) -> str:
        parts = b""
        while f"image_id_utf8/c.{block}.{len(parts) // 32}" in self.records[block]["files"]:
            data = self.committed(f"image_id_utf8/c.{block}.{len(parts) // 32}")
            parts += self.decoded(data, self.block_size * 32)[place * 32 : place * 32 + 32]
        return parts.rstrip(b"\0").decode()

    def string_ids(self, block: int) -> list[str]:
        data = self.committed(f"image_id/c.{block}")
        assert crc32c(data[:-4]) == struct.unpack("<I", data[-4:])[0]
        text = data[:-4]
        if self.metadata["codec"] == "zstd":
            text = zstd(text, frame_size(text))
        (count,) = struct.unpack_from("<I", text)
        values, at = [], 4
        for _ in range(count):
            (length,) = struct.unpack_from("<I", text, at)
            values.append(text[at + 4 : at + 4 + length].decode())
            at += 4 + length
        assert (count, at) == (self.block_size, len(text))
        return values

    def features(self, block: int, place: int, num: int) -> np.ndarray[Any, Any]:
        meta = self.metadata
        fixed = meta["min_regions"] == meta["max_regions"]
        slots = meta["max_regions"] if fixed else 10
        groups = -(-meta["max_regions"] // slots)
        name = f"features/c.{block}.0.0"
        shard = self.committed(name)
        tail = self.block_size * groups * 16 + 4
        assert crc32c(shard[-tail:-4]) == struct.unpack("<I", shard[-4:])[0]
        index = np.frombuffer(shard[-tail:-4], "<u8").reshape(self.block_size, groups, 2)
        stored = sorted((int(o), int(n)) for o, n in index.reshape(-1, 2) if o != NOT_STORED)
        self.check_digest(block, name, b"".join(shard[o + n - 4 : o + n] for o, n in stored) + shard[-4:])
        chunk_bytes = slots * meta["feature_dim"] * np.dtype(self.float_type).itemsize
        parts = [np.zeros((0, meta["feature_dim"]), self.float_type)]
        for group in range(groups):
            offset, length = (int(value) for value in index[place, group])
            assert (offset == NOT_STORED) == (length == NOT_STORED) == (group * slots >= num)
            if offset != NOT_STORED:
                body = self.decoded(shard[offset : offset + length], chunk_bytes)
                parts.append(np.frombuffer(body, self.float_type).reshape(slots, -1))
        return np.concatenate(parts)[:num]

    def committed(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def check_digest(self, block: int, name: str, checksums: bytes) -> None:
        assert hashlib.sha256(checksums).hexdigest()[:32] == self.records[block]["files"][name][1]

    def decoded(self, chunk: bytes, size: int) -> bytes:
        """A chunk's values, once its checksum is compared."""
        body, checksum = chunk[:-4], struct.unpack("<I", chunk[-4:])[0]
        assert crc32c(body) == checksum
        if self.metadata["codec"] == "zstd":
            body = zstd(body, size)
        assert len(body) == size
        return body


def unsealed(file: Path) -> dict[str, Any]:
    outer = json.loads(file.read_text())
    canonical = json.dumps(outer["content"], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert crc32c(canonical.encode()) == outer["crc32c"]
    content: dict[str, Any] = outer["content"]
    return content


def zstd(body: bytes, size: int) -> bytes:
    return pyarrow.decompress(body, decompressed_size=size, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


def frame_size(frame: bytes) -> int:
    """The content size in the header of a Zstandard frame without dictionary (RFC 8878, 3.1.1.1)."""
    descriptor = frame[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    at = 5 if single else 6
    width = (1 if single else 0, 2, 4, 8)[flag]
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli): reflected polynomial 0x82F63B78, begun with and inverted by 0xFFFFFFFF."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF
