"""SIGKILL of a real writer at every touch of a file and at random times.

Never a wrong value, and the same work again gives the undisturbed store, byte for byte.
"""

import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from store_schema.errors import StoreNotFoundError
from store_schema.ledger import finished_blocks
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.verify import verify
from tests.store_schema.killed_work import LARGE, WRITTEN, write_large, write_small
from tests.store_schema.self_kill import start, touches
from tests.store_schema.tiny import METADATA, contents, record, same_record, write_store

PHASES = ("before", "within the arrays", "between flush and commit", "after")
"""Each is to be hit ten times at least; the short time between two blocks as it comes."""


def test_a_writer_killed_at_some_instants_is_completed_by_running_again(tmp_path: Path) -> None:
    total = touches(write_small, tmp_path / "whole")
    for number in range(1, 5):
        path, kill_at = tmp_path / str(number), total * number // 5
        assert start(write_small, path, kill_at=kill_at).ended() == -9
        check_and_resume(path, METADATA, contents(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_writer_killed_at_every_touch_of_a_file_is_completed_by_running_again(tmp_path: Path) -> None:
    phases: Counter[str] = Counter()
    for kill_at in range(1, touches(write_small, tmp_path / "whole") + 1):
        path = tmp_path / str(kill_at)
        assert start(write_small, path, kill_at=kill_at).ended() == -9, f"touch {kill_at} did not happen"
        phases[phase(path, METADATA)] += 1
        check_and_resume(path, METADATA, contents(tmp_path / "whole"))
        shutil.rmtree(path)
    print(f"killed at every touch: {dict(phases)}")
    assert min(phases[name] for name in PHASES[:3]) >= 10, phases  # after: the touches of closing are few


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_writer_killed_at_a_hundred_random_times_is_completed_by_running_again(tmp_path: Path) -> None:
    """Also in the middle of a write: the shards here have 320 KB.

    Instants lie evenly over the touches of files, each with a random time after it; were they even in time alone,
    hardly one would fall between flush and commit. More than a hundred where a phase had fewer than ten.
    """
    total = touches(write_large, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    rng = random.Random(0)
    phases: Counter[str] = Counter()
    while phases.total() < 100 or (min(phases[name] for name in PHASES) < 10 and phases.total() < 400):
        path = tmp_path / str(phases.total())
        writer = start(write_large, path, linger=True)
        writer.wait_for_touches(min(total, rng.randrange(total * 6 // 5)))
        time.sleep(rng.uniform(0, 0.003))
        writer.kill()
        phases[phase(path, LARGE)] += 1
        check_and_resume(path, LARGE, expected)
        shutil.rmtree(path)
    print(f"killed at random times: {dict(phases)}")
    assert min(phases[name] for name in PHASES) >= 10, phases


def check_and_resume(path: Path, metadata: StoreMetadata, expected: Mapping[str, bytes]) -> None:
    """What a killed writer left is right as far as it goes; the same work again gives the undisturbed store."""
    try:
        store = RegionStore.open(path)
    except StoreNotFoundError:
        pass  # killed before the store was made
    else:
        assert verify(path, full=True).findings == []
        for image_id in store.image_ids:
            assert same_record(store.image(image_id), record(image_id, metadata))
    assert contents(write_store(path, metadata, WRITTEN)) == expected


def phase(path: Path, metadata: StoreMetadata) -> str:
    """Where in its work the writer was killed, from what it left behind.

    All files of a block are flushed before the first, that of the features, is renamed.
    """
    blocks = finished_blocks(path)
    renamed = {
        int(file.name.split(".")[1]) for file in path.glob("features/c.*") if file.suffix != ".partial"
    }
    if len(blocks) * metadata.block_size >= len(WRITTEN):
        return "after"
    if renamed - set(blocks):
        return "between flush and commit"
    if any(path.glob("*/c.*.partial")):
        return "within the arrays"
    return "between blocks" if blocks else "before"
