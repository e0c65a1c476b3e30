"""A few hundred scenes without pixels, and one small data set on disk, made once."""

from pathlib import Path
from random import Random

import pandas as pd
import pytest

from pipeline.scenes.generate import generate_scenes
from pipeline.scenes.layout import PlacedObject, draw_layout
from store_schema.tables import TableName, read_table

NUM_LAYOUTS = 600


@pytest.fixture(scope="session")
def layouts() -> list[list[PlacedObject]]:
    return [draw_layout(Random(seed), 96) for seed in range(NUM_LAYOUTS)]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "data"
    generate_scenes(out, num_images=30, seed=7, size=96, workers=1, progress=False)
    return out


@pytest.fixture(scope="session")
def tables(scenes: Path) -> dict[str, pd.DataFrame]:
    names: tuple[TableName, ...] = (
        "images", "objects", "object_attributes", "captions", "questions", "answers",
    )  # fmt: skip
    return {name: read_table(scenes, name) for name in names}
