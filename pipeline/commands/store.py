"""Look into a region store and work on it; `butd store ACTION --help` says more about each action.

example: butd store info runs/regions.zarr
         butd store verify runs/regions.zarr --full
         butd store show runs/regions.zarr s1-000000 --image runs/scenes/images/000000.jpg --out regions.png
         butd store problems runs/regions.zarr
         butd store repair runs/regions.zarr
         butd store copy runs/train.zarr runs/val.zarr runs/both.zarr
         butd store import train2014_obj36.tsv --store runs/coco.zarr
         butd store export runs/regions.zarr regions.json --format coco-json
         butd store coverage runs/regions.zarr --tables runs/scenes
         butd store diff runs/regions.zarr runs/other.zarr
"""

import argparse
import importlib
from types import ModuleType

ACTIONS = {
    "info": "what the store holds and how it was made",
    "verify": "whether it is whole; exit code 1 if not",
    "show": "one picture's regions, as a table and drawn",
    "problems": "pictures that could not be read, with the reason",
    "repair": "drop damaged blocks, so that the job writes them anew",
    "copy": "chosen pictures, another type or codec, several stores in one",
    "upgrade": "bring a store of an older schema version up to date",
    "import": "published feature files into a store",
    "export": "a store into files that other programs read",
    "coverage": "which pictures of a data set have no regions; exit code 1 if some",
    "diff": "what differs between two stores; exit code 1 if anything",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store`: those of every action, which are light to import."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in ACTIONS.items():
        module = _module(name)
        action = actions.add_parser(
            name,
            help=text,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(action)


def run(options: argparse.Namespace) -> int:
    """Carry out the action."""
    return int(_module(options.action).run(options))


def _module(action: str) -> ModuleType:
    action = "import_" if action == "import" else action  # a module cannot have a keyword's name
    return importlib.import_module(f"pipeline.commands.store_actions.{action}")
