"""Detector, captioner and VQA through the command line: cut by time limits, resumed with other workers, refused."""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.training.records import read_record
from store_schema.artifacts import find_model_dir
from store_schema.fingerprint import file_sha256
from tests.pipeline.conftest import CAPTION, DETECTOR, VQA, World
from tests.pipeline.training.test_trainer import assert_equal_runs

Train = Callable[..., int]

SMALL = ("training.epochs=2", "training.eval_every_epochs=0", "training.log_every=2")
TASKS: dict[str, tuple[str, ...]] = {
    "detector": (*DETECTOR, *SMALL, "training.max_steps=10", "training.epochs=0"),
    "caption": (*CAPTION, *SMALL, "data.batch_size=5", "model.dropout=0.3"),
    "vqa": (*VQA, *SMALL, "data.batch_size=24"),
}


@pytest.fixture
def train(world: World) -> Train:
    """`butd train MODEL --out RUN ...` in this process; gives the exit code."""

    def train(model: str, run: Path, *words: str) -> int:
        store = [] if model == "detector" else ["--store", str(world.regions)]
        sets = [word for setting in TASKS[model] for word in ("--set", setting)]
        tables = ["--tables", str(world.scenes)]
        return main(["train", model, *tables, *store, "--out", str(run), *sets, *words])

    return train


@pytest.mark.parametrize("model", TASKS)
def test_a_run_cut_four_times_by_its_time_limit_with_other_workers_equals_one_that_was_not(
    train: Train, tmp_path: Path, model: str
) -> None:
    """A limit of the two seconds that are kept free for saving ends each session after one step."""
    quiet, run = tmp_path / "quiet", tmp_path / "run"
    assert train(model, quiet) == 0
    for session, workers in enumerate(("1", "0", "2", "1")):
        assert train(model, run, "--time-limit", "2s", "--num-workers", workers) == 75
        record = read_record(find_model_dir(run, "latest"))
        assert (record.step, record.epoch) == (session + 1, 0)
    assert train(model, run, "--num-workers", "1") == 0
    assert_equal_runs(run, quiet)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def cut_short(checkpoint: Path) -> None:
    state = checkpoint / "state.pt"
    os.truncate(state, state.stat().st_size // 2)


def foreign(checkpoint: Path) -> None:
    """Another program's files under our names."""
    (checkpoint / "checkpoint.json").write_text(json.dumps({"epoch": 3, "model_state_dict": "model.pth"}))


def malicious(checkpoint: Path) -> None:
    """A state that runs a program when it is unpickled, with the right hash in the record."""
    state = checkpoint / "state.pt"
    state.write_bytes(pickle.dumps({"progress": Malicious()}))
    record = json.loads((checkpoint / "checkpoint.json").read_text())
    record["files"]["state.pt"] = {"sha256": file_sha256(state), "bytes": state.stat().st_size}
    (checkpoint / "checkpoint.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut_short, "was it cut short?"), (foreign, "has format None"), (malicious, "it was not executed")],
)
@pytest.mark.parametrize("branch", [False, True])
def test_a_bad_checkpoint_is_one_line_and_nothing_of_it_runs(
    train: Train,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    message: str,
    branch: bool,
) -> None:
    """Going on with a run, and branching from it."""
    run = tmp_path / "run"
    assert train("vqa", run, "--time-limit", "2s") == 75
    damage(find_model_dir(run, "latest"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    words = ["--resume", str(run)] if branch else []
    assert train("vqa", tmp_path / "branch" if branch else run, *words) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("butd train: checkpoint ")
    assert message in errors
    assert not (tmp_path / "executed").exists()


def test_a_second_run_on_a_store_reads_it_and_says_so(
    train: Train, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot compute anything of stage one: pictures and detector are not there."""
    caplog.set_level(logging.INFO)
    files = {file: file.stat().st_mtime_ns for file in world.regions.rglob("*")}
    assert train("vqa", tmp_path / "first", "--set", "training.max_steps=2") == 0
    tables = shutil.copytree(world.scenes, tmp_path / "tables", ignore=shutil.ignore_patterns("images"))
    words = [word for setting in TASKS["vqa"] for word in ("--set", setting)]
    store = ["--store", str(world.regions)]
    assert (
        main(["train", "vqa", "--tables", str(tables), *store, "--out", str(tmp_path / "second"), *words])
        == 0
    )
    for run in ("first", "second"):
        log = (tmp_path / run / "log.txt").read_text()
        assert f"features are read from {world.regions}; nothing of stage one is computed" in log
    assert {file: file.stat().st_mtime_ns for file in world.regions.rglob("*")} == files
    stores = [json.loads((tmp_path / r / "run.json").read_text())["identity"] for r in ("first", "second")]
    assert stores[0] == stores[1]
