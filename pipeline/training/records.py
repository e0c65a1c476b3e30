"""What lies in a run's checkpoints folder: records, names, latest and best. Light: no torch.

    checkpoints/<name>/checkpoint.json     what it is: step, identity of the data, sha256 of the other files
    checkpoints/latest.json, best.json     {"checkpoint": "<name>"}

Names are epoch-0003 (three epochs done) and step-00001200. Saving and loading of the other files is in
checkpoint.py.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from store_schema.errors import CheckpointError, InputNotFoundError

FORMAT = 1
NAME_PATTERN = re.compile(r"epoch-\d{4,}|step-\d{8,}")
WEIGHTS, MODEL, STATE, RECORD = "model.safetensors", "model.json", "state.pt", "checkpoint.json"


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


def prune(folder: Path, keep_last: int) -> list[str]:
    """Remove checkpoints that are no longer needed; return their names.

    Step checkpoints stay while they are the latest or the best, now or as a kept epoch's checkpoint noted it (so
    that going back to that epoch finds its best). Epoch checkpoints stay if they are among the `keep_last` last
    (0: all), the latest or the best. One whose record cannot be read is left alone: whoever goes on from an
    earlier checkpoint may want to look at it.
    """
    latest, best = pointed_to(folder, "latest"), pointed_to(folder, "best")
    needed = {path.name for path in (latest, best) if path is not None}
    records = _readable_records(folder)
    epochs = [record for record in records if record.name.startswith("epoch-")]
    last_step = max((record.step for record in records if latest and record.name == latest.name), default=0)
    # Epochs after the latest one exist when the run went back to an earlier checkpoint: they will be replaced.
    done = [record.name for record in epochs if record.step <= last_step]
    dropped_epochs = set(done[:-keep_last]) - needed if keep_last else set()
    kept = [record for record in epochs if record.name not in dropped_epochs]
    noted = {record.best.checkpoint for record in kept if record.best is not None}
    steps = {record.name for record in records} - {record.name for record in epochs}
    dropped = sorted(dropped_epochs | (steps - needed - noted))
    for name in dropped:
        # Renamed first: a half-removed folder must not look like a checkpoint.
        trash = folder / f".partial-{name}"
        (folder / name).rename(trash)
        shutil.rmtree(trash)
    return dropped


def _readable_records(folder: Path) -> list[CheckpointRecord]:
    """The records of a folder's checkpoints in the order of their steps, without those that are damaged."""
    records = []
    for path in folder.iterdir():
        if NAME_PATTERN.fullmatch(path.name) and path.is_dir():
            with contextlib.suppress(CheckpointError):
                records.append(replace(read_record(path), name=path.name))
    return sorted(records, key=lambda record: (record.step, record.name))


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


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one instant, on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    write_synced(partial, to_json(value))
    partial.replace(path)
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        _sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Mapping[str, Any]) -> bytes:
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


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no fsync
            raise
