"""Turn a published data set into the standard tables; the pictures stay where they are.

example: butd prepare flickr8k ../shared/data/flickr8k runs/flickr8k
"""

import argparse
from pathlib import Path

from store_schema.errors import InputNotFoundError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd prepare`."""
    parser.add_argument("dataset", choices=["flickr8k", "daquar"], help="which data set the folder holds")
    parser.add_argument("source", type=Path, help="folder of the raw data set")
    parser.add_argument("out", type=Path, help="folder for the tables")


def run(options: argparse.Namespace) -> int:
    """Write the tables and say how many rows each has."""
    from pipeline.prepare.daquar import prepare_daquar
    from pipeline.prepare.flickr8k import prepare_flickr8k

    if not options.source.is_dir():
        raise InputNotFoundError(
            f"a folder with the raw data set expected at {options.source}, there is none"
        )
    reader = {"flickr8k": prepare_flickr8k, "daquar": prepare_daquar}[options.dataset]
    counts = reader(options.source, options.out)
    print(f"{options.out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return 0
