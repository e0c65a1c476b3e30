"""Processes that are killed at a touch of a file: a fault point at every write and rename.

Python reports each opening, linking, renaming, making and removing of a file before it happens (audit events). A worker
sends a byte through a pipe before each; at the n-th it sends itself SIGKILL, or the test does at an instant of its own.
Workers come from a fork server, which costs a hundredth of starting Python anew.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

TOUCHES = ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir")

_context = multiprocessing.get_context("forkserver")


@dataclass
class Worker:
    """A process at work on a folder."""

    process: ForkServerProcess
    pipe: Connection

    def wait_for_touches(self, number: int) -> None:
        """Return when the process is about to touch a file for the n-th time; 0: at once."""
        for _ in range(number):
            os.read(self.pipe.fileno(), 1)

    def kill(self) -> None:
        """Send SIGKILL and see that it was what ended the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL

    def ended(self) -> int:
        """Its exit code, once it has ended: -9 where it was killed."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def count(self) -> int:
        """Touches of an ended process that were not waited for."""
        number = 0
        while os.read(self.pipe.fileno(), 1):
            number += 1
        return number


def start(
    work: Callable[[Path], object],
    folder: Path,
    *,
    kill_at: int = 0,
    events: Collection[str] = TOUCHES,
    linger: bool = False,
) -> Worker:
    """Let a process work on a folder.

    Args:
        work: a function at the top of a module.
        kill_at: the touch of a file in the folder before which the process kills itself; 0: none.
        linger: wait to be killed when the work is done.
    """
    receiver, sender = _context.Pipe(duplex=False)
    arguments = (work, folder, kill_at, tuple(events), linger, sender)
    process = _context.Process(target=_work, args=arguments, daemon=True)
    process.start()
    sender.close()
    return Worker(process, receiver)


def touches(work: Callable[[Path], object], folder: Path) -> int:
    """How often undisturbed work touches a file."""
    worker = start(work, folder)
    assert worker.ended() == 0
    return worker.count()


def _work(
    work: Callable[[Path], object],
    folder: Path,
    kill_at: int,
    events: tuple[str, ...],
    linger: bool,
    sender: Connection,
) -> None:
    prefix, pipe, numbers = str(folder), sender.fileno(), itertools.count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        # Nothing more: formatting or importing in an audit hook would cause events of its own. Files are flushed by
        # several threads: each takes a number of its own.
        if event in events and str(arguments[0]).startswith(prefix):
            number = next(numbers)
            os.write(pipe, b".")
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(folder)
    if linger:
        time.sleep(600)
