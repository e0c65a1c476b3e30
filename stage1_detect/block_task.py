"""What one task of a batch job does: decode a block's pictures, extract their regions, write the block.

Runs in the driver or in a worker of any machine that sees pictures, weights and store. Decoding runs on threads ahead
of the network. A picture that cannot be read becomes a `Problem`; its block is written all the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from stage1_detect.decoding import decode_ahead
from stage1_detect.extract import Extractor, build_extractor
from stage1_detect.images import DecodedImage, decode_image
from stage1_detect.sources import ImageSource
from stage1_detect.spec import ExtractorSpec
from stage1_detect.stamps import UNREADABLE, PictureStamp, read_stamped
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
    sources: tuple[ImageSource | None, ...]
    """For each image of the block its file; None where an earlier run planned it and this one does not name it."""
    spec: ExtractorSpec
    batch_size: int
    torch_threads: int
    """Threads of one operation; 0 leaves torch's own number."""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """Pictures that are not to be touched, with the reason: those that killed their worker."""


@dataclass(frozen=True)
class BlockResult:
    """What a finished task reports."""

    receipt: Receipt
    num_short: int
    """Pictures with fewer regions than `min_regions`: the detector proposed no more."""
    stamps: Mapping[str, PictureStamp]
    """What the pictures' files were, by image_id."""


@dataclass(frozen=True, eq=False)
class _Picture:
    """A picture of the block, decoded or not to be decoded."""

    image_id: str
    image: DecodedImage | Problem
    stamp: PictureStamp

    @property
    def num_bytes(self) -> int:
        """Bytes of the pixels."""
        return 0 if isinstance(self.image, Problem) else self.image.pixels.nbytes


def run_block(task: BlockTask, on_images: Callable[[int], object] | None = None) -> BlockResult:
    """Extract and write one block. `on_images` hears of every few pictures that are done.

    Errors: whatever the network or the disk says, `MemoryError` where memory ends; unreadable pictures are no error,
    the receipt has them.
    """
    pictures = decode_ahead(
        len(task.sources),
        lambda place: _decode(task, place),
        num_threads=_DECODE_THREADS,
        max_items=task.batch_size + _DECODE_THREADS,
        max_bytes=_HELD_BYTES,
    )
    return _extract_and_write(task, pictures, on_images)


def run_block_singly(task: BlockTask, first: str | None, on_begin: Callable[[str], object]) -> BlockResult:
    """`run_block` with nothing ahead and nothing beside: `on_begin` hears of each picture before it is touched.

    The same bytes come out. `first` is the picture to begin with.
    """
    places = sorted(range(len(task.sources)), key=lambda place: task.block.image_ids[place] != first)

    def pictures() -> Iterator[_Picture]:
        for place in places:
            on_begin(task.block.image_ids[place])
            yield _decode(task, place)

    return _extract_and_write(replace(task, batch_size=1), pictures(), None)


def _extract_and_write(
    task: BlockTask, pictures: Iterable[_Picture], on_images: Callable[[int], object] | None
) -> BlockResult:
    if task.torch_threads:
        torch.set_num_threads(task.torch_threads)
    extractor = build_extractor(task.spec, str(task.metadata.detector["fingerprint"]))
    items: dict[str, ImageRecord | Problem] = {}
    stamps: dict[str, PictureStamp] = {}
    for group in _groups(pictures, extractor, task.batch_size):
        items |= {item.image_id: item for item in _extract(group, extractor)}
        stamps |= {picture.image_id: picture.stamp for picture in group}
        if on_images is not None:
            on_images(len(group))
    in_order = [items[image_id] for image_id in task.block.image_ids]
    num_short = sum(isinstance(i, ImageRecord) and len(i.boxes) < task.metadata.min_regions for i in in_order)
    receipt = write_block(task.store, task.metadata, task.block, in_order)
    return BlockResult(receipt, num_short, {image_id: stamps[image_id] for image_id in task.block.image_ids})


def _extract(group: list[_Picture], extractor: Extractor) -> Iterator[ImageRecord | Problem]:
    """What the store gets of pictures that share a batch, or of one that could not be decoded."""
    images = [picture.image for picture in group if isinstance(picture.image, DecodedImage)]
    if not images:
        yield from (picture.image for picture in group if isinstance(picture.image, Problem))
        return
    try:
        records = extractor.extract([image.pixels for image in images], [item.image_id for item in group])
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        raise
    for record, image in zip(records, images, strict=True):
        yield replace(record, notes=image.notes)


def _groups(pictures: Iterable[_Picture], extractor: Extractor, batch_size: int) -> Iterator[list[_Picture]]:
    """Pictures that may share a batch, and problems alone as they come; the same groups in every run."""
    waiting: dict[tuple[int, int], list[_Picture]] = {}
    held_bytes = 0
    for picture in pictures:
        if isinstance(picture.image, Problem):
            yield [picture]
            continue
        height, width = picture.image.pixels.shape[:2]
        size = extractor.network_size(height, width)
        group = waiting.setdefault(size, [])
        group.append(picture)
        held_bytes += picture.num_bytes
        if held_bytes > _HELD_BYTES and len(group) < batch_size:
            size = max(waiting, key=lambda key: sum(held.num_bytes for held in waiting[key]))
            group = waiting[size]
        if len(group) >= batch_size or held_bytes > _HELD_BYTES:
            held_bytes -= sum(held.num_bytes for held in group)
            yield waiting.pop(size)
    yield from waiting.values()


def _decode(task: BlockTask, place: int) -> _Picture:
    image_id, source = task.block.image_ids[place], task.sources[place]
    reason: str | None
    if source is None:
        reason = "planned by an earlier run of the job, not among the pictures of this one"
        return _Picture(image_id, Problem(image_id, "", reason), UNREADABLE)
    read = UNREADABLE
    try:
        content, read = read_stamped(source)
        reason = task.quarantined.get(image_id)
        if reason is None:
            return _Picture(image_id, decode_image(content, source.name), read)
    except ImageReadError as error:
        reason = str(error).removeprefix(f"{source.name}: ")
    return _Picture(image_id, Problem(image_id, source.name, reason), read)
