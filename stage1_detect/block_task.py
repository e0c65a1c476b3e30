"""What one task of a batch job does: decode a block's pictures, extract their regions, write the block.

Runs in the driver or in a worker of any machine that sees pictures, weights and store. Decoding runs on threads ahead
of the network. A picture that cannot be read becomes a `Problem`; its block is written all the same.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stage1_detect.extract import Extractor, build_extractor
from stage1_detect.images import load_image, printable
from stage1_detect.spec import ExtractorSpec
from store_schema.errors import ImageReadError
from store_schema.metadata import StoreMetadata
from store_schema.records import Block, ImageRecord, Problem, Receipt
from store_schema.writer import write_block

_DECODE_THREADS = 2
_HELD_BYTES = 256 * 2**20
"""Decoded pictures that wait for others of their size; above it the largest group goes without."""


@dataclass(frozen=True)
class BlockTask:
    """All that a worker must know of a block."""

    store: Path
    metadata: StoreMetadata
    block: Block
    paths: tuple[Path | None, ...]
    """For each image of the block its file; None where an earlier run planned it and this one does not name it."""
    spec: ExtractorSpec
    batch_size: int
    torch_threads: int
    """Threads of one operation; 0 leaves torch's own number."""


@dataclass(frozen=True)
class BlockResult:
    """What a finished task reports."""

    receipt: Receipt
    num_short: int
    """Pictures with fewer regions than `min_regions`: the detector proposed no more."""


def run_block(task: BlockTask, on_images: Callable[[int], object] | None = None) -> BlockResult:
    """Extract and write one block. `on_images` hears of every few pictures that are done.

    Errors: whatever the network or the disk says; unreadable pictures are no error, the receipt has them.
    """
    if task.torch_threads:
        torch.set_num_threads(task.torch_threads)
    extractor = build_extractor(task.spec, str(task.metadata.detector["fingerprint"]))
    items: dict[str, ImageRecord | Problem] = {}
    for group in _groups(task, extractor):
        if isinstance(group, Problem):
            items[group.image_id] = group
        else:
            ids, images = zip(*group, strict=True)
            items |= {record.image_id: record for record in extractor.extract(images, ids)}
        if on_images is not None:
            on_images(1 if isinstance(group, Problem) else len(group))
    in_order = [items[image_id] for image_id in task.block.image_ids]
    num_short = sum(isinstance(i, ImageRecord) and len(i.boxes) < task.metadata.min_regions for i in in_order)
    return BlockResult(write_block(task.store, task.metadata, task.block, in_order), num_short)


_Picture = tuple[str, NDArray[np.uint8]]


def _groups(task: BlockTask, extractor: Extractor) -> Iterator[list[_Picture] | Problem]:
    """Pictures that may share a batch, and problems as they come; the same groups in every run."""
    waiting: dict[tuple[int, int], list[_Picture]] = {}
    held_bytes = 0
    for item in _decode_ahead(task):
        if isinstance(item, Problem):
            yield item
            continue
        size = extractor.network_size(*item[1].shape[:2])
        group = waiting.setdefault(size, [])
        group.append(item)
        held_bytes += item[1].nbytes
        if held_bytes > _HELD_BYTES and len(group) < task.batch_size:
            size = max(waiting, key=lambda key: sum(pixels.nbytes for _, pixels in waiting[key]))
            group = waiting[size]
        if len(group) >= task.batch_size or held_bytes > _HELD_BYTES:
            held_bytes -= sum(pixels.nbytes for _, pixels in group)
            yield waiting.pop(size)
    yield from waiting.values()


def _decode_ahead(task: BlockTask) -> Iterator[_Picture | Problem]:
    """The block's pictures in order, while threads decode those that come next."""
    sources = zip(task.block.image_ids, task.paths, strict=True)
    ahead: deque[Future[_Picture | Problem]] = deque()
    with ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="decode") as pool:
        try:
            for image_id, path in sources:
                ahead.append(pool.submit(_decode, image_id, path))
                if len(ahead) > task.batch_size + _DECODE_THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _decode(image_id: str, path: Path | None) -> _Picture | Problem:
    if path is None:
        return Problem(
            image_id, "", "planned by an earlier run of the job, not among the pictures of this one"
        )
    try:
        return image_id, load_image(path)
    except ImageReadError as error:
        return Problem(image_id, printable(path), str(error).removeprefix(f"{printable(path)}: "))
