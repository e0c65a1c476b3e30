"""Turn a published data set into the standard tables; the pictures stay where they are.

example: butd prepare flickr8k ../shared/data/flickr8k runs/flickr8k
"""

import argparse
import importlib
from pathlib import Path

from store_schema.errors import InputNotFoundError

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
}
"""Data set: its reader, `(source folder, out) -> rows of each table`, and what the source holds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd prepare`."""
    known = "; ".join(f"{name} ({text})" for name, (_, text) in READERS.items())
    parser.add_argument("dataset", choices=list(READERS), metavar="DATASET", help=known)
    parser.add_argument("source", type=Path, help="folder of the raw data set")
    parser.add_argument("out", type=Path, help="folder for the tables")


def run(options: argparse.Namespace) -> int:
    """Write the tables and say how many rows each has."""
    if not options.source.exists():
        raise InputNotFoundError(f"the raw data set expected at {options.source}, there is nothing")
    module, function = READERS[options.dataset][0].split(":")
    counts = getattr(importlib.import_module(module), function)(options.source, options.out)
    print(f"{options.out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return 0
