"""Say what differs between two stores; exit code 0 if nothing, 1 if anything.

Regions are matched by their boxes (IoU of at least 0.5), features compared as float32, labels by name.

example: butd store diff runs/regions.zarr runs/other.zarr
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store_schema.diff import StoreDiff


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store diff`."""
    parser.add_argument("a", type=Path, help="a store")
    parser.add_argument("b", type=Path, help="another")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Compare and print."""
    from dataclasses import asdict

    from pipeline.progress_bar import PictureBar
    from store_schema.diff import diff_stores
    from store_schema.reader import RegionStore

    a, b = RegionStore.open(options.a), RegionStore.open(options.b)
    with PictureBar("comparing") as bar:
        bar.start(min(len(a), len(b)), 0)
        diff = diff_stores(a, b, bar.update)
    if options.json:
        print(json.dumps({"equal": diff.equal, **asdict(diff)}))
    else:
        _print(diff)
    return 0 if diff.equal else 1


def _print(diff: "StoreDiff") -> None:
    for name, (mine, theirs) in diff.metadata.items():
        print(f"metadata, {name}: {_short(mine)} | {_short(theirs)}")
    for side, ids in (("A", diff.only_in_a), ("B", diff.only_in_b)):
        if ids:
            print(f"only in {side}: {len(ids):,} pictures, such as {', '.join(ids[:3])}")
    print(
        f"in both: {diff.num_common:,} pictures, {diff.num_changed:,} differ {_such_as(diff.first_changed)}"
    )
    if diff.num_sizes_changed:
        print(f"picture sizes: {diff.num_sizes_changed:,} differ")
    print(
        f"regions: {diff.num_matched:,} matched, {diff.num_unmatched_a:,} only in A, {diff.num_unmatched_b:,} only in B"
    )
    if diff.least_iou is not None:
        print(
            f"matched boxes: least IoU {diff.least_iou:.4f}, largest shift {diff.largest_box_difference:.3g} pixels"
        )
    if diff.largest_feature_difference is not None:
        print(
            f"features: largest difference {diff.largest_feature_difference:.3g}, typical "
            f"{diff.typical_feature_difference:.3g} at typical values of {diff.typical_feature_value:.3g}"
        )
    elif diff.num_matched:
        print("features: of other sizes, not compared")
    for kind, count in diff.labels_changed.items():
        changes = ", ".join(f"{x} -> {y} ({n})" for x, y, n in diff.commonest_label_changes[kind])
        score = diff.largest_score_difference.get(kind, 0.0)
        print(
            f"{kind} labels: {count:,} changed{': ' + changes if changes else ''}; largest score difference {score:.3g}"
        )
    print("equal" if diff.equal else "different")


def _short(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return f"{len(value)} names"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _such_as(ids: list[str]) -> str:
    return f"(such as {', '.join(ids[:3])})" if ids else ""
