"""The zarr.json files of a store: the root group with the metadata, and one for each array.

Written as JSON directly, the same bytes whatever version of zarr is installed. The root's file is written last
when a store is made: a folder without it is no store yet.
"""

import json
from pathlib import Path
from typing import Any

from store_schema.durable import NewFile, replace_file, replace_files
from store_schema.errors import StoreDamagedError, StoreNotFoundError
from store_schema.layout import ROOT_ATTRIBUTE, ArraySpec, Codec
from store_schema.metadata import StoreMetadata
from store_schema.remote import RemotePath, StorePath

DOCUMENT = "zarr.json"


def read_metadata(store: StorePath) -> StoreMetadata:
    """What the store says about itself.

    Errors: `StoreNotFoundError` where there is no store, `StoreMismatchError` for another schema version,
    `StoreDamagedError` where the file is broken.
    """
    return StoreMetadata.from_json(read_root(store)["attributes"][ROOT_ATTRIBUTE], str(store / DOCUMENT))


def read_root(store: StorePath) -> dict[str, Any]:
    """The root group's document, of any schema version. Errors: as `read_metadata`, but for the version."""
    path = store / DOCUMENT
    if not path.is_file():
        raise StoreNotFoundError(_what_is_there(store))
    document = _read_document(path)
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or ROOT_ATTRIBUTE not in attributes:
        raise StoreNotFoundError(
            f"{store} is a Zarr {document.get('node_type', 'node')} but no region store: its attributes have no "
            f"{ROOT_ATTRIBUTE!r}"
        )
    return document


def write_root(store: Path, metadata: StoreMetadata) -> None:
    """Write the root group's file where it is not there yet: it never changes, but by an upgrade."""
    if not (store / DOCUMENT).is_file():
        attributes = {ROOT_ATTRIBUTE: metadata.to_json()}
        replace_root(store, {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def replace_root(store: Path, document: dict[str, Any]) -> None:
    """Put the root group's document in the place of what was there."""
    replace_file(store / DOCUMENT, _as_bytes(document), "the store's metadata")


def write_arrays(store: Path, metadata: StoreMetadata, num_rows: int, id_bytes: int) -> None:
    """Give every array its length; files that say so already are left alone."""
    documents = [
        NewFile(
            store / spec.name / DOCUMENT,
            _as_bytes(spec.zarr_json(num_rows, metadata.codec)),
            f"array {spec.name}, description",
        )
        for spec in metadata.arrays(id_bytes).values()
    ]
    replace_files(
        file for file in documents if not file.path.is_file() or file.path.read_bytes() != file.data
    )


def check_array(store: StorePath, spec: ArraySpec, codec: Codec) -> tuple[int, ...]:
    """The shape that an array's zarr.json gives, once it is sure that the array lies as the layout says.

    Attributes, and the length of the image and byte dimensions, are not compared.

    Errors: `StoreDamagedError` naming array, file and the first thing that differs.
    """
    path = store / spec.name / DOCUMENT
    document = _read_document(path)
    expected = spec.zarr_json(0, codec)
    for key in ("zarr_format", "node_type", "data_type", "chunk_grid", "chunk_key_encoding", "codecs"):
        if document.get(key) != expected[key]:
            raise StoreDamagedError(
                f"array {spec.name}: {path} has {key} {document.get(key)!r}, the store's metadata asks for "
                f"{expected[key]!r}; restore the file from a copy"
            )
    shape = document.get("shape")
    rest = list(spec.row_shape)
    if not (
        isinstance(shape, list)
        and len(shape) == 1 + len(rest)
        and all(type(size) is int and size >= 0 for size in shape)
        and (shape[1:] == rest or spec.name == "image_id_utf8")
    ):
        raise StoreDamagedError(
            f"array {spec.name}: {path} has shape {shape!r}, expected any number of images by "
            f"{list(spec.row_shape)}; restore the file from a copy"
        )
    return tuple(shape)


def num_blocks(store: StorePath) -> int:
    """Blocks that the arrays have room for, finished or not. Errors: `StoreDamagedError` as `check_array`."""
    path = store / "num_regions" / DOCUMENT
    document = _read_document(path)
    try:
        return -(-int(document["shape"][0]) // int(document["chunk_grid"]["configuration"]["chunk_shape"][0]))
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise StoreDamagedError(
            f"array num_regions: {path} has no shape and chunk shape; restore the file from a copy"
        ) from error


def _what_is_there(store: StorePath) -> str:
    advice = "make one with 'butd detect' or 'butd store import'"
    if isinstance(store, RemotePath):
        return (
            f"no region store at {store}: there is no {DOCUMENT}; is the address that of the store's folder?"
        )
    if not store.exists():
        return f"no region store at {store}: there is no such folder; {advice}"
    if not store.is_dir():
        return f"no region store at {store}: it is a file, a store is a folder; {advice}"
    return f"no region store at {store}: the folder has no {DOCUMENT}; {advice}"


def _read_document(path: StorePath) -> dict[str, Any]:
    remedy = "restore the file from a copy"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreDamagedError(f"array {path.parent.name}: {path} is missing; {remedy}") from error
    except (OSError, ValueError) as error:
        raise StoreDamagedError(f"{path} is not readable JSON ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise StoreDamagedError(f"{path} holds no JSON object; {remedy}")
    return document


def _as_bytes(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
