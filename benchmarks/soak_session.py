"""Sessions of the soak: the command line as it is, with one SIGKILL at a named place. See soak.py.

    python -m benchmarks.soak_session '{"phase": "imports", "victim": "run", ...}' train caption ...
    python -m benchmarks.soak_session serve     # a line of JSON for each session, which is a fork: no imports again

Nothing of the program knows of this: functions are wrapped from outside, and Python's audit events (imports, opened
files, renames) count the places inside of a phase. What was killed and where goes to stderr just before.
"""

import functools
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")


@dataclass
class Fault:
    """One kill: in the `entry`-th time that the phase is entered, after so many events or seconds, at the latest
    when the phase ends."""

    phase: str
    """"imports", "beginning", "step", "evaluation", "saving", or "worker's start"."""
    victim: str
    """"run" or "worker"."""
    entry: int = 1
    events: int = 0
    """In imports: imported modules; in beginning and saving: opened, renamed, made, removed files."""
    seconds: float = 0.0
    """In the other phases."""

    def __post_init__(self) -> None:
        self.entered, self.seen, self.inside = 0, 0, False
        self.kinds = ("import",) if self.phase == "imports" else FILE_EVENTS

    def enter(self) -> None:
        self.entered += 1
        self.inside = self.entered == self.entry
        if self.inside and self.seconds:
            threading.Thread(target=self._kill_later, daemon=True).start()

    def leave(self) -> None:
        if self.inside:
            self.kill(f"its end, after {self.seen} events")

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an audit event. Imports end where the run folder is opened."""
        if self.phase == "imports" and event == "open" and str(arguments[0]).endswith("/.lock"):
            self.leave()
        if self.inside and self.events and event in self.kinds and not is_of_python(arguments):
            self.seen += 1
            if self.seen == self.events:
                self.kill(f"event {self.seen}: {event} {os.path.basename(str(arguments[0]))}")

    def kill(self, place: str) -> None:
        """Say so and do it, once. A killed run does not come back from here; a killed worker leaves it running."""
        self.inside = False
        pid = os.getpid() if self.victim == "run" else newest_child()
        os.write(
            2, f"SOAK {json.dumps({'phase': self.phase, 'victim': self.victim, 'place': place})}\n".encode()
        )
        os.kill(pid, signal.SIGKILL)

    def _kill_later(self) -> None:
        time.sleep(self.seconds)
        if self.inside:
            self.kill(f"after {1000 * self.seconds:.1f} ms")


def is_of_python(arguments: tuple[Any, ...]) -> bool:
    """A file that is opened for an import."""
    return str(arguments[0]).endswith((".py", ".pyc", ".so"))


def newest_child() -> int:
    """The loader worker that was started last."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return int(file.read().split()[-1])


def around(fault: Fault, owner: Any, name: str) -> None:
    """Let the phase be what happens in a function."""
    before(fault.enter, owner, name)
    after(fault.leave, owner, name)


def before(call: Callable[[], None], owner: Any, name: str) -> None:
    """Call something just before a function."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        call()
        return function(*arguments, **keywords)

    setattr(owner, name, wrapped)


def after(call: Callable[[], None], owner: Any, name: str) -> None:
    """Call something just after a function."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        call()
        return result

    setattr(owner, name, wrapped)


def place(fault: Fault) -> None:
    """Wrap what the phase is made of."""
    if fault.phase == "imports":  # of nothing here: the session is to import everything by itself
        fault.enter()
        return
    from pipeline.training import trainer
    from stage2_models.loading import ring

    match fault.phase:
        case "beginning":
            before(fault.enter, trainer, "choose_start")
            before(fault.leave, trainer.Trainer, "run_loop")
        case "step":
            around(fault, trainer.OptimizerStep, "__call__")
        case "evaluation":
            around(fault, trainer.Trainer, "_evaluate")
        case "saving":
            around(fault, trainer.TrainingState, "save")
        case "worker's start":
            after(fault.enter, ring, "_start_worker")  # it takes longer than the kill waits
        case _:
            raise ValueError(fault.phase)


def session(fault: Fault, arguments: list[str]) -> None:
    """Be `butd ARGUMENTS` in this process."""
    sys.argv = ["butd", *arguments]
    place(fault)
    sys.addaudithook(fault.hear)
    runpy.run_module("pipeline.cli", run_name="__main__")


def serve() -> None:
    """Import what a session imports; then be forked for each line of stdin, and answer with its exit status."""

    import stage2_models.caption_task  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            for number, file in enumerate((os.devnull, os.devnull, asked["stderr"])):
                os.dup2(os.open(file, os.O_RDWR | os.O_CREAT, 0o644), number)
            session(Fault(**asked["fault"]), asked["arguments"])
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        session(Fault(**json.loads(sys.argv[1])), sys.argv[2:])
