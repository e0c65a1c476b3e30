"""Bring a store of an older schema version up to this code's, in place.

A step leads from one version to the next. It may rewrite what it likes but the root's zarr.json, and must be harmless
when it is run again: only when it is done is the root replaced, whole, with the next version and the metadata that the
step returned. So a store is at one version or the other at any instant, and a killed upgrade is simply run again.
Version 1 is the first: no step is needed yet.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from store_schema.errors import StoreDamagedError, StoreMismatchError
from store_schema.layout import ROOT_ATTRIBUTE, SCHEMA_VERSION
from store_schema.ledger import WriterLock, ledger_folder
from store_schema.root import read_root, replace_root

Step = Callable[[Path, Mapping[str, Any]], Mapping[str, Any]]

STEPS: Mapping[int, Step] = {}
"""By version, what leads to the next: given the store and its metadata as JSON, it returns the next metadata."""


def upgrade(path: str | Path, steps: Mapping[int, Step] = STEPS, to_version: int = SCHEMA_VERSION) -> int:
    """Bring a store up to date; one that is up to date is not touched.

    Returns:
        The version that the store had before.

    Errors: `StoreNotFoundError`, `StoreLockedError`, `StoreDamagedError`; `StoreMismatchError` for a version that is
    newer than this code, or from which no step leads on, and for a store without records.
    """
    path = Path(path)
    before = _version(path)
    if before == to_version:
        return before
    if before > to_version or any(version not in steps for version in range(before, to_version)):
        raise StoreMismatchError(
            f"{path} has schema version {before}, from which this code knows no way to version {to_version}; use a "
            f"{'newer' if before > to_version else 'different'} butd, which knows it"
        )
    if not ledger_folder(path).is_dir():
        raise StoreMismatchError(
            f"{path} has no records of finished blocks, so another tool laid it out; upgrade what it was copied from"
        )
    lock = WriterLock(path)
    try:
        while (version := _version(path)) < to_version:
            document = read_root(path)
            metadata = steps[version](path, document["attributes"][ROOT_ATTRIBUTE])
            document["attributes"][ROOT_ATTRIBUTE] = {**metadata, "schema_version": version + 1}
            replace_root(path, document)
    finally:
        lock.release()
    return before


def _version(path: Path) -> int:
    metadata = read_root(path)["attributes"][ROOT_ATTRIBUTE]
    version = metadata.get("schema_version") if isinstance(metadata, dict) else None
    if type(version) is not int:
        raise StoreDamagedError(
            f"{path}: the store's metadata has no schema_version; restore zarr.json from a copy"
        )
    return version
