"""The same features kept in other ways, each read in the fastest form that was found for it.

`make_files` writes the raw bytes of a store into every format; `open_rivals` gives for each a function that turns
rows into their features [B, K, D] in memory, in the order asked. Where a library can fill a buffer that is used
again, it does. What was tried and is slower is not here: vectorised indexing in zarrs (a quarter of one read an
image), one read an image in zarr-python, `read_direct` in h5py (a third), futures an image in tensorstore (half).
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import tensorstore
import zarr
from numpy.typing import NDArray

from store_schema.reader import Rows

Read = Callable[[Rows], Any]
Features = NDArray[np.float16]

UNSHARDED = (1, 16)
"""Images in a chunk, where zarr-python may choose its own layout."""


def make_files(folder: Path, features: Features) -> None:
    """Write what `open_rivals` opens.

    Args:
        features: [N, K, D] of all images.
    """
    features.tofile(folder / "raw")
    with h5py.File(folder / "hdf5", "w") as file:
        file.create_dataset("features", data=features)  # contiguous
    environment = lmdb.open(str(folder / "lmdb"), map_size=2 * features.nbytes + (1 << 26))
    with environment.begin(write=True) as transaction:
        for row, image in enumerate(features):
            transaction.put(_key(row), image.tobytes())
    environment.close()
    (folder / "npz").mkdir()
    for row, image in enumerate(features):
        np.savez(folder / "npz" / f"{row}.npz", features=image)
    for images in UNSHARDED:
        chunks = (images, *features.shape[1:])
        array = zarr.create_array(
            folder / f"zarr-{images}", shape=features.shape, chunks=chunks, dtype="float16", compressors=None
        )
        array[:] = features


def open_rivals(
    folder: Path, shards: Path, shape: tuple[int, ...], batch_size: int, stack: contextlib.ExitStack
) -> dict[str, Read]:
    """Every other way to read a batch, by name.

    Args:
        folder: of `make_files`.
        shards: the array of features of our store, read by zarr-python, zarrs and tensorstore.
        shape: [N, K, D].
        stack: closes the files.
    """
    buffer = np.zeros((batch_size, *shape[1:]), np.float16)
    raw = np.memmap(folder / "raw", np.float16, "r", shape=shape)

    def memcpy(rows: Rows) -> Features:
        start = int(rows[0]) % (len(raw) - batch_size + 1)
        np.copyto(buffer, raw[start : start + batch_size])
        return buffer

    def take(rows: Rows) -> Features:
        return np.take(raw, rows, 0, out=buffer, mode="clip")

    def npz(rows: Rows) -> Features:
        for place, row in enumerate(rows.tolist()):
            with np.load(folder / "npz" / f"{row}.npz") as file:
                buffer[place] = file["features"]
        return buffer

    return {
        "memcpy": memcpy,
        "np.memmap[idx]": lambda rows: raw[rows],
        "np.take(memmap, out=)": take,
        **_lmdb(folder / "lmdb", buffer, stack),
        "HDF5": _hdf5(folder / "hdf5", buffer, stack),
        "npz files": npz,
        "tensorstore, same shards": _tensorstore(shards, buffer),
        **_zarrs(folder, shards, buffer),
    }


def _lmdb(path: Path, buffer: Features, stack: contextlib.ExitStack) -> dict[str, Read]:
    environment = stack.enter_context(lmdb.open(str(path), readonly=True, lock=False, readahead=False))

    def values(transaction: Any, rows: Rows) -> list[Features]:
        return [
            np.frombuffer(transaction.get(_key(row)), np.float16).reshape(buffer.shape[1:])
            for row in rows.tolist()
        ]

    def stacked(rows: Rows) -> Features:
        with environment.begin(buffers=True) as transaction:
            return np.stack(values(transaction, rows))

    def into_buffer(rows: Rows) -> Features:
        with environment.begin(buffers=True) as transaction:
            return np.stack(values(transaction, rows), out=buffer)

    return {"LMDB, stacked": stacked, "LMDB, into our buffer": into_buffer}


def _hdf5(path: Path, buffer: Features, stack: contextlib.ExitStack) -> Read:
    dataset = stack.enter_context(h5py.File(path, "r"))["features"]

    def read(rows: Rows) -> Features:
        for place, row in enumerate(rows.tolist()):
            buffer[place] = dataset[row]
        return buffer

    return read


def _tensorstore(path: Path, buffer: Features) -> Read:
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}},
        read=True,
        recheck_cached_data=False,
        # room for the shards' indexes, and not for the images that are read again and again
        context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 20_000_000}}),
    ).result()
    target = tensorstore.array(buffer)

    def read(rows: Rows) -> Features:
        target.write(array[rows]).result()
        return buffer

    return read


def _zarrs(folder: Path, shards: Path, buffer: Features) -> dict[str, Read]:
    """zarr-python with its own codec pipeline and with the one in Rust, on our shards and on unsharded arrays."""
    paths = {"same shards": shards} | {
        f"{images} image{'s' * (images > 1)} a chunk": folder / f"zarr-{images}" for images in UNSHARDED
    }
    ways: dict[str, Read] = {}
    for name, path in paths.items():
        array: Any = zarr.open_array(path, mode="r")
        ways[f"zarr-python, {name}"] = _selection(array)
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            array = zarr.open_array(path, mode="r")
        ways[f"zarrs, {name}"] = _selection(array) if path != shards else _one_by_one(array, buffer)
    return ways


def _selection(array: Any) -> Read:
    """A selection in ascending order (faster), put back into the order asked."""

    def read(rows: Rows) -> Features:
        order = np.argsort(rows)
        selected: Features = array.oindex[rows[order]]
        result = np.empty_like(selected)
        result[order] = selected
        return result

    return read


def _one_by_one(array: Any, buffer: Features) -> Read:
    def read(rows: Rows) -> Features:
        for place, row in enumerate(rows.tolist()):
            buffer[place] = array[row]
        return buffer

    return read


def _key(row: int) -> bytes:
    return b"%08d" % row
