"""The well-known experiment on data loading: what does the first worker bring, what do more?

    python -m benchmarks.bench_loader [--quick] [--cold-gb 4]

Every way to load is measured at every batch size in one interleaved run: each round takes all of them in turn,
ratios are medians over the rounds' own ratios, so that a noisy neighbour meets all alike. Measured are images
a second when nothing else is done, and how much longer a step of 20 ms takes: a step that sleeps (a GPU
leaves the cores free) and one that computes in Python (holds the GIL). A control measures the sleeping step
without any loading, beside a process that copies as many bytes. Writes a table, benchmarks/results/loader.json
and loader.png. docs/loading.md explains them.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from benchmarks.cold_pages import PREADV_THREADS, cold_preadv, drop_pages
from benchmarks.loader_report import STEP_MS, answers, median_ratio, plot, ratios, table
from benchmarks.loader_ways import (
    EPOCH_BATCHES,
    FEATURE_DIM,
    REGIONS,
    Way,
    make_npz,
    make_store,
    open_ways,
)
from benchmarks.record import RESULTS, write_result
from stage2_models.loader import build_loader
from store_schema.reader import RegionStore

logger = logging.getLogger(__name__)

STEP_SECONDS = STEP_MS / 1e3
RATE_SECONDS = 0.4
LONGEST_SECONDS = 1.5
"""Of one measurement of steps, once it has a few: what is slow needs no more to be told from what is fast."""
FEWEST_STEPS = 5
COPIER = """
import sys, time
import numpy as np
source, target = np.ones(int(sys.argv[1]), np.uint8), np.zeros(int(sys.argv[1]), np.uint8)
while True:
    start = time.perf_counter()
    np.copyto(target, source)
    time.sleep(max(float(sys.argv[2]) - (time.perf_counter() - start), 0))
"""


@dataclass(frozen=True)
class Setting:
    """How much is measured."""

    num_images: int
    """In the store; warm, so small enough for the page cache."""
    batch_sizes: tuple[int, ...]
    workers: tuple[int, ...]
    rounds: int
    num_steps: int
    """Of 20 ms, in each measurement."""
    cold_gb: float


FULL = Setting(3072, (64, 256, 512), (0, 1, 2, 4), 3, 20, 4.0)
QUICK = Setting(1024, (64, 256), (0, 1, 2), 2, 10, 0.0)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs")
    parser.add_argument(
        "--cold-gb", type=float, help="size of the store for the part with dropped page cache"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the test stores are made (default: a temporary folder)"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    setting = QUICK if args.quick else FULL
    if args.cold_gb is not None:
        setting = replace(setting, cold_gb=args.cold_gb)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = run(setting, Path(folder))
    print(table(result))
    print(answers(result))
    plot(result, RESULTS / "loader.png")
    print("written:", write_result("loader", result, ["numpy", "torch", "zarr"]), RESULTS / "loader.png")


def run(setting: Setting, folder: Path) -> dict[str, Any]:
    """Make the stores and measure every way at every batch size; return what loader.json holds."""
    logger.info("making stores of %s pictures", setting.num_images)
    fast = make_store(folder / "fast", setting.num_images, "none")
    slow = make_store(folder / "zstd", setting.num_images // 4, "zstd")
    npz = make_npz(folder / "npz", fast)
    measured: list[dict[str, Any]] = []
    control: dict[int, list[float]] = {}
    for batch_size in setting.batch_sizes:
        with ExitStack() as stack, warnings.catch_warnings():
            # of the stock loaders: their collate on read-only views, and more workers than cores
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            ways = open_ways(stack, fast, slow, npz, batch_size, setting.workers)
            logger.info("batch %s: %s ways, %s rounds", batch_size, len(ways), setting.rounds)
            measured += measure_rounds(ways, batch_size, setting)
            control[batch_size] = [measure_control(batch_size, setting) for _ in range(setting.rounds)]
    result = {
        "setting": {"regions": REGIONS, "feature_dim": FEATURE_DIM, "step_ms": STEP_MS, **vars(setting)},
        "ratios": {size: ratios(measured, control[size], size) for size in setting.batch_sizes},
        "runs": measured,
        "over_sleeping_step_beside_a_copying_process_ms": control,
    }
    if setting.cold_gb:
        result["cold"] = measure_cold(folder / "cold", setting)
    return result


def measure_rounds(ways: list[Way], batch_size: int, setting: Setting) -> list[dict[str, Any]]:
    """Measure every way once a round, after a first round that starts processes and touches pages."""
    results: dict[str, dict[str, Any]] = {
        way.key: {
            "way": way.name, "workers": way.workers, "batch_size": batch_size,
            "images_per_second": [], "over_sleeping_step_ms": [], "over_python_step_ms": [],
        }
        for way in ways
    }  # fmt: skip
    for way in ways:
        measure_rate(way, batch_size, setting.rounds)
    for round_number in range(setting.rounds):
        for way in ways:
            free = measure_steps(repeat(None), sleep_step, setting.num_steps // 2)
            measured = {
                "images_per_second": measure_rate(way, batch_size, round_number),
                "over_sleeping_step_ms": measure_over(way, sleep_step, free, setting),
                "over_python_step_ms": measure_over(way, python_step, STEP_SECONDS, setting),
            }
            for name, value in measured.items():
                results[way.key][name].append(round(value, 3))
    return list(results.values())


def measure_rate(way: Way, batch_size: int, epoch: int) -> float:
    """Images a second, the start of the epoch included: at least six batches and `RATE_SECONDS`."""
    start = time.perf_counter()
    for number, _ in enumerate(islice(way.batches(epoch), EPOCH_BATCHES), start=1):
        seconds = time.perf_counter() - start
        if number >= 6 and seconds >= RATE_SECONDS:
            break
    return number * batch_size / seconds


def measure_over(way: Way, step: Callable[[], None], free: float, setting: Setting) -> float:
    """Milliseconds that a step takes longer with loading than without, in the middle of an epoch."""
    batches = way.batches(0)
    next(batches)
    step()
    return (measure_steps(batches, step, setting.num_steps) - free) * 1e3


def measure_steps(batches: Iterable[Any], step: Callable[[], None], num_steps: int) -> float:
    """Seconds of a step with its batch, on average."""
    iterator = iter(batches)
    start = time.perf_counter()
    for number in range(1, num_steps + 1):
        batch = next(iterator)
        step()
        del batch
        seconds = time.perf_counter() - start
        if number >= FEWEST_STEPS and seconds > LONGEST_SECONDS:
            break
    return seconds / number


def measure_control(batch_size: int, setting: Setting) -> float:
    """Milliseconds that a sleeping step takes longer while a process copies a batch's bytes in each step's time."""
    free = measure_steps(repeat(None), sleep_step, setting.num_steps)
    num_bytes = batch_size * REGIONS * FEATURE_DIM * 2
    copier = subprocess.Popen([sys.executable, "-c", COPIER, str(num_bytes), str(STEP_SECONDS)])
    try:
        time.sleep(1)  # until it copies
        return (measure_steps(repeat(None), sleep_step, setting.num_steps) - free) * 1e3
    finally:
        copier.kill()
        copier.wait()


def sleep_step() -> None:
    """A step on a GPU: the cores are free."""
    time.sleep(STEP_SECONDS)


def python_step() -> None:
    """A step that computes in Python and holds the GIL."""
    end = time.perf_counter() + STEP_SECONDS
    while time.perf_counter() < end:
        pass


def measure_cold(path: Path, setting: Setting) -> dict[str, Any]:
    """Images a second of a first epoch, the page cache dropped before, against preadv on 8 threads."""
    image_bytes = REGIONS * FEATURE_DIM * 2
    num_images = int(setting.cold_gb * 1e9 / image_bytes)
    logger.info("making a store of %.1f GB for the part with cold pages", setting.cold_gb)
    store = make_store(path, num_images, "none")
    files = sorted((path / "features").glob("c*"), key=lambda file: int(file.name.split(".")[1]))
    rates: dict[str, list[float]] = {}
    for round_number in range(3):
        for workers in (None, *setting.workers):
            drop_pages(files)
            key = f"preadv, {PREADV_THREADS} threads" if workers is None else f"ours, {workers} workers"
            rate = cold_preadv(files, store) if workers is None else cold_ours(path, workers, round_number)
            rates.setdefault(key, []).append(round(rate, 1))
    reference = rates[f"preadv, {PREADV_THREADS} threads"]
    return {
        "gigabytes": setting.cold_gb,
        "images_per_second": rates,
        "ratios_to_preadv": {key: median_ratio(values, reference) for key, values in rates.items()},
    }


def cold_ours(path: Path, workers: int, seed: int) -> float:
    store = RegionStore.open(path)
    with build_loader(store, store.all_rows, batch_size=256, seed=seed, workers=workers, pin="off") as loader:
        start = time.perf_counter()
        for _ in loader.epoch(0):
            pass
        return len(store) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
