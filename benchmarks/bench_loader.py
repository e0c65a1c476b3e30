"""The well-known experiment on data loading: what does the first worker bring, what do more?

    python -m benchmarks.bench_loader [--quick] [--cold-gb 4]

Every way to load is measured at every batch size in one interleaved run: each round takes all of them in turn,
ratios are medians over the rounds' own ratios, so that a noisy neighbour meets all alike. Measured are images
a second when nothing else is done, and how much longer a step of 20 ms takes: a step that sleeps (a GPU
leaves the cores free) and one that computes in Python (holds the GIL). Writes a table, benchmarks/results/
loader.json and loader.png. docs/loading.md explains them.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.record import RESULTS, write_result
from stage2_models.loader import DEFAULT_WORKERS, build_loader
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord
from store_schema.writer import StoreWriter, write_block

logger = logging.getLogger(__name__)

REGIONS, FEATURE_DIM = 36, 2048
STEP_SECONDS = 0.02
PREADV_THREADS = 8
RATE_SECONDS = 0.4
EPOCH_BATCHES = 500
"""Of our loaders: more than are ever read, so that no measurement meets the end of an epoch."""


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


FULL = Setting(3072, (64, 256, 512), (0, 1, 2, 4), 5, 25, 4.0)
QUICK = Setting(1024, (64, 256), (0, 1, 2), 2, 10, 0.0)


@dataclass(frozen=True)
class Way:
    """A way to load batches, opened for one batch size."""

    name: str
    workers: int
    batches: Callable[[int], Iterator[Any]]
    """Start epoch n; an iterator that gives at least as many batches as are asked for."""

    @property
    def key(self) -> str:
        return f"{self.name}, {self.workers} workers"


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
    warnings.filterwarnings(
        "ignore", message="The given NumPy array is not writable"
    )  # stock collate on views
    setting = QUICK if args.quick else FULL
    if args.cold_gb is not None:
        setting = replace(setting, cold_gb=args.cold_gb)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = run(setting, Path(folder))
    print(table(result))
    plot(result, RESULTS / "loader.png")
    print("written:", write_result("loader", result, ["numpy", "torch", "zarr"]), RESULTS / "loader.png")


def run(setting: Setting, folder: Path) -> dict[str, Any]:
    """Make the stores and measure every way at every batch size; return what loader.json holds."""
    logger.info("making stores of %s pictures", setting.num_images)
    fast = make_store(folder / "fast", setting.num_images, "none")
    slow = make_store(folder / "zstd", setting.num_images // 4, "zstd")
    npz = make_npz(folder / "npz", fast)
    measured: list[dict[str, Any]] = []
    for batch_size in setting.batch_sizes:
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="The given NumPy array is not writable"
            )  # stock collate
            warnings.filterwarnings(
                "ignore", message="This DataLoader will create"
            )  # more workers than cores
            ways = open_ways(stack, fast, slow, npz, batch_size, setting)
            logger.info("batch %s: %s ways, %s rounds", batch_size, len(ways), setting.rounds)
            measured += measure_rounds(ways, batch_size, setting)
    result = {
        "setting": {
            "regions": REGIONS,
            "feature_dim": FEATURE_DIM,
            "step_ms": STEP_SECONDS * 1e3,
            **vars(setting),
        },
        "ratios": {size: ratios(measured, size) for size in setting.batch_sizes},
        "runs": measured,
    }
    if setting.cold_gb:
        result["cold"] = measure_cold(folder / "cold", setting)
    return result


# --- what is loaded -------------------------------------------------------------------------------------------


def make_store(path: Path, num_images: int, codec: Any) -> RegionStore:
    """Write a store of features like published ones: float16, 60% zeros. One block's content is repeated."""
    metadata = StoreMetadata(
        feature_dim=FEATURE_DIM, max_regions=REGIONS, min_regions=REGIONS, box_source="given",
        detector={"name": "noise", "fingerprint": "none"}, selection={}, codec=codec,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shape = (min(metadata.block_size, num_images), REGIONS, FEATURE_DIM)
    features = np.maximum(rng.standard_normal(shape, np.float32) - 0.25, 0).astype(np.float16)
    boxes = np.tile(np.array([1, 2, 30, 40], np.float32), (REGIONS, 1))
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan([f"{number:08}" for number in range(num_images)]):
            items = [
                ImageRecord(image_id=image_id, width=640, height=480, boxes=boxes, features=features[place])
                for place, image_id in enumerate(block.image_ids)
            ]
            writer.commit(block, write_block(path, metadata, block, items))
    return RegionStore.open(path)


def make_npz(folder: Path, store: RegionStore) -> list[Path]:
    """Write one .npz a picture, uncompressed, as most public code does."""
    folder.mkdir()
    paths = [folder / f"{row}.npz" for row in store.all_rows]
    for row, path in zip(store.all_rows, paths, strict=True):
        arrays = store.read_rows([int(row)])
        np.savez(path, features=arrays.features[0], boxes=arrays.boxes[0], size=arrays.sizes[0], num=REGIONS)
    return paths


# --- the ways -------------------------------------------------------------------------------------------------


class Samples(Dataset[Any]):
    """A picture at a time, as views; the stock collate copies them once, into the batch."""

    def __init__(self, store: RegionStore) -> None:
        self.store, self.rows = store, store.all_rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = self.rows[index : index + 1]
        store = self.store
        return (
            store.feature_views(row)[0],
            store.boxes(row)[0],
            store.sizes(row)[0],
            store.num_regions(row)[0],
        )


class Batches(Samples):
    """A whole batch at a time: the best that a stock DataLoader can do."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, ...]:
        arrays = self.store.read_rows(np.sort(self.rows[indices]))
        return tuple(
            torch.from_numpy(array)
            for array in (arrays.features, arrays.boxes, arrays.sizes, arrays.num_regions)
        )


class Files(Dataset[Any]):
    """One .npz a picture."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        with np.load(self.paths[index]) as file:
            return file["features"], file["boxes"], file["size"], int(file["num"])


def open_ways(
    stack: ExitStack, fast: RegionStore, slow: RegionStore, npz: list[Path], batch_size: int, setting: Setting
) -> list[Way]:
    """Open every way; their processes stay for all rounds and end with the stack."""
    ways = [Way("memcpy", 0, memcpy(batch_size))]
    pins = ("off", "on") if torch.cuda.is_available() else ("off",)
    for store, pin in [*((fast, pin) for pin in pins), (slow, "off")]:
        name = "ours" + (", zstd store" if store is slow else "") + (", pinned" if pin == "on" else "")
        for workers in setting.workers:
            rows = np.tile(store.all_rows, -(-batch_size * EPOCH_BATCHES // len(store)))
            loader = stack.enter_context(
                build_loader(store, rows, batch_size=batch_size, seed=0, workers=workers, pin=pin)  # type: ignore[arg-type]
            )
            ways.append(Way(name, workers, loader.epoch))
    for workers in (number for number in setting.workers if number):
        ways += [
            Way("DataLoader, per sample", workers, stock(Samples(fast), batch_size, workers)),
            Way(
                "DataLoader, whole batch",
                workers,
                stock(Batches(fast), batch_size, workers, lambda batch: batch),
            ),
            Way("DataLoader, npz files", workers, stock(Files(npz), batch_size, workers)),
        ]
    return ways


def memcpy(batch_size: int) -> Callable[[int], Iterator[Any]]:
    """One copy of a batch's bytes in one piece, into a buffer used again: nothing can be faster."""
    source = np.ones((batch_size, REGIONS, FEATURE_DIM), np.float16)
    buffers = [np.zeros_like(source) for _ in range(3)]

    def batches(_: int) -> Iterator[Any]:
        while True:
            for buffer in buffers:
                np.copyto(buffer, source)
                yield buffer

    return batches


def stock(dataset: Any, batch_size: int, workers: int, collate: Any = None) -> Callable[[int], Iterator[Any]]:
    """PyTorch's own loader, its workers kept between epochs; an epoch is followed by the next one."""
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=True, collate_fn=collate,
        drop_last=True,
    )  # fmt: skip

    def batches(_: int) -> Iterator[Any]:
        while True:
            yield from loader

    return batches


# --- measuring ------------------------------------------------------------------------------------------------


def measure_rounds(ways: list[Way], batch_size: int, setting: Setting) -> list[dict[str, Any]]:
    """Measure every way once a round; the first round, which starts processes and touches pages, is dropped."""
    results: dict[str, dict[str, Any]] = {}
    for round_number in range(setting.rounds + 1):
        for way in ways:
            free = measure_steps(repeat(None), sleep_step, setting.num_steps // 2)
            measured = {
                "images_per_second": measure_rate(way, batch_size, round_number),
                "over_sleeping_step_ms": measure_over(way, sleep_step, free, setting),
                "over_python_step_ms": measure_over(way, python_step, STEP_SECONDS, setting),
            }
            if round_number == 0:
                results[way.key] = {
                    "way": way.name, "workers": way.workers, "batch_size": batch_size,
                    **{name: [] for name in measured},
                }  # fmt: skip
                continue
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
    for _ in range(num_steps):
        batch = next(iterator)
        step()
        del batch
    return (time.perf_counter() - start) / num_steps


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


def drop_pages(files: Sequence[Path]) -> None:
    """Make the system forget the files' pages; nobody may have them mapped."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cold_ours(path: Path, workers: int, seed: int) -> float:
    store = RegionStore.open(path)
    with build_loader(store, store.all_rows, batch_size=256, seed=seed, workers=workers, pin="off") as loader:
        start = time.perf_counter()
        for _ in loader.epoch(0):
            pass
        return len(store) / (time.perf_counter() - start)


def cold_preadv(files: Sequence[Path], store: RegionStore) -> float:
    """Read the same number of bytes at the same kind of places, into a buffer used again, 8 at a time."""
    image_bytes = REGIONS * FEATURE_DIM * 2
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    buffer = memoryview(bytearray(256 * image_bytes))

    def read(place: int, row: int) -> None:
        block, inside = divmod(row, store.metadata.block_size)
        os.preadv(
            descriptors[block],
            [buffer[place * image_bytes : (place + 1) * image_bytes]],
            inside * image_bytes,
        )

    rows = np.random.default_rng(0).permutation(len(store))
    start = time.perf_counter()
    with ThreadPoolExecutor(PREADV_THREADS) as pool:
        for first in range(0, len(rows), 256):
            batch = np.sort(rows[first : first + 256]).tolist()
            list(pool.map(read, range(len(batch)), batch))
    seconds = time.perf_counter() - start
    for descriptor in descriptors:
        os.close(descriptor)
    return len(rows) / seconds


# --- telling --------------------------------------------------------------------------------------------------


def median_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of each round's own ratio."""
    return round(statistics.median(a / b for a, b in zip(values, reference, strict=True)), 3)


def ratios(measured: list[dict[str, Any]], batch_size: int) -> dict[str, float]:
    """What is claimed, as ours to each rival; "over_..." is the share that loading adds to a step."""
    rates = {
        (entry["way"], entry["workers"]): entry for entry in measured if entry["batch_size"] == batch_size
    }  # fmt: skip

    def rate(way: str, workers: int, rival: str, rival_workers: int) -> float:
        name = "images_per_second"
        return median_ratio(rates[way, workers][name], rates[rival, rival_workers][name])

    result = {"workers_0_to_memcpy": rate("ours", 0, "memcpy", 0)}
    for rival in ("per sample", "whole batch", "npz files"):
        name = rival.replace(" ", "_")
        result[f"workers_1_to_dataloader_1_{name}"] = rate("ours", 1, f"DataLoader, {rival}", 1)
    for way, workers in rates:
        if way == "ours" and workers:
            result[f"workers_{workers}_to_workers_0"] = rate("ours", workers, "ours", 0)
    over = statistics.median(rates["ours", DEFAULT_WORKERS]["over_sleeping_step_ms"])
    return {**result, "over_sleeping_step_with_defaults": round(over / (STEP_SECONDS * 1e3), 4)}


def table(result: dict[str, Any]) -> str:
    """The medians as text."""
    lines = [
        f"{'way':<26}{'workers':>8}{'batch':>7}{'images/s':>12}{'+ sleeping':>12}{'+ Python':>11}  (ms a step)"
    ]
    for entry in sorted(
        result["runs"], key=lambda entry: (entry["batch_size"], -entry["images_per_second"][0])
    ):
        middle = {name: statistics.median(value) for name, value in entry.items() if isinstance(value, list)}
        lines.append(
            f"{entry['way']:<26}{entry['workers']:>8}{entry['batch_size']:>7}{middle['images_per_second']:>12,.0f}"
            f"{middle['over_sleeping_step_ms']:>12.2f}{middle['over_python_step_ms']:>11.2f}"
        )
    for batch_size, values in result["ratios"].items():
        lines += [f"batch {batch_size}: {name} = {value}" for name, value in values.items()]
    for name, value in result.get("cold", {}).get("ratios_to_preadv", {}).items():
        lines.append(f"cold pages, {name}: {value} of preadv on {PREADV_THREADS} threads")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Images a second and what a 20 ms step takes longer, over the number of workers, a column a batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = {"images_per_second": "images / s", "over_sleeping_step_ms": "ms added to a sleeping 20 ms step"}
    sizes = sorted({entry["batch_size"] for entry in result["runs"]})
    figure, axes = pyplot.subplots(
        len(panels), len(sizes), figsize=(4.2 * len(sizes), 7), sharex=True, sharey="row", squeeze=False
    )
    names = sorted({entry["way"] for entry in result["runs"]}, key=lambda name: (name != "memcpy", name))
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    for row, (quantity, label) in zip(axes, panels.items(), strict=True):
        for axis, batch_size in zip(row, sizes, strict=True):
            for name in names:
                entries = [e for e in result["runs"] if (e["way"], e["batch_size"]) == (name, batch_size)]
                workers = [entry["workers"] for entry in entries]
                middle = [max(statistics.median(entry[quantity]), 0.05) for entry in entries]
                if name == "memcpy":
                    axis.axhline(middle[0], color=colours[name], linestyle=":", label=name)
                else:
                    axis.plot(workers, middle, "o-", color=colours[name], label=name)
            axis.set_yscale("log")
            axis.set_xticks(sorted({entry["workers"] for entry in result["runs"]}))
            axis.grid(alpha=0.3)
            axis.set_title(f"batch {batch_size}")
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("workers")
    axes[0][-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(
        f"{REGIONS} x {FEATURE_DIM} float16 a picture, warm pages, {len(os.sched_getaffinity(0))} cores"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
