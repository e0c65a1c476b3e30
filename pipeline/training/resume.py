"""Where a run begins: anew, where it stopped, at an earlier checkpoint of its own, or at another run's.

The same command again goes on by itself. Another configuration in the same folder is refused; with another
folder (a branch) anything may change but what the checkpoint's identity names: model, vocabulary, store.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import config_differences, config_to_dict, read_toml
from pipeline.training.config import SAME_RUN_KEYS
from pipeline.training.records import (
    NAME_PATTERN,
    CheckpointRecord,
    find_checkpoint,
    pointed_to,
    read_record,
)
from pipeline.training.runs import RunFolder
from store_schema.errors import CheckpointError, InputNotFoundError, UsageError

logger = logging.getLogger(__name__)

_OWN = ("auto", "latest", "best")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where to begin. Without a checkpoint: at the beginning."""

    checkpoint: Path | None = None
    is_branch: bool = False
    """The checkpoint belongs to another run."""
    parent: dict[str, Any] | None = None
    """For run.json: the other run's checkpoint, and every key that changed with its two values."""
    changed_keys: frozenset[str] = field(default_factory=frozenset)


def choose_start(run: RunFolder, resolved: Mapping[str, Any], resume: str | Path | None) -> Start:
    """Decide where to begin; see the module's text.

    Args:
        run: the run folder to write to.
        resolved: the resolved configuration of what is asked now.
        resume: "auto" (go on if there is something to go on from), "latest", "best", a checkpoint's name in this
            run, the path of a checkpoint or run, or None: begin anew, in a folder without checkpoints.

    Raises:
        UsageError: the folder holds another configuration, or checkpoints when it should not, or none when it
            should; the message names the differing keys and the remedy.
        CheckpointError: the named checkpoint is none.
    """
    latest = pointed_to(run.checkpoints, "latest")
    own = resume is None or str(resume) in _OWN or NAME_PATTERN.fullmatch(str(resume)) is not None
    if not own:
        other = Path(str(resume)).resolve()
        if other != run.path.resolve() and other.parent != run.checkpoints.resolve():
            return _start_of_branch(run, resolved, other, latest)
        resume = "latest" if other == run.path.resolve() else other.name
    if latest is None:
        if resume in (None, "auto"):
            return Start()
        raise UsageError(
            f"--resume {resume}: the run {run.path} has no checkpoints yet; leave --resume out to begin"
        )
    if resume is None:
        raise UsageError(f"{run.path} holds a run already; go on with --resume, or choose another --out")
    _refuse_other_config(run, resolved)
    return Start(checkpoint=_own_checkpoint(run, str(resume), latest))


def parent_config_file(run_dir: Path, resume: str | Path | None) -> Path | None:
    """The configuration that a branch changes: config.toml of the other run that `resume` lies in.

    None where `resume` means this run, or a checkpoint that was copied out of its run.
    """
    if resume is None or str(resume) in _OWN or NAME_PATTERN.fullmatch(str(resume)):
        return None
    other = Path(resume).resolve()
    for folder in (other, other.parent.parent):
        if folder != run_dir.resolve() and (folder / "config.toml").is_file():
            return folder / "config.toml"
    return None


def check_identity(record: CheckpointRecord, path: Path, task: str, identity: Mapping[str, str]) -> None:
    """Raise CheckpointError when a checkpoint is of another task, model, vocabulary or store; both are named."""
    if record.task != task:
        raise CheckpointError(f"checkpoint {path} is of the task {record.task!r}, expected {task!r}")
    for name in record.identity | dict(identity):
        theirs, ours = record.identity.get(name), identity.get(name)
        if theirs != ours:
            raise CheckpointError(
                f"checkpoint {path} was trained with another {name}: {theirs or 'none'} there, {ours or 'none'} here; "
                f"give the {name} it was trained with, or train anew in another --out"
            )


def _own_checkpoint(run: RunFolder, which: str, latest: Path) -> Path:
    if which in ("auto", "latest"):
        return latest
    if which == "best":
        best = pointed_to(run.checkpoints, "best")
        if best is None:
            raise UsageError(f"--resume best: {run.path} has not been evaluated yet; use --resume latest")
        return best
    if not (run.checkpoints / which).is_dir():
        names = sorted(path.name for path in run.checkpoints.iterdir() if NAME_PATTERN.fullmatch(path.name))
        raise InputNotFoundError(f"--resume {which}: {run.path} has only {', '.join(names)}")
    return run.checkpoints / which


def _start_of_branch(run: RunFolder, resolved: Mapping[str, Any], other: Path, latest: Path | None) -> Start:
    """Begin at another run's checkpoint, or go on with a branch that began there before."""
    if latest is not None:
        parent = run.read_info().get("parent") or {}
        if parent.get("resumed_from") != str(other):
            origin = parent.get("resumed_from", "no other run")
            raise UsageError(
                f"{run.path} holds a run that began from {origin}, not from {other}; choose another --out"
            )
        _refuse_other_config(run, resolved)
        return Start(checkpoint=latest)
    checkpoint = find_checkpoint(other)
    changes = config_differences(_config_of(checkpoint), config_to_dict(resolved))
    parent = {
        "checkpoint": str(checkpoint),
        "resumed_from": str(other),
        "step": read_record(checkpoint).step,
        "changes": {key: [_json_value(old), _json_value(new)] for key, (old, new) in changes.items()},
    }
    return Start(checkpoint=checkpoint, is_branch=True, parent=parent, changed_keys=frozenset(changes))


def _config_of(checkpoint: Path) -> dict[str, Any]:
    """The resolved configuration of the run that a checkpoint lies in; empty for a checkpoint that was copied away."""
    config = checkpoint.parent.parent / "config.toml"
    if not config.is_file():
        logger.warning(
            "%s lies outside of its run: what changed against its configuration is not known", checkpoint
        )
        return {}
    return read_toml(config)


def _refuse_other_config(run: RunFolder, resolved: Mapping[str, Any]) -> None:
    stored = run.read_config()
    if stored is None:
        raise UsageError(f"{run.path} has checkpoints but no config.toml; choose another --out")
    differing = config_differences(stored, config_to_dict(resolved), SAME_RUN_KEYS)
    if differing:
        keys = ", ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in differing.items())
        raise UsageError(
            f"{run.path} holds a run with another configuration: {keys}; begin anew with --out NEW, or go on from "
            f"it with these changes by --resume {run.path} --out NEW"
        )


def _json_value(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)
