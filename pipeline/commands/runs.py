"""List training runs: task, state, steps, best score, where they branched off; draw them into one picture.

example: butd runs runs/demo
         butd runs runs/caption runs/caption-slower --plot runs/compared.png
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd runs`."""
    parser.add_argument(
        "paths", type=Path, nargs="*", default=[Path("runs")], help="runs, or folders of runs (default runs)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw loss and metric of all over steps (.png, .svg, .pdf)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Print one line a run."""
    from pipeline.training.runs import list_runs

    runs = list_runs(*options.paths)
    if options.json:
        print(runs.to_json(orient="records"))
    elif runs.empty:
        print(f"{', '.join(map(str, options.paths))} holds no runs; 'butd train' makes one")
    else:
        columns = ["name", "task", "status", "step", "metric", "best", "seconds", "parent", "changes"]
        print(runs[columns].fillna("").to_string(index=False))
    if options.plot is not None:
        from pipeline.training.run_plot import plot_runs

        count = plot_runs(options.paths, options.plot)
        if not options.json:
            print(f"drawn: {count} runs, {options.plot}")
    return 0
