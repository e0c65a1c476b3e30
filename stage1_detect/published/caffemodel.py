"""A .caffemodel read without Caffe: layers with their names, types and blobs, in the file's order.

The file is one protobuf message (NetParameter of caffe.proto). Only five kinds of fields matter, so that its wire
format is read directly, and the numbers are views of the file's bytes: nothing is copied, no schema is compiled.
Both generations are read: "layer" (field 100), and "layers" (field 2, types as numbers, blobs with four dimensions).

Source: caffe/src/caffe/proto/caffe.proto of peteanderson80/bottom-up-attention; protobuf's encoding guide.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import CheckpointError, InputNotFoundError

_LAYERS, _LAYER = 2, 100
_V1 = {"name": 4, "type": 5, "blobs": 6}
_V2 = {"name": 1, "type": 2, "blobs": 7}
_OLD_DIMS = (1, 2, 3, 4)
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Layer:
    """What a layer is called, and what was learned in it."""

    name: str
    type: str
    """As the file writes it; a number in files of the old generation."""
    blobs: tuple[NDArray[np.float32], ...]


def read_caffemodel(path: str | Path) -> list[Layer]:
    """All layers of the file, those without blobs included.

    Errors: `InputNotFoundError`; `CheckpointError` for a file that is cut short or no .caffemodel.
    """
    path = Path(path)
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file; expected a .caffemodel")
    try:
        mapped: Any = np.memmap(path, np.uint8, "r") if path.stat().st_size else b""
        data = memoryview(mapped)
        layers = [
            _layer(value, _V2 if field == _LAYER else _V1)
            for field, value in _fields(data)
            if field in (_LAYER, _LAYERS) and isinstance(value, memoryview)
        ]
    except (IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cut short, or no .caffemodel ({error}); get the file again"
        ) from error
    if not layers:
        raise CheckpointError(f"{path}: it holds no layers; is it a .caffemodel?")
    return layers


def _layer(message: memoryview, numbers: dict[str, int]) -> Layer:
    name = kind = ""
    blobs = []
    for field, value in _fields(message):
        if field == numbers["name"] and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8")
        elif field == numbers["type"]:
            kind = bytes(value).decode("utf-8") if isinstance(value, memoryview) else str(value)
        elif field == numbers["blobs"] and isinstance(value, memoryview):
            blobs.append(_blob(value))
    return Layer(name, kind, tuple(blobs))


def _blob(message: memoryview) -> NDArray[np.float32]:
    """An array from packed or single numbers; the old generation has four dimensions, the first of them often 1."""
    parts: list[NDArray[np.float32]] = []
    shape: list[int] = []
    old = dict.fromkeys(_OLD_DIMS, 1)
    has_old = False
    for field, value in _fields(message):
        if field in (_DATA, _DOUBLE_DATA) and isinstance(value, memoryview):
            parts.append(
                np.frombuffer(value, "<f4" if field == _DATA else "<f8").astype(np.float32, copy=False)
            )
        elif field == _SHAPE and isinstance(value, memoryview):
            shape = _shape(value)
        elif field in _OLD_DIMS and isinstance(value, int):
            old[field], has_old = value, True
    values = np.concatenate(parts) if len(parts) != 1 else parts[0]
    dims = [old[number] for number in _OLD_DIMS] if has_old and not shape else shape
    if math.prod(dims) != len(values):
        raise ValueError(f"a blob of the shape {dims} holds {len(values)} numbers")
    return values.reshape(dims)


def _shape(message: memoryview) -> list[int]:
    dims: list[int] = []
    for field, value in _fields(message):
        if field != 1:
            continue
        if isinstance(value, int):
            dims.append(value)
        else:
            place = 0
            while place < len(value):
                dim, place = _varint(value, place)
                dims.append(dim)
    return dims


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: a number, or the bytes of a text, a message or fixed-size numbers."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if wire == _BYTES:
            size, place = _varint(message, place)
        if size is None:
            raise ValueError(f"wire type {wire} at byte {place}")
        if place + size > end:
            raise ValueError(f"a field of {size} bytes where {end - place} are left")
        yield tag >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits before byte {place}")
