"""Say whether a store is whole; exit code 1 if not.

example: butd store verify runs/regions.zarr --full
"""

import argparse
import json

from pipeline.commands.store_place import store_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store verify`."""
    parser.add_argument("store", type=store_place, help="the store's folder or URL")
    parser.add_argument("--full", action="store_true", help="read every byte, check every value")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Check the store and print every finding."""
    from pipeline.progress_bar import track_blocks
    from store_schema.verify import verify

    report = verify(options.store, options.full, track_blocks("checking"))
    counts = {
        "pictures": report.num_images,
        "regions": report.num_regions,
        "blocks": report.num_blocks,
        "unfinished blocks": report.num_unfinished,
        "quarantined": report.num_problems,
    }
    if options.json:
        print(
            json.dumps({"ok": report.ok, **counts, "findings": [str(finding) for finding in report.findings]})
        )
    else:
        for finding in report.findings:
            print(finding)
        state = "whole" if report.ok else f"damaged, {len(report.findings)} findings"
        depth = (
            "every byte read"
            if options.full
            else "structure, sizes and indexes read; --full reads every byte"
        )
        print(
            f"{options.store}: {state}; "
            + ", ".join(f"{n:,} {name}" for name, n in counts.items())
            + f" ({depth})"
        )
    return 0 if report.ok else 1
