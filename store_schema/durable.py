"""Files that appear whole or not at all, and stay after a power cut.

A file is written beside its place under a name ending in `.partial`, flushed to the disk, then renamed. A killed
writer leaves the partial file behind; `remove_partials` clears it on the next opening for writing.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreDamagedError, StoreError
from store_schema.fingerprint import canonical_json

PARTIAL_SUFFIX = ".partial"

Bytes = NDArray[np.uint8]


def crc32c(data: bytes | Bytes) -> int:
    """CRC-32C (Castagnoli) of contiguous bytes."""
    return int(google_crc32c.value(data))


def replace_file(path: Path, data: bytes | Bytes, what: str) -> None:
    """Write a file whole and flush it, in place of what was there; `sync_folder` makes its name durable too.

    Errors: `StoreError` that names `what`, the path and the system's reason; nothing is left half written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    rest = memoryview(data) if isinstance(data, bytes) else data.data
    try:
        with partial.open("wb", buffering=0) as file:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StoreError(
            f"{what}: cannot write the {len(data)} bytes of {path}: {error.strerror or error}; finished blocks are "
            "kept: when the cause is removed, run the same command again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that renames within it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
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


def unseal(path: Path, what: str, remedy: str) -> dict[str, Any]:
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
