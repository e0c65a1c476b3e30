"""Published weights into a model folder: model.safetensors and model.json, with names, preprocessing and source.

Every tensor of the file is used exactly once or named in what is printed; shapes are checked; nothing is unpickled
but tensors.

example: butd convert-weights frcnn-vg/pytorch_model.bin runs/vg --from hf-frcnn-vg
         butd convert-weights resnet101_faster_rcnn_final.caffemodel runs/vg --from caffemodel
"""

import argparse
from pathlib import Path

from pipeline.conversion import CONVERTERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd convert-weights`."""
    parser.add_argument(
        "source", type=Path, metavar="IN", help="the published file, or the folder it came in"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the model folder to write; must not exist")
    parser.add_argument("--from", dest="origin", required=True, choices=list(CONVERTERS), help="what IN is")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what the file does not say itself, where its kind takes it (see docs/weights.md)",
    )


def run(options: argparse.Namespace) -> int:
    """Convert and say what was written, with what the converter had to assume or left out."""
    from pipeline.conversion import convert

    converted = convert(options.source, options.out, options.origin, options.settings)
    for note in converted.notes:
        print(f"note: {note}")
    print(f"{options.out}: {converted.num_tensors} tensors, {converted.num_bytes / 1e6:,.1f} MB")
    return 0
