"""Write stores, or read those that another Python wrote: `python -m tests.store_schema.other_python write|read FOLDER`.

Reading prints JSON: by store what our reader and what zarr finds. Needs numpy, zarr, numcodecs and google-crc32c.
"""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from store_schema.reader import RegionStore
from store_schema.verify import verify
from tests.store_schema.tiny import ADAPTIVE, IDS, METADATA, write_store

STORES = {
    "fixed": METADATA,
    "adaptive": ADAPTIVE,
    "zstd": replace(ADAPTIVE, codec="zstd"),
    "float32": replace(METADATA, feature_dtype="float32"),
}


def write(folder: Path) -> None:
    for name, metadata in STORES.items():
        write_store(folder / name, metadata)


def digests(path: Path) -> dict[str, Any]:
    """By array, a digest of all its values as zarr reads them; and what our reader finds."""
    assert verify(path, full=True).findings == []
    store, group = RegionStore.open(path), zarr.open_group(str(path), mode="r")
    found: dict[str, Any] = {
        "store": store.fingerprint,
        "image_ids": list(store.image_ids),
        "features": digest(store.read_rows(store.all_rows).features),
        "labels": [np.asarray(store.image(image_id).object_ids).tolist() for image_id in store.image_ids],
    }
    for name in store.metadata.arrays():
        array: Any = group[name]
        values = array[:]
        found[f"zarr {name}"] = [str(value) for value in values] if name == "image_id" else digest(values)
    assert len(found["image_ids"]) == len(IDS) - 1
    return found


def digest(values: "np.ndarray[Any, Any]") -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


if __name__ == "__main__":
    action, folder = sys.argv[1], Path(sys.argv[2])
    if action == "write":
        write(folder)
    versions = {"python": sys.version.split()[0], "zarr": zarr.__version__, "numpy": np.__version__}
    print(json.dumps({"versions": versions, "stores": {name: digests(folder / name) for name in STORES}}))
