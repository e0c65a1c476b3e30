"""Print one picture's regions as a table, and draw them on the picture.

example: butd store show runs/regions.zarr s1-000000 --image runs/scenes/images/000000.jpg
"""

import argparse
from pathlib import Path

from pipeline.commands.store_place import store_place
from store_schema.errors import InputNotFoundError, StoreMismatchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store show`."""
    parser.add_argument("store", type=store_place, help="the store's folder or URL")
    parser.add_argument("image_id", help="the picture's id in the store")
    parser.add_argument("--image", type=Path, help="the picture's file, to draw the regions on")
    parser.add_argument("--out", type=Path, default=Path("regions.png"), help="drawn picture (regions.png)")
    parser.add_argument(
        "--regions", type=int, default=8, help="draw so many, the surest labels first (default 8)"
    )


def run(options: argparse.Namespace) -> int:
    """Print the regions; draw them where the picture is given."""
    import numpy as np

    from pipeline.examples import region_labels
    from store_schema.reader import RegionStore

    image_id, image, out, shown = options.image_id, options.image, options.out, options.regions
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
        best = (
            range(len(labels))
            if record.object_scores is None
            else np.argsort(-record.object_scores, kind="stable")
        )
        draw_regions(
            pixels, record.boxes[list(best)], [labels[place] for place in best], max_regions=shown
        ).save(out)
        print(f"drawn: {out}")
    return 0
