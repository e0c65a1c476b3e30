"""Tensors of a published file by name, each handed out once; nothing is unpickled but tensors and arrays.

Reads safetensors, what `torch.save` writes, and plain pickles of numpy arrays (detectron2's and its relatives'),
with or without an outer {"model": ...}.
"""

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from store_schema.errors import CheckpointError, InputNotFoundError

WRAPPERS = ("model", "state_dict")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".pkl")


class TensorFile:
    """The tensors that are left; what nobody took is named at the end."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self._left = dict(tensors)
        self._taken: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> "TensorFile":
        """Read a file, or the only file of weights in a folder.

        Errors: `InputNotFoundError`; `CheckpointError` for a file that is damaged, or holds other things than tensors.
        """
        path = _file_of(path)
        try:
            content = _read(path)
        except Exception as error:  # a damaged or hostile file fails in any way: pickle, zip, header, ...
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{path}: not readable as weights ({reason}); get the file again"
            ) from error
        for wrapper in WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: names with tensors expected, it holds {type(content).__name__}")
        tensors = {}
        for name, value in content.items():
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(np.ascontiguousarray(value))
            if isinstance(value, Tensor):
                tensors[str(name)] = value.float() if value.is_floating_point() else value
        if not tensors:
            raise CheckpointError(f"{path}: it holds no tensors, but {sorted(map(str, content))[:5]}")
        return cls(path, tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> Iterable[str]:
        """Names of what is left, in the file's order."""
        return tuple(self._left)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that is still there. Errors: `CheckpointError` where it is not."""
        return tuple(self._of(name).shape)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor, once. Errors: `CheckpointError` where it is missing or has another shape."""
        tensor = self._of(name)
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.path}: {name!r} should have the shape {shape}, it has {tuple(tensor.shape)}; "
                "are these weights of the kind that was named?"
            )
        self._taken.add(name)
        return self._left.pop(name)

    def notes(self) -> list[str]:
        """One sentence about the counters that were left, and one that names whatever else was."""
        counters = [name for name in self._left if name.endswith("num_batches_tracked")]
        others = [name for name in self._left if name not in counters]
        notes = []
        if counters:
            notes.append(f"{len(counters)} counts of training steps (num_batches_tracked) are left out")
        if others:
            shown = ", ".join(f"{name} {list(self._left[name].shape)}" for name in others)
            notes.append(f"{len(others)} tensors of the file have no place in the detector: {shown}")
        return notes

    def _of(self, name: str) -> Tensor:
        if name in self._taken:
            raise AssertionError(f"{name} is used twice")
        if name not in self._left:
            begin = name.rsplit(".", 2)[0]
            near = [other for other in self._left if other.startswith(begin)][:3] or list(self._left)[:3]
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is missing; the file has {near} there: are these weights of the kind "
                "that was named?"
            )
        return self._left[name]


def _file_of(path: Path) -> Path:
    if not path.exists():
        raise InputNotFoundError(f"{path}: no such file; expected published weights")
    if path.is_file():
        return path
    files = sorted(item for item in path.iterdir() if item.suffix in SUFFIXES and item.is_file())
    if len(files) != 1:
        raise CheckpointError(
            f"{path}: one file of weights expected ({', '.join(SUFFIXES)}), it holds "
            f"{[file.name for file in files] or 'none'}; name the file itself"
        )
    return files[0]


def _read(path: Path) -> Any:  # noqa: ANN401
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as file:
        begin = file.read(2)
    if begin == b"PK" or not _is_plain_pickle(path):
        return torch.load(path, "cpu", weights_only=True)
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _is_plain_pickle(path: Path) -> bool:
    """Whether the file begins with its content, rather than with the number that old `torch.save` puts first."""
    with path.open("rb") as file:
        try:
            first = _ArrayUnpickler(file, encoding="latin1").load()
        except Exception:
            return False
    return isinstance(first, dict)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in dictionaries, and calls nothing else."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("_codecs", "encode"): lambda text, encoding: str(text).encode(str(encoding)),
    }

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Refuse every name but those an array is made of."""
        if name in ("_reconstruct", "scalar") and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return getattr(np._core.multiarray, name)
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which is no array") from None
