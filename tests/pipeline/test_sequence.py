"""A sequence runs each command once, says what failed, and goes on from there."""

import json
from pathlib import Path

import pytest

from pipeline.sequence import CommandSequence, Step, StepFailedError, settings, step


def quick_step(folder: Path, name: str = "quick", *arguments: str) -> Step:
    """The quickest of the real commands; what it is said to make is there."""
    (folder / "made").mkdir(exist_ok=True)
    return step(name, folder / "made", *(arguments or ("--version",)))


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_step_is_a_command_of_butd_with_its_output_in_a_log(tmp_path: Path, said: list[str]) -> None:
    work = CommandSequence(tmp_path, said.append)
    work.run(quick_step(tmp_path))
    log = (tmp_path / "logs" / "quick.txt").read_text()
    assert log.startswith("butd ")
    assert said[0] == "quick: butd --version"
    assert said[1].endswith(f" s. {log.strip()}")
    assert set(work.seconds) == {"quick", "total"}
    assert 0 < work.seconds["quick"] <= work.seconds["total"] + 0.01


def test_a_step_that_ended_is_not_run_again_by_another_sequence(tmp_path: Path, said: list[str]) -> None:
    first = CommandSequence(tmp_path, said.append)
    first.run(quick_step(tmp_path))
    said.clear()
    again = CommandSequence(tmp_path, said.append)
    again.run(quick_step(tmp_path))
    assert said == ["quick: done before"]
    assert again.seconds["quick"] == first.seconds["quick"]


def test_a_step_runs_again_where_its_result_is_gone_or_its_arguments_are_others(
    tmp_path: Path, said: list[str]
) -> None:
    work = CommandSequence(tmp_path, said.append)
    work.run(quick_step(tmp_path))
    said.clear()
    work.run(quick_step(tmp_path, "quick", "--help"))
    assert said[0] == "quick: butd --help"
    said.clear()
    work.run(step("quick", tmp_path / "gone", "--help"))
    assert said[0] == "quick: butd --help"


def test_a_failure_names_command_log_and_last_line_and_passes_the_exit_code_on(
    tmp_path: Path, said: list[str]
) -> None:
    bad = step("bad", tmp_path / "x", "scens")
    with pytest.raises(
        StepFailedError, match=r"bad ended with exit code 2: .*'scens'.*logs/bad\.txt"
    ) as raised:
        CommandSequence(tmp_path, said.append).run(bad)
    assert raised.value.exit_code == 2


def test_steps_beside_a_failed_one_end_and_count(tmp_path: Path, said: list[str]) -> None:
    steps = [quick_step(tmp_path, f"good {n}") for n in range(3)]
    with pytest.raises(StepFailedError):
        CommandSequence(tmp_path, said.append).run(steps[0], step("next", tmp_path, "scens"), *steps[1:])
    again = CommandSequence(tmp_path, said.append)
    assert set(again.seconds) == {"good 0", "good 1", "good 2", "total"}
    said.clear()
    again.run(steps[0], quick_step(tmp_path, "next"), *steps[1:])
    assert sum(line.startswith("next: ") for line in said) == 2
    assert sorted(line for line in said if line.endswith("done before")) == [
        "good 0: done before", "good 1: done before", "good 2: done before",
    ]  # fmt: skip


def test_time_adds_up_over_interruptions(tmp_path: Path, said: list[str]) -> None:
    first = CommandSequence(tmp_path, said.append)
    first.run(quick_step(tmp_path))
    second = CommandSequence(tmp_path, said.append)
    second.run(quick_step(tmp_path, "another"))
    assert second.seconds["total"] >= first.seconds["total"] + second.seconds["another"] - 0.02
    assert json.loads((tmp_path / "steps.json").read_text())["steps"].keys() == {"quick", "another"}


def test_settings_become_set_options() -> None:
    assert settings(training__epochs=3, data__seed=1) == [
        "--set", "training.epochs=3", "--set", "data.seed=1",
    ]  # fmt: skip
