"""Batch jobs: what a store holds after stops, kills, bad pictures and other batch sizes."""

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_detect.config import SelectionConfig
from stage1_detect.jobs import JobConfig, detect_to_store, plan_job
from stage1_detect.sources import ImageSource, find_images
from stage1_detect.spec import ExtractorSpec
from store_schema.errors import ConfigError, StoreMismatchError, UsageError
from store_schema.ledger import finished_blocks, record_path
from store_schema.reader import RegionStore

NUMBER = 23
CONFIG = JobConfig(scheduler="sync", block_size=5, batch_size=4)
SIZES = ((64, 64), (96, 64), (64, 80))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_pictures: Callable[..., list[Path]]) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_pictures(folder, NUMBER, SIZES)
    (folder / "007.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def spec(detector_dir: Path) -> ExtractorSpec:
    return ExtractorSpec(weights=str(detector_dir), selection=SelectionConfig(min_regions=4, max_regions=8))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pictures: Path, spec: ExtractorSpec) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    detect_to_store(find_images(pictures), store, spec, CONFIG)
    return store


def contents(store: Path) -> dict[str, str]:
    """Digest of every file but the writer's lock, which names a process."""
    files = sorted(path for path in store.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_readable_picture_is_in_the_store_and_the_other_is_a_problem(
    undisturbed: Path, pictures: Path
) -> None:
    store = RegionStore.open(undisturbed)
    assert list(store.image_ids) == [f"{n:03d}" for n in range(NUMBER) if n != 7]
    (problem,) = store.problems()
    assert problem.image_id == "007"
    assert problem.path == str(pictures / "007.png")
    assert problem.reason.startswith("not a picture in any format")
    record = store.image("001")
    assert (record.width, record.height) == SIZES[1]


def test_the_summary_counts(tmp_path: Path, pictures: Path, spec: ExtractorSpec) -> None:
    summary = detect_to_store(find_images(pictures), tmp_path / "store", spec, CONFIG)
    store = RegionStore.open(tmp_path / "store")
    assert (summary.pictures, summary.done_before) == (NUMBER, 0)
    assert (summary.processed, summary.blocks) == (NUMBER, 5)
    assert [problem.image_id for problem in summary.problems] == ["007"]
    counts = store.num_regions(store.all_rows)
    assert summary.regions == counts.sum()
    assert summary.short == (counts < 4).sum()
    assert summary.stopped_by is None


@pytest.mark.parametrize(
    "changes", [{"batch_size": 1}, {"batch_size": 16}, {"block_size": 8}, {"block_size": 64}]
)
def test_batch_and_block_size_change_no_bit_of_a_picture(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path, changes: dict[str, Any]
) -> None:
    detect_to_store(find_images(pictures), tmp_path / "store", spec, replace(CONFIG, **changes))
    expected, found = RegionStore.open(undisturbed), RegionStore.open(tmp_path / "store")
    assert list(found.image_ids) == list(expected.image_ids)
    for image_id in expected.image_ids:
        ours, theirs = found.image(image_id), expected.image(image_id)
        for name in ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores"):
            np.testing.assert_array_equal(
                getattr(ours, name), getattr(theirs, name), err_msg=f"{image_id} {name}"
            )


def test_a_small_limit_of_held_bytes_changes_nothing(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage1_detect.block_task._HELD_BYTES", 20_000)
    detect_to_store(find_images(pictures), tmp_path / "store", spec, CONFIG)
    assert contents(tmp_path / "store") == contents(undisturbed)


def test_the_same_command_on_a_finished_store_loads_nothing_and_changes_nothing(
    undisturbed: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    before = contents(undisturbed)
    code = (
        "import sys; from pathlib import Path; from stage1_detect.jobs import *; from stage1_detect.sources import *\n"
        "from stage1_detect.spec import *; from stage1_detect.config import SelectionConfig\n"
        f"spec = ExtractorSpec(weights={spec.weights!r}, selection=SelectionConfig(min_regions=4, max_regions=8))\n"
        f"done = detect_to_store(find_images({str(pictures)!r}), {str(undisturbed)!r}, spec,"
        " JobConfig(scheduler='sync', block_size=5, batch_size=4))\n"
        "print(done.pictures, done.done_before, done.processed, 'torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(NUMBER), str(NUMBER), "0", "False"]
    assert contents(undisturbed) == before


def test_a_grown_folder_adds_only_what_is_new(tmp_path: Path, pictures: Path, spec: ExtractorSpec) -> None:
    sources = find_images(pictures)
    detect_to_store(sources[:12], tmp_path / "store", spec, CONFIG)
    before = contents(tmp_path / "store")
    assert plan_job(sources, tmp_path / "store", spec, CONFIG).done_before == 12
    summary = detect_to_store(sources, tmp_path / "store", spec, CONFIG)
    assert (summary.done_before, summary.processed) == (12, NUMBER - 12)
    assert len(RegionStore.open(tmp_path / "store")) == NUMBER - 1
    after = contents(tmp_path / "store")
    grown = {name for name in before if after[name] != before[name]}
    assert all(name.endswith("zarr.json") for name in grown)


def test_a_plan_says_what_would_be_done_and_writes_nothing(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    plan = plan_job(find_images(pictures), tmp_path / "store", spec, CONFIG)
    assert (plan.pictures, plan.done_before, plan.blocks) == (NUMBER, 0, 5)
    assert NUMBER * 8 * 24 * 2 < plan.num_bytes < NUMBER * (8 * (24 * 2 + 16 + 8) + 200)
    assert not (tmp_path / "store").exists()


def test_another_detector_or_selection_is_refused_and_named(
    undisturbed: Path, pictures: Path, spec: ExtractorSpec, other_detector_dir: Path
) -> None:
    before = contents(undisturbed)
    others = [
        (replace(spec, weights=str(other_detector_dir)), "detector is"),
        (
            replace(spec, selection=SelectionConfig(min_regions=4, max_regions=8, score_thresh=0.7)),
            "selection is",
        ),
    ]
    for other, message in others:
        with pytest.raises(StoreMismatchError, match=message):
            detect_to_store(find_images(pictures), undisturbed, other, CONFIG)
        with pytest.raises(StoreMismatchError, match=message):
            plan_job(find_images(pictures), undisturbed, other, CONFIG)
    assert contents(undisturbed) == before


def test_a_picture_that_vanishes_during_the_job_is_a_problem(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    sources = [*find_images(pictures)[:3], ImageSource("gone", tmp_path / "gone.png")]
    summary = detect_to_store(sources, tmp_path / "store", spec, CONFIG)
    assert [(problem.image_id, problem.reason) for problem in summary.problems] == [
        ("gone", "cannot be opened (No such file or directory)")
    ]
    assert len(RegionStore.open(tmp_path / "store")) == 3


def test_job_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="scheduler"):
        JobConfig(scheduler="moon")
    with pytest.raises(ConfigError, match="batch_size"):
        JobConfig(batch_size=0)
    with pytest.raises(ConfigError, match="has no effect with scheduler 'sync'"):
        JobConfig(scheduler="sync", num_workers=2)
    assert JobConfig(scheduler="threads", num_workers=3).workers == 3
    assert 1 <= JobConfig(scheduler="processes").workers <= 4


def test_no_pictures_are_refused(tmp_path: Path, spec: ExtractorSpec) -> None:
    with pytest.raises(UsageError, match="no pictures"):
        detect_to_store([], tmp_path / "store", spec, CONFIG)


class _SignalAfterFirstBlock(logging.Handler):
    """Sends this process a signal when the first block is logged as done."""

    def __init__(self, number: int, times: int) -> None:
        super().__init__()
        self.number = number
        self.left = times

    def emit(self, record: logging.LogRecord) -> None:
        if self.left and (record.msg.startswith("block") or "finishing" in record.msg):
            self.left -= 1
            os.kill(os.getpid(), self.number)


@pytest.fixture
def send_after_first_block() -> Iterator[Callable[[int, int], None]]:
    logger = logging.getLogger("stage1_detect.job_progress")
    level = logger.level
    logger.setLevel(logging.INFO)

    def start(number: int, times: int) -> None:
        logger.addHandler(_SignalAfterFirstBlock(number, times))

    yield start
    logger.setLevel(level)
    for handler in [h for h in logger.handlers if isinstance(h, _SignalAfterFirstBlock)]:
        logger.removeHandler(handler)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_one_signal_stops_after_whole_blocks_and_the_job_goes_on_from_there(
    tmp_path: Path,
    pictures: Path,
    spec: ExtractorSpec,
    undisturbed: Path,
    send_after_first_block: Callable[[int, int], None],
    name: str,
    scheduler: Any,
) -> None:
    before = signal.getsignal(getattr(signal, name))
    send_after_first_block(getattr(signal, name), 1)
    store = tmp_path / "store"
    config = replace(CONFIG, scheduler=scheduler)
    first = detect_to_store(find_images(pictures), store, spec, config)
    assert first.stopped_by == name
    assert 1 <= first.blocks < 5
    assert len(finished_blocks(store)) == first.blocks
    assert signal.getsignal(getattr(signal, name)) is before
    second = detect_to_store(find_images(pictures), store, spec, config)
    assert second.stopped_by is None
    assert second.done_before == first.processed
    assert_same_regions(store, undisturbed)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_second_interrupt_stops_at_once_and_costs_only_unfinished_blocks(
    tmp_path: Path,
    pictures: Path,
    spec: ExtractorSpec,
    undisturbed: Path,
    send_after_first_block: Callable[[int, int], None],
    scheduler: Any,
) -> None:
    send_after_first_block(signal.SIGINT, 2)
    store = tmp_path / "store"
    config = replace(CONFIG, scheduler=scheduler)
    with pytest.raises(KeyboardInterrupt):
        detect_to_store(find_images(pictures), store, spec, config)
    assert len(finished_blocks(store)) < 4
    detect_to_store(find_images(pictures), store, spec, config)
    assert_same_regions(store, undisturbed)


def test_threads_write_the_same_store(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path
) -> None:
    threads = torch.get_num_threads()
    config = replace(CONFIG, scheduler="threads", num_workers=2)
    summary = detect_to_store(find_images(pictures), tmp_path / "store", spec, config)
    assert (summary.processed, summary.blocks) == (NUMBER, 5)
    assert_same_regions(tmp_path / "store", undisturbed)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_processes_write_the_same_store(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path
) -> None:
    config = replace(CONFIG, scheduler="processes", num_workers=2)
    summary = detect_to_store(find_images(pictures), tmp_path / "store", spec, config)
    assert (summary.processed, summary.blocks) == (NUMBER, 5)
    assert_same_regions(tmp_path / "store", undisturbed)


def assert_same_regions(store: Path, other: Path) -> None:
    """Equal but for the last bits: with another number of torch threads, sums run in another order."""
    found, expected = RegionStore.open(store), RegionStore.open(other)
    assert list(found.image_ids) == list(expected.image_ids)
    assert found.problems() == expected.problems()
    for image_id in expected.image_ids:
        ours, theirs = found.image(image_id), expected.image(image_id)
        np.testing.assert_allclose(ours.features, theirs.features, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


JOB = """
import sys
from stage1_detect.config import SelectionConfig
from stage1_detect.jobs import JobConfig, detect_to_store
from stage1_detect.sources import find_images
from stage1_detect.spec import ExtractorSpec
from stage1_detect import block_task  # loads torch before the clock starts
import torch
torch.set_num_threads(1)  # as in the undisturbed run
print("ready", flush=True)
sys.stdin.readline()
spec = ExtractorSpec(weights=sys.argv[2], selection=SelectionConfig(min_regions=4, max_regions=8))
detect_to_store(find_images(sys.argv[1]), sys.argv[3], spec, JobConfig(scheduler="sync", block_size=5, batch_size=4))
"""


@pytest.mark.slow
def test_kill_9_at_any_time_then_the_same_command_gives_the_same_store(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path
) -> None:
    """Each run is killed some blocks further on, at a random moment within a block; a last one ends."""
    root = Path(__file__).resolve().parents[2]
    rng = random.Random(0)
    kills: list[int] = []

    def start(store: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", JOB, str(pictures), spec.weights, str(store)]
        process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        return process

    store = tmp_path / "store"
    for wanted in (0, 1, 3):
        process = start(store)
        with process:
            while process.poll() is None and (wanted and not record_path(store, wanted - 1).exists()):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        if process.returncode == -signal.SIGKILL:
            kills.append(len(finished_blocks(store)) if store.exists() else 0)
    assert len(kills) == 3, "the job ended before it was killed"
    assert kills[-1] in (3, 4)
    with start(store) as process:
        assert process.wait() == 0
    assert contents(store) == contents(undisturbed)


def test_pictures_in_every_colour_mode_go_through_in_one_job(tmp_path: Path, spec: ExtractorSpec) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    image = Image.new("RGB", (64, 64), (200, 40, 30))
    for mode in ("L", "CMYK", "RGBA", "P"):
        image.convert(mode).save(folder / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (3, 400)).save(folder / "line.png")
    (folder / "empty.jpg").write_bytes(b"")
    summary = detect_to_store(find_images(folder), tmp_path / "store", spec, CONFIG)
    assert [problem.image_id for problem in summary.problems] == ["empty"]
    assert len(RegionStore.open(tmp_path / "store")) == 6
