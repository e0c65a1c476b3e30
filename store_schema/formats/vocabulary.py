"""Lists of class names: one a line, of several comma-separated spellings the first is the name."""

from pathlib import Path

from store_schema.errors import InputNotFoundError, UsageError

VISUAL_GENOME_FOLDER = Path(__file__).parent / "vg"
VISUAL_GENOME = "vg"
"""Stands for the 1,600 objects and 400 attributes that published bottom-up features are labelled with."""


def read_names(source: str, kind: str) -> tuple[str, ...]:
    """The names of a list: a file, or "vg".

    Args:
        kind: "objects" or "attributes".

    Errors: `InputNotFoundError`; `UsageError` for an empty line or a name that stands twice.
    """
    names = tuple(spellings[0] for spellings in _read_lines(source, kind))
    if "" in names:
        raise UsageError(
            f"--{kind} {source}: line {names.index('') + 1} holds no name; numbers in a file count lines"
        )
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"--{kind} {source}: {repeated!r} stands on two lines; a name must be one label")
    return names


def read_spellings(source: str, kind: str) -> dict[str, str]:
    """The name that each spelling of a list stands for, in lower case; a name is its own first spelling.

    Errors: as `read_names`; `UsageError` for a spelling of two names.
    """
    read_names(source, kind)
    names: dict[str, str] = {}
    for first, *others in _read_lines(source, kind):
        for spelling in (first, *others):
            if names.setdefault(spelling.lower(), first) != first:
                raise UsageError(
                    f"--{kind} {source}: {spelling!r} is a spelling of both {names[spelling.lower()]!r} and {first!r}"
                )
    return names


def _read_lines(source: str, kind: str) -> list[list[str]]:
    """The spellings on each line."""
    path = VISUAL_GENOME_FOLDER / f"{kind}_vocab.txt" if source == VISUAL_GENOME else Path(source)
    if not path.is_file():
        raise InputNotFoundError(
            f"--{kind} {source}: there is no such file; name a list of names, one a line, or "
            f"'{VISUAL_GENOME}' for the Visual Genome list"
        )
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [[spelling.strip() for spelling in line.split(",")] for line in lines]
