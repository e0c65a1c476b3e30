"""Pictures inside of archives: a tar (WebDataset's form), and a Parquet table with a column of bytes.

Listing reads headers or ids, no picture. A picture is then read by its place, so that any worker that sees the
archive can take any block of it. Nothing is unpacked to the disk.
"""

import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from stage1_detect.images import printable
from store_schema.errors import ImageReadError, UsageError

_ID_COLUMNS = ("image_id", "id", "key", "__key__")
_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class TarMember:
    """Where a picture lies in a tar."""

    name: str
    start: int
    num_bytes: int


@dataclass(frozen=True)
class ParquetCell:
    """Where a picture lies in a Parquet file."""

    column: str
    row_group: int
    row: int
    """In the row group."""

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"row {self.row} of row group {self.row_group}"


def is_archive(path: Path) -> bool:
    """Whether the file is read as an archive, by its ending."""
    return path.name.endswith((".tar", ".parquet", *_PACKED_TARS))


def list_archive(path: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, TarMember | ParquetCell]]:
    """Identifier and place of each picture, in the archive's order. Errors: `UsageError` naming file and remedy."""
    return _list_parquet(path) if path.suffix == ".parquet" else _list_tar(path, suffixes)


def read_member(path: Path, place: TarMember | ParquetCell) -> bytes:
    """The bytes of one picture. Errors: `ImageReadError` with path, place and reason."""
    name = f"{printable(path)}/{printable(place.name)}"
    try:
        content = _read_tar(path, place) if isinstance(place, TarMember) else _read_cell(path, place)
    except (OSError, pa.ArrowException, IndexError) as error:
        raise ImageReadError(f"{name}: cannot be read ({error})") from error
    if not content:
        raise ImageReadError(f"{name}: the picture is empty (0 bytes)")
    return content


def _list_tar(path: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, TarMember]]:
    """A picture is a file whose name has one ending, and that a picture's; its key is the name without it."""
    if path.suffix != ".tar":
        raise UsageError(
            f"{printable(path)}: a packed tar has to be unpacked from its start to reach any picture; unpack it to a "
            "plain .tar first (pictures hardly shrink by packing)"
        )
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                _refuse_member_outside(path, member.name)
                folder, _, base = member.name.rpartition("/")
                key, _, ending = base.partition(".")
                if not member.isreg() or not key or f".{ending.lower()}" not in suffixes:
                    continue
                image_id = os.fsencode(
                    f"{folder.removeprefix('./')}/{key}" if folder not in ("", ".") else key
                )
                place = TarMember(member.name, member.offset_data, member.size)
                yield image_id.decode("utf-8", "backslashreplace"), place
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"{printable(path)}: not a whole tar ({error}); copy it again") from error


def _refuse_member_outside(path: Path, name: str) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UsageError(
            f"{printable(path)}: the member {printable(name)!r} lies outside of the archive; pack it again with plain "
            "relative names"
        )


def _list_parquet(path: Path) -> Iterator[tuple[str, ParquetCell]]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            column, id_column = _picture_column(schema, path), _id_column(schema, path)
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, [id_column])[id_column].to_pylist()
                for row, image_id in enumerate(ids):
                    if image_id is None:
                        raise UsageError(
                            f"{printable(path)}: row {row} of row group {group} has no {id_column}"
                        )
                    yield str(image_id), ParquetCell(column, group, row)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{printable(path)}: not a readable Parquet file ({error})") from error


def _picture_column(schema: pa.Schema, path: Path) -> str:
    """The column of bytes: binary, or a struct with bytes in it as Hugging Face's data sets have."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    if len(found) > 1 and "image" in found:
        found = ["image"]
    if len(found) != 1:
        raise UsageError(
            f"{printable(path)}: one column with the bytes of pictures expected (binary, or a struct with 'bytes'), "
            f"{found or 'none'} found among {schema.names}; name it 'image'"
        )
    column: str = found[0]
    return column


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _id_column(schema: pa.Schema, path: Path) -> str:
    for name in _ID_COLUMNS:
        if name in schema.names:
            return name
    raise UsageError(
        f"{printable(path)}: a column with the pictures' ids expected, one of {', '.join(_ID_COLUMNS)}; it has "
        f"{schema.names}"
    )


def _read_tar(path: Path, member: TarMember) -> bytes:
    with path.open("rb") as file:
        content = os.pread(file.fileno(), member.num_bytes, member.start)
    if len(content) != member.num_bytes:
        raise OSError(f"the archive ends after {len(content)} of its {member.num_bytes} bytes")
    return content


_reading = threading.Lock()


def _read_cell(path: Path, cell: ParquetCell) -> bytes:
    with _reading:  # the threads of a block want the same row group
        value = _row_group(path, cell.column, cell.row_group)[cell.row].as_py()
    content = value["bytes"] if isinstance(value, dict) else value
    return content or b""


@lru_cache(maxsize=2)
def _row_group(path: Path, column: str, row_group: int) -> pa.ChunkedArray:
    """Read ahead as a whole: Parquet gives no cheaper access to a row. Two are kept, for blocks across a border."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(row_group, [column])[column]
