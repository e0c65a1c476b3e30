"""A process that kills itself just before its n-th touch of a file: a fault point at every write and rename.

Python reports each opening, linking, renaming, making and removing of a file before it happens (audit events).
"""

import os
import signal
import sys
from collections.abc import Callable, Collection

TOUCHES = ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


def kill_at_touch(path: str, number: int, events: Collection[str] = TOUCHES) -> Callable[[], int]:
    """Count touches of files within `path`; before the given one this process sends itself SIGKILL.

    Returns:
        What gives the count so far. With number 0 the process lives.
    """
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        # Nothing on the way: formatting or importing in an audit hook would cause events of its own.
        if event in events and str(arguments[0]).startswith(path):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count
