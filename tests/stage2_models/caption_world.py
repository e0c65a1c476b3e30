"""A tiny captioning problem, drawn: twelve pictures of one coloured thing each, their regions and captions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stage2_models.caption_data import CaptionDataConfig
from stage2_models.captioner import CaptionerConfig
from store_schema.metadata import StoreMetadata
from store_schema.records import ImageRecord
from store_schema.tables import write_table
from store_schema.writer import StoreWriter, write_block

COLORS, NOUNS = ("red", "green", "blue", "white"), ("cube", "ball", "cup")
MODEL = CaptionerConfig(hidden_dim=32, embed_dim=16, attention_dim=16, normalise_features=True)
DATA = CaptionDataConfig(
    batch_size=5, captions_per_image=2, min_word_count=1, max_length=8, num_workers=0, eval_batch_size=4
)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """Twelve pictures of one coloured thing, eight to learn and four to judge; two captions each."""

    tables: Path
    store: Path


IMAGE_IDS = [f"p{index}" for index in range(12)]
THINGS = [(COLORS[index % 4], NOUNS[index % 3]) for index in range(12)]


def write_store(path: Path, image_ids: list[str], *, detector: str = "d1") -> Path:
    """One region a picture; its feature is colour and noun."""
    metadata = StoreMetadata(
        feature_dim=len(COLORS) + len(NOUNS), max_regions=2, min_regions=0, box_source="given",
        detector={"name": "drawn", "fingerprint": detector, "path": f"runs/{detector}"}, selection={}, block_size=8,
    )  # fmt: skip
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan(image_ids):
            records = []
            for image_id in block.image_ids:
                color, noun = THINGS[int(image_id[1:])]
                features = np.zeros((1, metadata.feature_dim), np.float16)
                features[0, [COLORS.index(color), len(COLORS) + NOUNS.index(noun)]] = 1
                records.append(ImageRecord(image_id, 9, 9, np.array([[1, 1, 5, 5]], np.float32), features))
            writer.commit(block, write_block(path, metadata, block, records))
    return path


def write_tables(path: Path) -> Path:
    splits = ["val" if index >= 8 else "train" for index in range(12)]
    write_table(path, "images", [
        {"image_id": name, "path": f"{name}.jpg", "width": 9, "height": 9, "split": split}
        for name, split in zip(IMAGE_IDS, splits, strict=True)
    ])  # fmt: skip
    rows = []
    for name, split, (color, noun) in zip(IMAGE_IDS, splits, THINGS, strict=True):
        for index, text in enumerate((f"A {color} {noun}.", f"there is a {color} {noun}")):
            rows.append({"image_id": name, "caption_id": f"{name}-{index}", "text": text, "split": split})
    write_table(path, "captions", rows)
    return path


def write_world(folder: Path) -> World:
    return World(write_tables(folder / "tables"), write_store(folder / "store", IMAGE_IDS))
