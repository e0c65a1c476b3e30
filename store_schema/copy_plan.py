"""What a copy of stores will hold: which pictures, in which blocks, and which blocks are taken as they are.

Pictures keep their order: the first store's, then what the others add. A block of which every picture stays as it is
keeps its files, under another number; pictures of the other blocks in between are packed together anew. Pure
decisions: nothing here writes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreMismatchError, UsageError
from store_schema.layout import Codec
from store_schema.ledger import has_ledger, read_record
from store_schema.metadata import FeatureDtype, StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import Block, Problem
from store_schema.row_filter import matching_rows


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """What to take and how to lay it out; None keeps what the first store has."""

    where: str | None = None
    """A condition as in `row_filter`, on image_id, width, height, num_regions, quarantined."""
    image_ids: Sequence[str] | None = None
    """Only these pictures."""
    exclude: Sequence[str] = ()
    replace: bool = False
    """Where two stores have a picture, take the later one's instead of refusing."""
    feature_dtype: FeatureDtype | None = None
    codec: Codec | None = None
    block_size: int | None = None


class Source(NamedTuple):
    """Where a picture comes from."""

    store: int
    """Place among the stores that are copied."""
    row: int
    problem: Problem | None
    """Why it has no regions, where it was quarantined."""


@dataclass(frozen=True)
class CopiedBlock:
    """A block of the copy."""

    block: Block
    sources: tuple[Source, ...]
    taken: int | None
    """Number of the source's block whose files it shares; None where it is written anew."""


@dataclass(frozen=True)
class CopyPlan:
    """Everything that will be copied."""

    metadata: StoreMetadata
    blocks: list[CopiedBlock]
    label_maps: list[dict[str, NDArray[np.int64]]]
    """For each store, by "object" and "attribute", the new number of each label; absent where none changes."""


def plan_copy(stores: Sequence[RegionStore], options: CopyOptions) -> CopyPlan:
    """Decide what the copy holds.

    Errors: `StoreMismatchError` where the stores cannot be one store (both named), or share pictures (some named);
    `UsageError` where a condition is not understood, pictures asked for are in no store, or none is left.
    """
    metadata, label_maps = _merged_metadata(stores, options)
    pictures = _pictures(stores, options)
    if not pictures:
        raise UsageError(
            f"no picture of {stores[0].path} is left to copy: loosen --where, --ids or --exclude"
        )
    shared = [
        _can_share(store, metadata) and not maps for store, maps in zip(stores, label_maps, strict=True)
    ]
    return CopyPlan(metadata, _blocks(stores, pictures, shared, metadata.block_size), label_maps)


def _merged_metadata(
    stores: Sequence[RegionStore], options: CopyOptions
) -> tuple[StoreMetadata, list[dict[str, NDArray[np.int64]]]]:
    first = stores[0].metadata
    for store in stores[1:]:
        _refuse_other_detector(stores[0], store, options)
    names: dict[str, list[str]] = {}
    label_maps: list[dict[str, NDArray[np.int64]]] = [{} for _ in stores]
    for kind in ("object", "attribute"):
        tables = [getattr(store.metadata, f"{kind}_names") for store in stores]
        names[kind], maps = _joined_names(tables)
        for number, new_ids in enumerate(maps):
            if not np.array_equal(new_ids, np.arange(len(new_ids))):
                label_maps[number][kind] = new_ids
    return replace(
        first,
        object_names=tuple(names["object"]),
        attribute_names=tuple(names["attribute"]),
        feature_dtype=options.feature_dtype or first.feature_dtype,
        codec=options.codec or first.codec,
        block_size=first.block_size if options.block_size is None else options.block_size,
    ), label_maps


def _refuse_other_detector(first: RegionStore, other: RegionStore, options: CopyOptions) -> None:
    """Everything that explains a feature must be the same; labels are joined by name."""
    mine, theirs = first.metadata.identity(), other.metadata.identity()
    free = {"object_names", "attribute_names", "codec", "block_size"}
    if options.feature_dtype is not None:
        free.add("feature_dtype")
    for name in mine.keys() - free:
        if mine[name] != theirs[name]:
            hint = "; say --dtype" if name == "feature_dtype" else ""
            raise StoreMismatchError(
                f"{first.path} and {other.path} cannot become one store: {name} is {mine[name]} in the first and "
                f"{theirs[name]} in the second{hint}"
            )
    for kind in ("object_names", "attribute_names"):
        if bool(mine[kind]) != bool(theirs[kind]):
            lacking, having = (first, other) if theirs[kind] else (other, first)
            raise StoreMismatchError(
                f"{lacking.path} has no {kind}, {having.path} has {len(mine[kind] or theirs[kind])}: they cannot "
                "become one store"
            )


def _joined_names(tables: Sequence[Sequence[str]]) -> tuple[list[str], list[NDArray[np.int64]]]:
    """All names, the first table's first, and for each table the place of its names in them.

    A name that a table has twice (published lists do) is two labels: the second is joined with others' second.
    """
    places: dict[tuple[str, int], int] = {}
    maps = []
    for table in tables:
        seen: Counter[str] = Counter()
        new_ids = []
        for name in table:
            new_ids.append(places.setdefault((name, seen[name]), len(places)))
            seen[name] += 1
        maps.append(np.array(new_ids, np.int64))
    return [name for name, _ in places], maps


def _pictures(stores: Sequence[RegionStore], options: CopyOptions) -> dict[str, tuple[Source, Source]]:
    """By identifier, in the order of the copy: where the picture was first met, and where it is taken from.

    A picture with regions goes before a quarantined one.
    """
    pictures: dict[str, tuple[Source, Source]] = {}
    repeated = []
    known: set[str] = set()
    wanted = None if options.image_ids is None else set(options.image_ids)
    excluded = set(options.exclude)
    for number, store in enumerate(stores):
        for image_id, source in _kept(store, number, options.where):
            known.add(image_id)
            if image_id in excluded or (wanted is not None and image_id not in wanted):
                continue
            if image_id not in pictures:
                pictures[image_id] = source, source
                continue
            place, before = pictures[image_id]
            if source.problem is None and before.problem is None and not options.replace:
                repeated.append(image_id)
            if source.problem is None or before.problem is not None:
                pictures[image_id] = place, source
    if repeated:
        paths = " and ".join(str(store.path) for store in stores)
        raise StoreMismatchError(
            f"{len(repeated)} pictures are in more than one of {paths}, first {repeated[0]!r}; --replace takes the "
            "later store's, or leave them out with --exclude"
        )
    if missing := [
        image_id for image_id in wanted or () if image_id not in known and image_id not in excluded
    ]:
        reason = " or do not meet --where" if options.where else ""
        raise StoreMismatchError(
            f"{len(missing)} of the pictures asked for are in no store{reason}, first {min(missing)!r}"
        )
    return pictures


def _kept(store: RegionStore, number: int, where: str | None) -> Iterator[tuple[str, Source]]:
    """The pictures of one store that meet the condition, quarantined ones among them, in row order."""
    problems = store.problems()
    rows = np.concatenate([store.all_rows, store.problem_rows()])
    image_ids = [*store.image_ids, *(problem.image_id for problem in problems)]
    kept = np.ones(len(rows), bool)
    if where is not None:
        kept = matching_rows(where, _columns(store, image_ids), len(rows))
    first_problem = len(store.all_rows)
    for index in np.argsort(rows, kind="stable").tolist():
        if kept[index]:
            problem = problems[index - first_problem] if index >= first_problem else None
            yield image_ids[index], Source(number, int(rows[index]), problem)


def _columns(store: RegionStore, image_ids: list[str]) -> dict[str, Callable[[], NDArray[Any]]]:
    """What `--where` may name. Quarantined pictures, at the end, have neither size nor regions."""
    rows, num_problems = store.all_rows, len(image_ids) - len(store.all_rows)
    none = np.zeros(num_problems, np.int64)
    return {
        "image_id": lambda: np.array(image_ids, object),
        "width": lambda: np.append(store.sizes(rows)[:, 0].astype(np.int64), none),
        "height": lambda: np.append(store.sizes(rows)[:, 1].astype(np.int64), none),
        "num_regions": lambda: np.append(store.num_regions(rows), none),
        "quarantined": lambda: np.arange(len(image_ids)) >= len(rows),
    }


def _can_share(store: RegionStore, metadata: StoreMetadata) -> bool:
    """Whether the store's files are what the copy would write: then they become hard links."""
    mine = store.metadata
    same = all(
        getattr(mine, name) == getattr(metadata, name) for name in ("feature_dtype", "codec", "block_size")
    )
    return same and isinstance(store.path, Path) and has_ledger(store.path)


def _blocks(
    stores: Sequence[RegionStore],
    pictures: dict[str, tuple[Source, Source]],
    shared: Sequence[bool],
    block_size: int,
) -> list[CopiedBlock]:
    blocks: list[CopiedBlock] = []
    pending: list[tuple[str, Source]] = []

    def add(part: list[tuple[str, Source]], taken: int | None) -> None:
        ids = tuple(image_id for image_id, _ in part)
        block = Block(index=len(blocks), start_row=len(blocks) * block_size, image_ids=ids)
        blocks.append(CopiedBlock(block, tuple(source for _, source in part), taken))

    def write_pending() -> None:
        for start in range(0, len(pending), block_size):
            add(pending[start : start + block_size], None)
        pending.clear()

    for (number, source_block), part in _by_source_block(stores, pictures):
        untouched = [(image_id, place) for image_id, place, source in part if source == place]
        if shared[number] and len(untouched) == len(part) == _num_rows(stores[number], source_block):
            write_pending()
            add(untouched, source_block)
        else:
            pending += [(image_id, source) for image_id, _, source in part]
    write_pending()
    return blocks


def _num_rows(store: RegionStore, block: int) -> int:
    assert isinstance(store.path, Path)
    return read_record(store.path, block).num_rows


def _by_source_block(
    stores: Sequence[RegionStore], pictures: dict[str, tuple[Source, Source]]
) -> Iterator[tuple[tuple[int, int], list[tuple[str, Source, Source]]]]:
    """The pictures by the block in which they were first met, in order."""
    key, part = None, []
    for image_id, (place, source) in pictures.items():
        here = place.store, place.row // stores[place.store].metadata.block_size
        if key is not None and here != key:
            yield key, part
            part = []
        key = here
        part.append((image_id, place, source))
    if key is not None:
        yield key, part
