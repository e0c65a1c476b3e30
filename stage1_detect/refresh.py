"""A new store that keeps what is still true of an old one: all but the pictures whose files have changed.

A store's blocks are never replaced, so pictures that changed need a new store. Blocks without a changed picture are
hard links to the old store's; a job on the new store then extracts what is missing.
"""

from collections.abc import Sequence
from pathlib import Path

from stage1_detect.sources import ImageSource
from stage1_detect.stamps import find_changed, read_stamps, write_stamps
from store_schema.copy_plan import CopyOptions
from store_schema.copying import copy_stores
from store_schema.errors import StoreNotFoundError
from store_schema.root import DOCUMENT


def begin_refreshed_store(sources: Sequence[ImageSource], old: Path, new: Path) -> int:
    """Copy `old` to `new` without the pictures that have changed; returns how many these are.

    Where `new` is there already, an earlier run has begun it and nothing is copied. Pictures of the old store that
    are not among `sources` stay.

    Errors: `StoreNotFoundError`; those of `copy_stores`.
    """
    if not (old / DOCUMENT).is_file():
        raise StoreNotFoundError(f"no region store at {old}; --refresh names the store to take pictures from")
    stamps = read_stamps(old)
    changed = find_changed(sources, stamps)
    if not (new / DOCUMENT).is_file():
        copy_stores([old], new, CopyOptions(exclude=sorted(changed)))
    if not read_stamps(new):
        write_stamps(
            new, 0, {image_id: value for image_id, value in stamps.items() if image_id not in changed}
        )
    return len(changed)
