"""Look into a region store and work on it; `butd store ACTION --help` says more about each action.

example: butd store info runs/regions.zarr
         butd store verify runs/regions.zarr --full
         butd store show runs/regions.zarr s1-000000 --image runs/scenes/images/000000.jpg --out regions.png
         butd store problems runs/regions.zarr
"""

import argparse
import importlib
from types import ModuleType

ACTIONS = {
    "info": "what the store holds and how it was made",
    "verify": "whether it is whole; exit code 1 if not",
    "show": "one picture's regions, as a table and drawn",
    "problems": "pictures that could not be read, with the reason",
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
    return importlib.import_module(f"pipeline.commands.store_actions.{action}")
