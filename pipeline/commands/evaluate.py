"""Score a run, a model, or all models of a folder on any tables, beside their trivial baselines.

Writes report.json, predictions/ and examples/; 'butd report' makes pages of them.

Also scores captions that somebody else wrote, in COCO's results form.

example: butd evaluate runs/demo --tables runs/demo/heldout --store runs/demo/regions-heldout.zarr --out runs/scores
         butd evaluate captions_results.json --tables runs/coco --split val --out runs/theirs
"""

import argparse
import json
from pathlib import Path

from pipeline.commands.store_place import store_place
from store_schema.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd evaluate`."""
    add = parser.add_argument
    add("run", type=Path, help="a run, a model folder, a folder of runs, or COCO results JSON")
    add("--tables", type=Path, required=True, help="folder of the data set's tables")
    add(
        "--store",
        type=store_place,
        action="append",
        default=[],
        help="regions of its pictures; missing ones are made",
    )
    add("--out", type=Path, required=True, help="folder to write")
    add("--split", default="auto", help="of the tables; default: test if there is one, else val")
    add("--images-root", type=Path, help="where the tables' paths start (default: the tables)")
    add("--beam-size", type=int, default=1, help="of captions (default 1: greedy)")
    add("--meteor", action="store_true", help="METEOR of captions too, by the official Java program")
    add("--spice", action="store_true", help="SPICE of captions too, by the official Java program")
    add("--boxes", help="for models on given boxes: a table of boxes, or FastestDet as .onnx")
    add("--weights", help="the models' detector, where it no longer lies where they say")
    add("--json", action="store_true", help="print the report's JSON")


def run(options: argparse.Namespace) -> int:
    """Score and say where the report lies."""
    from pipeline.evaluation import EvaluationSettings, evaluate
    from pipeline.report import summary_lines, write_report

    java_metrics = tuple(name for name in ("meteor", "spice") if getattr(options, name))
    if options.run.suffix == ".json":
        return _score_results(options, java_metrics)
    settings = EvaluationSettings(
        tables=options.tables,
        out=options.out,
        stores=options.store,
        images_root=options.images_root,
        split=options.split,
        beam_size=options.beam_size,
        java_metrics=java_metrics,
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


def _score_results(options: argparse.Namespace, java_metrics: tuple[str, ...]) -> int:
    """Score a results file, write the scores into OUT/report.json and print them."""
    from pipeline.caption_results import score_caption_results
    from pipeline.evaluation import choose_split, write_json

    if options.store or options.images_root or options.boxes or options.weights:
        raise UsageError("--store, --images-root, --boxes and --weights have no effect on a results file")
    split = choose_split(options.tables, options.split)
    scores = score_caption_results(options.run, options.tables, split, java_metrics)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"data": {"name": options.tables.name, "split": split}, "caption": {options.run.stem: scores}}
    write_json(options.out / "report.json", report)
    if options.json:
        print(json.dumps(report))
    else:
        print(", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
    return 0
