"""Run folders: what was asked, what ran, what came out; and a table of many of them.

    runs/<name>/config.toml     resolved configuration
                run.json        task, identity of the data, versions, parent, every session of this run
                metrics.jsonl   one record a line: {"kind": "train" | "eval", "step": ..., ...}
                tensorboard/    event files
                log.txt         what was logged
                checkpoints/    see records.py

One process writes a run folder at a time: it holds a lock on `.lock`, which dies with it. Light: torch and
pandas are imported by what needs them.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline.config import config_to_toml, read_toml
from pipeline.training.records import clean_up, pointed_to, read_record, write_json
from store_schema.errors import ButdError, CheckpointError, InputNotFoundError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from torch.utils.tensorboard import SummaryWriter

_PACKAGES = ("butd", "torch", "numpy", "safetensors")


class RunLockedError(UsageError):
    """Another live process is training in the run folder."""


class RunFolder:
    """A run folder opened for training: locked, its log attached; a context."""

    def __init__(self, path: Path) -> None:
        """Create the folder where it is new and lock it.

        Raises:
            RunLockedError: another process trains here; it is named.
            UsageError: the folder cannot be made or written.
        """
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._log: logging.Handler | None = None
        self._tensorboard: SummaryWriter | None = None
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"cannot write the run folder {path}: {error.strerror}; choose another --out"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 200, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise RunLockedError(
                f"another process ({holder}) is training in {path}; wait for it or choose another --out"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"pid {os.getpid()} on {platform.node()}".encode(), 0)
        clean_up(self.checkpoints)

    def __enter__(self) -> Self:
        self._log = _LogFile(self.path / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        os.close(self._lock)

    def read_config(self) -> dict[str, Any] | None:
        """The resolved configuration that this run was started with, or None in a new folder."""
        try:
            return read_toml(self.path / "config.toml")
        except InputNotFoundError:
            return None

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        """Save the resolved configuration, in one instant."""
        partial = self.path / ".config.toml.partial"
        partial.write_text(config_to_toml(resolved), encoding="utf-8")
        partial.replace(self.path / "config.toml")

    def read_info(self) -> dict[str, Any]:
        """What run.json holds; empty in a new folder."""
        return _read_json_object(self.path / "run.json")

    def begin_session(self, facts: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Note in run.json what this run is, and that a process begins to work on it."""
        sessions = [*self.read_info().get("sessions", []), {"started": _now(), **session}]
        write_json(self.path / "run.json", {**self.read_info(), **facts, "sessions": sessions})

    def end_session(self, status: str, step: int) -> None:
        """Note in run.json how the session ended."""
        info = self.read_info()
        info["sessions"][-1] |= {"ended": _now(), "status": status, "to_step": step}
        with contextlib.suppress(OSError):  # the disk may be full: that is then what ended the session
            write_json(self.path / "run.json", info)

    def forget_metrics_after(self, step: int) -> None:
        """Take the records of later steps out of metrics.jsonl, and a last line that was cut short."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        partial = path.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(path)

    def write_metrics(self, record: Mapping[str, Any], *, tensorboard: bool) -> None:
        """Append a record; its numbers go to TensorBoard as kind/name."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if tensorboard:
            writer = self._tensorboard_writer(int(record["step"]))
            for name, value in record.items():
                if isinstance(value, int | float) and name not in ("step", "epoch"):
                    writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def _tensorboard_writer(self, first_step: int) -> "SummaryWriter":
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # 0.2 to 0.4 s: only for those who want it

            # A run that was killed may have written later steps than it goes on from: purged when read.
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=first_step)
        return self._tensorboard


class _LogFile(logging.FileHandler):
    """A log that a full disk may leave lines out of, without noise: training itself says that the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def list_runs(*paths: Path) -> "pd.DataFrame":
    """One row for each run at or directly in the given folders, in their order, then by name.

    Columns: name, path, task, status (running, finished, stopped, interrupted, failed, killed, damaged, new), step,
    epoch, metric, best (value), best_step, seconds (of training), parent (checkpoint, or empty), changes (against
    the parent), started. What is no run is left out.
    """
    import pandas as pd

    rows = []
    for path in paths:
        if not path.is_dir():
            raise InputNotFoundError(f"there is no run or folder of runs {path}")
        inside = sorted(info.parent for info in path.glob("*/run.json"))
        rows += [_describe_run(run) for run in ([path] if (path / "run.json").is_file() else inside)]
    columns = ["name", "path", "task", "status", "step", "epoch", "metric", "best", "best_step", "seconds"]
    return pd.DataFrame(rows, columns=[*columns, "parent", "changes", "started"])


def read_metrics(run: Path, kind: str) -> "pd.DataFrame":
    """The records of one kind ("train" or "eval") in a run's metrics.jsonl, a row each."""
    import pandas as pd

    path = run / "metrics.jsonl"
    if not path.is_file():
        raise InputNotFoundError(f"there is no {path}: {run} is not a run, or has not logged yet")
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if _step_of(line) != float("inf")]
    return pd.DataFrame([record for record in records if record["kind"] == kind])


@functools.cache
def software_versions() -> dict[str, str]:
    """Versions of what decides a result. Not to be changed: it is looked up once."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _describe_run(path: Path) -> dict[str, Any]:
    info = _read_json_object(path / "run.json")
    sessions = info.get("sessions") or [{}]
    row: dict[str, Any] = {
        "name": path.resolve().name,
        "path": str(path),
        "task": info.get("task", ""),
        "status": sessions[-1].get("status", "killed"),
        "step": 0,
        "epoch": 0,
        "metric": info.get("best_metric", ""),
        "seconds": 0.0,
        "started": sessions[0].get("started", ""),
    }
    if parent := info.get("parent"):
        changes = (f"{key}: {old} to {new}" for key, (old, new) in parent["changes"].items())
        row |= {"parent": parent["checkpoint"], "changes": ", ".join(changes)}
    else:
        row |= {"parent": "", "changes": ""}
    if _is_locked(path):
        row["status"] = "running"
    try:
        latest = pointed_to(path / "checkpoints", "latest")
        record = None if latest is None else read_record(latest)
    except CheckpointError:
        return row | {"status": "damaged"}
    if record is None:
        return row
    row |= {"step": record.step, "epoch": record.epoch, "seconds": record.seconds}
    if record.best is not None:
        row |= {"best": record.best.value, "best_step": record.best.step}
    if record.finished and row["status"] != "running":
        row["status"] = "finished"
    return row


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ButdError(f"{path} is not JSON ({error}); was it changed by hand?") from error
    if not isinstance(value, dict):
        raise ButdError(
            f"{path} holds {type(value).__name__}, expected a JSON object; was it changed by hand?"
        )
    return value


def _step_of(line: str) -> float:
    """The step of a metrics record; infinity for a line that is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
