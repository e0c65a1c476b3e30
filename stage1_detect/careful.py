"""A block whose worker died or ran out of memory, once more: picture by picture, in a process that may die.

The child says which picture it is about to touch. Where it dies, it is started again with that picture first; a
picture that kills it twice is quarantined and the others go on. So a decoder that crashes, or a picture that needs
more memory than there is, costs itself alone. The block comes out as an undisturbed one.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe

import psutil

from stage1_detect.block_task import BlockResult, BlockTask, run_block_singly
from store_schema.errors import ButdError

_MAX_KILLERS = 8
"""A block in which more pictures than this kill their process is not the pictures' fault."""

_OUT_OF_MEMORY = "it needs more memory than a worker has"


def run_carefully(task: BlockTask, memory_limit: int = 0) -> BlockResult:
    """Extract and write one block in a child process, leaving out pictures that kill it.

    Args:
        memory_limit: bytes above which the child is ended; 0 for none.

    Errors: what the child raised; `ButdError` where it dies before the first picture, or on too many.
    """
    deaths: Counter[str] = Counter()
    first: str | None = None
    while True:
        outcome = _attempt(task, first, memory_limit)
        if isinstance(outcome, BlockResult):
            return outcome
        image_id, how = outcome
        deaths[image_id] += 1
        if deaths[image_id] < 2:
            first = image_id
            continue
        first = None
        if not image_id or len(task.quarantined) == _MAX_KILLERS:
            where = "before its first picture" if not image_id else f"on more than {_MAX_KILLERS} pictures"
            raise ButdError(
                f"block {task.block.index}: its process died {where}: {how}; use fewer workers, or a machine with more "
                "memory, and run the job again: it goes on with this block"
            )
        reason = f"killed its worker each time that it was tried: {how}"
        task = replace(task, quarantined={**task.quarantined, image_id: reason})


def _attempt(task: BlockTask, first: str | None, memory_limit: int) -> BlockResult | tuple[str, str]:
    """The block, or the picture at which the child died ("" for none) and how."""
    ours, theirs = Pipe()
    with closing(ours):
        with closing(theirs):
            command = [sys.executable, "-m", "stage1_detect.careful", str(theirs.fileno())]
            child = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=os.environ | {"PYTHONPATH": _paths()}
            )
        try:
            return _listen(ours, child, memory_limit) if _sent(ours, task, first) else ("", _death(child))
        finally:
            child.kill()
            child.wait()


def _sent(ours: Connection, task: BlockTask, first: str | None) -> bool:
    try:
        ours.send((task, first))
    except OSError:  # the child has died already
        return False
    return True


def _listen(
    ours: Connection, child: "subprocess.Popen[bytes]", memory_limit: int
) -> BlockResult | tuple[str, str]:
    image_id = ""
    while True:
        try:
            while not ours.poll(0.05):
                if memory_limit and _resident_bytes(child.pid) > memory_limit:
                    return image_id, _OUT_OF_MEMORY
            message = ours.recv()
        except (EOFError, OSError):
            return image_id, _death(child)
        if isinstance(message, BlockResult):
            return message
        if isinstance(message, MemoryError):
            return image_id, _OUT_OF_MEMORY
        if isinstance(message, BaseException):
            raise message
        image_id = message


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _death(child: "subprocess.Popen[bytes]") -> str:
    code = child.wait()
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _paths() -> str:
    """Where this process found its modules, for a child that starts elsewhere."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _main(descriptor: int) -> None:
    """The child: one block, then the end; also when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal
    parent = os.getppid()

    def leave_with_the_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=leave_with_the_parent, daemon=True).start()
    with Connection(descriptor) as pipe:
        task, first = pipe.recv()
        outcome: BlockResult | BaseException
        try:
            outcome = run_block_singly(task, first, pipe.send)
        except Exception as error:
            outcome = error
        with suppress(OSError):  # the parent is gone: nobody will commit the block
            pipe.send(outcome)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
