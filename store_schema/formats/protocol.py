"""What a file format is to the importer and the exporter; one file beside this one for each format.

A format reads in two steps. `entries` walks the source once and says which pictures it holds and how large they
are, without decoding features; `read` then gives one picture at a time, in any order. So an import knows its store's
shape before it writes, never holds more than a block, and goes on after a kill with the blocks that are missing.
To write, a format is handed the pictures one after the other and a header with what must be known in advance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_PICTURE_BYTES = 256 * 2**20
"""Most that one array of a picture may take; published ones take 0.8 MB. More is refused unread: a bomb."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """The regions of one picture, as a file has them."""

    image_id: str
    width: int | None
    """None where the format does not say; the importer then needs a table of sizes."""
    height: int | None
    boxes: NDArray[np.float32]
    """[n, 4] xyxy in pixels of the picture."""
    features: NDArray[Any]
    """[n, D]."""
    object_ids: NDArray[np.int64] | None = None
    """[n], as numbered in the file. None: the format, or this file, has no labels."""
    object_scores: NDArray[Any] | None = None
    attribute_ids: NDArray[np.int64] | None = None
    attribute_scores: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture that a source holds, before its features are read."""

    image_id: str
    num_regions: int
    feature_dim: int
    place: Any
    """Where the reader finds it again: an offset, a row, a path."""
    where: str
    """The same for people: file and line."""


@dataclass(frozen=True, slots=True)
class BadEntry:
    """A record that can be seen to be malformed before its features are read."""

    image_id: str | None
    """None where not even that can be read."""
    where: str
    reason: str


class Reader(Protocol):
    """An opened source."""

    def entries(self) -> Iterator[Entry | BadEntry]:
        """Every picture of the source in its order, cheaply; identifiers may repeat."""

    def read(self, entry: Entry) -> Picture:
        """One picture. Errors: `MalformedRecordError` with the reason; the importer knows the place."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a user may say about a source."""

    trust_pickle: bool = False
    """Whether pickles inside the source may be read at all."""
    ids: Path | None = None
    """For formats that keep identifiers outside: a JSON or text file of them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Header:
    """What a format may have to know before the first picture is written."""

    num_images: int
    num_regions: int
    """Of all pictures together."""
    regions_per_image: int | None
    """Where every picture has as many."""
    feature_dim: int
    object_names: tuple[str, ...]
    """Empty: no labels."""
    attribute_names: tuple[str, ...]
    number_of: Callable[[str], int] = field(repr=False)
    """The whole number that stands for a picture in formats whose keys are numbers."""
    file_name_of: Callable[[str], str] = field(repr=False)
    """The picture's file, relative, where a format names it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Format:
    """One file format. Everything but `name` and `carries` may be used through it alone."""

    name: str
    carries: frozenset[str]
    """Of "features", "sizes", "objects", "attributes", "text ids": what survives beside the boxes."""
    recognises: Callable[[Path], bool] | None
    """Whether a path looks like it; reads a few bytes. None: only written."""
    open: Callable[[Path, ReadOptions], Reader] | None
    """None: only written."""
    write: Callable[[Path, Iterator[Picture], Header], None]
    """Write all pictures, and whatever lies beside them, at a path that does not exist yet.

    A file's companions take its name as their beginning. The caller makes the whole appear at once."""
    is_folder: bool = False
    """Whether it is written as a folder."""
    numbers: bool = False
    """Whether it knows pictures by whole numbers; required to be distinct where it does not carry text ids."""
