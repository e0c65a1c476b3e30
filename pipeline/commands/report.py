"""Write report.md and a self-contained report.html from what `butd evaluate` left in a folder.

example: butd report runs/demo
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd report`."""
    parser.add_argument("folder", type=Path, help="folder with report.json and examples/")


def run(options: argparse.Namespace) -> int:
    """Write both forms of the report and say where they lie."""
    from pipeline.report import write_report

    markdown, html = write_report(options.folder)
    print(f"report: {html} and {markdown}")
    return 0
