import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from store_schema.artifacts import find_model_dir, model_fingerprint, read_model_json
from store_schema.errors import CheckpointError, InputNotFoundError


def make_model(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    tensors: dict[str, NDArray[Any]] = {
        "weight": np.full((3, 4), value, np.float32),
        "bias": np.zeros(0, np.float16),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.json").write_text(json.dumps({"task": "caption", "hidden": 4}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with two checkpoints, the first of them the best."""
    for name in ("epoch-1", "epoch-2"):
        make_model(tmp_path / "run" / "checkpoints" / name)
    point(tmp_path / "run", "best", "epoch-1")
    point(tmp_path / "run", "latest", "epoch-2")
    return tmp_path / "run"


def point(run: Path, which: str, name: str) -> None:
    (run / "checkpoints" / f"{which}.json").write_text(json.dumps({"checkpoint": name}))


def test_a_models_own_folder_is_found(run: Path) -> None:
    assert find_model_dir(run / "checkpoints" / "epoch-2") == run / "checkpoints" / "epoch-2"


@pytest.mark.parametrize(
    ("which", "name"), [("best", "epoch-1"), ("latest", "epoch-2"), ("epoch-2", "epoch-2")]
)
def test_a_run_gives_the_checkpoint_that_is_asked_for(run: Path, which: str, name: str) -> None:
    assert find_model_dir(run, which) == run / "checkpoints" / name


def test_a_run_without_a_best_gives_its_latest(run: Path) -> None:
    (run / "checkpoints" / "best.json").unlink()
    assert find_model_dir(run) == run / "checkpoints" / "epoch-2"


def test_where_there_is_no_model_the_message_says_what_is_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="there is no such folder"):
        find_model_dir(tmp_path / "nowhere")
    with pytest.raises(InputNotFoundError, match=r"the folder holds \['run'\]"):
        find_model_dir(tmp_path)
    with pytest.raises(CheckpointError, match="is a file; a model is a folder"):
        find_model_dir(run / "checkpoints" / "best.json")
    with pytest.raises(CheckpointError, match=r"no checkpoint 'epoch-9'; there are \['epoch-1', 'epoch-2'\]"):
        find_model_dir(run, "epoch-9")


def test_a_run_without_checkpoint_is_named(run: Path) -> None:
    for which in ("best", "latest"):
        (run / "checkpoints" / f"{which}.json").unlink()
    with pytest.raises(
        InputNotFoundError, match=r"has no checkpoint yet: neither of best\.json, latest\.json"
    ):
        find_model_dir(run)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"checkpoint": 3}', '{"checkpoint": "../../elsewhere"}']
)
def test_a_broken_pointer_is_named(run: Path, content: str) -> None:
    (run / "checkpoints" / "best.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"best\.json .*names? "):
        find_model_dir(run)


@pytest.mark.parametrize("missing", ["model.safetensors", "model.json"])
def test_half_a_model_is_refused(tmp_path: Path, missing: str) -> None:
    model = make_model(tmp_path / "model")
    (model / missing).unlink()
    with pytest.raises(CheckpointError, match=f"is no whole model: {missing} is missing"):
        find_model_dir(model)


def test_weights_cut_short_at_any_byte_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    weights = model / "model.safetensors"
    data = weights.read_bytes()
    for size in range(len(data)):
        weights.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="cut short"):
            find_model_dir(model)
    weights.write_bytes(data + b"x")
    with pytest.raises(CheckpointError, match=rf"header describes {len(data)} bytes, it has {len(data) + 1}"):
        find_model_dir(model)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"PK\x03\x04" + bytes(100), id="a zip file, as torch.save writes"),
        pytest.param(b"\x80\x04" + b"." * 100, id="a pickle"),
        pytest.param(struct.pack("<Q", 4) + b"abcd", id="no JSON"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="no object"),
        pytest.param(struct.pack("<Q", 9) + b'{"a": {}}', id="no offsets"),
    ],
)
def test_foreign_weights_are_refused(tmp_path: Path, data: bytes) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"safetensors file.*convert-weights"):
        find_model_dir(model)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_broken_description_is_refused(tmp_path: Path, content: bytes) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.json .*take another checkpoint"):
        find_model_dir(model)


def test_the_description_is_read(tmp_path: Path) -> None:
    assert read_model_json(make_model(tmp_path / "model")) == {"task": "caption", "hidden": 4}


def test_fingerprint_is_of_description_and_weights(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    sums = [
        hashlib.sha256((model / name).read_bytes()).hexdigest()
        for name in ("model.json", "model.safetensors")
    ]
    assert model_fingerprint(model) == hashlib.sha256("".join(sums).encode()).hexdigest()
    assert model_fingerprint(make_model(tmp_path / "same")) == model_fingerprint(model)
    assert model_fingerprint(make_model(tmp_path / "other", 2.0)) != model_fingerprint(model)
    (model / "model.json").write_text("{}")
    assert model_fingerprint(make_model(tmp_path / "again")) != model_fingerprint(model)
    (model / "model.json").unlink()
    with pytest.raises(CheckpointError, match="is no whole model"):
        model_fingerprint(model)


def test_finding_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from store_schema.artifacts import find_model_dir, model_fingerprint; "
        f"model_fingerprint(find_model_dir({str(run)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
