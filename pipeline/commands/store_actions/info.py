"""What a store holds and how it was made.

example: butd store info runs/regions.zarr
"""

import argparse
import json
from typing import Any

from pipeline.commands.store_place import store_place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd store info`."""
    parser.add_argument("store", type=store_place, help="the store's folder or URL")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(options: argparse.Namespace) -> int:
    """Print the facts."""
    from store_schema.layout import IMAGE_NOTES
    from store_schema.reader import RegionStore

    store = RegionStore.open(options.store)
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
        "bytes": store.num_bytes,
        "schema version": metadata.schema_version,
        "written by": ", ".join(
            f"{name} {version}"
            for name, version in {"butd": metadata.code_version, **metadata.software}.items()
        ),
        "noted of pictures": {
            note: sum(note in notes for notes in store.notes().values()) for note in IMAGE_NOTES
        },
    }
    if options.json:
        print(
            json.dumps(
                {**facts, "object_names": metadata.object_names, "attribute_names": metadata.attribute_names}
            )
        )
    else:
        for name, value in facts.items():
            print(f"{name:<24} {value:,}" if isinstance(value, int) else f"{name:<24} {value}")
    return 0
