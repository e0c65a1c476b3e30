"""Draw a data set of scenes: pictures, boxes, attributes, captions, questions, answers.

example: butd scenes runs/scenes --images 500 --seed 1
         butd scenes runs/heldout --images 500 --seed 2 --splits test=1
"""

import argparse
from pathlib import Path

from store_schema.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd scenes`."""
    parser.add_argument("out", type=Path, help="folder to write; tables and images/ appear in it")
    parser.add_argument("--images", type=int, required=True, metavar="N", help="pictures to draw")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument("--size", type=int, default=128, help="side of a picture in pixels (default 128)")
    parser.add_argument(
        "--splits", default="train=.8,val=.1,test=.1", help="fractions of the splits (default %(default)s)"
    )
    parser.add_argument(
        "--num-workers", type=int, help="processes that draw (default: what the machine allows)"
    )


def run(options: argparse.Namespace) -> int:
    """Draw the scenes and say what was written."""
    from pipeline.scenes.generate import generate_scenes

    summary = generate_scenes(
        options.out,
        num_images=options.images,
        seed=options.seed,
        size=options.size,
        workers=options.num_workers,
        splits=_parse_splits(options.splits),
    )
    splits = ", ".join(f"{count:,} {name}" for name, count in summary.splits.items())
    rate = "were there already" if summary.existed else f"{summary.num_images / summary.seconds:.0f} images/s"
    print(
        f"{summary.path}: {summary.num_images:,} pictures ({splits}), {summary.num_objects:,} objects, "
        f"{summary.num_captions:,} captions, {summary.num_questions:,} questions; {rate}"
    )
    return 0


def _parse_splits(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(share) for name, share in pairs}
    except ValueError as error:
        raise UsageError(f"--splits {text}: NAME=FRACTION,... expected, such as train=.9,val=.1") from error
