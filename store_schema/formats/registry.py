"""The formats by name, and which one a path looks like.

A new format is a file beside this one and a line in `_MODULES`.
"""

import difflib
import importlib
from pathlib import Path

from store_schema.errors import InputNotFoundError, UsageError
from store_schema.formats.protocol import Format

_MODULES = {
    "caffe-tsv": "caffe_tsv",
    "lxmert-tsv": "lxmert_tsv",
    "butd-hdf5": "butd_hdf5",
    "milvlg-npz": "milvlg_npz",
    "cocobu": "cocobu",
    "mmf-npy": "mmf_npy",
    "coco-json": "coco_json",
}
NAMES = tuple(_MODULES)
READABLE = tuple(name for name in NAMES if name != "coco-json")


def format_named(name: str) -> Format:
    """The format of this name. Errors: `UsageError` with the closest name."""
    if name not in _MODULES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown format {name!r}{hint} There are: {', '.join(NAMES)}")
    found = importlib.import_module(f"store_schema.formats.{_MODULES[name]}").FORMAT
    assert isinstance(found, Format)
    return found


def guess_format(path: Path) -> Format:
    """The format that a path looks like, from a few of its bytes and names.

    Errors: `InputNotFoundError`; `UsageError` that says what was seen.
    """
    if not path.exists():
        raise InputNotFoundError(f"{path}: there is no such file or folder")
    for name in READABLE:
        candidate = format_named(name)
        if candidate.recognises is not None and candidate.recognises(path):
            return candidate
    raise UsageError(
        f"{path}: {_what_it_is(path)}; the formats that can be read are {', '.join(READABLE)} (docs/formats.md): name "
        "one with --format"
    )


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return "an LMDB database, which is not read: export it to files with the program that wrote it"
        return "a folder without the .npz or .npy files of a known format"
    with path.open("rb") as file:
        start = file.read(6)
    if start[:2] == b"\x1f\x8b":
        return "a gzip file: unpack it first"
    if start[:4] == b"PK\x03\x04":
        return "a zip archive: unpack it first, or name the folder of .npz files"
    columns = _columns(path)
    if columns in (2, 3):
        return f"text of {columns} columns, as VinVL and Oscar write it, which is not read"
    return f"text of {columns} columns" if columns else "no file of a known format"


def _columns(path: Path) -> int:
    from store_schema.formats.tsv_lines import column_count

    return column_count(path)
