"""The pipeline on real photographs: Flickr8k captions and DAQUAR questions, with baselines and drawings.

Skipped with exit code 0 and the reason where the photographs are not there; they may not be copied into the
project.

example: butd demo-photos ../shared/data --out runs/demo-photos
"""

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd demo-photos`."""
    parser.add_argument("photos", type=Path, help="folder with flickr8k/, daquar/ and weights/")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo-photos"), help="folder (runs/demo-photos)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default 1")


def run(options: argparse.Namespace) -> int:
    """Run every step, then say what came out and where the report lies; skip where there are no photographs."""
    from pipeline.demo_photos import missing_data, run_demo_photos
    from pipeline.report import read_scores, summary_lines

    missing = missing_data(options.photos)
    if missing is not None:
        print(
            f"demo-photos skipped: {options.photos / missing} is not there; name the data folder with PHOTOS=..."
        )
        return 0
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", flush=True)

    page = run_demo_photos(options.photos, options.out, seed=options.seed, say=say)
    for line in summary_lines(read_scores(options.out)):
        print(line)
    print(f"report: {page}")
    return 0
