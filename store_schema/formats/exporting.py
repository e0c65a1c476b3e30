"""Write a store's regions in a form that others read; it appears whole or not at all.

Everything is written in a folder `<name>.butd-partial` beside its place and renamed when it is whole, companions
first. A killed export leaves that folder behind; the next one to the same place clears it and starts again.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from store_schema.errors import StoreLockedError, StoreMismatchError, UsageError
from store_schema.formats.known_pictures import KnownPictures, last_number, read_known_pictures
from store_schema.formats.protocol import Format, Header, Picture
from store_schema.formats.vocabulary import read_names
from store_schema.reader import RegionStore

PARTIAL = ".butd-partial"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What a user says about the files."""

    objects: str | None = None
    """A list of names that the files' numbers shall count; None: the store's own, written beside."""
    attributes: str | None = None
    tables: Path | None = None
    """Gives the numbers (coco_id) and paths of pictures."""


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export wrote."""

    pictures: int
    regions: int
    not_carried: tuple[str, ...]
    """What the store has and the format cannot say."""
    companions: tuple[str, ...]
    """Names of files written beside."""


def export_regions(
    store: RegionStore,
    out: Path,
    chosen: Format,
    config: ExportConfig | None = None,
    on_pictures: Callable[[int], object] = lambda number: None,
) -> ExportSummary:
    """Write every picture of a store, in the order of its rows.

    Errors: `UsageError` where `out` exists, the store is empty, or two pictures would get one number;
    `StoreMismatchError` where a list of names lacks one of the store's; `StoreLockedError`.
    """
    config = config or ExportConfig()
    if out.exists():
        raise UsageError(f"{out} exists; an export does not overwrite: remove it, or choose another place")
    if len(store) == 0:
        raise UsageError(f"{store.path} holds no picture that could be exported")
    if "features" in chosen.carries and not store.metadata.feature_dim:
        raise UsageError(
            f"{store.path} holds boxes and labels alone, {chosen.name} has features; export coco-json"
        )
    labels = [
        _Labels.of(store, kind, getattr(config, f"{kind}s"), chosen) for kind in ("object", "attribute")
    ]
    header = _header(store, chosen, config, labels)
    with _partial_folder(out) as folder:
        chosen.write(folder / out.name, _pictures(store, labels, on_pictures), header)
        for one in labels:
            if one.names and one.source is None:
                name = f"{one.kind}s_vocab.txt"
                place = folder / out.name / name if chosen.is_folder else folder / f"{out.stem}_{name}"
                place.write_text("\n".join(one.names) + "\n", encoding="utf-8")
        companions = sorted(item.name for item in folder.iterdir() if item.name != out.name)
        for name in (*companions, out.name):
            (folder / name).replace(out.with_name(name))
    return ExportSummary(
        pictures=header.num_images,
        regions=header.num_regions,
        not_carried=_not_carried(store, chosen),
        companions=tuple(companions),
    )


@dataclass(frozen=True, eq=False)
class _Labels:
    """One kind of label: the names in the file, and the file's number of each of the store's."""

    kind: str
    source: str | None
    names: tuple[str, ...]
    number_of: np.ndarray

    @classmethod
    def of(cls, store: RegionStore, kind: str, source: str | None, chosen: Format) -> "_Labels":
        own = store.metadata.object_names if kind == "object" else store.metadata.attribute_names
        if f"{kind}s" not in chosen.carries or not own:
            if source is not None:
                why = "the store has none" if not own else f"{chosen.name} cannot carry them"
                raise UsageError(f"--{kind}s {source} has no effect: {why}; leave it out")
            return cls(kind, source, (), np.zeros(0, np.int64))
        names = read_names(source, f"{kind}s") if source is not None else own
        place_of = {name: place for place, name in enumerate(names)}
        lacking = [name for name in own if name not in place_of]
        if lacking:
            raise StoreMismatchError(
                f"--{kind}s {source} lacks {len(lacking)} of the store's {len(own)} names, such as {lacking[0]!r}; "
                "labels go by name: take a list that has them, or leave the option out"
            )
        return cls(kind, source, names, np.array([place_of[name] for name in own], np.int64))


def _header(store: RegionStore, chosen: Format, config: ExportConfig, labels: Sequence[_Labels]) -> Header:
    nums = store.num_regions(store.all_rows)
    known = read_known_pictures(config.tables) if config.tables is not None else KnownPictures()
    numbers = _numbers(store, known, required="text ids" not in chosen.carries) if chosen.numbers else {}

    def file_name_of(image_id: str) -> str:
        found = known.find(image_id)
        return found.path if found is not None and found.path else f"{image_id}.jpg"

    return Header(
        num_images=len(nums),
        num_regions=int(nums.sum()),
        regions_per_image=int(nums[0]) if (nums == nums[0]).all() else None,
        feature_dim=store.metadata.feature_dim,
        object_names=labels[0].names,
        attribute_names=labels[1].names,
        number_of=numbers.__getitem__,
        file_name_of=file_name_of,
    )


def _numbers(store: RegionStore, known: KnownPictures, *, required: bool) -> dict[str, int]:
    """A whole number for each picture: its coco_id, or the number its identifier ends in.

    Where these are not distinct and none are required by the format, the pictures are counted from 1.
    """
    numbers: dict[str, int] = {}
    owner: dict[int, str] = {}
    for image_id in store.image_ids:
        found = known.find(image_id)
        number = found.number if found is not None and found.number is not None else last_number(image_id)
        other = owner.setdefault(number, image_id) if number is not None else None
        if number is None or other != image_id:
            if not required:
                return {image_id: place for place, image_id in enumerate(store.image_ids, start=1)}
            clash = "ends in no number" if number is None else f"and {other!r} both get the number {number}"
            raise UsageError(
                f"picture {image_id!r} {clash}, and this format knows pictures by numbers; give tables with distinct "
                "coco_id with --tables, or choose a format with text ids"
            )
        numbers[image_id] = number
    return numbers


def _pictures(
    store: RegionStore, labels: Sequence[_Labels], on_pictures: Callable[[int], object]
) -> Iterator[Picture]:
    for image_id in store.image_ids:
        record = store.image(image_id)
        values = {
            f"{one.kind}_{what}": getattr(record, f"{one.kind}_{what}")
            for one in labels
            if one.names
            for what in ("ids", "scores")
        }
        for one in labels:
            if one.names:
                values[f"{one.kind}_ids"] = one.number_of[values[f"{one.kind}_ids"]]
        yield Picture(
            image_id=image_id,
            width=record.width,
            height=record.height,
            boxes=record.boxes,
            features=record.features.astype(np.float32),
            **values,
        )
        on_pictures(1)


def _not_carried(store: RegionStore, chosen: Format) -> tuple[str, ...]:
    has = {
        "features": bool(store.metadata.feature_dim),
        "sizes": True,
        "objects": bool(store.metadata.object_names),
        "attributes": bool(store.metadata.attribute_names),
        "text ids": True,
    }
    return tuple(name for name, present in has.items() if present and name not in chosen.carries)


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, held by this process alone, gone at the end."""
    folder = out.with_name(f"{out.name}{PARTIAL}")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLockedError(f"another process is exporting to {out}; wait until it is done") from error
        for item in folder.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)
