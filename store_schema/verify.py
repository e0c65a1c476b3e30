"""Say what is in a store and whether it is whole; change nothing.

The quick check reads descriptions, records, sizes and the indexes of shards. The full check reads every byte:
checksums, then what the values may be (finite features, boxes inside the picture, labels among the names, each id
once). Files are read, not mapped, so that a bad disk gives a finding and not a dead process.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from store_schema.block_files import BlockFiles
from store_schema.errors import StoreDamagedError, StoreMismatchError
from store_schema.layout import NOT_WRITTEN
from store_schema.ledger import (
    BlockRecord,
    check_record,
    finished_blocks,
    has_ledger,
    read_plan,
    read_record,
)
from store_schema.metadata import StoreMetadata
from store_schema.records import Block, FileStamp
from store_schema.remote import StorePath, file_bytes, file_size, store_path
from store_schema.root import check_array, read_metadata
from store_schema.shards import Bytes, checksum_holds, decode_index, file_stamp, index_bytes
from store_schema.zarr_arrays import ZarrArrays

Track = Callable[[list[int]], Iterable[int]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    what: str
    block: int | None = None
    """None: a file of the whole store. Else the block must be written anew."""
    array: str | None = None
    image_id: str | None = None
    """The one picture that is hit, where it is not the whole block."""
    image_ids: tuple[str, ...] = field(default=(), compare=False)
    """The block's pictures, where all are hit; empty where they are not known."""

    def __str__(self) -> str:
        if self.what.startswith(("block ", "array ")):  # the words of an error, which names its place itself
            return f"{self.what}{self._pictures}"
        place = [
            *([] if self.block is None else [f"block {self.block}"]),
            *([] if self.array is None else [self.array]),
            *([] if self.image_id is None else [f"picture {self.image_id!r}"]),
        ]
        return f"{', '.join(place)}: {self.what}{self._pictures}" if place else self.what

    @property
    def _pictures(self) -> str:
        return f" (pictures {self.image_ids[0]!r} to {self.image_ids[-1]!r})" if self.image_ids else ""


@dataclass(kw_only=True)
class VerifyReport:
    """What a store holds and what is wrong with it."""

    path: StorePath
    full: bool
    findings: list[Finding] = field(default_factory=list)
    num_blocks: int = 0
    """Blocks whose record can be read, damaged or not."""
    num_images: int = 0
    num_regions: int = 0
    num_problems: int = 0
    """Quarantined pictures."""
    num_unfinished: int = 0
    """Blocks that were planned and are not committed: running the job again writes them. Not a fault."""
    has_records: bool = True
    """False where another Zarr tool wrote the store: missing files cannot be told from empty ones."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. An unfinished store can be in order."""
        return not self.findings


def verify(path: str | StorePath, full: bool = False, track: Track = iter) -> VerifyReport:
    """Check a store; also one that is being written, for the blocks that are finished.

    Args:
        track: wraps the blocks that are gone through, to show progress.

    Errors: `StoreNotFoundError` and, for another schema version, `StoreMismatchError`. All else is a finding.
    """
    path = store_path(path)
    report = VerifyReport(path=path, full=full)
    try:
        metadata = read_metadata(path)
    except StoreDamagedError as error:
        report.findings.append(Finding(what=str(error)))
        return report
    report.has_records = has_ledger(path)
    findings = (
        _verify_records(path, metadata, report, track)
        if report.has_records
        else _verify_foreign(path, metadata, report, track)
    )
    report.findings.extend(findings)
    return report


def _verify_records(
    path: StorePath, metadata: StoreMetadata, report: VerifyReport, track: Track
) -> Iterator[Finding]:
    finished = finished_blocks(path)
    planned, plan_findings = _planned_blocks(path, metadata)
    yield from [*_verify_arrays(path, metadata, finished, planned), *plan_findings]
    report.num_unfinished = len({block.index for block in planned} - set(finished))
    seen: set[str] = set()
    for index in track(finished):
        block = planned[index] if index < len(planned) else Block(index, index * metadata.block_size, ())
        for finding in _verify_block(path, metadata, report, None if plan_findings else block, index, seen):
            yield finding if finding.image_id else replace(finding, image_ids=block.image_ids)


def _verify_block(
    path: StorePath,
    metadata: StoreMetadata,
    report: VerifyReport,
    planned: Block | None,
    index: int,
    seen: set[str],
) -> Iterator[Finding]:
    """One finished block. `planned` is None where the plan of blocks cannot be read."""
    try:
        record = read_record(path, index)
        check_record(path, record, metadata)
    except (StoreDamagedError, StoreMismatchError) as error:
        yield Finding(block=index, what=str(error))
        return
    report.num_blocks += 1
    report.num_images += record.receipt.num_images
    report.num_regions += record.receipt.num_regions
    report.num_problems += len(record.receipt.problems)
    if planned is not None and len(planned.image_ids) != record.num_rows:
        yield Finding(block=index, what="its record does not fit the plan of blocks")
    damage = list(_verify_files(path, metadata, record, report.full))
    yield from damage
    if report.full and not damage:
        source = BlockFiles(path, metadata, {index: record}, "never", mmap=False)
        yield from _verify_rows(source, record)
        yield from _verify_identifiers(source, record, planned)
        yield from _verify_values(source, metadata, index, seen)


def _verify_arrays(
    path: StorePath, metadata: StoreMetadata, finished: list[int], planned: list[Block]
) -> Iterator[Finding]:
    """Each array lies as the metadata says and is long enough for the finished blocks."""
    ends = [block.start_row + len(block.image_ids) for block in planned if block.index in set(finished)]
    for spec in metadata.arrays().values():
        try:
            num_rows = check_array(path, spec, metadata.codec)[0]
        except StoreDamagedError as error:
            yield Finding(array=spec.name, what=str(error))
            continue
        if num_rows < max(ends, default=0):
            what = f"it has {num_rows} rows, finished blocks reach to {max(ends)}"
            yield Finding(array=spec.name, what=what)


def _planned_blocks(path: StorePath, metadata: StoreMetadata) -> tuple[list[Block], list[Finding]]:
    try:
        return read_plan(path, metadata.block_size), []
    except StoreDamagedError as error:
        return [], [Finding(what=str(error))]


def _verify_files(
    path: StorePath, metadata: StoreMetadata, record: BlockRecord, full: bool
) -> Iterator[Finding]:
    """Sizes and the shard's index; with `full` every byte."""
    named = {name.split("/")[0] for name in record.receipt.files}
    for array in sorted(metadata.arrays().keys() - named):
        yield Finding(block=record.index, array=array, what="the record names no file of this array")
    for name, stamp in record.receipt.files.items():
        array = name.split("/")[0]
        try:
            if (size := file_size(path / name)) != stamp.num_bytes:
                yield Finding(
                    block=record.index,
                    array=array,
                    what=f"{name} has {size} bytes, {stamp.num_bytes} were written",
                )
            elif array == "features":
                yield from _verify_shard(path / name, metadata, record, full)
            elif full and not _is_committed(file_bytes(path / name), stamp, metadata, array):
                yield Finding(block=record.index, array=array, what=f"the bytes of {name} have changed")
        except FileNotFoundError:
            yield Finding(block=record.index, array=array, what=f"{name} is missing")
        except OSError as error:
            yield Finding(block=record.index, array=array, what=f"{name} cannot be read: {error.strerror}")


def _verify_shard(
    file: StorePath, metadata: StoreMetadata, record: BlockRecord, full: bool
) -> Iterator[Finding]:
    """The index; with `full` the whole file, and which pictures are hit where its bytes have changed."""
    spec = metadata.arrays()["features"]
    stamp = record.receipt.files[f"features/{file.name}"]
    start = 0 if full else max(0, stamp.num_bytes - index_bytes(spec))
    data = file_bytes(file, start, stamp.num_bytes - start)
    try:
        index = decode_index(data[-index_bytes(spec) :], stamp.num_bytes, spec, metadata.codec)
    except ValueError as error:
        yield Finding(block=record.index, array="features", what=f"{file.name}: {error}")
        return
    if not full:
        return
    hit = [
        place
        for place in range(record.num_rows)
        if not all(
            checksum_holds(data[start : start + length])
            for start, length in zip(
                index.offsets[place].tolist(), index.lengths[place].tolist(), strict=True
            )
            if length
        )
    ]
    for place in hit:
        yield Finding(
            block=record.index,
            array="features",
            image_id=_name_of(file.parent.parent, metadata, record, place),
            what=f"the bytes of row {record.start_row + place} have changed",
        )
    if not hit and file_stamp(data, spec, metadata.codec) != stamp:
        yield Finding(
            block=record.index,
            array="features",
            what=f"features/{file.name} is not the file that was committed",
        )


def _is_committed(data: Bytes, stamp: FileStamp, metadata: StoreMetadata, array: str) -> bool:
    """Whether a plain file is whole and the one that was committed."""
    return checksum_holds(data) and file_stamp(data, metadata.arrays()[array], metadata.codec) == stamp


def _name_of(path: StorePath, metadata: StoreMetadata, record: BlockRecord, place: int) -> str | None:
    """A picture's identifier for a message, None where the identifiers are damaged themselves."""
    source = BlockFiles(path, metadata, {record.index: record}, "first", mmap=False)
    try:
        return _decode_ids(source.id_bytes(record.index, source.id_width()))[place]
    except StoreDamagedError:
        return None


def _verify_values(
    source: BlockFiles | ZarrArrays, metadata: StoreMetadata, block: int, seen: set[str]
) -> Iterator[Finding]:
    """What the values of one block may be; its files are known to be whole."""
    ids = _decode_ids(source.id_bytes(block, source.id_width()))
    for place, num in enumerate(source.plain("num_regions", block).tolist()):
        image_id = ids[place]
        if num == NOT_WRITTEN:
            if image_id:
                yield Finding(
                    block=block, array="image_id_utf8", image_id=image_id, what="the row holds no picture"
                )
            continue
        if not image_id:
            yield Finding(
                block=block, array="image_id_utf8", what=f"place {place} of the block has no identifier"
            )
        elif image_id in seen:
            yield Finding(
                block=block, array="image_id_utf8", image_id=image_id, what="the store has it twice"
            )
        seen.add(image_id)
        if num > metadata.max_regions:
            what = f"{num} regions, at most {metadata.max_regions} fit"
            yield Finding(block=block, array="num_regions", image_id=image_id, what=what)
            continue
        for array, what in _wrong_values(source, metadata, block, place, num):
            yield Finding(block=block, array=array, image_id=image_id, what=what)


def _wrong_values(
    source: BlockFiles | ZarrArrays, metadata: StoreMetadata, block: int, place: int, num: int
) -> Iterator[tuple[str, str]]:
    """Array and rule, for each rule that one picture breaks."""
    width, height = (int(source.plain(name, block)[place]) for name in ("width", "height"))
    if width < 1 or height < 1:
        yield "width", f"the picture has a size of {width}x{height}"
    x1, y1, x2, y2 = source.plain("boxes", block)[place, :num].T
    inside = (x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)
    if not inside.all():
        region = int((~inside).argmax())
        box = [float(side[region]) for side in (x1, y1, x2, y2)]
        yield "boxes", f"region {region} has the box {box} in a picture of {width}x{height}"
    for kind, names in (("object", metadata.object_names), ("attribute", metadata.attribute_names)):
        if names:
            labels = source.plain(f"{kind}_id", block)[place, :num]
            if (labels >= len(names)).any():
                yield f"{kind}_id", f"label {int(labels.max())}, there are {len(names)} names"
            if not np.isfinite(source.plain(f"{kind}_score", block)[place, :num]).all():
                yield f"{kind}_score", "a score is NaN or infinite"
    if not metadata.feature_dim:
        return
    try:
        features = source.pieces(block, place, num)
    except StoreDamagedError as error:
        yield "features", str(error)
        return
    if not all(np.isfinite(piece).all() for piece in features):
        yield "features", "a feature is NaN or infinite"


def _verify_rows(source: BlockFiles, record: BlockRecord) -> Iterator[Finding]:
    """The rows that hold a picture must be those that the record promises."""
    first = record.start_row
    promised = set(range(first, first + record.num_rows)) - set(record.problem_rows)
    written = {
        first + place
        for place in np.flatnonzero(source.plain("num_regions", record.index) != NOT_WRITTEN).tolist()
    }
    if written != promised:
        rows = sorted(written ^ promised)
        yield Finding(
            block=record.index, array="num_regions", what=f"rows {rows[:5]} are not as the record says"
        )


def _verify_identifiers(source: BlockFiles, record: BlockRecord, planned: Block | None) -> Iterator[Finding]:
    """Both forms of the identifiers must agree, and be those that the plan gives to the block's rows."""
    block = record.index
    try:
        strings = source.strings(block)
    except StoreDamagedError as error:
        yield Finding(block=block, array="image_id", what=str(error))
        return
    utf8 = _decode_ids(source.id_bytes(block, source.id_width()))
    if strings != utf8:
        yield Finding(
            block=block, array="image_id", what="the identifiers differ from those in image_id_utf8"
        )
    for place, image_id in enumerate(() if planned is None else planned.image_ids):
        if utf8[place] not in ("", image_id):
            what = f"row {record.start_row + place} holds {utf8[place]!r}, the plan of blocks gives it to {image_id!r}"
            yield Finding(block=block, array="image_id_utf8", image_id=image_id, what=what)


def _verify_foreign(
    path: StorePath, metadata: StoreMetadata, report: VerifyReport, track: Track
) -> Iterator[Finding]:
    """A store without our records: the structure, and with `full` the values that zarr gives."""
    try:
        source = ZarrArrays(path, metadata)
        report.num_blocks = math.ceil(source.num_rows() / metadata.block_size)
        seen: set[str] = set()
        for block in track(list(range(report.num_blocks))):
            num = source.plain("num_regions", block)
            report.num_images += int((num != NOT_WRITTEN).sum())
            report.num_regions += int(num[num != NOT_WRITTEN].astype(np.int64).sum())
            if report.full:
                yield from _verify_values(source, metadata, block, seen)
    except StoreDamagedError as error:
        yield Finding(what=str(error))


def _decode_ids(utf8: Bytes) -> list[str]:
    """Identifiers of a block; bytes that are not UTF-8 show as replacement characters."""
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in utf8]
