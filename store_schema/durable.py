"""Files that appear whole or not at all, and stay after a power cut.

A file is written beside its place under a name ending in `.partial`, flushed to the disk, then renamed. A killed
writer leaves the partial file behind; `remove_partials` clears it on the next opening for writing.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreDamagedError, StoreError
from store_schema.fingerprint import canonical_json
from store_schema.remote import StorePath

PARTIAL_SUFFIX = ".partial"

Bytes = NDArray[np.uint8]


def crc32c(data: bytes | Bytes) -> int:
    """CRC-32C (Castagnoli) of contiguous bytes."""
    return int(google_crc32c.value(data))


@dataclass(frozen=True, eq=False)
class NewFile:
    """A file to be written whole, and what it is, for messages."""

    path: Path
    data: bytes | Bytes
    what: str


def replace_files(files: Iterable[NewFile]) -> None:
    """Write files in place of what was there, then rename them into place in the order given, then return.

    All are flushed before the first is renamed, and the folders before this returns. The flushes run side by side,
    which lets the file system join them (ext4: 24 of them in a block took 110 ms one by one).

    Errors: `StoreError` naming the file that cannot be written and the system's reason; no file is half written.
    """
    partials: list[tuple[Path, NewFile]] = []
    current: NewFile | None = None
    try:
        for current in files:
            token = f"{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
            partials.append((current.path.with_name(f"{current.path.name}.{token}"), current))
            _write(*partials[-1])
        with ThreadPoolExecutor(max_workers=max(1, min(16, len(partials)))) as pool:
            flushes = [(file, pool.submit(_flush, partial)) for partial, file in partials]
            for current, flush in flushes:  # noqa: B007 - named in the message below
                flush.result()
            for partial, current in partials:
                partial.replace(current.path)
            list(pool.map(_flush, {file.path.parent for _, file in partials}))
    except OSError as error:
        where = "cannot write"
        if current is not None:
            where = f"{current.what}: cannot write the {len(current.data)} bytes of {current.path}"
        raise StoreError(
            f"{where}: {error.strerror or error}; finished blocks are kept: when the cause is removed, run the same "
            "command again"
        ) from error
    finally:  # those that were renamed are gone already
        for partial, _ in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes | Bytes, what: str) -> None:
    """`replace_files` of a single one."""
    replace_files([NewFile(path, data, what)])


def make_folder(path: Path) -> None:
    """Make a folder where it is not there yet. Errors: `StoreError` naming it and the system's reason."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make {path}: {error.strerror}; remove the cause and run again") from error


def remove_files(paths: Iterable[Path]) -> None:
    """Delete files, durably; those that are not there are no fault.

    Errors: `StoreError` naming the file and the system's reason.
    """
    folders = set()
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot delete {path}: {error.strerror}; remove the cause and run again"
            ) from error
        folders.add(path.parent)
    flush_folders(folders)


def flush_folders(folders: Iterable[Path]) -> None:
    """Bring the names in folders to the disk."""
    for folder in folders:
        _flush(folder)


def _write(partial: Path, file: NewFile) -> None:
    rest = memoryview(file.data) if isinstance(file.data, bytes) else file.data.data
    with partial.open("wb", buffering=0) as stream:
        while rest:
            rest = rest[stream.write(rest) :]


def _flush(path: Path) -> None:
    """Bring a file's bytes, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> int:
    """Delete what killed writers left in one folder; returns how many files."""
    leftovers = list(folder.glob(f"*{PARTIAL_SUFFIX}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def seal(content: Mapping[str, Any]) -> bytes:
    """A JSON line that carries its own CRC-32C, so that a flipped bit in it is seen."""
    body = canonical_json(content)
    return f'{{"content":{body},"crc32c":{crc32c(body.encode())}}}\n'.encode()


def unseal(path: StorePath, what: str, remedy: str) -> dict[str, Any]:
    """Read what `seal` gave.

    Errors: `StoreDamagedError` naming `what`, the path and the remedy where the file is missing or changed.
    """
    try:
        outer = json.loads(path.read_bytes())
        content, checksum = outer["content"], outer["crc32c"]
        whole = isinstance(content, dict) and crc32c(canonical_json(content).encode()) == checksum
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreDamagedError(f"{what}: {path} cannot be read ({error}); {remedy}") from error
    if not whole:
        raise StoreDamagedError(f"{what}: the bytes of {path} have changed since it was written; {remedy}")
    return dict(content)
