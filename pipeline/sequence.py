"""Run commands of `butd` in order, several side by side where they do not need each other.

Every step is the command that a user would type, in a process of its own, and every command goes on where it
stopped: so a sequence that was interrupted, or killed, goes on by running it again. Steps that ended before are
not run again while what they made is still there and they are asked for with the same arguments; with others the
command itself says whether it can go on. Seconds of each step are kept beside the logs.
"""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store_schema.errors import ButdError

Say = Callable[[str], None]


class StepFailedError(ButdError):
    """A command of the sequence ended with an error; its own exit code is passed on."""


@dataclass(frozen=True)
class Step:
    """One command, and what it makes."""

    name: str
    arguments: tuple[str, ...]
    makes: Path
    """Exists when the step has ended."""


class CommandSequence:
    """Runs steps and remembers their seconds in FOLDER/steps.json; logs go to FOLDER/logs."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder
        self.say = say
        self._file = folder / "steps.json"
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        kept = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self._total: float = kept.get("total", 0.0)
        self._ended: dict[str, dict[str, Any]] = kept.get("steps", {})

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each step that has ended, and of the whole under "total"."""
        steps = {name: float(ended["seconds"]) for name, ended in self._ended.items()}
        return steps | {"total": round(self._total, 2)}

    def run(self, *steps: Step) -> None:
        """Run steps side by side, as many at once as there are cores, and wait for all.

        Errors: `StepFailedError` naming the command and its log; the steps beside it end first.
        """
        started = time.monotonic()
        cores = len(os.sched_getaffinity(0))
        at_once = min(len(steps), cores)
        threads = max(1, cores // at_once)
        with ThreadPoolExecutor(at_once) as pool:
            failures = [future.exception() for future in [pool.submit(self._run, s, threads) for s in steps]]
        with self._lock:
            self._total += time.monotonic() - started
            self._write()
        for failure in failures:
            if failure is not None:
                raise failure

    def _run(self, step: Step, threads: int) -> None:
        ended = self._ended.get(step.name)
        if ended is not None and ended["arguments"] == list(step.arguments) and step.makes.exists():
            self.say(f"{step.name}: done before")
            return
        self.say(f"{step.name}: butd {shlex.join(step.arguments)}")
        started = time.monotonic()
        log = self.folder / "logs" / f"{step.name}.txt"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with log.open("a", encoding="utf-8") as output:
            command = [sys.executable, "-m", "pipeline.cli", *step.arguments]
            code = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
        if code != 0:
            error = StepFailedError(f"{step.name} ended with exit code {code}: {last} (whole log: {log})")
            error.exit_code = code if code > 0 else 1
            raise error
        seconds = time.monotonic() - started
        with self._lock:
            self._ended[step.name] = {"seconds": round(seconds, 2), "arguments": list(step.arguments)}
            self._write()
        self.say(f"{step.name}: {seconds:.0f} s. {last}")

    def _write(self) -> None:
        partial = self._file.with_name(".steps.json.partial")
        content = {"total": self._total, "steps": self._ended}
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        partial.replace(self._file)


def step(name: str, makes: Path, *arguments: str | Path) -> Step:
    """A step whose arguments may be paths."""
    return Step(name, tuple(map(str, arguments)), makes)


def settings(**values: str | float) -> list[str]:
    """`training__epochs=3` as ["--set", "training.epochs=3"]."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
