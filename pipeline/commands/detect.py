"""Stage one: k regions of every picture, each with feature, box, object and attribute, into a store.

Stopped by Ctrl-C, a signal or kill -9, the same command goes on where it stopped.

example: butd detect runs/scenes --weights runs/detector --store runs/regions.zarr --regions 12
         butd detect photos/ --weights runs/detector --store runs/photos.zarr --min-regions 10 --max-regions 100
         butd detect runs/scenes --weights runs/detector --store runs/grid.zarr --mode grid --regions 12
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from store_schema.errors import UsageError

if TYPE_CHECKING:
    from stage1_detect.spec import ExtractorSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd detect`."""
    add = parser.add_argument
    add("images", type=Path, nargs="+", help="folders, picture files, or a data set's tables")
    add(
        "--weights",
        required=True,
        help="a trained detector (run, checkpoint), or a classifier's weights file",
    )
    add("--store", type=Path, required=True, help="the store to write or to go on with")
    add(
        "--mode",
        choices=["proposal", "refined", "grid", "given"],
        default="proposal",
        help="default: proposal",
    )
    add("--regions", type=int, metavar="K", help="k regions in every picture (default 36)")
    add("--min-regions", type=int, help="adaptive: at least so many regions, with --max-regions")
    add("--max-regions", type=int, help="adaptive: at most so many regions")
    add(
        "--score-thresh",
        type=float,
        default=0.2,
        help="class score from which a region is kept (default 0.2)",
    )
    add("--nms-thresh", type=float, default=0.3, help="overlap above which the lesser box goes (default 0.3)")
    add("--boxes", help="for --mode given: a table of boxes, or FastestDet as .onnx")
    add("--classifier", help="the weights are of this torchvision classifier: mobilenet_v2, resnet50, ...")
    add(
        "--short-side",
        type=int,
        default=320,
        help="with --classifier: the network's short side (default 320)",
    )
    add("--split", help="of the tables: only this split")
    add("--images-root", type=Path, help="where the tables' paths start (default: the tables)")
    add("--device", default="cpu", help="cpu or cuda (default cpu)")
    add("--scheduler", choices=["sync", "threads", "processes"], default="threads", help="of dask (threads)")
    add("--num-workers", type=int, default=0, help="blocks at once (default 0: one a core, at most 4)")
    add("--batch-size", type=int, default=16, help="pictures the network sees at once (default 16)")
    add("--block-size", type=int, default=256, help="pictures in a block of a new store (default 256)")
    add(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="of stored features (default float16)",
    )
    add("--dry-run", action="store_true", help="say what would be done, and how large it would be")
    add("--strict", action="store_true", help="exit code 1 where a picture could not be read")


def run(options: argparse.Namespace) -> int:
    """Extract and say what was done; quarantined pictures are counted in the last line."""
    from stage1_detect.jobs import JobConfig, detect_to_store, plan_job
    from stage1_detect.sources import find_images

    spec = _spec(options)
    config = JobConfig(
        scheduler=options.scheduler,
        num_workers=options.num_workers,
        batch_size=options.batch_size,
        block_size=options.block_size,
        feature_dtype=options.dtype,
    )
    source = options.images[0] if len(options.images) == 1 else options.images
    sources = find_images(source, root=options.images_root, split=options.split)
    if options.dry_run:
        plan = plan_job(sources, options.store, spec, config)
        print(
            f"{plan.pictures:,} pictures, {plan.done_before:,} of them done; {plan.blocks:,} blocks to write, "
            f"at most {plan.num_bytes / 1e6:,.1f} MB"
        )
        return 0
    summary = detect_to_store(sources, options.store, spec, config)
    short = f", {summary.short:,} with fewer than asked for" if summary.short else ""
    print(
        f"{options.store}: {summary.processed:,} pictures done ({summary.done_before:,} before), "
        f"{summary.regions:,} regions{short}, {len(summary.problems):,} pictures unreadable, "
        f"{summary.images_per_second:.1f} images/s"
    )
    if summary.problems:
        print(f"the reasons: butd store problems {options.store}")
    if summary.stopped_by is not None:
        print(f"stopped by {summary.stopped_by} after a whole block; the same command goes on")
        return 130 if summary.stopped_by == "SIGINT" else 75
    return 1 if options.strict and summary.problems else 0


def _spec(options: argparse.Namespace) -> "ExtractorSpec":
    from stage1_detect.config import SelectionConfig
    from stage1_detect.spec import ClassifierConfig, ExtractorSpec, GivenBoxesConfig, cells_for

    least, most = _limits(options)
    if options.boxes is not None and options.mode != "given":
        raise UsageError(f"--boxes has no effect with --mode {options.mode}; use --mode given")
    selection = boxes = cells = None
    if options.mode == "grid":
        cells = cells_for(most)
    elif options.mode == "given":
        if options.boxes is None:
            raise UsageError("--mode given needs --boxes: a table of boxes, or FastestDet as .onnx")
        boxes = GivenBoxesConfig(path=options.boxes, max_regions=most)
    else:
        selection = SelectionConfig(
            min_regions=least,
            max_regions=most,
            score_thresh=options.score_thresh,
            nms_thresh=options.nms_thresh,
        )
    classifier = None
    if options.classifier is not None:
        classifier = ClassifierConfig(
            name=options.classifier, short_side=options.short_side, long_side=2 * options.short_side
        )
    return ExtractorSpec(
        mode=options.mode,
        weights=options.weights,
        selection=selection,
        cells=cells,
        boxes=boxes,
        classifier=classifier,
        device=options.device,
    )


def _limits(options: argparse.Namespace) -> tuple[int, int]:
    """Fixed k by --regions, or the two limits of an adaptive choice."""
    given = (options.min_regions, options.max_regions)
    if given == (None, None):
        k = options.regions if options.regions is not None else 36
        return k, k
    if options.regions is not None:
        raise UsageError("--regions fixes k; give either it or --min-regions and --max-regions")
    if None in given:
        raise UsageError("an adaptive choice needs both --min-regions and --max-regions")
    return given
