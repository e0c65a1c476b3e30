"""A writer that kills itself at its n-th touch of a file: `python -m tests.store_schema.killed_writer PATH N`.

Python reports each opening, renaming, making and removing of a file before it happens (audit events); at the n-th of
them within PATH the process sends itself SIGKILL. With N = 0 it lives and prints how many there were. With N < 0 it
prints a line, so that its parent can kill it at a time of its own choice, and writes larger features.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from tests.store_schema.tiny import IDS, METADATA, write_store

LARGE = replace(METADATA, feature_dim=20_000, block_size=2)
WRITTEN = IDS[:6]
"""Of METADATA a whole block and a partial one with a quarantined picture, of LARGE three blocks."""


def main(path: str, kill_at: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove") and str(arguments[0]).startswith(path):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at < 0:
        print("ready", flush=True)
    sys.addaudithook(hook)
    write_store(Path(path), LARGE if kill_at < 0 else METADATA, WRITTEN)
    print(count)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
