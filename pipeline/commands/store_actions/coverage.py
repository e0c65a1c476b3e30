"""Say which pictures of a data set have no regions, and whether the detector was trained on them.

Exit code 1 where a picture is missing (not extracted, or quarantined); one with zero regions is only counted.

example: butd store coverage runs/regions.zarr --tables runs/scenes
"""

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.commands.store_place import store_place
from store_schema.errors import UsageError

_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store coverage`."""
    add = parser.add_argument
    add("store", type=store_place, help="the store's folder or URL")
    add("--tables", type=Path, required=True, help="the data set's tables")
    add("--split", help="only this split")
    add("--detector", type=Path, help="the detector's run or model, where it is not where the store says")
    add("--json", action="store_true", help="print JSON for programs, all identifiers included")


def run(options: argparse.Namespace) -> int:
    """Compare and print, a line a split."""
    from store_schema.artifacts import find_model_dir
    from store_schema.coverage import coverage_by_split, trained_on
    from store_schema.reader import RegionStore

    store = RegionStore.open(options.store)
    splits = coverage_by_split(store, options.tables)
    if options.split is not None:
        if options.split not in splits:
            raise UsageError(f"--split {options.split}: {options.tables} has the splits {', '.join(splits)}")
        splits = {options.split: splits[options.split]}
    detector = None if options.detector is None else find_model_dir(options.detector)
    trained = trained_on(store, options.tables, detector)
    facts: dict[str, dict[str, Any]] = {}
    for split, found in splits.items():
        ids = {*found.covered, *found.empty, *found.missing}
        facts[split] = {
            "pictures": found.num_images,
            "with_regions": len(found.covered),
            "zero_regions": list(found.empty),
            "quarantined": dict(found.quarantined),
            "absent": list(found.absent),
            "detector_trained_on": None if trained.image_ids is None else len(ids & trained.image_ids),
        }
    missing = sum(found.num_missing for found in splits.values())
    if options.json:
        print(json.dumps({"ok": missing == 0, "detector_known_by": trained.how, "splits": facts}))
    else:
        for split, fact in facts.items():
            _print_split(split, fact)
        print(f"the detector's training pictures: {trained.how}")
        print(f"{missing:,} pictures have no regions" if missing else "every picture has its row")
    return 1 if missing else 0


def _print_split(split: str, fact: dict[str, Any]) -> None:
    overlap = fact["detector_trained_on"]
    print(
        f"{split}: {fact['with_regions']:,} of {fact['pictures']:,} pictures with regions; "
        f"{len(fact['absent']):,} absent, {len(fact['quarantined']):,} quarantined, "
        f"{len(fact['zero_regions']):,} with zero regions; "
        f"detector trained on {'an unknown number' if overlap is None else f'{overlap:,}'} of them"
    )
    lines = [f"absent: {image_id}" for image_id in fact["absent"][:_NAMED]]
    lines += [
        f"quarantined: {image_id}: {why}" for image_id, why in list(fact["quarantined"].items())[:_NAMED]
    ]
    lines += [f"zero regions: {image_id}" for image_id in fact["zero_regions"][:_NAMED]]
    for line in lines:
        print(f"    {line}")
