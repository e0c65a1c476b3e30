"""Names of Visual Genome's 1,600 objects and 400 attributes, as the bottom-up attention release numbers them.

The lists are data/genome/1600-400-20/{objects,attributes}_vocab.txt of peteanderson80/bottom-up-attention (MIT).
A line holds synonyms, parted by commas; the first is the name.
"""

from pathlib import Path
from typing import Literal

from store_schema.errors import CheckpointError, InputNotFoundError
from store_schema.formats.vocabulary import VISUAL_GENOME_FOLDER

_FILES = {"object": "objects_vocab.txt", "attribute": "attributes_vocab.txt"}


def names_for(kind: Literal["object", "attribute"], number: int, path: str = "") -> list[str]:
    """The names of a head's classes, without background or "none".

    Args:
        number: how many the head has.
        path: a file with one name a line; empty for Visual Genome's.

    Errors: `InputNotFoundError`; `CheckpointError` where the file's lines are not as many as the head's classes.
    """
    source = Path(path) if path else VISUAL_GENOME_FOLDER / _FILES[kind]
    if not source.is_file():
        raise InputNotFoundError(
            f"{source}: no such file; expected the names of {number} {kind}s, one a line"
        )
    lines = source.read_text(encoding="utf-8").splitlines()
    names = [line.split(",")[0].strip() for line in lines if line.strip()]
    if len(names) != number:
        remedy = (
            f"name a file with one a line: --set {kind}s=FILE"
            if not path
            else "give the list of these weights"
        )
        raise CheckpointError(
            f"the weights know {number} {kind}s, {source.name} names {len(names)}; {remedy}"
        )
    return distinct(names)


def distinct(names: list[str]) -> list[str]:
    """Names that occur again get their number behind, so that a name stands for one class."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct
