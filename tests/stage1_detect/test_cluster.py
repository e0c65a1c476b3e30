"""Real clusters: workers killed, a scheduler that goes, a queue whose jobs are processes of this machine."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.kill_workers import differing_files, killing_workers, worker_processes
from stage1_detect import cluster
from stage1_detect.cluster import open_client, queue_cluster
from stage1_detect.config import SelectionConfig
from stage1_detect.jobs import JobConfig, detect_to_store
from stage1_detect.sources import find_images
from stage1_detect.spec import ExtractorSpec
from store_schema.errors import ButdError, InputNotFoundError, UsageError
from store_schema.ledger import finished_blocks
from store_schema.reader import RegionStore

CONFIG = JobConfig(scheduler="threads", num_workers=1, torch_threads=1, block_size=4, batch_size=4)
QUEUE = {"cores": 1, "processes": 1, "memory": "2GB", "walltime": "00:10:00", "python": sys.executable}


def settings(queue: str) -> dict[str, object]:
    """As in ~/.config/dask/jobqueue.yaml."""
    pytest.importorskip("dask_jobqueue")
    return {f"jobqueue.{queue}.{name}": value for name, value in QUEUE.items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_pictures: Callable[..., list[Path]]) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_pictures(folder, 80, ((64, 64), (96, 64)))
    return folder


@pytest.fixture(scope="module")
def spec(detector_dir: Path) -> ExtractorSpec:
    return ExtractorSpec(weights=str(detector_dir), selection=SelectionConfig(min_regions=4, max_regions=8))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pictures: Path, spec: ExtractorSpec) -> Path:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    detect_to_store(find_images(pictures), store, spec, CONFIG)
    return store


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1_detect.cluster._CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(InputNotFoundError, match=r"tcp://127\.0\.0\.1:9: no dask scheduler answers there"),
        open_client("tcp://127.0.0.1:9", 1),
    ):
        pass


@pytest.mark.parametrize(("queue", "directive"), [("slurm", "#SBATCH"), ("pbs", "#PBS")])
def test_a_queues_job_script_has_what_dasks_own_file_says(queue: str, directive: str) -> None:
    with dask.config.set(settings(queue)), queue_cluster(queue) as jobs:
        script = jobs.job_script()
    assert f"{directive} " in script
    assert "00:10:00" in script
    assert "distributed.cli.dask_worker" in script


def test_a_queue_without_settings_says_where_they_go() -> None:
    with pytest.raises(UsageError, match=r"jobqueue\.slurm in ~/\.config/dask/jobqueue\.yaml"):
        queue_cluster("slurm")


@pytest.mark.slow
def test_killed_workers_cost_retries_and_the_store_is_the_undisturbed_one(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path
) -> None:
    config = replace(CONFIG, scheduler="processes", num_workers=2)
    with killing_workers(tmp_path / "store", 0.3) as kills:
        summary = detect_to_store(find_images(pictures), tmp_path / "store", spec, config)
    assert kills.number >= 1
    assert summary.processed == 80
    assert differing_files(tmp_path / "store", undisturbed) == []


@pytest.mark.slow
def test_a_worker_that_does_not_answer_loses_its_blocks_to_another(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process, as a machine that hangs or whose network is gone: its connection stays open."""
    monkeypatch.setitem(cluster._LOCAL_SETTINGS, "distributed.scheduler.worker-ttl", "3s")
    store, stopped = tmp_path / "store", threading.Event()

    def stop_one() -> None:
        while not (store / "zarr.json").exists() or not finished_blocks(store):
            time.sleep(0.01)
        worker_processes()[0].suspend()
        stopped.set()

    threading.Thread(target=stop_one, daemon=True).start()
    config = replace(CONFIG, scheduler="processes", num_workers=2)
    summary = detect_to_store(find_images(pictures), store, spec, config)
    assert stopped.is_set()
    assert summary.processed == 80
    assert differing_files(store, undisturbed) == []


JOB = """
import sys
from stage1_detect.config import SelectionConfig
from stage1_detect.jobs import JobConfig, detect_to_store
from stage1_detect.sources import find_images
from stage1_detect.spec import ExtractorSpec

if __name__ == "__main__":
    pictures, weights, store = sys.argv[1:]
    spec = ExtractorSpec(weights=weights, selection=SelectionConfig(min_regions=4, max_regions=8))
    config = JobConfig(scheduler="processes", num_workers=2, torch_threads=1, block_size=4, batch_size=4)
    print(detect_to_store(find_images(pictures), store, spec, config).stopped_by)
"""
"""`CONFIG`'s job in a program of its own: a terminal's Ctrl-C reaches it and all its workers."""


def processes_of_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_finishes_the_blocks_at_hand_and_twice_stops_now(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec, undisturbed: Path, times: int
) -> None:
    store, program = tmp_path / "store", tmp_path / "job.py"
    program.write_text(JOB)
    job = subprocess.Popen(
        [sys.executable, str(program), str(pictures), spec.weights, str(store)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (store / "zarr.json").exists() or not finished_blocks(store):
        time.sleep(0.01)
        assert job.poll() is None
    for _ in range(times):
        os.killpg(job.pid, signal.SIGINT)
        time.sleep(0.1)
    output, errors = job.communicate(timeout=60)
    if times == 1:
        assert output == "SIGINT\n"
        assert job.returncode == 0
        assert errors.count("finishing the blocks at hand") == 1
        assert "Traceback" not in errors
    else:
        assert errors.splitlines()[-1].startswith("KeyboardInterrupt")
    assert 1 <= len(finished_blocks(store)) < 20
    assert processes_of_session(job.pid) == []
    detect_to_store(find_images(pictures), store, spec, CONFIG)
    assert differing_files(store, undisturbed) == []


@pytest.mark.slow
def test_a_picture_that_needs_more_memory_than_a_worker_has_ends_in_quarantine(
    tmp_path: Path, spec: ExtractorSpec, draw_pictures: Callable[..., list[Path]]
) -> None:
    draw_pictures(tmp_path / "pictures", 3)
    Image.new("1", (16_000, 16_000)).save(tmp_path / "pictures/large.png")
    config = replace(CONFIG, scheduler="processes", worker_memory="1GiB")
    summary = detect_to_store(find_images(tmp_path / "pictures"), tmp_path / "store", spec, config)
    (problem,) = summary.problems
    assert problem.image_id == "large"
    assert problem.reason.startswith("killed its worker each time that it was tried: it needs more memory")
    assert len(RegionStore.open(tmp_path / "store")) == 3


@pytest.fixture
def running_cluster() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A scheduler and one worker, as a user starts them; the address, and the scheduler's process."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen([*command, "--no-dashboard"], stderr=subprocess.PIPE, text=True)
    assert scheduler.stderr is not None
    line = next(line for line in scheduler.stderr if "Scheduler at:" in line)
    address = line.split()[-1]
    reading = threading.Thread(target=scheduler.stderr.read, daemon=True)
    reading.start()
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    yield address, scheduler
    for process in (worker, scheduler):
        process.kill()
        process.wait()
    reading.join()
    scheduler.stderr.close()


@pytest.mark.slow
def test_a_running_cluster_does_the_job_and_a_scheduler_that_goes_is_named(
    tmp_path: Path,
    pictures: Path,
    spec: ExtractorSpec,
    undisturbed: Path,
    running_cluster: tuple[str, "subprocess.Popen[str]"],
) -> None:
    address, scheduler = running_cluster
    store = tmp_path / "store"
    config = replace(CONFIG, scheduler=address, num_workers=0)

    def kill_after_two_blocks() -> None:
        while not store.exists() or len(finished_blocks(store)) < 2:
            time.sleep(0.002)
        scheduler.send_signal(signal.SIGKILL)

    threading.Thread(target=kill_after_two_blocks, daemon=True).start()
    with pytest.raises(ButdError, match=r"lost the dask scheduler at tcp://.*finished blocks are kept"):
        detect_to_store(find_images(pictures), store, spec, config)
    assert len(finished_blocks(store)) >= 2
    detect_to_store(find_images(pictures), store, spec, CONFIG)
    assert differing_files(store, undisturbed) == []


@pytest.mark.slow
def test_jobs_of_a_queue_do_the_work(
    tmp_path: Path,
    pictures: Path,
    spec: ExtractorSpec,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A queue of our own: `sbatch` starts the job script here, from a copy as queues do: dask removes its own."""
    commands = {
        "sbatch": f'cp "$1" {tmp_path}/job; nohup bash {tmp_path}/job > /dev/null 2>&1 & echo "Submitted batch job $!"',
        "scancel": 'kill "$@" 2> /dev/null || true',
    }
    for name, body in commands.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with dask.config.set(settings("slurm")):
        config = replace(CONFIG, scheduler="slurm")
        detect_to_store(find_images(pictures)[:12], tmp_path / "store", spec, config)
    ours, expected = RegionStore.open(tmp_path / "store"), RegionStore.open(undisturbed)
    assert len(ours) == 12
    for image_id in ours.image_ids:
        np.testing.assert_array_equal(ours.image(image_id).features, expected.image(image_id).features)
