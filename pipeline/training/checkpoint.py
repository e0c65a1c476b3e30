"""Checkpoints on disk: written beside and renamed, checked when read, never unpickled.

    checkpoints/<name>/model.safetensors   weights
                       model.json          what rebuilds the model for inference
                       state.pt            optimizer, random numbers, progress
                       checkpoint.json     see records.py

Whatever instant a process or a machine dies at, the checkpoint that latest.json names is whole.
"""

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.training.records import (
    MODEL,
    RECORD,
    STATE,
    WEIGHTS,
    CheckpointRecord,
    read_record,
    sync_folder,
    to_json,
    write_synced,
)
from store_schema.errors import ButdError, CheckpointError
from store_schema.fingerprint import file_sha256


class CheckpointWriteError(ButdError, OSError):
    """A checkpoint cannot be written; the one before it is whole."""


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
        write_synced(partial / WEIGHTS, safetensors.torch.save(_own_tensors(model)))
        write_synced(partial / MODEL, to_json(description))
        # Through memory: a write that fails in torch.save says only that it failed.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_synced(partial / STATE, buffer.getbuffer())
        files = {
            name: {"sha256": file_sha256(partial / name), "bytes": (partial / name).stat().st_size}
            for name in (WEIGHTS, MODEL, STATE)
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_synced(partial / RECORD, to_json(asdict(record) | {"files": files, "saved_at": now}))
        sync_folder(partial)
        replaced = folder / f".replaced-{record.name}"
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync_folder(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    return final


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
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointWriteError(
            f"cannot save checkpoint {name} in {folder}: {error.strerror}; the checkpoints before it are whole: "
            "make room and run the same command again"
        ) from error
