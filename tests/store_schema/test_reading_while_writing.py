"""A reader that opens a store at any moment of its writing sees finished blocks only, with right values."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import zarr

from store_schema.errors import StoreNotFoundError
from store_schema.reader import RegionStore
from store_schema.verify import verify
from tests.store_schema.killed_work import WRITTEN, write_small
from tests.store_schema.self_kill import start, touches
from tests.store_schema.tiny import BAD_ID, record, same_record


@pytest.mark.slow
def test_readers_see_finished_blocks_only_while_another_process_writes(tmp_path: Path) -> None:
    """The writer is stopped at every fifth touch of a file; readers opened before go on to be right."""
    total = touches(write_small, tmp_path / "whole")
    path = tmp_path / "store"
    writer = start(write_small, path)
    stores: list[RegionStore] = []
    for _ in range(total // 5):
        writer.wait_for_touches(5)
        assert writer.process.pid is not None
        os.kill(writer.process.pid, signal.SIGSTOP)
        try:
            stores.append(RegionStore.open(path))
        except StoreNotFoundError:
            assert not stores
        if stores:
            assert verify(path, full=True).findings == []
            num_regions = np.asarray(zarr.open_array(str(path / "num_regions"), mode="r")[:])
            assert set(stores[-1].all_rows.tolist()) <= set(np.flatnonzero(num_regions != 65535).tolist())
            for store in {len(store): store for store in stores}.values():
                assert all(
                    same_record(store.image(image_id), record(image_id)) for image_id in store.image_ids
                )
        os.kill(writer.process.pid, signal.SIGCONT)
    assert writer.ended() == 0
    sizes = [len(store) for store in stores]
    assert sizes == sorted(sizes)
    assert {0, 4} <= set(sizes)
    assert list(RegionStore.open(path).image_ids) == [image_id for image_id in WRITTEN if image_id != BAD_ID]
