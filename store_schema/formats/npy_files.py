"""Arrays in .npy and .npz files of unknown origin: no pickle unless trusted, no more bytes than a picture may have.

`np.load` would unpack a small .npz member into as many gigabytes as its header says, and runs whatever a pickle asks
for. Here the header is read first and its size judged; and a trusted pickle still gets nothing but numpy arrays,
numbers, texts and containers.
"""

import io
import math
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from store_schema.errors import MalformedRecordError
from store_schema.formats.protocol import MAX_PICTURE_BYTES

_PICKLE_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("builtins", "set"),
    ("__builtin__", "set"),
}
"""What pickles of arrays and containers name."""


class NpzFile:
    """An .npz of one picture; members are read by name, nothing is unpacked to the disk."""

    def __init__(self, path: Path) -> None:
        """Open the file. Errors: `MalformedRecordError`."""
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise MalformedRecordError(f"it is no .npz file ({error}); cut short?") from error

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._zip.close()

    def __contains__(self, name: object) -> bool:
        return f"{name}.npy" in self._zip.namelist()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a member, without its values."""
        return self._header(name)[0]

    def array(self, name: str) -> NDArray[Any]:
        """A member that holds no objects."""
        with self._member(name) as member:
            return _read_array(member, name)

    def pickled(self, name: str) -> object:
        """The object in a member's 0-d object array, from a trusted pickle."""
        with self._member(name) as member:
            return _read_pickled(member, name)

    def _header(self, name: str) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
        with self._member(name) as member:
            return _read_header(member, name)

    def _member(self, name: str) -> "_Guarded":
        if name not in self:
            there = ", ".join(sorted(self._zip.namelist())[:8])
            raise MalformedRecordError(f"it has no array {name!r}, only {there or 'nothing'}")
        return _Guarded(self._zip, f"{name}.npy")


def read_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy file that holds no objects. Errors: `MalformedRecordError`."""
    with _opened(path) as file:
        return _read_array(file, path.name)


def npy_shape(path: Path) -> tuple[int, ...]:
    """Shape of a .npy file's array, without its values. Errors: `MalformedRecordError`."""
    with _opened(path) as file:
        return _read_header(file, path.name)[0]


def read_pickled_npy(path: Path) -> object:
    """The object in a .npy file's 0-d object array, from a trusted pickle. Errors: `MalformedRecordError`."""
    with _opened(path) as file:
        return _read_pickled(file, path.name)


def load_pickle(file: IO[bytes], name: str) -> object:
    """A trusted pickle of arrays and containers, also one of Python 2. Errors: `MalformedRecordError`."""
    try:
        return _ArraysOnly(file, encoding="latin1").load()
    except MalformedRecordError:
        raise
    except Exception as error:  # a pickle that is cut short raises nearly anything
        raise MalformedRecordError(f"{name} is no pickle of arrays ({error})") from error


def mapping_of(value: object, name: str) -> Mapping[str, Any]:
    """What must be a mapping. Errors: `MalformedRecordError`."""
    if not isinstance(value, Mapping):
        raise MalformedRecordError(f"{name} holds {type(value).__name__}, a dict was expected")
    return value


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _PICKLE_NAMES:
            raise MalformedRecordError(f"its pickle asks for {module}.{name}, which is no array: not read")
        return super().find_class(module, name)


class _Guarded(io.RawIOBase):
    """A zip member whose damage is named, whatever the zip module raises."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        try:
            self._member = archive.open(name)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise MalformedRecordError(f"{name} cannot be unpacked ({error})") from error
        self._name = name

    def read(self, size: int = -1) -> bytes:
        try:
            return self._member.read(size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise MalformedRecordError(f"{self._name} cannot be unpacked ({error})") from error


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise MalformedRecordError(f"{path.name} cannot be read ({error.strerror})") from error


def _read_header(file: "IO[bytes] | _Guarded", name: str) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except ValueError as error:
        raise MalformedRecordError(f"{name} is no .npy array ({error})") from error
    if fortran_order and len(shape) > 1:
        raise MalformedRecordError(f"{name} lies in Fortran order; save it again with np.ascontiguousarray")
    if math.prod(shape) * dtype.itemsize > MAX_PICTURE_BYTES:
        raise MalformedRecordError(
            f"{name} says it holds {list(shape)} numbers of {dtype}, more than the {MAX_PICTURE_BYTES >> 20} MB that "
            "a picture may take; not unpacked"
        )
    return tuple(int(size) for size in shape), dtype


def _read_array(file: "IO[bytes] | _Guarded", name: str) -> NDArray[Any]:
    shape, dtype = _read_header(file, name)
    if dtype.hasobject:
        raise MalformedRecordError(f"{name} is a pickle; say --trust-pickle if you trust the file's source")
    needed = math.prod(shape) * dtype.itemsize
    data = file.read(needed)
    if len(data) != needed:
        raise MalformedRecordError(f"{name} is cut short: {len(data)} of {needed} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _read_pickled(file: "IO[bytes] | _Guarded", name: str) -> object:
    shape, dtype = _read_header(file, name)
    if not dtype.hasobject or shape != ():
        raise MalformedRecordError(
            f"{name} was expected to hold one pickled object, it has {list(shape)} of {dtype}"
        )
    data = file.read(MAX_PICTURE_BYTES + 1)
    if len(data) > MAX_PICTURE_BYTES:
        raise MalformedRecordError(f"{name} unpacks to more than {MAX_PICTURE_BYTES >> 20} MB; not read")
    # numpy pickles the array itself; its object is the array's only item
    value = load_pickle(io.BytesIO(data), name)
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value
