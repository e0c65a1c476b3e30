"""Bring published feature files into a store; the same command goes on where it was stopped.

Formats: caffe-tsv, lxmert-tsv, butd-hdf5, milvlg-npz, cocobu, mmf-npy; guessed where not named (docs/formats.md).

example: butd store import train2014_obj36.tsv --store runs/coco.zarr --detector "bottom-up-attention, 36 boxes"
         butd store import train36.hdf5 val36.hdf5 --store runs/coco36.zarr --trust-pickle
         butd store import data/ --format cocobu --tables data/cocotalk.json --store runs/cocobu.zarr
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store_schema.formats.importing import ImportConfig, ImportSummary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store import`."""
    add = parser.add_argument
    add("files", type=Path, nargs="+", help="files or folders of one format")
    add("--store", type=Path, required=True, help="the store to write or to go on with")
    add("--format", help="name of the format (default: guessed)")
    add(
        "--detector",
        metavar="TEXT",
        help="which detector made the features; stores of equal ones can be merged",
    )
    add(
        "--tables", type=Path, help="tables, or a JSON with COCO's images: picture sizes, and ids for numbers"
    )
    add(
        "--objects",
        default="vg",
        help="list of object names, one a line; vg (default); none: leave labels out",
    )
    add("--attributes", default="vg", help="list of attribute names; vg (default); none")
    add(
        "--first-label",
        type=int,
        default=0,
        choices=[0, 1],
        help="number of the first name; 1: 0 is background",
    )
    add(
        "--box-source", choices=["proposal", "refined", "given"], default="proposal", help="default: proposal"
    )
    add("--dtype", choices=["float16", "float32"], default="float16", help="of stored features (float16)")
    add("--codec", choices=["none", "zstd"], default="none", help="zstd: smaller and slower, for archives")
    add("--block-size", type=int, default=256, help="pictures in a block (default 256)")
    add("--ids", type=Path, help="butd-hdf5: JSON of {id: row}, or a list of ids, in place of the pickle")
    add("--trust-pickle", action="store_true", help="read pickles in the files, which can run any program")
    add("--strict", action="store_true", help="stop at the first malformed record")


def run(options: argparse.Namespace) -> int:
    """Import and say what was done; malformed records are counted in the last line."""
    from pipeline.progress_bar import PictureBar
    from store_schema.formats.importing import import_regions

    with PictureBar("importing") as bar:
        summary = import_regions(options.files, options.store, _config(options), bar.start, bar.update)
    _print(summary, options)
    return 0


def _config(options: argparse.Namespace) -> "ImportConfig":
    from store_schema.formats.importing import ImportConfig
    from store_schema.formats.protocol import ReadOptions

    return ImportConfig(
        format=options.format,
        detector=options.detector,
        objects=None if options.objects == "none" else options.objects,
        attributes=None if options.attributes == "none" else options.attributes,
        first_label=options.first_label,
        tables=options.tables,
        read=ReadOptions(trust_pickle=options.trust_pickle, ids=options.ids),
        box_source=options.box_source,
        feature_dtype=options.dtype,
        codec=options.codec,
        block_size=options.block_size,
        strict=options.strict,
    )


def _print(summary: "ImportSummary", options: argparse.Namespace) -> None:
    from store_schema.reader import RegionStore

    store = RegionStore.open(options.store)
    malformed = len(store.problems())
    if summary.processed and options.dtype == "float16":
        print(
            f"stored as float16: largest error {summary.largest_error:.2g} at values up to "
            f"{summary.largest_value:.3g}; --dtype float32 keeps every bit"
        )
    if summary.num_clipped:
        print(
            f"{summary.num_clipped:,} boxes reached past their picture by at most a pixel and were cut back"
        )
    print(
        f"{options.store}: {summary.format}: {summary.processed - len(summary.problems):,} pictures imported "
        f"({summary.done_before:,} before), {summary.regions:,} regions, {malformed:,} malformed"
    )
    if malformed:
        print(f"which, and why: butd store problems {options.store}")
