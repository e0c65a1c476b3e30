"""The whole pipeline on generated scenes: pictures, detector, region store, captioner, VQA models, report.

About ten minutes on two cores. Run again, it goes on where it stopped.

example: butd demo --out runs/demo
         butd demo --setting small --out runs/demo-small
"""

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd demo`."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for everything (runs/demo)"
    )
    parser.add_argument("--setting", choices=["full", "long", "small"], default="full", help="default full")
    parser.add_argument("--seed", type=int, default=1, help="default 1")


def run(options: argparse.Namespace) -> int:
    """Run every step, then say what came out and where the report lies."""
    from pipeline.demo import SETTINGS, run_demo
    from pipeline.report import read_scores, summary_lines

    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {line}", flush=True)

    page = run_demo(options.out, SETTINGS[options.setting], seed=options.seed, say=say)
    for line in summary_lines(read_scores(options.out)):
        print(line)
    print(f"report: {page}")
    return 0
