"""Answer a question about pictures: files (stage one runs first), or pictures of a store.

Prints the five best answers with their scores, and the regions that the answer rests on with their
unnormalised attention weights. With --tables it answers all questions of a split instead and writes the file that the
VQA challenge's server takes.

example: butd answer runs/demo/vqa-regions "how many stars are there?" runs/demo/heldout/images/000000.jpg
         butd answer runs/demo/vqa-regions "is there a star?" --store runs/demo/regions.zarr --ids s1-000000
         butd answer runs/vqa --tables runs/vqa2 --split test --store runs/vqa2.zarr --results answers.json
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.commands.store_place import store_place
from store_schema.errors import UsageError

if TYPE_CHECKING:
    from pipeline.inference import Pictures
    from stage2_models.vqa_inference import VqaAnswer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd answer`."""
    add = parser.add_argument
    add("model", type=Path, help="a VQA run, checkpoint or model folder")
    add("question", nargs="?", help="the question, in words")
    add("images", type=Path, nargs="*", help="picture files or folders")
    add("--store", type=store_place, help="a store to take regions from instead")
    add("--ids", nargs="*", metavar="IMAGE_ID", help="with --store: these pictures (default: all)")
    add("--tables", type=Path, help="answer all questions of these tables instead")
    add("--split", help="with --tables: the questions of this split")
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="with --tables: the file to write, as the official server takes it",
    )
    add("--best", type=int, default=5, help="answers to print (default 5)")
    add("--weights", help="the model's detector, where it no longer lies where the model says")
    add("--boxes", help="for a model on given boxes: a table of boxes, or FastestDet as .onnx")
    add("--draw", type=Path, metavar="FOLDER", help="draw the regions of the answer into this folder")
    add("--device", default="cpu", help="auto, cpu or cuda (default cpu)")
    add("--json", action="store_true", help="print JSON lines")


def run(options: argparse.Namespace) -> int:
    """Print the best answers for each picture."""
    from pipeline.inference import inputs_of
    from pipeline.training.processes import resolve_device
    from stage2_models.vqa_inference import load_vqa
    from store_schema.artifacts import read_model_json

    if options.tables is not None:
        return _answer_split(options)
    if options.question is None or options.split or options.results:
        raise UsageError(
            "give a question and pictures; or --tables, --split and --results to answer a whole split"
        )
    if options.draw is not None and options.store is not None:
        raise UsageError("--draw needs picture files; a store holds none. Name the files instead of --store")
    if options.best < 1:
        raise UsageError(f"--best {options.best}: at least 1 expected")
    device = str(resolve_device(options.device))
    loaded = load_vqa(options.model, device=device)
    given = inputs_of(
        read_model_json(loaded.path),
        loaded.check_store,
        images=options.images,
        store=options.store,
        ids=options.ids,
        weights=options.weights,
        boxes=options.boxes,
        device=device,
    )
    for pictures in given.batches(size=50):
        questions = [options.question] * len(pictures.image_ids)
        for place, answer in enumerate(loaded.answer(questions, pictures.regions, num_best=options.best)):
            print(_lines(pictures, place, answer, as_json=options.json))
            if options.draw is not None:
                assert answer.attention_logits is not None
                assert answer.attention_weights is not None
                pictures.draw_answer(
                    place, answer.attention_logits[0], answer.attention_weights[0], options.draw
                )
    return 0


def _answer_split(options: argparse.Namespace) -> int:
    from pipeline.evaluation import write_json
    from pipeline.result_files import vqa_results
    from pipeline.training.processes import resolve_device
    from stage2_models.vqa_inference import load_vqa
    from store_schema.reader import RegionStore

    if options.question is not None or options.ids is not None or not (options.split and options.results):
        raise UsageError("--tables needs --split and --results, and neither a question nor pictures")
    loaded = load_vqa(options.model, device=str(resolve_device(options.device)))
    store = None if options.store is None else RegionStore.open(options.store)
    answers = loaded.answer_split(options.tables, store, options.split)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.results, vqa_results(answers))
    print(f"{options.results}: answers to {len(answers):,} questions")
    return 0


def _lines(pictures: "Pictures", place: int, answer: "VqaAnswer", *, as_json: bool) -> str:
    image_id = pictures.image_ids[place]
    best = [{"answer": scored.answer, "score": round(scored.score, 4)} for scored in answer.best]
    regions = []
    if answer.attention_logits is not None and answer.attention_weights is not None:
        logits, weights = answer.attention_logits[0], answer.attention_weights[0]
        boxes = pictures.regions.boxes[place].numpy()
        regions = [
            {
                "box": [round(float(value), 1) for value in boxes[region]],
                "logit": round(float(logits[region]), 3),
                "weight": round(float(weights[region]), 4),
            }
            for region in np.argsort(-weights)[:5]
        ]
    if as_json:
        return json.dumps(
            {"image_id": image_id, "question": answer.question, "answers": best, "regions": regions}
        )
    lines = [f"{image_id}: " + ", ".join(f"{one['answer']} {one['score']:.3f}" for one in best)]
    for region in regions:
        lines.append(
            f"    box {region['box']}  unnormalised {region['logit']:+.2f}  weight {region['weight']:.3f}"
        )
    return "\n".join(lines)
