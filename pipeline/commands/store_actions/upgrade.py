"""Bring a store of an older schema version up to this code's, in place.

example: butd store upgrade runs/regions.zarr
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store upgrade`."""
    parser.add_argument("store", type=Path, help="the store's folder; nobody may write it meanwhile")


def run(options: argparse.Namespace) -> int:
    """Upgrade, and say from which version to which."""
    from store_schema.layout import SCHEMA_VERSION
    from store_schema.upgrade import upgrade

    before = upgrade(options.store)
    if before == SCHEMA_VERSION:
        print(f"{options.store}: already at schema version {SCHEMA_VERSION}, nothing to do")
    else:
        print(f"{options.store}: brought from schema version {before} to {SCHEMA_VERSION}")
    return 0
