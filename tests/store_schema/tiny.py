"""Tiny stores with every kind of row: full, few and no regions, a quarantined picture, long and odd identifiers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import Block, ImageRecord, Problem
from store_schema.writer import StoreWriter, write_block

METADATA = StoreMetadata(
    feature_dim=6,
    max_regions=4,
    min_regions=4,
    box_source="proposal",
    detector={"name": "tiny", "fingerprint": "f" * 64, "preprocessing": {"mean": [0.5, 0.5, 0.5]}},
    selection={"score_thresh": 0.2},
    object_names=("dog", "cat", "tree"),
    attribute_names=("red", "small"),
    block_size=4,
    code_version="test",
    software={"numpy": "2.4.6"},
)
ADAPTIVE = replace(METADATA, min_regions=1, max_regions=25)

IDS = [f"picture:{number}" for number in range(8)] + ["ein Bär", "x" * 70, "a/b.jpg"]
"""Two whole blocks of four and one of three; one identifier longer than two chunks of bytes."""
BAD_ID = "picture:5"


def record(
    image_id: str, metadata: StoreMetadata = METADATA, *, num_regions: int | None = None
) -> ImageRecord:
    """A picture's regions, random but always the same for the same identifier."""
    rng = np.random.default_rng(list(image_id.encode()))
    num = int(rng.integers(0, metadata.max_regions + 1)) if num_regions is None else num_regions
    corner = rng.uniform(0, 60, (num, 2))
    labels: dict[str, Any] = {}
    for kind, names in (("object", metadata.object_names), ("attribute", metadata.attribute_names)):
        if names:
            labels[f"{kind}_ids"] = rng.integers(0, len(names), num)
            labels[f"{kind}_scores"] = rng.random(num).astype(metadata.feature_dtype)
    return ImageRecord(
        image_id=image_id,
        width=100,
        height=int(rng.integers(80, 120)),
        boxes=np.concatenate([corner, corner + rng.uniform(1, 20, (num, 2))], axis=1).astype(np.float32),
        features=rng.normal(size=(num, metadata.feature_dim)).astype(metadata.feature_dtype),
        **labels,
    )


def item(image_id: str, metadata: StoreMetadata = METADATA) -> ImageRecord | Problem:
    """What stage one would hand over: a record, or for one identifier the reason why there is none."""
    if image_id == BAD_ID:
        return Problem(image_id=image_id, path="bad.jpg", reason="cut short")
    return record(image_id, metadata)


def finish(writer: StoreWriter, block: Block, *, scale: float = 1) -> None:
    """Write and commit one block; another scale gives other features and boxes in files of the same sizes."""
    items = [scaled(item(image_id, writer.metadata), scale) for image_id in block.image_ids]
    writer.commit(block, write_block(writer.path, writer.metadata, block, items))


def scaled(one: ImageRecord | Problem, scale: float) -> ImageRecord | Problem:
    """The same picture with larger features and smaller boxes."""
    if isinstance(one, Problem):
        return one
    features = (one.features * scale).astype(one.features.dtype)
    return replace(one, features=features, boxes=(one.boxes / scale).astype(np.float32))


def write_store(
    path: Path, metadata: StoreMetadata = METADATA, image_ids: Sequence[str] = IDS, *, scale: float = 1
) -> Path:
    """A finished store."""
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan(image_ids):
            finish(writer, block, scale=scale)
    return path


def contents(path: Path) -> Mapping[str, bytes]:
    """Every file of a store but the lock, by relative path."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def same_record(left: ImageRecord, right: ImageRecord) -> bool:
    """Whether two records hold the same, value by value."""
    arrays = ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores")
    heads = [(one.image_id, one.width, one.height, one.notes) for one in (left, right)]
    return heads[0] == heads[1] and all(_same(getattr(left, name), getattr(right, name)) for name in arrays)


def _same(left: object, right: object) -> bool:
    if left is None or right is None:
        return left is right
    return np.array_equal(np.asarray(left), np.asarray(right))


def written_ids(store: RegionStore) -> list[str]:
    """The readable identifiers, as a list."""
    return list(store.image_ids)
