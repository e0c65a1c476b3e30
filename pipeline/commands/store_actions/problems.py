"""List the pictures that could not be read, with the reason.

example: butd store problems runs/regions.zarr --json
"""

import argparse
import json

from pipeline.commands.store_place import store_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store problems`."""
    parser.add_argument("store", type=store_place, help="the store's folder or URL")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Print the quarantine table."""
    from store_schema.reader import RegionStore

    problems = RegionStore.open(options.store).problems()
    if options.json:
        print(json.dumps([{"image_id": p.image_id, "path": p.path, "reason": p.reason} for p in problems]))
        return 0
    for problem in problems:
        print(f"{problem.image_id}  {problem.path}  {problem.reason}")
    print(f"{len(problems)} pictures could not be read")
    return 0
