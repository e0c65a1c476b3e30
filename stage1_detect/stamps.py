"""What each picture's file was when it was read, so that a later run of the job can name those that have changed.

Kept beside the store's records, one file a block, written just before the block is committed: size, time of
change and a digest of the bytes. Later runs compare size and time, and read only where the time alone differs.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from stage1_detect.archives import ParquetCell, TarMember
from stage1_detect.sources import ImageSource
from store_schema.durable import replace_file, seal, unseal
from store_schema.errors import ImageReadError, StoreDamagedError
from store_schema.ledger import ledger_folder

logger = logging.getLogger(__name__)


class PictureStamp(NamedTuple):
    """A picture's file at a moment."""

    num_bytes: int
    mtime_ns: int
    """Of the file, or of the archive that holds the picture."""
    digest: str
    """First half of the SHA-256 in hexadecimal; empty where the file could not be read."""


UNREADABLE = PictureStamp(-1, -1, "")


def read_stamped(source: ImageSource) -> tuple[bytes, PictureStamp]:
    """The picture's file and its stamp. Errors: `ImageReadError`."""
    try:
        mtime_ns = source.path.stat().st_mtime_ns  # before reading: a change meanwhile is seen by a later run
    except OSError:
        mtime_ns = -1
    content = source.read()
    return content, PictureStamp(len(content), mtime_ns, _digest(content))


def write_stamps(store: Path, block: int, stamps: Mapping[str, PictureStamp]) -> None:
    """Keep the stamps of a block's pictures. Errors: `StoreError` where the file cannot be written."""
    folder = _folder(store)
    folder.mkdir(exist_ok=True)
    content = {image_id: list(value) for image_id, value in stamps.items()}
    replace_file(folder / f"{block:06d}.json", seal(content), f"block {block}, stamps of its pictures")


def read_stamps(store: Path) -> dict[str, PictureStamp]:
    """All stamps by image_id, the latest of each; a broken file is named in the log and left out."""
    stamps: dict[str, PictureStamp] = {}
    for path in sorted(_folder(store).glob("*.json")):
        try:
            content = unseal(path, "stamps of pictures", "delete it: changes of these pictures go unseen")
        except StoreDamagedError as error:
            logger.warning("%s", error)
            continue
        stamps |= {image_id: PictureStamp(*value) for image_id, value in content.items()}
    return stamps


def find_changed(sources: Iterable[ImageSource], stamps: Mapping[str, PictureStamp]) -> dict[str, str]:
    """For each picture whose file is another than when it was read, in words what differs.

    Pictures without a stamp and files that are gone are left out.
    """
    changed: dict[str, str] = {}
    for source in sources:
        before = stamps.get(source.image_id)
        difference = _difference(source, before) if before is not None else None
        if difference is not None:
            changed[source.image_id] = difference
    return changed


def _difference(source: ImageSource, before: PictureStamp) -> str | None:
    try:
        status = source.path.stat()
    except OSError:
        return None
    if (
        not before.digest
    ):  # it could not be read: the right to read it may have been given without another trace
        return "it can be read now" if _read(source) is not None else None
    size = source.place.num_bytes if isinstance(source.place, TarMember) else status.st_size
    if size != before.num_bytes and not isinstance(source.place, ParquetCell):
        return f"{before.num_bytes:,} bytes when it was read, {size:,} now"
    if status.st_mtime_ns == before.mtime_ns:
        return None
    content = _read(source)
    return (
        "other content than when it was read"
        if content is not None and _digest(content) != before.digest
        else None
    )


def _read(source: ImageSource) -> bytes | None:
    try:
        return source.read()
    except ImageReadError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _folder(store: Path) -> Path:
    return ledger_folder(store) / "pictures"
