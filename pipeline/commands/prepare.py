"""Turn a published data set into the standard tables; the pictures stay where they are.

example: butd prepare flickr8k ../shared/data/flickr8k runs/flickr8k
         butd prepare visual-genome /data/vg runs/vg --test-pictures karpathy_test_images.txt
         butd prepare vqa-v2 /data/vqa2 runs/vqa2 --store runs/vqa2.zarr

With --store nothing of the pictures but their regions has to be there (an imported feature file): ids and sizes are the
store's, and what is about pictures that it lacks is counted and left out.
"""

import argparse
import importlib
from pathlib import Path
from typing import Any

from pipeline.commands.store_place import store_place
from store_schema.errors import InputNotFoundError, UsageError

READERS = {
    "flickr8k": ("pipeline.prepare.flickr8k:prepare_flickr8k", "captions: the folder of Flickr8k"),
    "coco-captions": (
        "pipeline.prepare.coco_captions:prepare_coco_captions",
        "captions: a folder with the official JSON files",
    ),
    "karpathy": (
        "pipeline.prepare.karpathy:prepare_karpathy",
        "captions: dataset_coco.json, dataset_flickr8k.json or dataset_flickr30k.json beside its pictures",
    ),
    "captions-file": (
        "pipeline.prepare.captions_file:prepare_captions_file",
        "captions: a CSV or JSONL file beside its pictures",
    ),
    "daquar": ("pipeline.prepare.daquar:prepare_daquar", "questions: a folder with qa.csv and images/"),
    "vqa-v2": ("pipeline.prepare.vqa_v2:prepare_vqa_v2", "questions: a folder with the official JSON files"),
    "visual-genome-qa": (
        "pipeline.prepare.visual_genome_qa:prepare_visual_genome_qa",
        "questions: a folder with question_answers.json and the pictures",
    ),
    "questions-file": (
        "pipeline.prepare.questions_file:prepare_questions_file",
        "questions: a CSV or JSONL file beside its pictures",
    ),
    "easy-vqa": ("pipeline.prepare.easy_vqa:prepare_easy_vqa", "questions: the data folder of easy-VQA"),
    "coco": ("pipeline.prepare.coco:prepare_coco", "boxes: a folder with instances_*.json and the pictures"),
    "visual-genome": (
        "pipeline.prepare.visual_genome:prepare_visual_genome",
        "boxes, attributes: a folder with objects.json, attributes.json, image_data.json and the pictures",
    ),
}
"""Data set: its reader, `(source folder, out) -> rows of each table`, and what the source holds."""

OPTIONS = {
    "coco-captions": ("store",),
    "karpathy": ("store",),
    "captions-file": ("store",),
    "vqa-v2": ("store",),
    "visual-genome-qa": ("store",),
    "questions-file": ("store",),
    "coco": ("val_pictures", "test_pictures", "val_share"),
    "visual-genome": ("val_pictures", "test_pictures", "val_share", "objects", "attributes"),
}
"""Data set: what its reader can be told besides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd prepare`."""
    known = "; ".join(f"{name} ({text})" for name, (_, text) in READERS.items())
    parser.add_argument("dataset", choices=list(READERS), metavar="DATASET", help=known)
    parser.add_argument("source", type=Path, help="folder of the raw data set")
    parser.add_argument("out", type=Path, help="folder for the tables")
    parser.add_argument(
        "--store",
        type=store_place,
        help=f"take the pictures from this store of their regions; for {', '.join(_takers('store'))}",
    )
    add = parser.add_argument_group("of visual-genome and coco").add_argument
    add("--val-pictures", type=Path, help="list of COCO pictures for val, such as karpathy_val_images.txt")
    add("--test-pictures", type=Path, help="list of COCO pictures for test; neither is trained on")
    add("--val-share", type=float, help="share of val where nothing says the split")
    add("--objects", help="visual-genome: names, one a line, or vg (default: the 1,600)")
    add("--attributes", help="visual-genome: names, one a line, or vg (default: the 400)")


def run(options: argparse.Namespace) -> int:
    """Write the tables and say how many rows each has."""
    if not options.source.exists():
        raise InputNotFoundError(f"the raw data set expected at {options.source}, there is nothing")
    told = _told(options)
    module, function = READERS[options.dataset][0].split(":")
    counts = getattr(importlib.import_module(module), function)(options.source, options.out, **told)
    print(f"{options.out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return 0


def _told(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given. Errors: `UsageError` for one that this data set's reader does not take."""
    names = sorted({name for taken in OPTIONS.values() for name in taken})
    told = {name: value for name in names if (value := getattr(options, name)) is not None}
    known = OPTIONS.get(options.dataset, ())
    for name in told:
        if name not in known:
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect on {options.dataset}; it is for "
                f"{', '.join(_takers(name))}"
            )
    if not 0 <= told.get("val_share", 0) <= 1:
        raise UsageError(f"--val-share {told['val_share']}: a share from 0 to 1 expected")
    return told


def _takers(option: str) -> list[str]:
    """The data sets whose reader takes an option."""
    return [dataset for dataset, taken in OPTIONS.items() if option in taken]
