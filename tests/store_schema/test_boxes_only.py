"""Stores of boxes and labels alone: no array of features, and all else as ever."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from store_schema.copy_plan import CopyOptions
from store_schema.copying import copy_stores
from store_schema.errors import StoreMismatchError, UsageError
from store_schema.formats.exporting import export_regions
from store_schema.formats.registry import format_named
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import RegionArrays
from store_schema.verify import verify
from store_schema.writer import StoreWriter
from tests.store_schema.tiny import ADAPTIVE, BAD_ID, IDS, METADATA, record, same_record, write_store

BOXES = replace(METADATA, feature_dim=0)


@pytest.mark.parametrize("metadata", [BOXES, replace(ADAPTIVE, feature_dim=0), replace(BOXES, codec="zstd")])
def test_boxes_and_labels_come_back_and_no_array_of_features_is_there(
    tmp_path: Path, metadata: StoreMetadata
) -> None:
    path = write_store(tmp_path / "store", metadata)
    assert not (path / "features").exists()
    assert "features" not in zarr.open_group(path, mode="r")
    assert verify(path, full=True).ok
    for mmap in (True, False):
        store = RegionStore.open(path, mmap=mmap)
        for image_id in IDS:
            if image_id != BAD_ID:
                assert same_record(store.image(image_id), record(image_id, metadata))
        rows = store.all_rows
        batch = store.read_rows(rows, RegionArrays.empty(len(rows), metadata), threads=2)
        assert batch.features.shape == (len(IDS) - 1, metadata.max_regions, 0)
        assert [len(view) for view in store.feature_views(rows)] == store.num_regions(rows).tolist()
        store.will_need(rows)


def test_a_damaged_box_is_found(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", BOXES)
    file = path / "boxes/c.1.0.0"
    content = bytearray(file.read_bytes())
    content[5] ^= 4
    file.write_bytes(content)
    (finding,) = verify(path, full=True).findings
    assert (finding.array, finding.block) == ("boxes", 1)


def test_a_copy_keeps_what_is_asked(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", BOXES)
    copy_stores([path], tmp_path / "copy", CopyOptions(exclude=[IDS[0]]))
    assert verify(tmp_path / "copy", full=True).ok
    copy, store = RegionStore.open(tmp_path / "copy"), RegionStore.open(path)
    assert set(copy.image_ids) == set(store.image_ids) - {IDS[0]}
    np.testing.assert_array_equal(copy.image(IDS[1]).boxes, store.image(IDS[1]).boxes)


def test_it_is_neither_gone_on_with_features_nor_exported_to_a_file_of_features(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", BOXES)
    with pytest.raises(StoreMismatchError, match="feature_dim is 0 in the store and 6 now"):
        StoreWriter.open(path, METADATA)
    store = RegionStore.open(path)
    with pytest.raises(UsageError, match="holds boxes and labels alone, caffe-tsv has features"):
        export_regions(store, tmp_path / "out.tsv", format_named("caffe-tsv"))
    export_regions(store, tmp_path / "out.json", format_named("coco-json"))
    assert (tmp_path / "out.json").is_file()
