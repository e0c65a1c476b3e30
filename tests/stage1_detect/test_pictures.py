import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_detect.pictures import PictureSource
from store_schema.errors import TableError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Ten pictures, each of one grey level; the fourth is no picture."""
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 6), (i, i, i)).save(path)
    paths[3].write_text("no picture")
    return paths


def levels(source: PictureSource) -> list[list[int | None]]:
    batches = [np.array([7, 1]), np.array([3, 4, 0]), np.array([9]), np.array([2, 5])]
    return [[None if p is None else int(p[0, 0, 0]) for p in loaded] for loaded in source.batches(batches)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("cache_megabytes", [0.0, 1.0])
def test_pictures_come_in_order_whoever_decodes_them(
    paths: list[Path], num_workers: int, cache_megabytes: float
) -> None:
    source = PictureSource(
        paths, np.full((10, 2), [6, 8]), num_workers=num_workers, cache_megabytes=cache_megabytes
    )
    for _ in range(2):
        assert levels(source) == [[7, 1], [None, 4, 0], [9], [2, 5]]


def test_cached_pictures_are_read_once(paths: list[Path]) -> None:
    source = PictureSource(paths, np.full((10, 2), [6, 8]), num_workers=1, cache_megabytes=1)
    first = levels(source)
    for path in paths:
        path.unlink()
    assert levels(source) == first


def test_an_unreadable_picture_is_named_in_the_log(
    paths: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        levels(PictureSource(paths, np.full((10, 2), [6, 8]), num_workers=0, cache_megabytes=1))
    assert "3.png" in caplog.text


def test_a_picture_of_another_size_than_its_table_says_is_refused(paths: list[Path]) -> None:
    source = PictureSource(paths, np.full((10, 2), [8, 6]), num_workers=1, cache_megabytes=1)
    with pytest.raises(TableError, match=r"8x6 pixels, the images table says 6x8"):
        levels(source)


def test_leaving_early_does_not_hang(paths: list[Path]) -> None:
    source = PictureSource(paths, np.full((10, 2), [6, 8]), num_workers=2, cache_megabytes=0)
    batches = source.batches([np.array([0])] * 1000)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
