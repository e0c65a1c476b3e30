"""What the README and the helps say works: the Python block runs, every command parses."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli import COMMANDS, Parser
from store_schema.reader import RegionStore
from tests.pipeline.conftest import World

README = Path(__file__).resolve().parents[2] / "README.md"


def commands_in(text: str) -> list[str]:
    """Lines of a text that are commands of butd, without what stands before the name."""
    found = re.findall(r"^(?:example:|branch:)?\s*(butd .+?)(?:\s{2,}\(.*)?$", text, re.M)
    return [str(command) for command in found if "COMMAND" not in command and "..." not in command]


def helped_commands() -> list[str]:
    modules = [importlib.import_module(f"pipeline.commands.{n.replace('-', '_')}") for n in COMMANDS]
    return [command for module in modules for command in commands_in(module.__doc__ or "")]


def flow() -> str:
    return README.read_text(encoding="utf-8").split("## How the data flows")[1].split("\n## ")[0]


def assert_parses(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    parser = Parser(prog=f"butd {name}", allow_abbrev=False)
    importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}").add_arguments(parser)
    try:
        parser.parse_args(arguments)
    except SystemExit:
        pytest.fail(f"does not parse: {command}")


def test_every_command_of_the_flow_parses() -> None:
    commands = commands_in(flow())
    assert {shlex.split(command)[1] for command in commands} == {
        "scenes", "train", "detect", "store", "evaluate", "caption", "answer",
    }  # fmt: skip
    assert len(commands) >= 10
    for command in commands:
        assert_parses(command)


def test_what_a_command_of_the_flow_reads_an_earlier_one_has_made() -> None:
    made: set[str] = set()
    for command in commands_in(flow()):
        words = shlex.split(command)
        paths = {word for word in words if word.startswith("runs/")}
        makes = {words[2]} if words[1] == "scenes" else set()
        for option in ("--out", *(("--store",) if words[1] == "detect" else ())):
            makes |= {words[words.index(option) + 1]} if option in words else set()
        for path in paths - makes:
            assert any(path == other or path.startswith(f"{other}/") for other in made), command
        made |= makes


@pytest.mark.parametrize("command", helped_commands())
def test_every_example_of_a_help_parses(command: str) -> None:
    assert_parses(command)


def test_every_help_has_an_example() -> None:
    assert {shlex.split(command)[1] for command in helped_commands()} == set(COMMANDS)


def test_the_python_block_runs_as_it_stands(world: World, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(block.strip().splitlines()) <= 20
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(5):
        name = f"{number:06d}.jpg"
        (pictures / name).write_bytes((world.scenes / "images" / name).read_bytes())
    paths = {
        "runs/demo/detector": world.detector,
        "runs/demo/heldout/images": pictures,
        "runs/mine.zarr": tmp_path / "mine.zarr",
    }
    for written, tiny in paths.items():
        assert f'"{written}"' in block
        block = block.replace(f'"{written}"', repr(str(tiny)))
    assert '"runs/' not in block
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    assert len(RegionStore.open(tmp_path / "mine.zarr")) == 5
    assert tuple(names["scores"].shape) == (5, 12, 2)  # type: ignore[attr-defined]
