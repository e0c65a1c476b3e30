"""What the loading benchmark compares: stores, files, and the ways to load batches from them.

The references stand beside the rivals: one large copy of a batch's bytes, from one place that stays in the
processor's cache, and from ever new places in an array as large as the store, which is what any loader must read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from stage2_models.loader import build_loader
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord
from store_schema.writer import StoreWriter, write_block

REGIONS, FEATURE_DIM = 36, 2048
EPOCH_BATCHES = 500
"""Of our loaders: more than are ever read, so that no measurement meets the end of an epoch."""


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
    stack: ExitStack,
    fast: RegionStore,
    slow: RegionStore,
    npz: list[Path],
    batch_size: int,
    all_workers: Sequence[int],
) -> list[Way]:
    """Open every way; their processes stay for all rounds and end with the stack."""
    one_place = np.ones((batch_size, REGIONS, FEATURE_DIM), np.float16)
    new_places = np.ones((len(fast), REGIONS, FEATURE_DIM), np.float16)
    ways = [
        Way("memcpy, one place", 0, memcpy(one_place, batch_size)),
        Way("memcpy, new places", 0, memcpy(new_places, batch_size)),
    ]
    pins = ("off", "on") if torch.cuda.is_available() else ("off",)
    for store, pin in [*((fast, pin) for pin in pins), (slow, "off")]:
        name = "ours" + (", zstd store" if store is slow else "") + (", pinned" if pin == "on" else "")
        for workers in all_workers:
            rows = np.tile(store.all_rows, -(-batch_size * EPOCH_BATCHES // len(store)))
            loader = stack.enter_context(
                build_loader(store, rows, batch_size=batch_size, seed=0, workers=workers, pin=pin)  # type: ignore[arg-type]
            )
            ways.append(Way(name, workers, loader.epoch))
    for workers in (number for number in all_workers if number):
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


def memcpy(source: NDArray[np.float16], batch_size: int) -> Callable[[int], Iterator[Any]]:
    """One copy of a batch's bytes in one piece, into a buffer used again."""
    buffers = [np.zeros((batch_size, REGIONS, FEATURE_DIM), np.float16) for _ in range(3)]

    def batches(epoch: int) -> Iterator[Any]:
        places = np.random.default_rng(epoch).integers(
            0, len(source) - batch_size, EPOCH_BATCHES, endpoint=True
        )
        while True:
            for number, place in enumerate(places.tolist()):
                buffer = buffers[number % len(buffers)]
                np.copyto(buffer, source[place : place + batch_size])
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
