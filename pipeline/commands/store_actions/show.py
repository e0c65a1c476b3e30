"""Print one picture's regions as a table, and draw them on the picture.

example: butd store show runs/regions.zarr s1-000000 --image runs/scenes/images/000000.jpg
"""

import argparse
from pathlib import Path

from store_schema.errors import InputNotFoundError, StoreMismatchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store show`."""
    parser.add_argument("store", type=Path, help="the store's folder")
    parser.add_argument("image_id", help="the picture's id in the store")
    parser.add_argument("--image", type=Path, help="the picture's file, to draw the regions on")
    parser.add_argument("--out", type=Path, default=Path("regions.png"), help="drawn picture (regions.png)")


def run(options: argparse.Namespace) -> int:
    """Print the regions; draw them where the picture is given."""
    from pipeline.examples import region_labels
    from store_schema.reader import RegionStore

    image_id, image, out = options.image_id, options.image, options.out
    if image is not None and not image.is_file():
        raise InputNotFoundError(f"--image {image}: there is no such file")
    store = RegionStore.open(options.store)
    record = store.image(image_id)
    labels = region_labels(store, image_id)
    print(f"{image_id}: {record.width} x {record.height} pixels, {len(record.boxes)} regions")
    for place, (box, label) in enumerate(zip(record.boxes, labels, strict=True)):
        corners = " ".join(f"{value:7.1f}" for value in box)
        print(f"{place:>3}  {corners}  {label}")
    if image is not None:
        from pipeline.draw import draw_regions
        from stage1_detect.images import load_image

        pixels = load_image(image)
        if pixels.shape[:2] != (record.height, record.width):
            raise StoreMismatchError(
                f"{image} is {pixels.shape[1]} x {pixels.shape[0]} pixels, but the store has {image_id!r} as "
                f"{record.width} x {record.height}; is it another picture?"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_regions(pixels, record.boxes, labels).save(out)
        print(f"drawn: {out}")
    return 0
