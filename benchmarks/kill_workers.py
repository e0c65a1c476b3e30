"""A job on two dask worker processes, one of which is killed with SIGKILL every few seconds, beside a quiet job.

Says how many kills fell and whether the two stores are equal, byte for byte, but for the lock, which names a process.

    python -m benchmarks.kill_workers runs/scenes runs/detector --out runs/kills --pictures 10000 --every 4
"""

import argparse
import logging
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.record import write_result
from stage1_detect.config import SelectionConfig
from stage1_detect.jobs import JobConfig, JobSummary, detect_to_store
from stage1_detect.sources import ImageSource, find_images
from stage1_detect.spec import ExtractorSpec
from store_schema.ledger import finished_blocks
from store_schema.root import DOCUMENT


@dataclass
class Kills:
    """What the killer did."""

    number: int = 0


def worker_processes() -> list[psutil.Process]:
    """The worker processes of this process's cluster: what its fork server has forked."""
    try:
        servers = [
            child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())
        ]
        return [worker for server in servers for worker in server.children()]
    except psutil.Error:
        return []


@contextmanager
def killing_workers(store: Path, every_seconds: float, seed: int = 0) -> Iterator[Kills]:
    """Kill a random worker of the job that writes `store`, now and again while the block runs.

    Between two kills the job must have finished a block, or it would never end on a machine that is slow enough.
    """
    rng, kills, over = random.Random(seed), Kills(), threading.Event()

    def kill_on() -> None:
        finished = 0
        while not over.wait(rng.uniform(0.5, 1.5) * every_seconds):
            while not over.wait(0.02) and _finished(store) <= finished:
                pass
            workers = worker_processes()
            if workers and not over.wait(rng.uniform(0, 1) * min(1, every_seconds)):  # anywhere in a block
                finished = _finished(store)
                rng.choice(workers).kill()
                kills.number += 1

    thread = threading.Thread(target=kill_on, daemon=True)
    thread.start()
    try:
        yield kills
    finally:
        over.set()
        thread.join()


def _finished(store: Path) -> int:
    return len(finished_blocks(store)) if (store / DOCUMENT).is_file() else 0


def differing_files(left: Path, right: Path) -> list[str]:
    """Names of the files that two stores do not share, byte for byte, but for the lock."""

    def files(store: Path) -> dict[str, bytes]:
        found = (path for path in store.rglob("*") if path.is_file() and path.name != "lock")
        return {str(path.relative_to(store)): path.read_bytes() for path in found}

    ours, theirs = files(left), files(right)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def run_job(
    sources: list[ImageSource], weights: str, store: Path, block_size: int, regions: int
) -> JobSummary:
    """One job on two worker processes, into a new store."""
    shutil.rmtree(store, ignore_errors=True)
    spec = ExtractorSpec(weights=weights, selection=SelectionConfig(min_regions=regions, max_regions=regions))
    config = JobConfig(scheduler="processes", num_workers=2, block_size=block_size)
    return detect_to_store(sources, store, spec, config)


def main() -> int:
    """Run both jobs and compare; exit code 1 where the stores differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two stores")
    parser.add_argument("--pictures", dest="number", type=int, default=10_000)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between kills, on average")
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--regions", type=int, default=12)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sources = find_images(options.pictures)[: options.number]
    arguments = (options.weights, options.out / "disturbed.zarr", options.block_size, options.regions)
    with killing_workers(options.out / "disturbed.zarr", options.every) as kills:
        disturbed = run_job(sources, *arguments)
    quiet = run_job(sources, options.weights, options.out / "quiet.zarr", *arguments[2:])
    differing = differing_files(options.out / "disturbed.zarr", options.out / "quiet.zarr")
    print(
        f"{disturbed.processed} pictures in {disturbed.blocks} blocks: {kills.number} workers killed, "
        f"{disturbed.seconds:.0f} s; undisturbed {quiet.seconds:.0f} s; "
        f"{len(differing)} files differ {differing[:3]}"
    )
    runs = [
        {
            "pictures": disturbed.processed,
            "blocks": disturbed.blocks,
            "kills": kills.number,
            "seconds": disturbed.seconds,
            "seconds_undisturbed": quiet.seconds,
            "differing_files": len(differing),
        }
    ]
    write_result(
        "kill_workers", {"ratios": {"slower": disturbed.seconds / quiet.seconds}, "runs": runs}, ["dask"]
    )
    return 1 if differing or not kills.number else 0


if __name__ == "__main__":
    raise SystemExit(main())
