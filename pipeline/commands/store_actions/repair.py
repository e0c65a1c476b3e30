"""Drop damaged blocks, so that the job, run again, writes exactly those anew.

What is damaged is what 'butd store verify --full' finds; good blocks are never touched.

example: butd store repair runs/regions.zarr --dry-run
         butd store repair runs/regions.zarr
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store repair`."""
    parser.add_argument("store", type=Path, help="the store's folder; nobody may write it meanwhile")
    parser.add_argument(
        "--quick", action="store_true", help="check sizes, records and indexes, not every byte"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be dropped")


def run(options: argparse.Namespace) -> int:
    """Print what was found and what was dropped."""
    from pipeline.progress_bar import track_blocks
    from store_schema.repair import repair

    report = repair(
        options.store, full=not options.quick, dry_run=options.dry_run, track=track_blocks("checking")
    )
    for finding in report.findings:
        print(finding)
    pictures = sum(len(block.image_ids) for block in report.dropped)
    if not report.findings:
        print(f"{options.store}: whole, nothing to repair")
    elif options.dry_run:
        print(f"{options.store}: {len(report.dropped):,} blocks with {pictures:,} pictures would be dropped")
    else:
        rest = "; run the job that wrote the store again: it writes just these anew" if report.dropped else ""
        print(f"{options.store}: {len(report.dropped):,} blocks with {pictures:,} pictures dropped{rest}")
    return 0
