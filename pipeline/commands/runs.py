"""List training runs: task, state, steps, best score, where they branched off.

example: butd runs runs/demo
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd runs`."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="folder of runs (default runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Print one line a run."""
    from pipeline.training.runs import list_runs

    runs = list_runs(options.folder)
    if options.json:
        print(runs.to_json(orient="records"))
    elif runs.empty:
        print(f"{options.folder} holds no runs; 'butd train' makes one")
    else:
        columns = ["name", "task", "status", "step", "metric", "best", "seconds", "parent", "changes"]
        print(runs[columns].fillna("").to_string(index=False))
    return 0
