"""Read a region store at the speed of memory: rows by `image_id`, features as views of mapped files.

    store = RegionStore.open("runs/demo/regions")            # or an address: https://..., s3://bucket/...
    batch = store.read(["scene:000001", "scene:000002"])     # features [2, K, D], boxes, num_regions, sizes

A row is the place of a picture in the store's arrays; rows of quarantined pictures and rows past a partial block
exist in the arrays, but never come out here. Opening reads the records of finished blocks and the files' sizes, no
identifier and no feature, so a worker that gets rows pays for neither. Import and opening need no torch and no dask,
and zarr only for a store that something else than our writer laid out.
"""

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from store_schema.block_files import BlockFiles, Verify
from store_schema.errors import StoreDamagedError, StoreError, StoreMismatchError, UsageError
from store_schema.fingerprint import fingerprint
from store_schema.image_index import ImageIds
from store_schema.layout import NOT_WRITTEN
from store_schema.ledger import BlockRecord, check_record, finished_blocks, has_ledger, read_record
from store_schema.metadata import StoreMetadata
from store_schema.records import ImageRecord, Problem, RegionArrays
from store_schema.remote import RemotePath, StorePath, store_path
from store_schema.root import check_array, read_metadata
from store_schema.zarr_arrays import ZarrArrays

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
RowsLike = NDArray[np.int64] | Sequence[int]


class RegionStore:
    """A store opened for reading: the blocks that were finished when it was opened.

    Rows come from `rows` or `all_rows`; `num_regions` and whatever gives features refuse others. It pickles as its
    path and options, and is opened anew where it arrives. Several threads may read from one object.
    """

    def __init__(
        self,
        path: StorePath,
        metadata: StoreMetadata,
        records: dict[int, BlockRecord] | None,
        source: BlockFiles | ZarrArrays,
        options: tuple[Verify, bool],
    ) -> None:
        """Use `RegionStore.open`."""
        self.path = path
        self.metadata = metadata
        self._records = records
        self._source = source
        self._options = options

    @classmethod
    def open(cls, path: str | StorePath, *, verify: Verify = "first", mmap: bool = True) -> Self:
        """Open a store, also one that is being written: its finished blocks.

        Args:
            path: a folder, or a URL (http, https, s3), of which nothing is mapped and every chunk is checked each time
                that it is fetched, unless `verify` is never.
            verify: when a chunk's CRC-32C is compared: the first time this object touches it, always, or never.
            mmap: map files (fast; needs a local disk), or read each chunk as it is asked for (network file systems,
                where a mapped file that vanishes kills the process).

        Errors: `StoreNotFoundError`; `StoreMismatchError` for another schema version; `StoreDamagedError` naming
        block, array and remedy where a file is missing or has another size than was committed (of a URL when the
        file is read); `StoreUnreachableError` naming address and cause where a server does not give what it has.
        """
        path = store_path(path)
        if verify not in get_args(Verify):
            raise UsageError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")
        metadata = read_metadata(path)
        if not has_ledger(path):
            logger.info("%s has no records of finished blocks: read through zarr, without their checks", path)
            return cls(path, metadata, None, ZarrArrays(path, metadata), (verify, mmap))
        records = {block: read_record(path, block) for block in finished_blocks(path)}
        for record in records.values():
            check_record(path, record, metadata)
        _check_arrays(path, metadata, records)
        files = BlockFiles(path, metadata, records, verify, mmap)
        if isinstance(path, Path):
            files.check_sizes()
        return cls(path, metadata, records, files, (verify, mmap))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, *self._options)

    def __len__(self) -> int:
        """Pictures that can be read."""
        return len(self.all_rows)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.image_ids

    @property
    def features_fingerprint(self) -> str:
        """What a model that was trained on these features asks of another store."""
        return self.metadata.features_fingerprint()

    @property
    def num_bytes(self) -> int:
        """Of the finished blocks' files; 0 for a store without our records."""
        records = (self._records or {}).values()
        return sum(stamp.num_bytes for record in records for stamp in record.receipt.files.values())

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the content: metadata and the digests of all finished blocks' files, in 64 hexadecimal digits."""
        if self._records is None:
            blocks: Any = [self._source.id_bytes(block, 0).tobytes().hex() for block in self._blocks]
            blocks += [
                self._source.plain(name, block).tobytes().hex() for name in _SMALL for block in self._blocks
            ]
        else:
            blocks = [
                [
                    index,
                    sorted(
                        (name, stamp.num_bytes, stamp.digest) for name, stamp in record.receipt.files.items()
                    ),
                ]
                for index, record in self._records.items()
            ]
        return fingerprint({"metadata": self.metadata.identity(), "blocks": blocks})

    @cached_property
    def all_rows(self) -> Rows:
        """[N] int64, the rows of all pictures that can be read, ascending."""
        if self._records is None:
            return np.flatnonzero(self._whole("num_regions") != NOT_WRITTEN).astype(np.int64)
        parts = [
            np.arange(record.start_row, record.start_row + record.num_rows)
            for record in self._records.values()
        ]
        rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return np.setdiff1d(rows, self.problem_rows(), assume_unique=True)

    @cached_property
    def image_ids(self) -> ImageIds:
        """The identifiers of all pictures that can be read, in row order, as a sequence of str."""
        width, size = self._source.id_width(), self.metadata.block_size
        rows = self.all_rows
        self._source.ask("image_id_utf8", self._blocks)
        matrix = np.zeros((len(rows), -(-width // 8) * 8), np.uint8)
        for block in self._blocks:
            start, end = np.searchsorted(rows, [block * size, (block + 1) * size])
            matrix[start:end, :width] = self._source.id_bytes(block, width)[rows[start:end] - block * size]
        return ImageIds(matrix)

    def rows(self, image_ids: Sequence[str]) -> Rows:
        """[len(image_ids)] int64, the row of each picture.

        Errors: `StoreMismatchError` naming the first pictures that are not in the store, and why where it is known.
        """
        places = self.image_ids.places(image_ids)
        if (places < 0).any():
            missing = [image_id for image_id, place in zip(image_ids, places, strict=True) if place < 0]
            reasons = {problem.image_id: problem.reason for problem in self.problems()}
            named = [f"{name!r}" + (f" ({reasons[name]})" if name in reasons else "") for name in missing[:3]]
            raise StoreMismatchError(
                f"{self.path} has no regions of {len(missing)} of the {len(image_ids)} pictures asked for: "
                f"{', '.join(named)}{' ...' if len(missing) > 3 else ''}; run 'butd detect' on them into this store"
            )
        return self.all_rows[places]

    def image_id_of(self, row: int) -> str:
        """The identifier of a row. Errors: `StoreError` where the row holds no picture."""
        place = int(np.searchsorted(self.all_rows, row))
        if place == len(self) or self.all_rows[place] != row:
            raise StoreError(f"{self.path}: row {row} holds no picture")
        return self.image_ids[place]

    def num_regions(self, rows: RowsLike) -> NDArray[np.int64]:
        """[len(rows)] int64, regions of each picture, 0 to K. Errors: `StoreError` where a row holds no picture."""
        places = np.asarray(rows, np.int64)
        whole = self._whole("num_regions")
        outside = (places < 0) | (places >= len(whole))
        nums = np.where(
            outside, NOT_WRITTEN, whole[np.where(outside, 0, places)] if len(whole) else NOT_WRITTEN
        )
        if (nums == NOT_WRITTEN).any():
            raise StoreError(f"{self.path}: row {int(places[nums == NOT_WRITTEN][0])} holds no picture")
        return nums.astype(np.int64)

    def sizes(self, rows: RowsLike) -> NDArray[np.float32]:
        """[len(rows), 2] float32, width and height of each picture in pixels."""
        return self._all_sizes[np.asarray(rows, np.int64)]

    def boxes(self, rows: RowsLike) -> NDArray[np.float32]:
        """[len(rows), K, 4] float32, xyxy in pixels, zero in padded slots."""
        places = np.asarray(rows, np.int64)
        out = np.empty((len(places), self.metadata.max_regions, 4), np.float32)
        self._gather("boxes", places, out)
        return out

    def feature_views(self, rows: RowsLike) -> list[NDArray[Any]]:
        """For each row its features [n, D], n its number of regions, read-only.

        Views of the mapped file, without a copy, for pictures that lie in one chunk: all of a store of fixed k. Where
        an adaptive store spreads a picture over several chunks, its array is a joined copy; `feature_pieces` gives
        these without a copy too.
        """
        views: list[NDArray[Any]] = []
        for pieces in self._pieces(rows):
            if len(pieces) == 1:
                views.append(pieces[0])
            else:
                views.append(np.concatenate(pieces) if pieces else self._no_features)
        return views

    def feature_pieces(self, rows: RowsLike) -> list[tuple[int, int, NDArray[Any]]]:
        """Every stored chunk of these rows: (place in `rows`, its first region, features [m, D] read-only).

        Copy each to `batch[place, first : first + m]`; what lies behind a picture's last region is not touched.
        """
        result = []
        for place, pieces in enumerate(self._pieces(rows)):
            first = 0
            for piece in pieces:
                result.append((place, first, piece))
                first += len(piece)
        return result

    def copy_features(self, rows: RowsLike, out: NDArray[Any]) -> None:
        """Copy the features of these rows to `out` [>= len(rows), >= K, D], K their largest number of regions.

        Copies in ascending order of the rows, as disks like it. What lies behind a picture's last region stays.
        """
        if not self.metadata.feature_dim:
            return
        places = np.asarray(rows, np.int64)
        if isinstance(self.path, RemotePath):
            self.will_need(places)  # all at once, instead of one after the other
        order = np.argsort(places, kind="stable").tolist()
        size, copy = self.metadata.block_size, self._source.copy
        numbers, nums = places.tolist(), self.num_regions(places).tolist()
        for index in order:
            row = numbers[index]
            copy(row // size, row % size, nums[index], out[index])

    def will_need(self, rows: RowsLike) -> None:
        """Begin to read these rows' features in the background, from the disk or from a remote store.

        A store in cold pages is read about eight times faster when a whole batch is asked for at once; where the
        pages are in memory already this costs about a microsecond a row.
        """
        if not self.metadata.feature_dim:
            return
        size = self.metadata.block_size
        places = np.asarray(rows, np.int64)
        self._source.ask("features", np.unique(places // size).tolist())
        for row in places.tolist():
            self._source.will_need(*divmod(row, size))

    def read_rows(self, rows: RowsLike, out: RegionArrays | None = None, *, threads: int = 1) -> RegionArrays:
        """Copy the regions of these rows into one padded batch.

        Args:
            out: buffers to fill, from `RegionArrays.empty`, for at least as many pictures; reusing them is several
                times faster than allocating. The result is then a view of their first rows.
            threads: that copy features side by side; pays where cores are free and a batch takes milliseconds.

        Errors: `StoreDamagedError` naming block, array and row where bytes have changed.
        """
        places = np.asarray(rows, np.int64)
        batch = (
            RegionArrays.empty(len(places), self.metadata) if out is None else self._fitting(out, len(places))
        )
        batch.num_regions[:] = self.num_regions(places)
        batch.sizes[:] = self.sizes(places)
        self._gather("boxes", places, batch.boxes)
        if threads == 1:
            self.copy_features(places, batch.features)
        else:
            starts = np.linspace(0, len(places), threads + 1).astype(int).tolist()
            parts = [slice(*ends) for ends in itertools.pairwise(starts)]
            copies = [
                self._threads.submit(self.copy_features, places[part], batch.features[part])
                for part in parts[1:]
            ]
            self.copy_features(places[parts[0]], batch.features[parts[0]])
            for copy in copies:
                copy.result()
        if out is not None:
            for index in np.flatnonzero(batch.num_regions < self.metadata.max_regions):
                batch.features[index, batch.num_regions[index] :] = 0
        return batch

    def read(
        self, image_ids: Sequence[str], out: RegionArrays | None = None, *, threads: int = 1
    ) -> RegionArrays:
        """`read_rows` of the pictures with these identifiers."""
        return self.read_rows(self.rows(image_ids), out, threads=threads)

    def image(self, image_id: str) -> ImageRecord:
        """Everything about one picture, as it was written, in arrays of its own."""
        return self.image_at(int(self.rows([image_id])[0]))

    def image_at(self, row: int) -> ImageRecord:
        """`image` of the picture in this row. Errors: `StoreError` where the row holds no picture."""
        image_id = self.image_id_of(row)
        block, place = divmod(row, self.metadata.block_size)
        num = int(self.num_regions([row])[0])
        labels = {
            f"{name}s": self._source.plain(name, block)[place, :num].copy()
            for name in ("object_id", "object_score", "attribute_id", "attribute_score")
            if name in self.metadata.arrays()
        }
        width, height = (int(size) for size in self.sizes([row])[0])
        return ImageRecord(
            image_id=image_id,
            width=width,
            height=height,
            boxes=self._source.plain("boxes", block)[place, :num].copy(),
            features=self.feature_views([row])[0].copy(),
            notes=self._records[block].receipt.notes.get(image_id, ()) if self._records else (),
            **labels,
        )

    def notes(self) -> dict[str, tuple[str, ...]]:
        """By image_id what was noted of a picture: words of `layout.IMAGE_NOTES`; pictures without are left out."""
        return {
            image_id: notes
            for record in (self._records or {}).values()
            for image_id, notes in record.receipt.notes.items()
        }

    def problems(self) -> list[Problem]:
        """The quarantined pictures, in row order, each as it came out last: it may have been tried again later.

        A store without our records has none.
        """
        records = (self._records or {}).values()
        last = {problem.image_id: problem for record in records for problem in record.receipt.problems}
        return [problem for problem in last.values() if problem.image_id not in self.image_ids]

    def problem_rows(self) -> Rows:
        """[len(problems())] int64, the rows that were planned for the quarantined pictures."""
        rows = [row for record in (self._records or {}).values() for row in record.problem_rows]
        return np.array(rows, np.int64)

    def to_dataframe(self) -> "pd.DataFrame":
        """One line a region: image_id, region, x1, y1, x2, y2, and labels with their scores where there are any.

        Labels stand as their number and, in a categorical column, their name.
        """
        import pandas as pd

        rows = self.all_rows
        num = self.num_regions(rows)
        region = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num, num)
        row_of_region = np.repeat(rows, num)
        columns: dict[str, Any] = {
            "image_id": np.repeat(np.array(list(self.image_ids), object), num),
            "region": region,
        }
        boxes = self._region_values("boxes", row_of_region, region)
        columns |= {name: boxes[:, place] for place, name in enumerate(("x1", "y1", "x2", "y2"))}
        for kind, names in (
            ("object", self.metadata.object_names),
            ("attribute", self.metadata.attribute_names),
        ):
            if names:
                ids = self._region_values(f"{kind}_id", row_of_region, region)
                columns[f"{kind}_id"] = ids
                columns[kind] = np.array(names, object)[ids]
                # pandas computes badly with float16 (its own printing overflows)
                scores = self._region_values(f"{kind}_score", row_of_region, region)
                columns[f"{kind}_score"] = scores.astype(np.float32)
        frame = pd.DataFrame(columns)
        return frame.astype({kind: "category" for kind in ("object", "attribute") if kind in columns})

    @property
    def _blocks(self) -> list[int]:
        if isinstance(self._source, ZarrArrays):
            return list(range(-(-self._source.num_rows() // self.metadata.block_size)))
        return list(self._records or {})

    def _whole(self, name: str) -> NDArray[Any]:
        """An array of one value an image, for all rows up to the last block, in memory."""
        if name not in self._image_values:
            size = self.metadata.block_size
            spec = self.metadata.arrays()[name]
            self._source.ask(name, self._blocks)
            values = np.full((max(self._blocks, default=-1) + 1) * size, spec.fill, spec.dtype)
            for block in self._blocks:
                part = self._source.plain(name, block, keep=False)
                values[block * size : block * size + len(part)] = part
            self._image_values[name] = values
        return self._image_values[name]

    @cached_property
    def _image_values(self) -> dict[str, NDArray[Any]]:
        return {}

    @cached_property
    def _all_sizes(self) -> NDArray[np.float32]:
        return np.stack([self._whole("width"), self._whole("height")], axis=1).astype(np.float32)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(thread_name_prefix="read")

    @cached_property
    def _no_features(self) -> NDArray[Any]:
        return np.zeros((0, self.metadata.feature_dim), self.metadata.feature_dtype)

    def _pieces(self, rows: RowsLike) -> list[list[NDArray[Any]]]:
        size = self.metadata.block_size
        if isinstance(self.path, RemotePath):
            self.will_need(rows)  # all at once, instead of one after the other
        places = np.asarray(rows, np.int64).tolist()
        pieces = self._source.pieces
        nums = self.num_regions(rows).tolist()
        if not self.metadata.feature_dim:
            return [[np.zeros((num, 0), self.metadata.feature_dtype)] for num in nums]
        return [pieces(row // size, row % size, num) for row, num in zip(places, nums, strict=True)]

    def _gather(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        size = self.metadata.block_size
        self._source.ask(name, set((rows // size).tolist()))
        plain = self._source.plain
        for place, row in enumerate(rows.tolist()):
            out[place] = plain(name, row // size)[row % size]

    def _region_values(self, name: str, rows: Rows, region: NDArray[np.int64]) -> NDArray[Any]:
        """One value for each region, rows ascending."""
        size = self.metadata.block_size
        spec = self.metadata.arrays()[name]
        values = np.empty((len(rows), *spec.row_shape[1:]), spec.dtype)
        self._source.ask(name, self._blocks)
        for block in self._blocks:
            here = slice(*np.searchsorted(rows, [block * size, (block + 1) * size]))
            values[here] = self._source.plain(name, block)[rows[here] - block * size, region[here]]
        return values

    def _fitting(self, out: RegionArrays, num_images: int) -> RegionArrays:
        """The first part of a caller's buffers, once it is sure that they hold what is asked."""
        metadata = self.metadata
        expected = (metadata.max_regions, metadata.feature_dim)
        if (
            out.features.shape[1:] != expected
            or out.boxes.shape[1:] != (metadata.max_regions, 4)
            or out.features.dtype != metadata.feature_dtype
            or min(map(len, (out.features, out.boxes, out.num_regions, out.sizes))) < num_images
        ):
            raise UsageError(
                f"out holds features of {out.features.dtype} {list(out.features.shape)}, needed are "
                f"{metadata.feature_dtype} and at least {[num_images, *expected]}; make it with RegionArrays.empty"
            )
        return out.first(num_images)


_SMALL = ("num_regions", "width", "height", "boxes")


def _reopen(path: StorePath, verify: Verify, mmap: bool) -> RegionStore:
    return RegionStore.open(path, verify=verify, mmap=mmap)


def _check_arrays(path: StorePath, metadata: StoreMetadata, records: dict[int, BlockRecord]) -> None:
    """Make sure that every array lies as the metadata asks and is long enough for the finished blocks."""
    end = max((record.start_row + record.num_rows for record in records.values()), default=0)
    for spec in metadata.arrays().values():
        num_rows = check_array(path, spec, metadata.codec)[0]
        if num_rows < end:
            raise StoreDamagedError(
                f"{path}: array {spec.name} has {num_rows} rows, finished blocks reach to {end}; run the job that "
                "wrote the store again: it corrects the length"
            )
