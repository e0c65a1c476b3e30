"""How fast regions are read from the store, and written, beside every other way to keep them.

    python -m benchmarks.bench_store [--quick] [--cold-gb 4] [--folder DIR]

Warm reading: the same random batches by every way, interleaved; ratios are medians over the rounds' own ratios, so
that a noisy neighbour meets all alike, and before anything is measured all ways must have given the same bytes.
Cold reading: the page cache dropped, against preadv on 8 threads. Writing: blocks with fsync, checksums and commit
records against zarr-python, which does none of these. Writes a table, benchmarks/results/store.json and store.png;
docs/reading.md explains them.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from benchmarks.cold_pages import PREADV_THREADS, cold_preadv, drop_pages
from benchmarks.loader_report import median_ratio
from benchmarks.loader_ways import FEATURE_DIM, REGIONS
from benchmarks.record import RESULTS, write_result
from benchmarks.store_rivals import Features, Read, make_files, open_rivals
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore, Rows
from store_schema.records import ImageRecord, RegionArrays
from store_schema.writer import StoreWriter, write_block

logger = logging.getLogger(__name__)

COLD_BATCH = 256
PACKAGES = ["numpy", "torch", "zarr", "zarrs", "tensorstore", "h5py", "lmdb"]


@dataclass(frozen=True)
class Setting:
    """How much is measured."""

    num_images: int
    """In the warm part; small enough for the page cache."""
    batch_sizes: tuple[int, ...]
    rounds: int
    seconds: float
    """Of each warm measurement, at least."""
    cold_gb: float
    written_images: int
    """In each round of the part on writing."""


FULL = Setting(3072, (64, 256, 512), 5, 0.3, 4.0, 1024)
QUICK = Setting(512, (64,), 2, 0.1, 0.0, 256)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half a minute, to see that it runs")
    parser.add_argument(
        "--cold-gb", type=float, help="size of the store for the part with dropped page cache"
    )
    parser.add_argument("--folder", type=Path, help="where the files are made (default: a temporary folder)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    setting = QUICK if args.quick else FULL
    if args.cold_gb is not None:
        setting = replace(setting, cold_gb=args.cold_gb)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = run(setting, Path(folder))
    print(table(result))
    plot(result, RESULTS / "store.png")
    print("written:", write_result("store", result, PACKAGES), RESULTS / "store.png")


def run(setting: Setting, folder: Path) -> dict[str, Any]:
    """Measure all parts; return what store.json holds."""
    torch.set_num_threads(1)  # a training's kernels have the other cores; two threads fight over small copies
    logger.info("making files of %s images", setting.num_images)
    features = make_features(setting.num_images)
    write_store(folder / "store", features)
    make_files(folder, features)
    warm: dict[int, dict[str, list[float]]] = {}
    for batch_size in setting.batch_sizes:
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # mapped files
            ways = open_ways(folder, features.shape, batch_size, stack)
            check_equal(ways, features[: None if not warm else batch_size], batch_size)
            logger.info("batches of %s: %s ways, %s rounds", batch_size, len(ways), setting.rounds)
            warm[batch_size] = measure_warm(ways, setting, batch_size)
    return {
        "setting": {"regions": REGIONS, "feature_dim": FEATURE_DIM, "dtype": "float16", **vars(setting)},
        "ratios": {size: warm_ratios(rates) for size, rates in warm.items()},
        "runs": {"images_per_second": warm},
        "cold": measure_cold(folder / "cold", setting) if setting.cold_gb else {},
        "writing": measure_writing(folder / "written", features[: setting.written_images], setting.rounds),
    }


def make_features(num_images: int) -> Features:
    """[N, K, D] like published ones, 60% zeros; a block's are repeated, but each image holds its row."""
    rng = np.random.default_rng(0)
    block = np.maximum(rng.standard_normal((256, REGIONS, FEATURE_DIM), np.float32) - 0.25, 0)
    features = np.tile(block.astype(np.float16), (-(-num_images // 256), 1, 1))[:num_images]
    features[:, 0, 0], features[:, -1, -1] = np.divmod(np.arange(num_images), 256)
    return features


def write_store(path: Path, features: Features) -> None:
    """The whole safe path: plan, arrays, checksums, fsync, commit records."""
    metadata = StoreMetadata(
        feature_dim=FEATURE_DIM, max_regions=REGIONS, min_regions=REGIONS, box_source="given",
        detector={"name": "noise", "fingerprint": "none"}, selection={},
    )  # fmt: skip
    boxes = np.tile(np.array([1, 2, 30, 40], np.float32), (REGIONS, 1))
    with StoreWriter.open(path, metadata) as writer:
        for block in writer.plan([f"{number:08}" for number in range(len(features))]):
            items = [
                ImageRecord(image_id=image_id, width=640, height=480, boxes=boxes, features=features[row])
                for row, image_id in enumerate(block.image_ids, block.start_row)
            ]
            writer.commit(block, write_block(path, metadata, block, items))


# --- warm reading ---------------------------------------------------------------------------------------------


def open_ways(folder: Path, shape: tuple[int, ...], batch_size: int, stack: ExitStack) -> dict[str, Read]:
    """Our ways and all rivals by name, each giving the features of rows in the order asked."""
    store, unchecked = (RegionStore.open(folder / "store", verify=verify) for verify in ("first", "never"))
    out = RegionArrays.empty(batch_size, store.metadata)
    buffer = torch.zeros(batch_size, *shape[1:], dtype=torch.float16)

    def torch_views(store: RegionStore) -> Read:
        def read(rows: Rows) -> NDArray[Any]:
            torch.stack([torch.from_numpy(view) for view in store.feature_views(rows)], out=buffer)
            return buffer.numpy()

        return read

    return {
        "ours, views": torch_views(store),
        "ours, views, verify=never": torch_views(unchecked),
        "ours, read(out=)": lambda rows: store.read_rows(rows, out).features,
        "ours, read(out=, threads=2)": lambda rows: store.read_rows(rows, out, threads=2).features,
        **open_rivals(folder, folder / "store" / "features", shape, batch_size, stack),
    }


def check_equal(ways: dict[str, Read], features: Features, batch_size: int) -> None:
    """Read by every way every row that full batches reach, which also warms all.

    memcpy, the measure, gives rows in order only. Errors: `ValueError` naming the way whose bytes differ.
    """
    for name, read in ways.items():
        for start in range(0, len(features) - batch_size + 1, batch_size):
            rows = np.arange(start, start + batch_size)
            rows = np.random.default_rng(start).permutation(rows) if name != "memcpy" else rows
            if not np.array_equal(np.asarray(read(rows)), features[rows]):
                raise ValueError(f"{name} gives other bytes at rows {start} to {start + batch_size}")


def measure_warm(ways: dict[str, Read], setting: Setting, batch_size: int) -> dict[str, list[float]]:
    """Images a second of each way in each round; the first round is dropped."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(setting.rounds + 1):
        for name, read in ways.items():
            rng = np.random.default_rng(number)  # the same batches for all
            images, start = 0, time.perf_counter()
            while (seconds := time.perf_counter() - start) < setting.seconds:
                read(rng.permutation(setting.num_images)[:batch_size])
                images += batch_size
            if number:
                rates[name].append(round(images / seconds, 1))
    return rates


def warm_ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Each of our ways to each rival."""
    ours = [name for name in rates if name.startswith("ours")]
    return {
        f"{mine} / {rival}": median_ratio(rates[mine], rates[rival])
        for mine in ours
        for rival in rates
        if rival not in ours
    }


# --- cold reading ---------------------------------------------------------------------------------------------


def measure_cold(path: Path, setting: Setting) -> dict[str, Any]:
    """Images a second of a first epoch in random batches, the page cache dropped before each."""
    num_images = int(setting.cold_gb * 1e9 / (REGIONS * FEATURE_DIM * 2))
    logger.info("making a store of %.1f GB for the part with cold pages", setting.cold_gb)
    write_store(path, make_features(num_images))
    files = sorted((path / "features").glob("c*"), key=lambda file: int(file.name.split(".")[1]))
    rates: dict[str, list[float]] = {"ours": [], f"preadv, {PREADV_THREADS} threads": []}
    for _ in range(setting.rounds):
        for name, values in rates.items():
            drop_pages(files)
            store = RegionStore.open(path)
            values.append(round(cold_ours(store) if name == "ours" else cold_preadv(files, store), 1))
            del store  # mapped pages cannot be dropped
    return {
        "gigabytes": setting.cold_gb,
        "images_per_second": rates,
        "ratio": median_ratio(*rates.values()),
    }


def cold_ours(store: RegionStore) -> float:
    """Ask for the next batch, then read this one: every byte checked, since none was before."""
    rows = np.random.default_rng(0).permutation(store.all_rows)
    batches = [np.sort(rows[first : first + COLD_BATCH]) for first in range(0, len(rows), COLD_BATCH)]
    out = RegionArrays.empty(COLD_BATCH, store.metadata)
    start = time.perf_counter()
    store.will_need(batches[0])
    for batch, following in zip(batches, [*batches[1:], batches[0][:0]], strict=True):
        store.will_need(following)
        store.read_rows(batch, out)
    return len(rows) / (time.perf_counter() - start)


# --- writing --------------------------------------------------------------------------------------------------


def measure_writing(folder: Path, features: Features, rounds: int) -> dict[str, Any]:
    """Images a second, whole stores written anew; the first round is dropped."""
    folder.mkdir()
    ways: dict[str, Callable[[Path], None]] = {
        "ours, safe": lambda path: write_store(path, features),
        "zarr-python": lambda path: zarr_write(path, features, checksums=True),
        "zarr-python, without checksums": lambda path: zarr_write(path, features, checksums=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, write in ways.items():
            os.sync()  # nobody pays for what another left to be written
            start = time.perf_counter()
            write(folder / f"{name}-{number}")
            if number:
                rates[name].append(round(len(features) / (time.perf_counter() - start), 1))
    ours, *others = rates
    return {
        "images_per_second": rates,
        "ratios": {other: median_ratio(rates[ours], rates[other]) for other in others},
    }


def zarr_write(path: Path, features: Features, *, checksums: bool) -> None:
    """The features alone, in the same shards, a shard at a time: nothing flushed, nothing recorded."""
    array = zarr.create_array(
        path, shape=features.shape, dtype="float16", shards=(256, REGIONS, FEATURE_DIM),
        chunks=(1, REGIONS, FEATURE_DIM), compressors=Crc32cCodec() if checksums else None,
    )  # fmt: skip
    for start in range(0, len(features), 256):
        array[start : start + 256] = features[start : start + 256]


# --- telling --------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The medians as text."""
    warm = result["runs"]["images_per_second"]
    sizes = list(warm)
    lines = [f"{'images/s, warm, batches of':<32}" + "".join(f"{size:>12}" for size in sizes)]
    for name in warm[sizes[0]]:
        medians = [statistics.median(warm[size][name]) for size in sizes]
        lines.append(f"{name:<32}" + "".join(f"{value:>12,.0f}" for value in medians))
    lines.append(f"\n{'ratio of medians of rounds':<62}" + "".join(f"{size:>8}" for size in sizes))
    for name in result["ratios"][sizes[0]]:
        lines.append(f"{name:<62}" + "".join(f"{result['ratios'][size][name]:>8.2f}" for size in sizes))
    if result["cold"]:
        cold = {name: statistics.median(rates) for name, rates in result["cold"]["images_per_second"].items()}
        text = ", ".join(f"{name} {rate:,.0f}" for name, rate in cold.items())
        lines.append(
            f"\ncold, {result['cold']['gigabytes']:g} GB: {text} images/s, ratio {result['cold']['ratio']}"
        )
    for name, rates in result["writing"]["images_per_second"].items():
        ratio = result["writing"]["ratios"].get(name)
        ours = "" if ratio is None else f" (ours {ratio:g} of it)"
        lines.append(f"writing, {name}: {statistics.median(rates):,.0f} images/s{ours}")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """A bar a way: warm reading, a panel for each batch size; then cold reading and writing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = {
        f"warm, batches of {size}": rates for size, rates in result["runs"]["images_per_second"].items()
    }
    others = {f"cold, {name}": rates for name, rates in result["cold"].get("images_per_second", {}).items()}
    others |= {f"writing, {name}": rates for name, rates in result["writing"]["images_per_second"].items()}
    panels["cold reading and writing"] = others
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 6.5), squeeze=False)
    for axis, (title, rates) in zip(axes[0], panels.items(), strict=True):
        middle = {name: statistics.median(values) for name, values in rates.items()}
        names = sorted(middle, key=lambda name: middle[name])
        colours = ["C0" if "ours" in name else "0.4" if name == "memcpy" else "0.7" for name in names]
        bars = axis.barh(names, [middle[name] for name in names], color=colours)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axis.set_xscale("log")
        axis.set_xlim(right=max(middle.values()) * 4)
        axis.set_title(title)
        axis.set_xlabel("images / s")
    figure.suptitle(f"{REGIONS} x {FEATURE_DIM} float16 an image; medians of interleaved rounds")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
