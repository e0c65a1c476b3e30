"""Copy one store or several of the same detector into a new one: chosen pictures, another type, codec or block size.

Labels are joined by name; blocks that do not change are hard links. The copy appears whole or not at all.

A condition is Python's, on image_id, width, height, num_regions, quarantined: "width >= 300 and num_regions > 0",
"image_id.startswith('coco:')", "not quarantined".

example: butd store copy runs/regions.zarr runs/archive.zarr --codec zstd
         butd store copy runs/train.zarr runs/val.zarr runs/both.zarr
         butd store copy runs/regions.zarr runs/some.zarr --where "num_regions >= 10" --exclude blurred.txt
"""

import argparse
from pathlib import Path

from pipeline.commands.store_place import store_place
from store_schema.errors import InputNotFoundError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store copy`."""
    add = parser.add_argument
    add("sources", metavar="SRC", nargs="+", type=store_place, help="folders or URLs of the stores to copy")
    add("destination", metavar="DST", type=Path, help="folder of the new store")
    add("--where", metavar="CONDITION", help="only pictures for which it holds")
    add("--ids", type=Path, metavar="FILE", help="only these pictures: an image_id a line")
    add("--exclude", type=Path, metavar="FILE", help="not these pictures: an image_id a line")
    add("--replace", action="store_true", help="where several stores have a picture, take the last one's")
    add("--dtype", choices=["float16", "float32"], help="of features and scores (default: as it is)")
    add(
        "--codec", choices=["none", "zstd"], help="zstd: smaller and slower, for archives (default: as it is)"
    )
    add("--block-size", type=int, help="pictures in a block (default: as it is)")
    add("--dry-run", action="store_true", help="say what would be done, and how large it would be")


def run(options: argparse.Namespace) -> int:
    """Copy, and say how much was written and how much is shared."""
    from pipeline.progress_bar import track_blocks
    from store_schema.copy_plan import CopyOptions
    from store_schema.copying import copy_stores

    wanted = CopyOptions(
        where=options.where,
        image_ids=None if options.ids is None else _lines("--ids", options.ids),
        exclude=() if options.exclude is None else _lines("--exclude", options.exclude),
        replace=options.replace,
        feature_dtype=options.dtype,
        codec=options.codec,
        block_size=options.block_size,
    )
    report = copy_stores(
        options.sources,
        options.destination,
        wanted,
        dry_run=options.dry_run,
        track=track_blocks("copying"),
    )
    quarantined = f" and {report.num_problems:,} quarantined" if report.num_problems else ""
    print(
        f"{options.destination}: {report.num_images:,} pictures{quarantined}; {report.num_shared:,} blocks shared, "
        f"{report.num_written:,} {'to write' if options.dry_run else 'written'} ({report.num_bytes / 1e6:,.1f} MB of "
        "features)"
    )
    if report.num_unfinished:
        print(f"{report.num_unfinished:,} unfinished blocks of the sources were left out")
    return 0


def _lines(option: str, path: Path) -> list[str]:
    """The identifiers in a text file."""
    try:
        lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8").split("\n")]
    except OSError as error:
        raise InputNotFoundError(f"{option} {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{option} {path}: expected a text file with an image_id a line ({error})"
        ) from error
    image_ids = [line for line in lines if line]
    if not image_ids:
        raise UsageError(f"{option} {path}: the file names no picture")
    return image_ids
