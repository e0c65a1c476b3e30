"""Bring files of other people's features into a store: list, then read block by block.

The first walk lists what the files hold, so that the store's shape is known; the second decodes one block at a time
and commits it. A killed import, started again with the same command, lists again and decodes only what is missing.
What is malformed gets a row in the store's quarantine with file, line and reason; everything else goes in.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store_schema.errors import ConfigError, MalformedRecordError, UsageError
from store_schema.fingerprint import file_sha256, fingerprint
from store_schema.formats.conversion import Converter, Source
from store_schema.formats.known_pictures import KnownPictures, read_known_pictures
from store_schema.formats.protocol import (
    MAX_PICTURE_BYTES,
    BadEntry,
    Entry,
    Format,
    Picture,
    Reader,
    ReadOptions,
)
from store_schema.formats.registry import format_named, guess_format
from store_schema.formats.vocabulary import VISUAL_GENOME, read_names
from store_schema.layout import NOT_WRITTEN, Codec
from store_schema.metadata import BoxSource, FeatureDtype, StoreMetadata
from store_schema.records import Block, ImageRecord, Problem
from store_schema.writer import StoreWriter, write_block

logger = logging.getLogger(__name__)

_NAMED_PROBLEMS = 10


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What a user says about the files, and how the store lies on disk."""

    format: str | None = None
    """None: guessed from the first file."""
    detector: str | None = None
    """Which detector made the features, in words; stores of one detector may be merged and trained on together."""
    objects: str | None = "vg"
    """A file of names, "vg", or None: leave object labels out."""
    attributes: str | None = "vg"
    first_label: int = 0
    """The number that the first name has in the files; 1 where 0 stands for the background."""
    tables: Path | None = None
    """Gives picture sizes, and identifiers for files that know only a number."""
    read: ReadOptions = field(default_factory=ReadOptions)
    box_source: BoxSource = "proposal"
    feature_dtype: FeatureDtype = "float16"
    block_size: int = 256
    codec: Codec = "none"
    strict: bool = False
    """Stop at the first malformed record, before anything is written where it shows in the first walk."""

    def __post_init__(self) -> None:
        if self.first_label not in (0, 1):
            raise ConfigError(f"first_label must be 0 or 1, not {self.first_label}")


@dataclass(kw_only=True)
class ImportSummary:
    """What an import did."""

    format: str
    pictures: int
    """Of the files, malformed ones left out, as far as the first walk shows."""
    done_before: int = 0
    processed: int = 0
    regions: int = 0
    problems: list[Problem] = field(default_factory=list)
    """Malformed records of the blocks written in this run."""
    num_clipped: int = 0
    """Boxes that reached past their picture by at most a pixel and were cut back."""
    largest_error: float = 0.0
    """By which a feature was changed by the store's number type."""
    largest_value: float = 0.0


_Listed = dict[str, Source | BadEntry]


def import_regions(
    paths: Sequence[Path],
    store_path: Path,
    config: ImportConfig,
    on_start: Callable[[int, int], object] = lambda total, done: None,
    on_pictures: Callable[[int], object] = lambda number: None,
) -> ImportSummary:
    """Import files or folders of one format into a store, or go on with such an import.

    Args:
        on_start: hears once how many pictures there are and how many are done already.
        on_pictures: hears of every few pictures.

    Errors: `UsageError` where the format cannot be guessed or read; `StoreMismatchError` where the store was made
    otherwise; with `strict`, `MalformedRecordError` at the first malformed record.
    """
    if not paths:
        raise UsageError("no files were given to import")
    chosen = format_named(config.format) if config.format else guess_format(paths[0])
    if config.read.ids is not None and chosen.name != "butd-hdf5":
        raise UsageError(f"--ids {config.read.ids} has no effect with {chosen.name}; leave it out")
    readers = [open_reader(chosen, path, config.read) for path in paths]
    return import_readers(readers, paths, store_path, config, chosen.name, on_start, on_pictures)


def open_reader(chosen: Format, path: Path, options: ReadOptions) -> Reader:
    """Open a source in a format. Errors: `UsageError` where it is not there or the format is only written."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    if chosen.open is None:
        raise UsageError(f"{chosen.name} holds no features, so it can be exported and not imported")
    return chosen.open(path, options)


def import_readers(
    readers: Sequence[Reader],
    paths: Sequence[Path],
    store_path: Path,
    config: ImportConfig,
    format_name: str,
    on_start: Callable[[int, int], object] = lambda total, done: None,
    on_pictures: Callable[[int], object] = lambda number: None,
) -> ImportSummary:
    """`import_regions` from opened readers, also of a format that is not among ours."""
    known = read_known_pictures(config.tables) if config.tables is not None else None
    listed = _list(readers, known, config)
    if not any(isinstance(item, Source) for item in listed.values()):
        bad = next(iter(listed.values()), None)
        first = f"; the first: {bad.where}: {bad.reason}" if isinstance(bad, BadEntry) else ""
        raise UsageError(f"{paths[0]}: no picture can be read from it as {format_name}{first}")
    converter = Converter(
        _metadata(listed, paths, config, format_name),
        known,
        first_label=config.first_label,
        tables=config.tables,
        strict=config.strict,
    )
    summary = ImportSummary(
        format=format_name, pictures=sum(isinstance(item, Source) for item in listed.values())
    )
    with StoreWriter.open(store_path, converter.metadata) as writer:
        blocks = writer.plan(list(listed))
        to_do = sum(len(block.image_ids) for block in blocks)
        summary.done_before = len(listed) - to_do
        on_start(len(listed), summary.done_before)
        for block in blocks:
            items = [
                converter.item(image_id, listed.get(image_id)) for image_id in _counted(block, on_pictures)
            ]
            writer.commit(block, write_block(writer.path, writer.metadata, block, items))
            _tally(summary, items)
    summary.num_clipped = converter.num_clipped
    summary.largest_error, summary.largest_value = converter.largest_error, converter.largest_value
    return summary


def _list(readers: Sequence[Reader], known: KnownPictures | None, config: ImportConfig) -> _Listed:
    """Every picture by the identifier that it gets in the store, in the files' order; the first of equals counts."""
    listed: _Listed = {}
    num_unknown = 0
    for reader in readers:
        for entry in map(_of_bearable_size, reader.entries()):
            if isinstance(entry, BadEntry):
                _list_bad(listed, entry, known, config)
                continue
            found = known.find(entry.image_id) if known is not None else None
            num_unknown += known is not None and found is None
            image_id = (found and found.image_id) or entry.image_id
            earlier = listed.get(image_id)
            if isinstance(earlier, Source):
                reason = f"picture {image_id!r} came before, at {earlier.entry.where}; this one is left out"
                _list_bad(listed, BadEntry(None, entry.where, reason), known, config)
                continue
            if earlier is not None:  # it was malformed there and is whole here
                listed[_placeholder(earlier, listed)] = earlier
            listed[image_id] = Source(reader, entry)
    if num_unknown:
        logger.warning("%d pictures are not in %s and keep the ids of the files", num_unknown, config.tables)
    return listed


def _of_bearable_size(entry: Entry | BadEntry) -> Entry | BadEntry:
    if isinstance(entry, BadEntry):
        return entry
    num, num_bytes = entry.num_regions, entry.num_regions * entry.feature_dim * 4
    if num < NOT_WRITTEN and num_bytes <= MAX_PICTURE_BYTES:
        return entry
    return BadEntry(
        entry.image_id, entry.where, f"it has {num} regions of {num_bytes:,} bytes, too many to be true"
    )


def _list_bad(listed: _Listed, bad: BadEntry, known: KnownPictures | None, config: ImportConfig) -> None:
    if config.strict:
        raise MalformedRecordError(
            f"{bad.where}: {bad.reason}; without --strict it is left out and the rest goes on"
        )
    found = known.find(bad.image_id) if known is not None and bad.image_id is not None else None
    image_id = (found and found.image_id) or bad.image_id
    if image_id is None or image_id in listed:
        image_id = _placeholder(bad, listed)
    listed[image_id] = bad


def _placeholder(bad: BadEntry, listed: _Listed) -> str:
    """What stands for a record whose identifier cannot be told, or is another's; the same in every run."""
    return f"malformed:{len(listed)}:{Path(bad.where).name[-200:]}"


def _metadata(
    listed: _Listed, paths: Sequence[Path], config: ImportConfig, format_name: str
) -> StoreMetadata:
    """The store's shape from the first walk, its labels from the first picture that can be read."""
    sources = [item for item in listed.values() if isinstance(item, Source)]
    dims = Counter(source.entry.feature_dim for source in sources if source.entry.num_regions)
    if not dims:
        raise UsageError(
            f"{paths[0]}: none of its {len(sources)} pictures has a region; there is nothing to import"
        )
    nums = [source.entry.num_regions for source in sources]
    files = [_describe_file(path, format_name) for path in paths]
    name = config.detector or f"unknown, of {files[0]['file']}"
    identity: dict[str, Any] = {"imported_detector": name}
    if config.detector is None:
        identity["files"] = files
    example = _first_picture(sources)
    return StoreMetadata(
        feature_dim=dims.most_common(1)[0][0],
        max_regions=max(nums),
        min_regions=min(nums),
        box_source=config.box_source,
        detector={"name": name, "fingerprint": fingerprint(identity), "imported_from": files},
        selection={},
        object_names=_names("objects", config.objects, example.object_ids is not None),
        attribute_names=_names("attributes", config.attributes, example.attribute_ids is not None),
        feature_dtype=config.feature_dtype,
        block_size=config.block_size,
        codec=config.codec,
    )


def _names(kind: str, source: str | None, present: bool) -> tuple[str, ...]:
    if not present and source not in (None, VISUAL_GENOME):
        raise UsageError(
            f"--{kind} {source} has no effect: the files have no {kind}, or they lie in pickles (--trust-pickle)"
        )
    if not present or source is None:
        return ()
    names = read_names(source, kind)
    logger.info("%s are read as the %s names of %s", kind, f"{len(names):,}", source)
    return names


def _first_picture(sources: Sequence[Source]) -> Picture:
    for source in sources:
        with suppress(MalformedRecordError):
            if source.entry.num_regions:
                return source.reader.read(source.entry)
    entry = sources[0].entry
    raise UsageError(
        f"{entry.where}: none of the files' {len(sources)} pictures can be read; are they of this format?"
    )


def _describe_file(path: Path, format_name: str) -> dict[str, Any]:
    """A file by its content; a folder of many files by their names and sizes, since reading it takes long."""
    described = {"file": path.resolve().name, "format": format_name}
    if path.is_file():
        return {**described, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    files = sorted(
        (str(file.relative_to(path)), file.stat().st_size) for file in path.rglob("*") if file.is_file()
    )
    return {
        **described,
        "bytes": sum(size for _, size in files),
        "files": len(files),
        "sha256_of_names_and_sizes": fingerprint(files),
    }


def _counted(block: Block, on_pictures: Callable[[int], object]) -> Iterator[str]:
    for image_id in block.image_ids:
        yield image_id
        on_pictures(1)


def _tally(summary: ImportSummary, items: Sequence[ImageRecord | Problem]) -> None:
    for item in items:
        summary.processed += 1
        if isinstance(item, Problem):
            if len(summary.problems) < _NAMED_PROBLEMS:
                logger.warning("%s: left out: %s", item.path, item.reason)
            summary.problems.append(item)
        else:
            summary.regions += len(item.boxes)
