"""The command line answers fast, in one line, with the right exit code, and loads no stage to do so."""

import subprocess
import sys

import pytest

from pipeline.cli import COMMANDS, main


def butd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_every_command_and_loads_no_stage() -> None:
    code = (
        "import sys; from pipeline.cli import main; main(['--help']); "
        "heavy = {'torch', 'torchvision', 'zarr', 'dask', 'pandas', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"example: butd {command}" in capsys.readouterr().out


def test_an_unknown_command_suggests_the_closest() -> None:
    done = butd("scens")
    assert done.returncode == 2
    assert "did you mean 'scenes'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_option_is_one_line_with_the_closest() -> None:
    done = butd("scenes", "somewhere", "--images", "3", "--sed", "1")
    assert done.returncode == 2
    assert "did you mean --seed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_folder_is_one_line_without_traceback() -> None:
    done = butd("prepare", "daquar", "no-such-folder", "out")
    assert done.returncode == 2
    assert "no-such-folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
