"""The stores of schema version 1 in tests/data, and what they hold, without a random number and without our writer.

They were written once, by `python -m tests.store_schema.golden_store` at the version named in their metadata, and stay
as they are: every later version must open them. Writing them anew is only for a new schema version, in a new folder.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from store_schema.metadata import StoreMetadata
from store_schema.records import ImageRecord, Problem
from store_schema.writer import StoreWriter, write_block

FOLDER = Path(__file__).resolve().parents[1] / "data" / "store_v1"

FIXED = StoreMetadata(
    feature_dim=3,
    max_regions=2,
    min_regions=2,
    box_source="proposal",
    detector={
        "name": "golden",
        "fingerprint": "0123456789abcdef" * 4,
        "preprocessing": {"mean": [0.5, 0.25, 0]},
    },
    selection={"score_thresh": 0.2},
    object_names=("dog", "cat", "tree"),
    attribute_names=("red", "small"),
    block_size=3,
    code_version="0.1.0",
    software={"python": "3.11.7", "numpy": "2.4.6"},
)
STORES = {
    "fixed": FIXED,
    "adaptive": replace(FIXED, min_regions=0, max_regions=12, feature_dtype="float32"),
    "zstd": replace(FIXED, codec="zstd"),
}
IDS = ("plain", "none", "broken", "a/\u00e4 b", "l" * 40)
"""A picture, one without regions, an unreadable one, odd characters, one that takes two chunks of bytes."""
PROBLEM = Problem(image_id="broken", path="pictures/broken.jpg", reason="cut short")


def num_regions(image_id: str, metadata: StoreMetadata) -> int:
    return 0 if image_id == "none" else metadata.max_regions - IDS.index(image_id) // 4


def features(image_id: str, metadata: StoreMetadata) -> np.ndarray:
    """[n, 3]: place of the picture in hundreds, region in tens, dimension in ones; halves, which float16 holds."""
    region, dim = np.indices((num_regions(image_id, metadata), 3))
    return 100 * IDS.index(image_id) + 10 * region + dim + 0.5


def boxes(image_id: str, metadata: StoreMetadata) -> np.ndarray:
    """[n, 4]: the r-th region begins at (r, 2 r + 0.25) and is 10 by 20 pixels."""
    region = np.arange(num_regions(image_id, metadata))
    return np.stack([region, 2 * region + 0.25, region + 10, 2 * region + 20.25], axis=1)


def labels(image_id: str, metadata: StoreMetadata) -> np.ndarray:
    """[n], the r-th region is the (r + place of the picture)-th object, counted round."""
    return (np.arange(num_regions(image_id, metadata)) + IDS.index(image_id)) % 3


def size(image_id: str) -> tuple[int, int]:
    """Width and height."""
    return 100 + IDS.index(image_id), 50


def notes(image_id: str) -> tuple[str, ...]:
    return ("exif_turned", "first_frame") if image_id == "plain" else ()


def golden_item(image_id: str, metadata: StoreMetadata) -> ImageRecord | Problem:
    """What the writer was given. Scores: object 1 / (r + 1), attribute half of it, attribute r modulo 2."""
    if image_id == PROBLEM.image_id:
        return PROBLEM
    region = np.arange(num_regions(image_id, metadata))
    return ImageRecord(
        image_id=image_id,
        width=size(image_id)[0],
        height=size(image_id)[1],
        boxes=boxes(image_id, metadata).astype(np.float32),
        features=features(image_id, metadata),
        object_ids=labels(image_id, metadata),
        object_scores=1 / (region + 1),
        attribute_ids=region % 2,
        attribute_scores=0.5 / (region + 1),
        notes=notes(image_id),
    )


def write_golden(folder: Path) -> None:
    """Write all of them; each has two blocks, the second partial."""
    for name, metadata in STORES.items():
        path = folder / name
        with StoreWriter.open(path, metadata) as writer:
            for block in writer.plan(IDS):
                items = [golden_item(image_id, metadata) for image_id in block.image_ids]
                writer.commit(block, write_block(path, metadata, block, items))
        (path / "num_regions" / ".butd" / "lock").unlink()


if __name__ == "__main__":
    write_golden(FOLDER)
