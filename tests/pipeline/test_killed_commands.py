"""kill -9 in the middle of a command; the same command again ends as one that nobody disturbed, byte for byte.

Phases of a kill inside of the store's writer and of the trainer are tested where they belong; here it is the
commands as a user types them.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.training.records import pointed_to
from pipeline.training.runs import list_runs
from store_schema.artifacts import WEIGHTS
from store_schema.ledger import finished_blocks
from store_schema.verify import verify
from tests.pipeline.conftest import CAPTION, DETECTOR, VQA, Butd, World

# A dozen starts of Python with torch: half a minute, but many times that on a machine that does other things.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

LOCK = "lock"
"""Names the process that wrote last; everything else in a store is a function of pictures and detector."""


def files_of(store: Path) -> dict[str, bytes]:
    files = (file for file in store.rglob("*") if file.is_file() and file.name != LOCK)
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def checkpoints_of(run: Path) -> dict[str, bytes]:
    """Weights of every checkpoint, and which is the best and the latest."""
    folder = run / "checkpoints"
    weights = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob(WEIGHTS)}
    pointers = {name: pointed_to(folder, name) for name in ("best", "latest")}
    return weights | {name: path.name.encode() for name, path in pointers.items() if path is not None}


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 400
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def finish(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return output


def test_detect_killed_twice_leaves_the_bytes_of_a_quiet_job(
    start_butd: Butd, world: World, tmp_path: Path
) -> None:
    def detect(store: Path) -> "subprocess.Popen[str]":
        return start_butd(
            "detect", world.scenes, "--weights", world.detector, "--store", store, "--regions", "6",
            "--block-size", "3", "--num-workers", "1",
        )  # fmt: skip

    quiet, store = tmp_path / "quiet.zarr", tmp_path / "store.zarr"
    finish(detect(quiet))
    kill_when(detect(store), lambda: len(finished_blocks(store)) >= 2)
    first = len(finished_blocks(store))
    assert first < 14
    kill_when(detect(store), lambda: len(finished_blocks(store)) >= first + 3)
    second = len(finished_blocks(store))
    assert second < 14
    output = finish(detect(store))
    assert f"({3 * second} before)" in output
    assert files_of(store) == files_of(quiet)
    assert verify(store, full=True).ok


LONGER = ("training.epochs=25", "training.save_every_steps=0", "training.keep_last=2")
TRAINING: dict[str, tuple[str, ...]] = {
    "detector": (*DETECTOR, "training.max_steps=40", "training.save_every_steps=5"),
    "caption": (*CAPTION, *LONGER),
    "vqa": (*VQA, *LONGER),
}


@pytest.mark.parametrize("model", TRAINING)
def test_training_killed_goes_on_to_the_weights_of_a_quiet_run(
    start_butd: Butd, world: World, tmp_path: Path, model: str
) -> None:
    def train(run: Path) -> "subprocess.Popen[str]":
        store = () if model == "detector" else ("--store", world.regions)
        sets = [word for setting in TRAINING[model] for word in ("--set", setting)]
        return start_butd("train", model, "--tables", world.scenes, *store, "--out", run, *sets)

    def checkpoints() -> int:
        return len(list((tmp_path / "runs/run/checkpoints").glob("*/checkpoint.json")))

    def has_begun_to_save() -> bool:
        return checkpoints() >= 2

    quiet, run = tmp_path / "runs/quiet", tmp_path / "runs/run"
    finish(train(quiet))
    kill_when(train(run), has_begun_to_save)
    assert list_runs(tmp_path / "runs").set_index("name")["status"].to_dict() == {
        "quiet": "finished", "run": "killed",
    }  # fmt: skip
    assert finish(train(run)).startswith("finished after ")
    assert checkpoints_of(run) == checkpoints_of(quiet)
