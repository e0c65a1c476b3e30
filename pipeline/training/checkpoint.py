"""Checkpoints on disk: written beside and renamed, checked when read, never unpickled.

    checkpoints/<name>/model.safetensors   weights
                       model.json          what rebuilds the model for inference
                       state.pt            optimizer, random numbers, progress
                       checkpoint.json     what this is: step, identity of the data, sha256 of the other files
    checkpoints/latest.json, best.json     {"checkpoint": "<name>"}

Names are epoch-0003 (three epochs done) and step-00001200. Whatever instant a process or a machine dies at, the
checkpoint that latest.json names is whole.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from store_schema.errors import ButdError, CheckpointError, InputNotFoundError
from store_schema.fingerprint import file_sha256

FORMAT = 1
NAME_PATTERN = re.compile(r"epoch-\d{4,}|step-\d{8,}")
WEIGHTS, MODEL, STATE, RECORD = "model.safetensors", "model.json", "state.pt", "checkpoint.json"


class CheckpointWriteError(ButdError, OSError):
    """A checkpoint cannot be written; the one before it is whole."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best evaluation so far and the checkpoint that holds its weights."""

    checkpoint: str
    metric: str
    value: float
    step: int


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What checkpoint.json says."""

    name: str
    task: str
    step: int
    """Optimizer steps done."""
    epoch: int
    """Epochs done."""
    position: int
    """Batches consumed, on each process, of the epoch begun."""
    finished: bool
    """Nothing is left to train."""
    seconds: float
    """Spent on training so far, over all sessions."""
    identity: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the evaluation at this step; empty when there was none."""
    best: Best | None = None
    versions: dict[str, str] = field(default_factory=dict)
    saved_at: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT


def save_checkpoint(
    folder: Path,
    record: CheckpointRecord,
    *,
    model: nn.Module,
    description: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint into `folder` (a run's checkpoints) under its record's name; return its path.

    Every file is on the disk before the name appears. Neither latest.json nor best.json is touched.

    Args:
        folder: a run's checkpoints folder.
        record: name, progress and identity; `files`, `saved_at` are filled in here.
        model: its state dict becomes model.safetensors; tensors that share memory are each written.
        description: JSON that rebuilds the model for inference.
        state: tensors and plain values; read back with `weights_only=True`.

    Raises:
        CheckpointWriteError: the disk is full or the folder cannot be written; what was there is whole.
    """
    final, partial = folder / record.name, folder / f".partial-{record.name}"
    with _explain_failed_write(folder, record.name, partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_synced(partial / WEIGHTS, safetensors.torch.save(_own_tensors(model)))
        _write_synced(partial / MODEL, _json(description))
        with (partial / STATE).open("wb") as file:
            torch.save(dict(state), file)
            _sync(file.fileno())
        files = {
            name: {"sha256": file_sha256(partial / name), "bytes": (partial / name).stat().st_size}
            for name in (WEIGHTS, MODEL, STATE)
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _write_synced(partial / RECORD, _json(asdict(record) | {"files": files, "saved_at": now}))
        sync_folder(partial)
        replaced = folder / f".replaced-{record.name}"
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync_folder(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    return final


def clean_up(folder: Path) -> None:
    """Remove what a process that died left half done. Only for who holds the run's lock."""
    for replaced in folder.glob(".replaced-*"):
        final = folder / replaced.name.removeprefix(".replaced-")
        if final.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(final)
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial)


def point_to(folder: Path, which: str, name: str | None) -> None:
    """Let latest.json or best.json (`which`: "latest", "best") name a checkpoint, in one instant; None removes it."""
    pointer = folder / f"{which}.json"
    if name is None:
        pointer.unlink(missing_ok=True)
    else:
        write_json(pointer, {"checkpoint": name})


def pointed_to(folder: Path, which: str) -> Path | None:
    """The checkpoint that latest.json or best.json names; None without such a file."""
    try:
        name = _read_json(folder / f"{which}.json").get("checkpoint")
    except FileNotFoundError:
        return None
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        raise CheckpointError(f"{folder / which}.json names no checkpoint of its folder: {name!r}")
    if not (folder / name).is_dir():
        raise CheckpointError(f"{folder / which}.json names {name}, which is not in {folder}")
    return folder / name


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's checkpoints folder, in the order of their steps. Reads every record."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if NAME_PATTERN.fullmatch(path.name) and path.is_dir()]
    return sorted(paths, key=lambda path: (read_record(path).step, path.name))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint meant by a path: a checkpoint itself, or a run, of which the latest.

    Raises:
        InputNotFoundError: nothing is there.
        CheckpointError: what is there is neither.
    """
    if not path.exists():
        raise InputNotFoundError(f"there is no checkpoint or run {path}")
    if (path / RECORD).is_file():
        return path
    latest = pointed_to(path / "checkpoints", "latest")
    if latest is None:
        raise CheckpointError(
            f"{path} is neither a checkpoint (a folder with {RECORD}) nor a run with checkpoints"
        )
    return latest


def read_record(path: Path) -> CheckpointRecord:
    """Read and check checkpoint.json; CheckpointError when it is missing, cut short or of another format."""
    try:
        values = _read_json(path / RECORD)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {RECORD}") from error
    if values.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {values.get('format')!r}; this version reads format {FORMAT}"
        )
    try:
        best = Best(**values["best"]) if values.get("best") else None
        record = CheckpointRecord(**values | {"best": best})
        files = {name: record.files[name] for name in (WEIGHTS, MODEL, STATE)}
        sizes = [file["bytes"] for file in files.values() if len(file["sha256"]) == 64]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path}: {RECORD} is not as this program writes it ({error})"
        ) from error
    counts = (record.step, record.epoch, record.position, *sizes)
    if not all(type(count) is int and count >= 0 for count in counts) or not all(
        isinstance(value, str) for value in (record.name, record.task, *record.identity.values())
    ):
        raise CheckpointError(f"checkpoint {path}: {RECORD} holds values of the wrong type")
    return record


def load_checkpoint(path: Path) -> tuple[CheckpointRecord, dict[str, Tensor], dict[str, Any]]:
    """Read record, weights and state, after checking the files' hashes. Tensors are on the CPU.

    Raises:
        CheckpointError: a file is missing, cut short, changed, or holds something other than tensors and plain
            values; nothing of it is executed.
    """
    record = read_record(path)
    for name in (WEIGHTS, MODEL, STATE):
        check_file(path / name, record.files[name])
    try:
        weights = safetensors.torch.load_file(path / WEIGHTS)
    except Exception as error:  # safetensors raises its own classes for a foreign file
        raise CheckpointError(f"checkpoint {path}: {WEIGHTS} holds no weights ({error})") from error
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can fail with any class
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path}: {STATE} holds more than tensors and plain values, or is foreign; "
            f"it was not executed ({reason})"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"checkpoint {path}: {STATE} holds {type(state).__name__}, expected a dictionary"
        )
    return record, weights, state


def check_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Compare a file with the size and hash that its checkpoint noted; CheckpointError names what differs."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path.parent} lacks {path.name}") from error
    if size != expected["bytes"]:
        raise CheckpointError(
            f"checkpoint {path.parent}: {path.name} has {size} bytes, expected {expected['bytes']}; "
            "was it cut short? Resume from another one, see docs/checkpoints.md"
        )
    if file_sha256(path) != expected["sha256"]:
        raise CheckpointError(
            f"checkpoint {path.parent}: the bytes of {path.name} have changed since it was saved; "
            "resume from another one, see docs/checkpoints.md"
        )


def prune(folder: Path, keep_last: int) -> list[str]:
    """Remove checkpoints that are no longer needed; return their names.

    Step checkpoints stay while they are the latest or the best, now or as a kept epoch's checkpoint noted it (so
    that going back to that epoch finds its best). Epoch checkpoints stay if they are among the `keep_last` last
    (0: all), the latest or the best.
    """
    latest, best = pointed_to(folder, "latest"), pointed_to(folder, "best")
    needed = {path.name for path in (latest, best) if path is not None}
    paths = list_checkpoints(folder)
    epochs = [path.name for path in paths if path.name.startswith("epoch-")]
    last_step = read_record(latest).step if latest is not None else 0
    # Epochs after the latest one exist when the run went back to an earlier checkpoint: they will be replaced.
    done = [path.name for path in paths if path.name in epochs and read_record(path).step <= last_step]
    dropped_epochs = set(done[:-keep_last]) - needed if keep_last else set()
    kept = [path for path in paths if path.name in epochs and path.name not in dropped_epochs]
    noted = {record.best.checkpoint for record in map(read_record, kept) if record.best is not None}
    steps = {path.name for path in paths} - set(epochs)
    dropped = sorted(dropped_epochs | (steps - needed - noted))
    for name in dropped:
        # Renamed first: a half-removed folder must not look like a checkpoint.
        trash = folder / f".partial-{name}"
        (folder / name).rename(trash)
        shutil.rmtree(trash)
    return dropped


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one instant, on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    _write_synced(partial, _json(value))
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no fsync
            raise


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        _sync(file.fileno())


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    """FileNotFoundError passes; anything that is no JSON object is a CheckpointError."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); was it cut short?") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected a JSON object")
    return values


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, contiguous and on the CPU, each tensor with memory of its own (safetensors wants both)."""
    seen: set[int] = set()
    tensors = {}
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return tensors


@contextmanager
def _explain_failed_write(folder: Path, name: str, partial: Path) -> Iterator[None]:
    """Turn a failed write into one line, and take the half-written folder away to free its space."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save wraps a failed write into RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CheckpointWriteError(
            f"cannot save checkpoint {name} in {folder}: {reason}; the checkpoints before it are whole: "
            "make room and run the same command again"
        ) from error
