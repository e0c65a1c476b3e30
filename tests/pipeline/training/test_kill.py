"""Real signals to a real process; afterwards the same command ends with the very weights of a quiet run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.training.records import pointed_to, read_record
from pipeline.training.runs import list_runs
from tests.pipeline.training.test_trainer import assert_equal_runs
from tests.pipeline.training.tiny_task import run_tiny

REPO = Path(__file__).resolve().parents[3]
SETTINGS = ("eval_every=7", "save_every_steps=4", "accumulate=2", "batch_size=2", "epochs=3")

pytestmark = pytest.mark.slow


def start(run: Path, *settings: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.training.tiny_task", str(run), *SETTINGS, *settings],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def has_checkpoint(run: Path, name: str) -> Callable[[], bool]:
    return lambda: (run / "checkpoints" / name).is_dir()


@pytest.fixture(scope="module")
def quiet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "quiet"
    run_tiny(run, *SETTINGS)
    return run


PHASES: dict[str, tuple[Callable[[Path], Callable[[], bool]], tuple[str, ...]]] = {
    "before the first step": (lambda run: (run / "config.toml").exists, ()),
    "in a step": (lambda run: has_checkpoint(run, "step-00000004"), ("step_seconds=0.05",)),
    "in an evaluation": (lambda run: has_checkpoint(run, "step-00000004"), ("evaluate_seconds=3",)),
    "while saving": (lambda run: lambda: any((run / "checkpoints").glob(".partial-epoch-0001")), ()),
    "between saving and pointing": (lambda run: has_checkpoint(run, "epoch-0002"), ()),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_in_any_phase_ends_as_the_quiet_one(tmp_path: Path, phase: str, quiet_run: Path) -> None:
    run = tmp_path / "run"
    reached, settings = PHASES[phase]
    process = start(run, *settings)
    wait_for(reached(run), process)
    if phase == "in an evaluation":
        time.sleep(1.0)  # step 7 follows step 4 within milliseconds, and its evaluation takes three seconds
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # The slow settings are part of the configuration: the run goes on with quick ones by hand.
    config = run / "config.toml"
    config.write_text(
        config.read_text()
        .replace("_seconds = 0.05", "_seconds = 0.0")
        .replace("_seconds = 3.0", "_seconds = 0.0")
    )
    result = run_tiny(run, *SETTINGS)
    assert result.status == "finished"
    assert_equal_runs(run, quiet_run)
    assert list_runs(tmp_path)["status"].tolist() == ["finished"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step_and_exits_with_75(
    tmp_path: Path, number: signal.Signals, quiet_run: Path
) -> None:
    run = tmp_path / "run"
    process = start(run, "step_seconds=0.05")
    wait_for(has_checkpoint(run, "step-00000004"), process)
    assert list_runs(tmp_path)["status"].tolist() == ["running"]
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert output == "stopped\n"
    assert f"stopped by {number.name} at step" in errors
    assert list_runs(tmp_path)["status"].tolist() == ["stopped"]
    config = run / "config.toml"
    config.write_text(config.read_text().replace("step_seconds = 0.05", "step_seconds = 0.0"))
    run_tiny(run, *SETTINGS)
    assert_equal_runs(run, quiet_run)


def test_one_interrupt_saves_and_exits_with_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "step_seconds=0.2")
    wait_for(has_checkpoint(run, "step-00000004"), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    latest = pointed_to(run / "checkpoints", "latest")
    assert latest is not None
    assert read_record(latest).step > 4


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "evaluate_seconds=100")
    wait_for(has_checkpoint(run, "step-00000004"), process)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert time.monotonic() - started < 30
    latest = pointed_to(run / "checkpoints", "latest")
    assert latest is not None
    assert latest.name == "step-00000007"


def test_a_run_cut_four_times_by_its_time_limit_equals_one_that_was_not(
    tmp_path: Path, quiet_run: Path
) -> None:
    """Each session may train about a quarter of a second: a few steps of 50 ms."""
    run = tmp_path / "run"
    settings = (*SETTINGS, "step_seconds=0.03")
    cuts = 0
    while (result := run_tiny(run, *settings, time_limit_seconds=2.4)).status == "stopped":
        assert result.exit_code == 75
        cuts += 1
    assert cuts >= 4
    assert_equal_runs(run, quiet_run)


def test_a_stopped_process_leaves_no_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, "step_seconds=0.05")
    wait_for(has_checkpoint(run, "step-00000004"), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list_runs(tmp_path)["status"].tolist() == ["killed"]
