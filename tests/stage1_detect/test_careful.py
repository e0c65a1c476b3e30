"""A block picture by picture, in a process that may die: who kills it is left out, the others come out as ever."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from stage1_detect.block_task import BlockTask, run_block
from stage1_detect.careful import run_carefully
from stage1_detect.config import SelectionConfig
from stage1_detect.sources import find_images
from stage1_detect.spec import ExtractorSpec
from store_schema.errors import ButdError
from store_schema.records import Block
from store_schema.writer import StoreWriter

pytestmark = pytest.mark.slow
LIMIT = 900 * 2**20
"""Bytes: a process that has loaded torch holds about half of it."""


@pytest.fixture
def task(tmp_path: Path, detector_dir: Path, draw_pictures: Callable[..., list[Path]]) -> BlockTask:
    """Four pictures of one block, not written yet."""
    draw_pictures(tmp_path / "pictures", 4, ((64, 64), (96, 64)))
    spec = ExtractorSpec(weights=str(detector_dir), selection=SelectionConfig(min_regions=4, max_regions=8))
    metadata = spec.store_metadata(block_size=8)
    sources = find_images(tmp_path / "pictures")
    StoreWriter.open(tmp_path / "store", metadata).close()
    block = Block(0, 0, tuple(source.image_id for source in sources))
    return BlockTask(tmp_path / "store", metadata, block, tuple(sources), spec, 4, 1)


def with_a_picture_too_large(task: BlockTask) -> BlockTask:
    """Another picture in the middle, which takes 800 MB to decode."""
    folder = task.sources[0].path.parent  # type: ignore[union-attr]
    Image.new("1", (10_000, 9_000)).save(folder / "001-large.png")
    sources = find_images(folder)
    block = Block(0, 0, tuple(source.image_id for source in sources))
    return replace(task, block=block, sources=tuple(sources))


def test_the_bytes_are_those_of_an_ordinary_run(task: BlockTask) -> None:
    ordinary = run_block(task)
    assert run_carefully(task).receipt == ordinary.receipt


def test_a_picture_that_takes_too_much_memory_is_left_out_and_the_others_are_kept(task: BlockTask) -> None:
    result = run_carefully(with_a_picture_too_large(task), LIMIT)
    (problem,) = result.receipt.problems
    assert problem.image_id == "001-large"
    assert "it needs more memory than a worker has" in problem.reason
    assert result.receipt.num_images == 4


def test_a_process_that_dies_before_any_picture_is_not_the_pictures_fault(
    task: BlockTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ButdError, match="its process died before its first picture: exit code 1"):
        run_carefully(task)


def test_an_error_of_the_child_comes_as_it_is(task: BlockTask) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        run_carefully(replace(task, spec=replace(task.spec, weights="gone")))
