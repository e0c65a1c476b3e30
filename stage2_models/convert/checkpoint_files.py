"""What all converters of stage two need: the files of a published checkpoint, its tensors, their shapes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from store_schema.errors import CheckpointError, InputNotFoundError


def first_file(folder: Path, what: str, *patterns: str, remedy: str) -> Path:
    """The first file of a folder that fits a pattern, the patterns in order. Errors: `InputNotFoundError`."""
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise InputNotFoundError(
        f"{folder} lacks {what}: one of {', '.join(patterns)} is expected there; {remedy}"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name, without the prefix of DataParallel; nothing is executed.

    Errors: `CheckpointError` for a file that holds more than tensors, or something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can fail with any class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} holds more than tensors, or is no checkpoint of torch; it was not executed ({reason})"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no state dict: names with tensors are expected")
    return {name.removeprefix("module."): value for name, value in content.items()}


def check_shapes(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, *, belongs: str
) -> None:
    """Refuse tensors of other shapes than the model's; `belongs` says what to look at.

    Errors: `CheckpointError` naming the first one.
    """
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(value.shape)}, {tuple(expected[name].shape)} is expected; {belongs}"
            )
