"""Score a run, a model, or all models of a folder on any tables, beside their trivial baselines.

Writes report.json, predictions/ and examples/; 'butd report' makes pages of them.

example: butd evaluate runs/demo --tables runs/demo/heldout --store runs/demo/regions-heldout.zarr --out runs/scores
"""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd evaluate`."""
    add = parser.add_argument
    add("run", type=Path, help="a run, a model folder, or a folder of runs")
    add("--tables", type=Path, required=True, help="folder of the data set's tables")
    add(
        "--store",
        type=Path,
        action="append",
        default=[],
        help="regions of its pictures; missing ones are made",
    )
    add("--out", type=Path, required=True, help="folder to write")
    add("--split", default="auto", help="of the tables; default: test if there is one, else val")
    add("--images-root", type=Path, help="where the tables' paths start (default: the tables)")
    add("--beam-size", type=int, default=1, help="of captions (default 1: greedy)")
    add("--boxes", help="for models on given boxes: a table of boxes, or FastestDet as .onnx")
    add("--weights", help="the models' detector, where it no longer lies where they say")
    add("--json", action="store_true", help="print the report's JSON")


def run(options: argparse.Namespace) -> int:
    """Score and say where the report lies."""
    from pipeline.evaluation import EvaluationSettings, evaluate
    from pipeline.report import summary_lines, write_report

    settings = EvaluationSettings(
        tables=options.tables,
        out=options.out,
        stores=options.store,
        images_root=options.images_root,
        split=options.split,
        beam_size=options.beam_size,
        boxes=options.boxes,
        weights=options.weights,
    )
    report = evaluate(options.run, settings)
    _, page = write_report(options.out)
    if options.json:
        print(json.dumps(report))
        return 0
    for line in summary_lines(report):
        print(line)
    print(f"report: {page}")
    return 0
