"""Checkpoints on the disk: whole or not there, checked when read, nothing executed."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.training.checkpoint import CheckpointWriteError, load_checkpoint, save_checkpoint
from pipeline.training.records import (
    CheckpointRecord,
    clean_up,
    find_checkpoint,
    point_to,
    pointed_to,
    read_record,
)
from store_schema.errors import CheckpointError, InputNotFoundError
from store_schema.fingerprint import file_sha256

REPO = Path(__file__).resolve().parents[3]


def record_named(name: str, step: int = 1) -> CheckpointRecord:
    return CheckpointRecord(
        name=name,
        task="tiny",
        step=step,
        epoch=0,
        position=step,
        finished=False,
        seconds=1.5,
        identity={"model": "m"},
    )


def save(folder: Path, name: str = "step-00000001", step: int = 1, value: float = 1.0) -> Path:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    state = {"moments": torch.full((3,), value), "epoch": 2, "sums": {"loss": 0.5}, "rng": [1, None]}
    return save_checkpoint(
        folder, record_named(name, step), model=model, description={"kind": "x"}, state=state
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path)
    record, weights, state = load_checkpoint(path)
    assert (record.name, record.step, record.identity) == ("step-00000001", 1, {"model": "m"})
    assert torch.equal(weights["weight"], torch.ones(2, 2))
    assert torch.equal(state.pop("moments"), torch.ones(3))
    assert state == {"epoch": 2, "sums": {"loss": 0.5}, "rng": [1, None]}
    assert json.loads((path / "model.json").read_text()) == {"kind": "x"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000001"]


def test_tied_and_strided_weights_are_each_written(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False), "conv": nn.Conv2d(2, 3, 3)}
    )
    model["out"].weight = model["embed"].weight
    model.to(memory_format=torch.channels_last)
    path = save_checkpoint(tmp_path, record_named("epoch-0001"), model=model, description={}, state={})
    weights = safetensors.torch.load_file(path / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "state.pt", "checkpoint.json"])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    file = save(tmp_path) / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=rf"{name}.*cut short"):
        load_checkpoint(file.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "state.pt"])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    file = save(tmp_path) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"bytes of {name} have changed"):
        load_checkpoint(file.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checkpoint.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"(lacks|has no) {name}"):
        load_checkpoint(path)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("as_plain_pickle", [True, False])
def test_a_malicious_state_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_plain_pickle: bool
) -> None:
    """Also when its author gave it the right hash."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path)
    if as_plain_pickle:
        (path / "state.pt").write_bytes(pickle.dumps(Malicious()))
    else:
        torch.save({"progress": Malicious()}, path / "state.pt")
    record = json.loads((path / "checkpoint.json").read_text())
    record["files"]["state.pt"] = {
        "sha256": file_sha256(path / "state.pt"),
        "bytes": (path / "state.pt").stat().st_size,
    }
    (path / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="it was not executed") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"step": "many"}, "wrong type"),
        ({"files": {}}, "not as this program writes it"),
        ({"unheard_of": 1}, "not as this program writes it"),
        ({"identity": {"model": 3}}, "wrong type"),
    ],
)
def test_a_foreign_record_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = save(tmp_path)
    record = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=message):
        read_record(path)


def test_something_else_than_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"neither a checkpoint .* nor a run"):
        find_checkpoint(tmp_path)
    with pytest.raises(InputNotFoundError, match="no checkpoint or run"):
        find_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("name", ["../../secret", "step-00000009", 3, None])
def test_a_pointer_outside_the_folder_or_to_nothing_is_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "latest.json").write_text(json.dumps({"checkpoint": name}))
    with pytest.raises(CheckpointError, match=r"latest\.json names"):
        pointed_to(tmp_path, "latest")


def test_leftovers_of_a_killed_process_are_put_right(tmp_path: Path) -> None:
    """A partial checkpoint goes; one that was being replaced comes back, or goes when its successor is there."""
    path = save(tmp_path, value=1.0)
    shutil.copytree(path, tmp_path / ".partial-step-00000002")
    path.rename(tmp_path / ".replaced-step-00000001")
    clean_up(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    shutil.copytree(path, tmp_path / ".replaced-step-00000001")
    clean_up(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    load_checkpoint(path)


def test_a_checkpoint_can_replace_one_of_its_name(tmp_path: Path) -> None:
    save(tmp_path, value=1.0)
    path = save(tmp_path, value=2.0)
    assert load_checkpoint(path)[1]["weight"][0, 0] == 2.0
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_checkpoint_before_and_nothing_else(tmp_path: Path) -> None:
    """A limit on the size of a file fails the write as a full disk does."""
    save(tmp_path, "step-00000001")
    point_to(tmp_path, "latest", "step-00000001")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, hard))
    try:
        with pytest.raises(CheckpointWriteError, match=r"cannot save checkpoint step-00000002 .* make room"):
            save(tmp_path, "step-00000002", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest.json", "step-00000001"]
    load_checkpoint(tmp_path / "step-00000001")
    save(tmp_path, "step-00000002", 2)


def can_mount() -> bool:
    """Whether this user may mount a small file system in a namespace of its own."""
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.slow
def test_a_full_disk_ends_training_in_one_line_and_with_room_the_same_command_goes_on(tmp_path: Path) -> None:
    """On a real file system of 2 MB, where a ballast file leaves room for one checkpoint of 0.5 MB."""
    if not can_mount():
        pytest.skip("no user namespace to mount a small file system in")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{sys.executable} -m tests.pipeline.training.tiny_task {disk}/run hidden=4096 epochs=2"
    script = f"""
    mount -t tmpfs -o size=2m none {disk} || exit 99
    head -c 1200000 /dev/zero > {disk}/ballast
    {command}
    echo with ballast: $?
    cat {disk}/run/checkpoints/latest.json; ls -A {disk}/run/checkpoints
    rm {disk}/ballast
    {command}
    echo after making room: $?
    """
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], cwd=REPO, capture_output=True, text=True, timeout=200
    )
    assert "with ballast: 1" in done.stdout, done.stderr
    assert "CheckpointWriteError: cannot save checkpoint epoch-0002" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "after making room: 0" in done.stdout, done.stderr
    assert "going on with" in done.stderr
    assert ".partial" not in done.stdout
