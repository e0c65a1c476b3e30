"""A writer that kills itself at its n-th touch of a file: `python -m tests.store_schema.killed_writer PATH N`.

With N = 0 it lives and prints how many touches there were. With N < 0 it prints a line at the beginning, so that its
parent can kill it at a time of its own choice, and writes larger features.
"""

import sys
from dataclasses import replace
from pathlib import Path

from tests.store_schema.self_kill import kill_at_touch
from tests.store_schema.tiny import IDS, METADATA, write_store

LARGE = replace(METADATA, feature_dim=20_000, block_size=2)
WRITTEN = IDS[:6]
"""Of METADATA a whole block and a partial one with a quarantined picture, of LARGE three blocks."""


def main(path: str, kill_at: int) -> None:
    if kill_at < 0:
        print("ready", flush=True)
    touches = kill_at_touch(path, kill_at)
    write_store(Path(path), LARGE if kill_at < 0 else METADATA, WRITTEN)
    print(touches())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
