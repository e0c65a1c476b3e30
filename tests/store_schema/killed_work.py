"""The work whose processes are killed: a writer, a repair, a copy. Each takes the folder that it works on."""

from dataclasses import replace
from pathlib import Path

from store_schema.copy_plan import CopyOptions
from store_schema.copying import copy_stores
from store_schema.repair import repair
from tests.store_schema.tiny import IDS, METADATA, write_store

LARGE = replace(METADATA, feature_dim=20_000, block_size=2)
WRITTEN = IDS[:6]
"""Of METADATA a whole block and a partial one with a quarantined picture, of LARGE three blocks."""
COPIED = CopyOptions(where="image_id != 'picture:0'")
"""Some blocks become hard links and some are written anew."""


def write_small(path: Path) -> None:
    write_store(path, METADATA, WRITTEN)


def write_large(path: Path) -> None:
    write_store(path, LARGE, WRITTEN)


def repair_store(folder: Path) -> None:
    repair(folder / "store")


def merge(folder: Path) -> None:
    copy_stores([folder / "store", folder / "more"], folder / "copy", COPIED)
