"""A repair or a copy that kills itself: `python -m tests.store_schema.killed_action ACTION FOLDER N`.

A repair works on FOLDER/store and dies before its n-th deletion. A copy merges FOLDER/store and FOLDER/more into
FOLDER/copy, some blocks as hard links and some written anew, and dies before its n-th touch of a file in FOLDER.
"""

import sys
from pathlib import Path

from store_schema.copy_plan import CopyOptions
from store_schema.copying import copy_stores
from store_schema.repair import repair
from tests.store_schema.self_kill import TOUCHES, kill_at_touch

COPY = CopyOptions(where="image_id != 'picture:0'")


def main(action: str, folder: str, kill_at: int) -> None:
    touches = kill_at_touch(folder, kill_at, ("os.remove",) if action == "repair" else TOUCHES)
    path = Path(folder)
    if action == "repair":
        repair(path / "store")
    else:
        copy_stores([path / "store", path / "more"], path / "copy", COPY)
    print(touches())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
