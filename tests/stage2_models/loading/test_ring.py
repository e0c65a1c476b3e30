"""Workers that die, fail, are signalled, or outlive their parent: real processes, real signals."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stage2_models.loader import Loader, LoaderError, build_loader
from stage2_models.loading import ring
from stage2_models.loading.ring import COPY_PAST_THE_CACHE, WorkerTraceback
from store_schema.errors import StoreDamagedError
from store_schema.reader import RegionStore

REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS = 10.0
"""Longer than anything here may take."""


def two_workers(store: RegionStore) -> Loader:
    return build_loader(store, store.all_rows, batch_size=4, seed=1, workers=2)


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def features_file(store: RegionStore, block: int) -> Path:
    return Path(str(store.path)) / "features" / f"c.{block}.0.0"


def alive(pid: int) -> bool:
    """Whether a process, perhaps not our child, still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_stay_for_all_epochs_and_end_with_the_loader(store: RegionStore) -> None:
    with two_workers(store) as loader:
        assert loader.worker_pids == [], "nothing starts before the first epoch"
        list(loader.epoch(0))
        pids = loader.worker_pids
        list(loader.epoch(1))
        assert loader.worker_pids == pids
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "no zombies either"


def test_workers_end_when_a_loader_is_dropped_without_being_closed(store: RegionStore) -> None:
    loader = two_workers(store)
    kept = next(loader.epoch(0)).regions.features
    before = kept.clone()
    pids = loader.worker_pids
    del loader
    assert not any(alive(pid) for pid in pids)
    assert bool((kept == before).all()), "tensors outlive the loader"


def test_workers_do_not_import_torch(store: RegionStore) -> None:
    """It costs each of them 3 s and 300 MB."""
    with two_workers(store) as loader:
        list(loader.epoch(0))
        for pid in loader.worker_pids:
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "numpy" in maps
            assert "torch" not in maps


def test_workers_copy_past_the_cache_and_keep_the_users_own_tunables(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=3")
    with two_workers(store) as loader:
        next(loader.epoch(0))
        # glibc cuts the variable at its colons, in place, while it reads it
        environment = Path(f"/proc/{loader.worker_pids[0]}/environ").read_bytes().replace(b"\0", b":")
    assert f"GLIBC_TUNABLES=glibc.malloc.tcache_count=3:{COPY_PAST_THE_CACHE}".encode() in environment
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.tcache_count=3"


def test_each_slot_is_touched_by_one_worker_only(store: RegionStore) -> None:
    """Shared memory counts in every process that touched it: with all in all, four workers would count it five
    times."""
    with build_loader(store, np.tile(store.all_rows, 20), batch_size=64, seed=1, workers=2) as loader:
        for epoch in range(3):
            for _ in loader.epoch(epoch):
                pass
        touched = sum(shared_bytes(pid) for pid in loader.worker_pids)
    batch = store.read_rows(store.all_rows[:64])
    batch_bytes = batch.features.nbytes + batch.boxes.nbytes + 64 * 24
    assert 3 * batch_bytes < touched < 7 * (batch_bytes + 2 * 4096), "seven slots in all"


def shared_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssShmem:"))


def test_a_worker_that_hangs_is_told_of_and_may_go_on(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ring, "PATIENCE_SECONDS", 0.1)
    with build_loader(store, store.all_rows, batch_size=4, seed=1, workers=1) as loader:
        batches = loader.epoch(0)
        next(batches)
        (pid,) = loader.worker_pids
        os.kill(pid, signal.SIGSTOP)
        waker = threading.Timer(1.0, os.kill, (pid, signal.SIGCONT))
        waker.start()
        with caplog.at_level(logging.WARNING):
            assert len(list(batches)) == len(loader) - 1
        waker.join()
    assert re.search(rf"waiting for batch \d+ for more than .* stuck.*\[{pid}\]", caplog.text)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_raises_within_seconds_and_the_next_epoch_has_new_ones(
    store: RegionStore, victim: int
) -> None:
    with two_workers(store) as loader:
        batches = loader.epoch(0)
        next(batches)
        pid = loader.worker_pids[victim]
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(LoaderError, match=rf"worker {victim} \(process {pid}\) was killed .* memory"):
            list(batches)
        assert time.monotonic() - start < SECONDS
        assert len(list(loader.epoch(0))) == len(loader)


def test_a_worker_killed_between_epochs_is_noticed(store: RegionStore) -> None:
    with two_workers(store) as loader:
        list(loader.epoch(0))
        for pid in loader.worker_pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(LoaderError, match="was killed"):
            list(loader.epoch(1))
        assert len(list(loader.epoch(1))) == len(loader)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_signals_to_the_whole_job_do_not_end_the_workers(store: RegionStore, name: str) -> None:
    """A queue or Ctrl-C reaches every process of a job; the main one must be able to save first."""
    with two_workers(store) as loader:
        batches = loader.epoch(0)
        next(batches)
        for pid in loader.worker_pids:
            os.kill(pid, getattr(signal, name))
        assert len(list(batches)) == len(loader) - 1


def test_starting_workers_leaves_the_own_signals_as_they_were(store: RegionStore) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with two_workers(store) as loader:
        next(loader.epoch(0))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_bytes_name_the_picture_whoever_reads_them(own_store: RegionStore, workers: int) -> None:
    path = features_file(own_store, 2)
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1  # in the first chunk of the third block: row 32, or its neighbour
    path.write_bytes(damaged)
    with build_loader(own_store, own_store.all_rows, batch_size=8, seed=1, workers=workers) as loader:
        with pytest.raises(
            StoreDamagedError, match=r"cannot read picture 'picture:3\d' \(row 3\d\): "
        ) as caught:
            list(loader.epoch(0))
        if workers:
            cause = caught.value.__cause__
            assert isinstance(cause, WorkerTraceback)
            assert "in _fill" in str(cause), "the worker's own traceback"
        healthy = build_loader(own_store, np.arange(32), batch_size=8, seed=1, workers=workers)
        assert len(list(healthy.epoch(0))) == 4


def test_batches_before_a_damaged_one_still_arrive(own_store: RegionStore) -> None:
    path = features_file(own_store, 2)
    path.write_bytes(bytes(path.stat().st_size))
    loader = build_loader(own_store, own_store.all_rows, batch_size=16, seed=1, workers=2, shuffle=False)
    batches = loader.epoch(0)
    assert [next(batches).indices[0] for _ in range(2)] == [0, 16]
    with pytest.raises(StoreDamagedError, match="picture:3"):
        next(batches)


def test_a_file_cut_short_while_it_is_read_is_explained(own_store: RegionStore) -> None:
    """Touching such a mapping kills a process by SIGBUS, without a word."""
    rows = np.repeat(own_store.all_rows, 8)
    with build_loader(own_store, rows, batch_size=32, seed=1, workers=1) as loader:
        list(loader.epoch(0))  # the worker has mapped and checked every file
        os.truncate(features_file(own_store, 1), 0)
        with pytest.raises(LoaderError, match=r"SIGBUS.*cut short.*butd store verify"):
            list(loader.epoch(1))


def test_a_store_that_is_gone_when_the_workers_start_is_an_error(own_store: RegionStore) -> None:
    loader = two_workers(own_store)
    path = Path(str(own_store.path))
    path.rename(path.with_name("moved"))
    with pytest.raises(LoaderError, match="the store cannot be opened: StoreNotFoundError"):
        list(loader.epoch(0))


SCRIPT = """
import os, sys
import numpy as np
from stage2_models.loader import build_loader
from store_schema.reader import RegionStore

store = RegionStore.open({path!r})
loader = build_loader(store, store.all_rows, batch_size=4, seed=1, workers=2)
batches = loader.epoch(0)
next(batches)
print(*loader.worker_pids, flush=True)
{then}
"""

FORK = """
import time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking is what this is about
child = os.fork()
if child == 0:
    {child}
    os._exit(0)
"""


def run_script(store: RegionStore, then: str) -> "subprocess.Popen[str]":
    """Run a user's plain script, without a guard around its main part."""
    script = SCRIPT.format(path=str(store.path), then=then)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("", 0),
        pytest.param("raise SystemExit(3)", 3, marks=pytest.mark.slow),
        pytest.param("os._exit(4)", 4, marks=pytest.mark.slow),
        pytest.param("for _ in batches: pass", 0, marks=pytest.mark.slow),
    ],
)
def test_a_plain_script_ends_at_once_and_leaves_nothing(store: RegionStore, then: str, code: int) -> None:
    before = set(os.listdir("/dev/shm"))
    process = run_script(store, then)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err == ""
    pids = [int(word) for word in out.split()]
    assert len(pids) == 2
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
    assert not any("butd" in name for name in set(os.listdir("/dev/shm")) - before)


def test_workers_end_when_the_main_process_is_killed(store: RegionStore) -> None:
    before = set(os.listdir("/dev/shm"))
    process = run_script(store, "os.kill(os.getpid(), 9)")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    pids = [int(word) for word in out.split()]
    assert len(pids) == 2
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
    assert not any("butd" in name for name in set(os.listdir("/dev/shm")) - before)


@pytest.mark.slow
def test_workers_end_when_the_main_process_dies_and_a_child_of_it_holds_the_pipes(store: RegionStore) -> None:
    """A forked process, as of a stock DataLoader, inherits the pipes, so their end does not come."""
    process = run_script(store, FORK.format(child="time.sleep(60)") + "print(child, flush=True); os._exit(5)")
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    child = int(process.stdout.readline())
    assert process.wait(60) == 5
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
    assert alive(child)
    os.kill(child, signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.slow
def test_a_forked_copy_of_the_main_process_leaves_the_workers_alone(store: RegionStore) -> None:
    then = FORK.format(child="loader.close()")
    process = run_script(store, then + "os.waitpid(child, 0); print(len(list(batches)) == len(loader) - 1)")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.split()[-1]) == (0, "True"), err
