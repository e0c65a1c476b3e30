"""Identities: of JSON-like values and of files.

Two values with equal content have equal fingerprints, whatever the order of keys. Nothing here reads a clock,
a path or a machine's name.
"""

import hashlib
import json
from pathlib import Path


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, plain ASCII.

    Errors: `TypeError` where the value is not JSON-like, `ValueError` where it holds NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: object) -> str:
    """SHA-256 of the canonical JSON of a value, 64 hexadecimal digits. Tuples count as lists."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits; reads it once, in constant memory."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
