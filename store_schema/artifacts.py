"""A trained or converted model on disk: a folder with `model.safetensors` and `model.json`.

Found and checked without torch, so that the command line can refuse a wrong path at once. Nothing is unpickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from store_schema.errors import CheckpointError, InputNotFoundError
from store_schema.fingerprint import file_sha256

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
MAX_HEADER_BYTES = 100_000_000


def find_model_dir(path: str | Path, which: str = "best") -> Path:
    """The folder of a model, from any path that a user may give.

    Args:
        path: the model's folder itself (a checkpoint is one), or a run's folder, with `checkpoints/` in it.
        which: of a run, the checkpoint to take: "best" (else the latest, where none is best yet), "latest", or
            a checkpoint's name.

    Errors: `InputNotFoundError` where there is nothing of the kind; `CheckpointError` where a model is there but
    cut short or foreign.
    """
    path = Path(path)
    if not path.exists():
        raise InputNotFoundError(
            f"no model at {path}: there is no such folder; give a run's folder or a model's"
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file; a model is a folder with {WEIGHTS} and {DESCRIPTION}: give the folder, or convert "
            "foreign weights with 'butd convert-weights'"
        )
    model_dir = path
    if not _looks_like_model(path) and (path / "checkpoints").is_dir():
        model_dir = _checkpoint_of_run(path, which)
    check_model_dir(model_dir)
    return model_dir


def check_model_dir(model_dir: Path) -> None:
    """Refuse a folder whose model is not whole.

    Reads the description and the header of the weights; no tensor is read.

    Errors: `InputNotFoundError` where it holds no model at all, `CheckpointError` otherwise.
    """
    missing = [name for name in (WEIGHTS, DESCRIPTION) if not (model_dir / name).is_file()]
    if len(missing) == 2:
        found = sorted(item.name for item in model_dir.iterdir())[:3] if model_dir.is_dir() else []
        raise InputNotFoundError(
            f"no model at {model_dir}: expected {WEIGHTS} and {DESCRIPTION}, the folder holds {found or 'nothing'}; "
            "give a run's folder or a model's"
        )
    if missing:
        raise CheckpointError(
            f"{model_dir} is no whole model: {missing[0]} is missing; take another checkpoint"
        )
    read_model_json(model_dir)
    _check_weights(model_dir / WEIGHTS)


def read_model_json(model_dir: str | Path) -> dict[str, Any]:
    """What the model's task said of it: all that is needed to build it again.

    Errors: `CheckpointError` where the file is missing or holds no JSON object.
    """
    path = Path(model_dir) / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); take another checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds no JSON object, but {type(content).__name__}; take another checkpoint"
        )
    return content


def model_fingerprint(model_dir: str | Path) -> str:
    """SHA-256 over the model's description and weights, 64 hexadecimal digits: what a store names as its detector.

    Errors: `CheckpointError` where a file is missing.
    """
    try:
        parts = [file_sha256(Path(model_dir) / name) for name in (DESCRIPTION, WEIGHTS)]
    except OSError as error:
        raise CheckpointError(f"{model_dir} is no whole model ({error}); take another checkpoint") from error
    return hashlib.sha256("".join(parts).encode("ascii")).hexdigest()


def _looks_like_model(path: Path) -> bool:
    return (path / WEIGHTS).exists() or (path / DESCRIPTION).exists()


def _checkpoint_of_run(run: Path, which: str) -> Path:
    checkpoints = run / "checkpoints"
    pointers = {"best": ("best", "latest"), "latest": ("latest",)}.get(which)
    if pointers is None:
        model_dir = checkpoints / which
    else:
        present = [
            checkpoints / f"{name}.json" for name in pointers if (checkpoints / f"{name}.json").is_file()
        ]
        if not present:
            raise InputNotFoundError(
                f"the run {run} has no checkpoint yet: neither of {', '.join(f'{name}.json' for name in pointers)} "
                f"is in {checkpoints}; train it first"
            )
        model_dir = checkpoints / _pointed_name(present[0])
    if not model_dir.is_dir():
        there = sorted(item.name for item in checkpoints.iterdir() if item.is_dir())
        raise CheckpointError(
            f"the run {run} has no checkpoint {model_dir.name!r}; there are {there or 'none'}"
        )
    return model_dir


def _pointed_name(pointer: Path) -> str:
    try:
        name = json.loads(pointer.read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{pointer} does not name a checkpoint ({error!r}); name one yourself"
        ) from error
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(
            f"{pointer} names {name!r}, which is no folder beside it; name a checkpoint yourself"
        )
    return name


def _check_weights(path: Path) -> None:
    """A safetensors file begins with the length of its JSON header, which says where each tensor ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path} is cut short or no safetensors file: it has {size} bytes, its header alone asks for "
                f"{8 + header_bytes}; take another checkpoint, or convert foreign weights with 'butd convert-weights'"
            )
        header = file.read(header_bytes)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} is no safetensors file: its header cannot be read; convert foreign weights with "
            "'butd convert-weights'"
        ) from error
    if size != 8 + header_bytes + end:
        raise CheckpointError(
            f"{path} is cut short or changed: its header describes {8 + header_bytes + end} bytes, it has {size}; "
            "take another checkpoint"
        )
