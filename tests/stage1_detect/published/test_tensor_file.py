import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stage1_detect.published.tensor_file import TensorFile
from store_schema.errors import CheckpointError, InputNotFoundError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.num_batches_tracked": torch.tensor(7)}
ARRAYS = {name: tensor.numpy() for name, tensor in TENSORS.items()}


def write(path: Path) -> None:
    """The same tensors in the form that the name says."""
    match path.name:
        case "a.safetensors":
            save_file(TENSORS, path)
        case "wrapped.pth":
            torch.save({"model": TENSORS, "iteration": 3}, path)
        case "old.pth":
            torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
        case "arrays.pkl":
            path.write_bytes(pickle.dumps({"model": ARRAYS, "__author__": "x"}, protocol=2))
        case _:
            path.write_bytes(pickle.dumps(ARRAYS, protocol=4))


@pytest.mark.parametrize("name", ["a.safetensors", "wrapped.pth", "old.pth", "arrays.pkl", "new.pkl"])
def test_every_form_gives_the_same_tensors(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    file = TensorFile.read(tmp_path / name)
    assert sorted(file.names()) == sorted(TENSORS)
    assert torch.equal(file.take("a.weight", (2, 3)), TENSORS["a.weight"])
    assert file.notes() == ["1 counts of training steps (num_batches_tracked) are left out"]


def test_a_folder_stands_for_its_only_file(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    (tmp_path / "config.yaml").write_text("x: 1")
    assert "a.weight" in TensorFile.read(tmp_path)
    write(tmp_path / "new.pkl")
    with pytest.raises(CheckpointError, match=r"one file of weights expected .*'a.safetensors', 'new.pkl'"):
        TensorFile.read(tmp_path)
    with pytest.raises(InputNotFoundError, match="nowhere"):
        TensorFile.read(tmp_path / "nowhere")


class _Call:
    """What a hostile pickle makes its reader call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_is_called_that_a_file_asks_for(tmp_path: Path) -> None:
    victim = tmp_path / "touched"
    for name, write_file in (
        ("plain.pkl", lambda p: p.write_bytes(pickle.dumps({"a": _Call(victim)}))),
        ("torch.pth", lambda p: torch.save({"a": _Call(victim)}, p)),
    ):
        write_file(tmp_path / name)
        with pytest.raises(CheckpointError, match="not readable as weights"):
            TensorFile.read(tmp_path / name)
    assert not victim.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert victim.exists()  # it would have been


def test_missing_mis_shaped_and_left_tensors_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    file = TensorFile.read(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'a.bias' is missing; the file has \['a\."):
        file.take("a.bias")
    with pytest.raises(CheckpointError, match=r"'a.weight' should have the shape \(3, 2\), it has \(2, 3\)"):
        file.take("a.weight", (3, 2))
    assert "1 tensors of the file have no place in the detector: a.weight [2, 3]" in file.notes()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04broken", pickle.dumps([1, 2]), pickle.dumps({"a": 1})]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"x\.pth: (not readable|names with tensors|it holds no tensors)"
    ):
        TensorFile.read(tmp_path / "x.pth")


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": np.ones(2, np.float16)}))
    assert TensorFile.read(tmp_path / "x.pkl").take("w").dtype == torch.float32
