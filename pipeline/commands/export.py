"""Make one folder of a trained model, with a card: to use it anywhere, or to give it away.

example: butd export runs/demo/caption-regions my-captioner
         butd caption my-captioner photo.jpg
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd export`."""
    parser.add_argument("run", type=Path, help="a run (its best checkpoint), or a checkpoint")
    parser.add_argument("out", type=Path, help="the folder to write; must not exist")


def run(options: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    from pipeline.export import export_model

    model = export_model(options.run, options.out)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {model.task}, {model.model_dir.name}, {size / 1e6:,.1f} MB")
    return 0
