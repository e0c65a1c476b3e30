"""Train a detector, a captioner or a VQA model. The same command again goes on where the run stopped.

example: butd train detector --tables runs/scenes --out runs/detector
         butd train caption --tables runs/scenes --store runs/regions.zarr --out runs/caption
         butd train vqa --tables runs/scenes --store runs/regions.zarr --out runs/vqa --config vqa-paper
branch:  butd train vqa ... --resume runs/vqa --set training.lr=1e-4 --out runs/vqa-slower
"""

import argparse
from pathlib import Path

from pipeline.commands.store_place import store_place
from store_schema.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd train`."""
    parser.add_argument("model", choices=["detector", "caption", "vqa"], help="what to train")
    parser.add_argument("--tables", type=Path, required=True, help="folder of the data set's tables")
    parser.add_argument(
        "--store", type=store_place, help="region store; without it, vqa trains the question-only model"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--images-root", type=Path, help="where the tables' paths start (default: the tables)"
    )
    parser.add_argument("--config", help="a shipped configuration's name or a TOML file")
    parser.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        default="auto",
        help="latest, best, a checkpoint's name, or a path",
    )
    parser.add_argument(
        "--time-limit", metavar="24h", help="stop in time with everything saved, exit code 75"
    )
    parser.add_argument("--device", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, help="of weights, order and dropout")
    parser.add_argument("--batch-size", type=int, help="samples a step")
    parser.add_argument("--num-workers", type=int, help="processes that load batches")


def run(options: argparse.Namespace) -> int:
    """Train and say where the best checkpoint lies."""
    from pipeline import stages
    from pipeline.training.stop import parse_duration

    settings = stages.TrainOptions(
        config=options.config,
        sets=(*_shortcuts(options), *options.sets),
        resume=options.resume,
        time_limit_seconds=parse_duration(options.time_limit) if options.time_limit else None,
    )
    tables, store, out = options.tables, options.store, options.out
    if options.model == "detector":
        if store is not None:
            raise UsageError("--store has no effect on the detector, which trains on pictures; leave it out")
        result = stages.train_detector(tables, out, settings, images_root=options.images_root)
    elif options.images_root is not None:
        raise UsageError(
            f"--images-root has no effect on {options.model}, which trains on a store; leave it out"
        )
    elif options.model == "vqa":
        result = stages.train_vqa(tables, store, out, settings)
    elif store is None:
        raise UsageError(
            "--store is needed: the captioner trains on regions; make a store with 'butd detect'"
        )
    else:
        result = stages.train_captioner(tables, store, out, settings)
    print(f"{result.status} after {result.steps:,} steps; best checkpoint: {result.best or 'none yet'}")
    return result.exit_code


def _shortcuts(options: argparse.Namespace) -> list[str]:
    """The named options as settings; --set comes after them and wins."""
    sets = []
    if options.device is not None:
        sets.append(f"training.device={options.device}")
    if options.seed is not None:
        sets += [f"training.seed={options.seed}", f"data.seed={options.seed}"]
    if options.batch_size is not None:
        sets.append(f"data.batch_size={options.batch_size}")
    if options.num_workers is not None:
        sets.append(f"data.num_workers={options.num_workers}")
    return sets
