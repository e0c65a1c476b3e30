"""The annotation tables: what a data set looks like to every stage.

Six Parquet files in one folder, whatever the raw data set was. `image_id` is the key everywhere, a string,
never a position. Tables are checked when read, with file, row and rule in the message; what comes back can
be trusted. Paths are relative to a root that is given at run time (by default the tables' own folder).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from store_schema.errors import InputNotFoundError, TableError

ColumnType = Literal["string", "int", "float", "bool"]

TableName = Literal["images", "captions", "questions", "answers", "objects", "object_attributes"]


@dataclass(frozen=True, kw_only=True)
class TableSchema:
    """Columns of a table by name; `key` must be unique, `nullable` columns may be empty or left out."""

    columns: dict[str, ColumnType]
    key: str | None = None
    nullable: frozenset[str] = frozenset()


SCHEMAS: dict[TableName, TableSchema] = {
    "images": TableSchema(
        columns={
            "image_id": "string",
            "path": "string",
            "width": "int",
            "height": "int",
            "split": "string",
            "coco_id": "int",
        },
        key="image_id",
        nullable=frozenset({"coco_id"}),
    ),
    "captions": TableSchema(
        columns={"image_id": "string", "caption_id": "string", "text": "string", "split": "string"},
        key="caption_id",
    ),
    "questions": TableSchema(
        columns={
            "question_id": "string",
            "image_id": "string",
            "text": "string",
            "question_type": "string",
            "answer_type": "string",
            "split": "string",
            "pair_id": "string",
        },
        key="question_id",
        nullable=frozenset({"pair_id"}),
    ),
    "answers": TableSchema(columns={"question_id": "string", "answer": "string", "annotator": "int"}),
    "objects": TableSchema(
        columns={
            "image_id": "string",
            "object_id": "string",
            "x1": "float",
            "y1": "float",
            "x2": "float",
            "y2": "float",
            "object": "string",
            "crowd": "bool",
        },
        key="object_id",
    ),
    "object_attributes": TableSchema(columns={"object_id": "string", "attribute": "string"}),
}

_ARROW_TYPES = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def table_path(folder: str | Path, name: TableName) -> Path:
    """The file of a table in a data set's folder."""
    return Path(folder) / f"{name}.parquet"


def has_table(folder: str | Path, name: TableName) -> bool:
    """True where the data set has this table; only `images` is required of every data set."""
    return table_path(folder, name).is_file()


def write_table(folder: str | Path, name: TableName, rows: pd.DataFrame | Iterable[dict[str, Any]]) -> Path:
    """Check the rows and write them as one Parquet file, complete or not at all.

    Errors: `TableError` with row and rule where the rows break the schema.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    schema = SCHEMAS[name]
    path = table_path(folder, name)
    if frame.empty:
        frame = pd.DataFrame({column: [] for column in schema.columns})
    _check(frame, name, path)
    present = [column for column in schema.columns if column in frame.columns]
    arrow_schema = pa.schema([(column, _ARROW_TYPES[schema.columns[column]]) for column in present])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".parquet.partial")
    pq.write_table(
        pa.Table.from_pandas(frame[present], schema=arrow_schema, preserve_index=False),
        partial,
        compression="zstd",
    )
    partial.replace(path)
    return path


def read_table(folder: str | Path, name: TableName) -> pd.DataFrame:
    """Read one table and check every rule that concerns it alone.

    Errors: `InputNotFoundError` where there is no such file; `TableError` with row and rule.
    """
    path = table_path(folder, name)
    if not path.is_file():
        there = sorted(p.name for p in Path(folder).glob("*.parquet")) if Path(folder).is_dir() else None
        found = (
            "there is no such folder" if there is None else f"the folder holds {there or 'no Parquet files'}"
        )
        raise InputNotFoundError(
            f"table {name!r} expected at {path}, but {found}; make it with 'butd scenes' or 'butd prepare'"
        )
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({error}); write it again") from error
    _check(frame, name, path)
    return frame


def check_references(folder: str | Path, name: TableName, frame: pd.DataFrame, images: pd.DataFrame) -> None:
    """Check what a table says against `images`: known pictures, boxes inside them.

    Errors: `TableError` naming file, first row and rule.
    """
    path = table_path(folder, name)
    by_id = images.set_index("image_id")
    unknown = ~frame["image_id"].isin(by_id.index)
    _refuse(frame, unknown, path, "image_id must be one of the images table", "image_id")
    if name == "objects":
        width = frame["image_id"].map(by_id["width"])
        height = frame["image_id"].map(by_id["height"])
        outside = (frame["x2"] > width) | (frame["y2"] > height)
        _refuse(frame, outside, path, "the box must lie inside its picture", "x2")


def _check(frame: pd.DataFrame, name: TableName, path: Path) -> None:
    schema = SCHEMAS[name]
    missing = [c for c in schema.columns if c not in frame.columns and c not in schema.nullable]
    if missing:
        raise TableError(f"{path}: column {missing[0]!r} is missing; {name} needs {list(schema.columns)}")
    for column, kind in schema.columns.items():
        if column not in frame.columns:
            continue
        values = frame[column]
        if column not in schema.nullable:
            _refuse(frame, values.isna(), path, f"{column} must not be empty", column)
        if not _has_type(values, kind):
            raise TableError(f"{path}: column {column!r} must hold {kind}, it holds {values.dtype}")
        if column.endswith("_id") and kind == "string":
            _refuse(
                frame,
                values.map(lambda value: isinstance(value, str) and _is_unsafe_id(value)),
                path,
                f"{column} must be a plain name, without '..' steps, a leading '/' or a NUL",
                column,
            )
    if schema.key is not None:
        _refuse(frame, frame[schema.key].duplicated(), path, f"{schema.key} must be unique", schema.key)
    if name == "images":
        _refuse(
            frame,
            (frame["width"] < 1) | (frame["height"] < 1),
            path,
            "width and height must be positive",
            "width",
        )
        _refuse(frame, frame["path"].map(_leaves_root), path, "path must stay below the images' root", "path")
    if name == "objects":
        infinite = frame[["x1", "y1", "x2", "y2"]].abs().max(axis=1) == float("inf")
        _refuse(frame, infinite, path, "x1, y1, x2 and y2 must be finite", "x2")
        _refuse(frame, (frame["x1"] < 0) | (frame["y1"] < 0), path, "x1 and y1 must be at least 0", "x1")
        _refuse(
            frame,
            ~((frame["x2"] > frame["x1"]) & (frame["y2"] > frame["y1"])),
            path,
            "x2 > x1 and y2 > y1 must hold",
            "x2",
        )


def _has_type(values: pd.Series, kind: ColumnType) -> bool:
    present = values.dropna()
    if present.empty:
        return True
    match kind:
        case "string":
            return bool(present.map(lambda value: isinstance(value, str)).all())
        case "int":
            if pd.api.types.is_integer_dtype(present):
                return True
            # a column with empty cells comes as float, or as whole Python numbers
            present = pd.to_numeric(present, errors="coerce")
            return bool((present == present.round()).all())
        case "float":
            return pd.api.types.is_numeric_dtype(present)
        case "bool":
            return pd.api.types.is_bool_dtype(present)


def _is_unsafe_id(value: str) -> bool:
    return value.startswith("/") or "\0" in value or ".." in value.split("/")


def _leaves_root(value: str) -> bool:
    path = PurePosixPath(value)
    return path.is_absolute() or ".." in path.parts


def _refuse(frame: pd.DataFrame, bad: pd.Series, path: Path, rule: str, column: str) -> None:
    if bad.any():
        row = int(bad.to_numpy().argmax())
        more = int(bad.sum()) - 1
        others = f" (and {more} more row{'s' if more > 1 else ''})" if more else ""
        value = frame[column].iloc[row]
        value = value.item() if hasattr(value, "item") else value
        raise TableError(f"{path}: row {row}: {rule}; {column} is {value!r}{others}")
