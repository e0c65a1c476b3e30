"""SIGKILL of a real writer at every touch of a file and at random times.

Never a wrong value, and the same work again gives the undisturbed store.
"""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from store_schema.errors import StoreNotFoundError
from store_schema.ledger import finished_blocks
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.verify import verify
from tests.store_schema.killed_writer import LARGE, WRITTEN
from tests.store_schema.tiny import METADATA, contents, record, same_record, write_store

PROGRAM = [sys.executable, "-m", "tests.store_schema.killed_writer"]
ROOT = Path(__file__).resolve().parents[2]


def test_a_writer_killed_at_some_instants_is_completed_by_running_again(
    tmp_path: Path,
) -> None:
    total = touches(tmp_path / "whole")
    for number in range(1, 5):
        kill_at = total * number // 5
        assert kill_itself(tmp_path / str(kill_at), kill_at)
        check_and_resume(tmp_path / str(kill_at), METADATA, contents(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_writer_killed_at_every_touch_of_a_file_is_completed_by_running_again(
    tmp_path: Path,
) -> None:
    phases: Counter[str] = Counter()
    for kill_at in range(1, touches(tmp_path / "whole") + 1):
        path = tmp_path / str(kill_at)
        assert kill_itself(path, kill_at), f"touch {kill_at} did not happen"
        phases[phase(path, METADATA)] += 1
        check_and_resume(path, METADATA, contents(tmp_path / "whole"))
    names = ("before", "arrays", "written, no record", "between blocks")
    assert min(phases[name] for name in names) >= 5, phases


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_writer_killed_at_random_times_is_completed_by_running_again(tmp_path: Path) -> None:
    """Also in the middle of a write: the shards here have 320 KB."""
    started = time.perf_counter()
    expected = contents(write_store(tmp_path / "whole", LARGE, WRITTEN))
    seconds = time.perf_counter() - started
    rng = random.Random(0)
    phases: Counter[str] = Counter()
    while phases.total() < 40 or (phases["arrays"] < 5 and phases.total() < 300):
        path = tmp_path / str(phases.total())
        process = subprocess.Popen([*PROGRAM, str(path), "-1"], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 1.2 * seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        phases[phase(path, LARGE)] += 1
        check_and_resume(path, LARGE, expected)
    assert phases["arrays"] >= 5, phases


def touches(path: Path) -> int:
    """How often an undisturbed writer touches a file."""
    done = subprocess.run([*PROGRAM, str(path), "0"], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def kill_itself(path: Path, kill_at: int) -> bool:
    """Run the writer until it kills itself; False where it came to its end."""
    done = subprocess.run([*PROGRAM, str(path), str(kill_at)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    return done.returncode == -signal.SIGKILL


def check_and_resume(path: Path, metadata: StoreMetadata, expected: object) -> None:
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
    """Where in its work the writer was killed, from what it left behind."""
    blocks = finished_blocks(path)
    first = {int(file.name.split(".")[1]) for file in path.glob("features/c.*") if file.suffix != ".partial"}
    partials = [file for file in path.rglob("*.partial") if file.parent.name in metadata.arrays()]
    if any(file.name.startswith("c.") for file in partials):
        return "arrays"
    if first - set(blocks):
        return "written, no record"
    return "between blocks" if blocks else "before"
