"""Draw a data set of scenes: pictures, boxes, attributes, captions, questions, answers.

example: butd scenes runs/scenes --images 500 --seed 1
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd scenes`."""
    parser.add_argument("out", type=Path, help="folder to write; tables and images/ appear in it")
    parser.add_argument("--images", type=int, required=True, metavar="N", help="pictures to draw")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels (default 128)")
    parser.add_argument(
        "--num-workers", type=int, default=None, help="processes that draw (default: all cores)"
    )


def run(options: argparse.Namespace) -> int:
    """Draw the scenes and say what was written."""
    from pipeline.scenes import generate_scenes

    summary = generate_scenes(
        options.out,
        num_images=options.images,
        seed=options.seed,
        size=options.size,
        workers=options.num_workers,
    )
    print(summary)
    return 0
