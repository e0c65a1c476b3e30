"""Stage one: k regions of every picture, each with feature, box, object and attribute, into a store.

Pictures: folders, files, a data set's tables, a quoted pattern with wildcards, a tar (WebDataset), a Parquet file
with a column of bytes. Stopped by Ctrl-C, a signal or kill -9, the same command goes on where it stopped; on a folder
that has grown it does what is new. docs/detect.md says more.

example: butd detect runs/scenes --weights runs/detector --store runs/regions.zarr --regions 12
         butd detect photos/ --weights runs/detector --store runs/photos.zarr --min-regions 10 --max-regions 100
         butd detect runs/scenes --weights runs/detector --store runs/grid.zarr --mode grid --regions 12
         butd detect photos/ --weights timm:resnet50 --store runs/timm.zarr --mode grid --regions 49
         butd detect photos/ --weights hf:unc-nlp/frcnn-vg-finetuned --store runs/vg.zarr
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.weights import WeightsOption
from store_schema.errors import InputNotFoundError, UsageError

if TYPE_CHECKING:
    from stage1_detect.jobs import JobConfig, JobSummary
    from stage1_detect.sources import ImageSource
    from stage1_detect.spec import ClassifierConfig, ExtractorSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd detect`."""
    add = parser.add_argument
    add("images", type=Path, nargs="+", help="folders, tables, patterns, archives or picture files")
    add(
        "--weights",
        required=True,
        action=WeightsOption,
        help="a trained or converted detector, a classifier's weights file, hf:OWNER/NAME[@REVISION], "
        "torchvision:NAME, timm:NAME (a classifier) or a URL; alone: list the known ones",
    )
    add("--store", required=True, help="the store to write or to go on with")
    add(
        "--mode",
        choices=["proposal", "refined", "regressed", "grid", "given"],
        help="default: as the publishers of converted weights do, else proposal",
    )
    add("--boxes-only", action="store_true", help="boxes and labels, no features: a hundredth of the size")
    add("--regions", type=int, metavar="K", help="k regions in every picture (default 36)")
    add("--min-regions", type=int, help="adaptive: at least so many regions, with --max-regions")
    add("--max-regions", type=int, help="adaptive: at most so many regions")
    add(
        "--score-thresh", type=float, help="score from which a region is kept (default 0.2; given boxes 0.05)"
    )
    add(
        "--nms-thresh",
        type=float,
        help="overlap above which the lesser box goes (default 0.3; given boxes 0.5)",
    )
    add("--boxes", help="for --mode given: a table of boxes, or FastestDet as .onnx")
    add(
        "--classifier",
        help="the weights are of this classifier: torchvision's mobilenet_v2, resnet50, ..., or timm:NAME",
    )
    add("--short-side", type=int, help="with --classifier: the network's short side (default 320)")
    add("--split", help="of the tables: only this split")
    add("--images-root", type=Path, help="where the tables' paths start (default: the tables)")
    add("--device", default="cpu", help="auto, cpu or cuda (default cpu)")
    add(
        "--scheduler",
        default="auto",
        help="sync or threads: in this process; processes: a dask cluster of this machine (auto: the default, where "
        "there is work enough); tcp://HOST:PORT: a running one; slurm, pbs: jobs of a queue; cuda: one worker a GPU",
    )
    add(
        "--num-workers",
        type=int,
        default=0,
        help="blocks at once, or jobs of the queue (default 0: one a core)",
    )
    add(
        "--torch-threads",
        type=int,
        default=0,
        help="threads of an operation (default 0: cores / workers here, 1 on other machines)",
    )
    add("--batch-size", type=int, default=16, help="pictures the network sees at once (default 16)")
    add("--block-size", type=int, default=256, help="pictures in a block of a new store (default 256)")
    add(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="of stored features (default float16)",
    )
    add(
        "--dry-run",
        action="store_true",
        help="say what would be done, how large it would be, and how long it takes",
    )
    add(
        "--refresh",
        type=Path,
        metavar="OLD",
        help="begin the new store with what the old one has of pictures that have not changed",
    )
    add("--retry-problems", action="store_true", help="try all quarantined pictures again")
    add(
        "--verify",
        action="store_true",
        help="read the finished store through, and say in the end whether it is whole",
    )
    add("--strict", action="store_true", help="exit code 1 where a picture could not be read")


def run(options: argparse.Namespace) -> int:
    """Extract and say what was done; quarantined pictures are counted in the last line."""
    from stage1_detect.jobs import JobConfig, detect_to_store
    from stage1_detect.sources import find_images

    options.store = _local(options.store)
    spec = _spec(options)
    config = JobConfig(
        scheduler=options.scheduler,
        num_workers=options.num_workers,
        torch_threads=options.torch_threads,
        batch_size=options.batch_size,
        block_size=options.block_size,
        feature_dtype=options.dtype,
        retry_problems=options.retry_problems,
    )
    source = options.images[0] if len(options.images) == 1 else options.images
    sources = find_images(source, root=options.images_root, split=options.split)
    if not options.store.exists() and not any(os.path.lexists(image.path) for image in sources):
        raise InputNotFoundError(
            f"none of the {len(sources):,} pictures is there, such as {sources[0].name}; --images-root says where the "
            "paths of tables start"
        )
    if options.dry_run:
        _say_what_would_be_done(sources, options, spec, config)
        return 0
    if options.refresh is not None:
        from stage1_detect.refresh import begin_refreshed_store

        changed = begin_refreshed_store(sources, options.refresh, options.store)
        print(f"{options.store}: taken over from {options.refresh}, without {changed:,} changed pictures")
    summary = detect_to_store(sources, options.store, spec, config)
    return _say_what_was_done(summary, options, {source.image_id for source in sources})


def _say_what_would_be_done(
    sources: "list[ImageSource]", options: argparse.Namespace, spec: "ExtractorSpec", config: "JobConfig"
) -> None:
    from stage1_detect.jobs import plan_job

    plan = plan_job(sources, options.refresh or options.store, spec, config)
    retried = f" ({plan.retried:,} tried again)" if plan.retried else ""
    print(
        f"{plan.pictures:,} pictures, {plan.done_before:,} of them done{retried}; {plan.blocks:,} blocks to write, "
        f"at most {plan.num_bytes / 1e6:,.1f} MB"
    )
    _name_changed(plan.changed, options)
    if not plan.to_do:
        return
    from stage1_detect.trial import seconds_per_picture

    config = config.for_blocks(-(-len(sources) // config.block_size))
    seconds = seconds_per_picture(
        plan.to_do, spec, torch_threads=config.threads_per_block, batch_size=config.batch_size
    )
    if seconds is None:
        print("time: none of the pictures that were tried can be read")
        return
    workers = min(config.workers, plan.blocks)
    print(
        f"time: about {_duration(seconds * len(plan.to_do) / workers)} on {workers} workers, from a trial here "
        f"({seconds:.3f} s a picture and worker)"
    )


def _say_what_was_done(summary: "JobSummary", options: argparse.Namespace, image_ids: set[str]) -> int:
    unreadable = _unreadable(options.store, image_ids)
    before = f"{summary.done_before:,} before"
    before += f", {summary.retried:,} tried again" if summary.retried else ""
    short = f", {summary.short:,} with fewer than asked for" if summary.short else ""
    print(
        f"{options.store}: {summary.processed:,} pictures done ({before}), "
        f"{summary.regions:,} regions{short}, {unreadable:,} pictures unreadable, "
        f"{summary.images_per_second:.1f} images/s"
    )
    if unreadable:
        print(f"the reasons: butd store problems {options.store}")
    _name_changed(summary.changed, options)
    if summary.stopped_by is not None:
        print(f"stopped by {summary.stopped_by} after a whole block; the same command goes on")
        return 130 if summary.stopped_by == "SIGINT" else 75
    if options.verify and not _is_whole(options.store):
        return 1
    return 1 if options.strict and unreadable else 0


def _name_changed(changed: Mapping[str, str], options: argparse.Namespace) -> None:
    """Pictures of the store whose file is another by now: the first few, and what to do."""
    if not changed:
        return
    named = "; ".join(f"{image_id!r}: {what}" for image_id, what in list(changed.items())[:3])
    more = " ..." if len(changed) > 3 else ""
    print(f"{len(changed):,} pictures have changed since the store has them ({named}{more})")
    if options.refresh is None:
        print(f"for a new store with them: the same command with --store NEW --refresh {options.store}")


def _is_whole(store: Path) -> bool:
    from store_schema.verify import verify

    report = verify(store, full=True)
    for finding in report.findings[:10]:
        print(finding)
    print(f"verified: {'whole' if report.ok else 'NOT whole, see butd store verify'}")
    return report.ok


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _unreadable(store: Path, image_ids: set[str]) -> int:
    """How many of the pictures could not be read, in this run and those before: it is one job."""
    from store_schema.reader import RegionStore

    return sum(problem.image_id in image_ids for problem in RegionStore.open(store).problems())


def _spec(options: argparse.Namespace) -> "ExtractorSpec":
    from pipeline.weights import published_extraction, resolve_weights
    from stage1_detect.config import SelectionConfig
    from stage1_detect.spec import TIMM, ExtractorSpec, GivenBoxesConfig, cells_for

    if options.weights.startswith(TIMM):
        if options.classifier not in (None, options.weights):
            raise UsageError(
                f"--weights {options.weights} says which classifier it is; leave out --classifier"
            )
        options.classifier = options.weights
    weights = resolve_weights(options.weights, classifier=options.classifier is not None)
    published = published_extraction(weights)
    options.mode = options.mode or published.get("mode", "proposal")
    _refuse_options_without_effect(options)
    usual = published.get("selection", {}) if options.mode not in ("grid", "given") else {}
    least, most = _limits(options, usual)
    thresholds = {
        name: getattr(options, name)
        for name in ("score_thresh", "nms_thresh")
        if getattr(options, name) is not None
    }
    selection = boxes = cells = None
    if options.mode == "grid":
        cells = cells_for(most)
    elif options.mode == "given":
        if options.boxes is None:
            raise UsageError("--mode given needs --boxes: a table of boxes, or FastestDet as .onnx")
        boxes = GivenBoxesConfig(path=options.boxes, max_regions=most, **thresholds)
    else:
        selection = SelectionConfig(**{**usual, "min_regions": least, "max_regions": most, **thresholds})
    return ExtractorSpec(
        mode=options.mode,
        weights=weights,
        selection=selection,
        cells=cells,
        boxes=boxes,
        classifier=_classifier(options),
        features=not options.boxes_only,
        device=_device(options.device),
    )


def _classifier(options: argparse.Namespace) -> "ClassifierConfig | None":
    from stage1_detect.spec import TIMM, ClassifierConfig

    if options.classifier is None:
        return None
    short_side = 320 if options.short_side is None else options.short_side
    if options.classifier.startswith(TIMM):
        from stage1_detect.timm_models import timm_config

        return timm_config(options.classifier, short_side=short_side)
    return ClassifierConfig(name=options.classifier, short_side=short_side, long_side=2 * short_side)


def _refuse_options_without_effect(options: argparse.Namespace) -> None:
    """Refuse what the mode does not read, rather than let it pass in silence."""
    mode = options.mode
    unread = {
        "--boxes": mode != "given" and options.boxes is not None,
        "--boxes-only": mode in ("given", "grid") and options.boxes_only,
        "--min-regions": mode in ("given", "grid") and options.min_regions is not None,
        "--score-thresh": mode == "grid" and options.score_thresh is not None,
        "--nms-thresh": mode == "grid" and options.nms_thresh is not None,
    }
    for name, is_unread in unread.items():
        if is_unread:
            raise UsageError(f"{name} has no effect with --mode {mode}; leave it out, or take another mode")
    if options.short_side is not None and options.classifier is None:
        raise UsageError(
            "--short-side is for --classifier; a detector's own sizes belong to its weights. Leave it out"
        )


def _local(store: str) -> Path:
    if "://" in store:
        from stage1_detect.published.fetch import shown

        raise UsageError(
            f"--store {shown(store)}: a store is written to a folder of this machine; name one, and copy it there then"
        )
    return Path(store)


def _device(name: str) -> str:
    """The device's name, checked; torch is loaded only where it is not the CPU."""
    if name == "cpu":
        return name
    from pipeline.training.processes import resolve_device

    return str(resolve_device(name))


def _limits(options: argparse.Namespace, usual: Mapping[str, int]) -> tuple[int, int]:
    """Fixed k by --regions, or the two limits of an adaptive choice; else what is usual for the weights, or 36."""
    given = (options.min_regions, options.max_regions)
    if given == (None, None):
        if options.regions is None:
            return usual.get("min_regions", 36), usual.get("max_regions", 36)
        return options.regions, options.regions
    if options.regions is not None:
        raise UsageError("--regions fixes k; give either it or --min-regions and --max-regions")
    if None in given:
        raise UsageError("an adaptive choice needs both --min-regions and --max-regions")
    return given
