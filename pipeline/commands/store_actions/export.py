"""Write a store's regions in a form that other programs read; OUT appears whole or not at all.

Formats: caffe-tsv, lxmert-tsv, butd-hdf5 (files), milvlg-npz, cocobu, mmf-npy (folders), coco-json (detections for
FiftyOne, CVAT, pycocotools); docs/formats.md says what each can carry.

example: butd store export runs/regions.zarr train36.hdf5 --format butd-hdf5
         butd store export runs/regions.zarr regions.json --format coco-json --tables runs/scenes
"""

import argparse
from pathlib import Path

from pipeline.commands.store_place import store_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store export`."""
    add = parser.add_argument
    add("store", type=store_place, help="the store's folder or URL")
    add("out", type=Path, help="the file or folder to write; must not exist")
    add("--format", required=True, help="name of the format")
    add(
        "--tables",
        type=Path,
        help="tables, or a JSON with COCO's images: numbers (coco_id) and paths of pictures",
    )
    add("--objects", help="list of names that the files' numbers shall count; vg (default: the store's own)")
    add("--attributes", help="the same for attributes")


def run(options: argparse.Namespace) -> int:
    """Export and say what was written and what the format could not carry."""
    from pipeline.progress_bar import PictureBar
    from store_schema.formats.exporting import ExportConfig, export_regions
    from store_schema.formats.registry import format_named
    from store_schema.reader import RegionStore

    chosen = format_named(options.format)
    config = ExportConfig(objects=options.objects, attributes=options.attributes, tables=options.tables)
    store = RegionStore.open(options.store)
    with PictureBar("exporting") as bar:
        bar.start(len(store), 0)
        summary = export_regions(store, options.out, chosen, config, bar.update)
    beside = f", beside it {', '.join(summary.companions)}" if summary.companions else ""
    print(f"{options.out}: {chosen.name}: {summary.pictures:,} pictures, {summary.regions:,} regions{beside}")
    if summary.not_carried:
        print(f"not in {chosen.name}: {', '.join(summary.not_carried)}")
    return 0
