"""Coming batches are asked for while pages come from the disk, and not when they are in memory."""

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from stage2_models.loading.readahead import WARM_BATCHES, ReadAhead, _signs_of_the_disk
from store_schema.errors import StoreDamagedError

if TYPE_CHECKING:
    from store_schema.reader import RegionStore

ROWS = np.arange(3)


class AskedStore:
    """Counts how often pages are asked for."""

    asked = 0

    def will_need(self, rows: object) -> None:
        self.asked += 1


def touch_cold_pages(path: Path) -> None:
    """Read a file that the page cache does not have."""
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            sum(mapped[:: mmap.PAGESIZE])


def test_asking_stops_on_warm_pages_and_starts_again_on_cold_ones(tmp_path: Path) -> None:
    store = AskedStore()
    readahead = ReadAhead(cast("RegionStore", store))
    for _ in range(WARM_BATCHES * 3):
        readahead.ask(ROWS)
    warm = store.asked
    readahead.ask(ROWS)
    assert store.asked == warm, "pages are in memory: nothing more is asked for"
    before = _signs_of_the_disk()
    touch_cold_pages(tmp_path / "cold")
    if _signs_of_the_disk() == before:
        pytest.skip("the temporary folder lies in memory")
    readahead.ask(ROWS)
    readahead.ask(ROWS)
    assert store.asked == warm + 2


def test_what_is_wrong_with_a_store_is_left_to_the_reading() -> None:
    class Damaged:
        def will_need(self, rows: object) -> None:
            raise StoreDamagedError("its index is damaged")

    ReadAhead(cast("RegionStore", Damaged())).ask(ROWS)
