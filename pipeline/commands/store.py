"""Look into a region store: what is in it, whether it is whole, one picture's regions, quarantined pictures.

example: butd store info runs/regions.zarr
         butd store verify runs/regions.zarr --full
         butd store show runs/regions.zarr s1-000000 --image runs/scenes/images/000000.jpg --out regions.png
         butd store problems runs/regions.zarr
"""

import argparse
import json
from pathlib import Path
from typing import Any

from store_schema.errors import InputNotFoundError, StoreMismatchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("info", "what the store holds and how it was made"),
        ("verify", "whether it is whole; exit code 1 if not"),
        ("show", "one picture's regions, as a table and drawn"),
        ("problems", "pictures that could not be read, with the reason"),
    ):
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.epilog = _EXAMPLES[name]
        action.add_argument("store", type=Path, help="the store's folder")
        if name != "show":
            action.add_argument("--json", action="store_true", help="print JSON for programs")
        if name == "verify":
            action.add_argument("--full", action="store_true", help="read every byte, check every value")
        if name == "show":
            action.add_argument("image_id", help="the picture's id in the store")
            action.add_argument("--image", type=Path, help="the picture's file, to draw the regions on")
            action.add_argument(
                "--out", type=Path, default=Path("regions.png"), help="drawn picture (regions.png)"
            )


def run(options: argparse.Namespace) -> int:
    """Carry out the action."""
    match options.action:
        case "info":
            return _info(options.store, as_json=options.json)
        case "verify":
            return _verify(options.store, full=options.full, as_json=options.json)
        case "show":
            return _show(options.store, options.image_id, options.image, options.out)
        case _:
            return _problems(options.store, as_json=options.json)


_EXAMPLES = {
    "info": "example: butd store info runs/regions.zarr",
    "verify": "example: butd store verify runs/regions.zarr --full",
    "show": "example: butd store show runs/regions.zarr s1-000000 --image runs/scenes/images/000000.jpg",
    "problems": "example: butd store problems runs/regions.zarr --json",
}


def _info(path: Path, *, as_json: bool) -> int:
    from store_schema.reader import RegionStore

    store = RegionStore.open(path)
    metadata = store.metadata
    detector = metadata.detector
    regions = int(store.num_regions(store.all_rows).sum())
    k = (
        f"{metadata.min_regions} to {metadata.max_regions}"
        if metadata.adaptive
        else str(metadata.max_regions)
    )
    facts: dict[str, Any] = {
        "pictures": len(store),
        "quarantined": len(store.problems()),
        "regions": regions,
        "regions a picture (k)": k,
        "features": f"{metadata.feature_dim} x {metadata.feature_dtype}, codec {metadata.codec}",
        "boxes": metadata.box_source,
        "objects": len(metadata.object_names),
        "attributes": len(metadata.attribute_names),
        "detector": detector["name"],
        "detector's path": detector.get("path", ""),
        "detector's fingerprint": detector["fingerprint"],
        "selection": dict(metadata.selection),
        "features' fingerprint": store.features_fingerprint,
        "content's fingerprint": store.fingerprint,
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "schema version": metadata.schema_version,
        "written by": f"butd {metadata.code_version}",
    }
    if as_json:
        print(
            json.dumps(
                {**facts, "object_names": metadata.object_names, "attribute_names": metadata.attribute_names}
            )
        )
    else:
        for name, value in facts.items():
            print(f"{name:<24} {value:,}" if isinstance(value, int) else f"{name:<24} {value}")
    return 0


def _verify(path: Path, *, full: bool, as_json: bool) -> int:
    from store_schema.verify import verify

    report = verify(path, full=full)
    counts = {
        "pictures": report.num_images,
        "regions": report.num_regions,
        "blocks": report.num_blocks,
        "unfinished blocks": report.num_unfinished,
        "quarantined": report.num_problems,
    }
    if as_json:
        print(
            json.dumps({"ok": report.ok, **counts, "findings": [str(finding) for finding in report.findings]})
        )
    else:
        for finding in report.findings:
            print(finding)
        state = "whole" if report.ok else f"damaged, {len(report.findings)} findings"
        depth = "every byte read" if full else "structure, sizes and indexes read; --full reads every byte"
        print(f"{path}: {state}; " + ", ".join(f"{n:,} {name}" for name, n in counts.items()) + f" ({depth})")
    return 0 if report.ok else 1


def _show(path: Path, image_id: str, image: Path | None, out: Path) -> int:
    from pipeline.examples import region_labels
    from store_schema.reader import RegionStore

    if image is not None and not image.is_file():
        raise InputNotFoundError(f"--image {image}: there is no such file")
    store = RegionStore.open(path)
    record = store.image(image_id)
    labels = region_labels(store, image_id)
    print(f"{image_id}: {record.width} x {record.height} pixels, {len(record.boxes)} regions")
    for place, (box, label) in enumerate(zip(record.boxes, labels, strict=True)):
        corners = " ".join(f"{value:7.1f}" for value in box)
        print(f"{place:>3}  {corners}  {label}")
    if image is not None:
        from pipeline.draw import draw_regions
        from stage1_detect.images import load_image

        pixels = load_image(image)
        if pixels.shape[:2] != (record.height, record.width):
            raise StoreMismatchError(
                f"{image} is {pixels.shape[1]} x {pixels.shape[0]} pixels, but the store has {image_id!r} as "
                f"{record.width} x {record.height}; is it another picture?"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_regions(pixels, record.boxes, labels).save(out)
        print(f"drawn: {out}")
    return 0


def _problems(path: Path, *, as_json: bool) -> int:
    from store_schema.reader import RegionStore

    problems = RegionStore.open(path).problems()
    if as_json:
        print(json.dumps([{"image_id": p.image_id, "path": p.path, "reason": p.reason} for p in problems]))
        return 0
    for problem in problems:
        print(f"{problem.image_id}  {problem.path}  {problem.reason}")
    print(f"{len(problems)} pictures could not be read")
    return 0
