"""Stores of schema version 1 open forever, for us and for whoever has only the document."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord
from store_schema.upgrade import upgrade
from store_schema.verify import verify
from tests.store_schema import golden_store
from tests.store_schema.document_reader import DocumentReader, crc32c
from tests.store_schema.golden_store import FOLDER, IDS, PROBLEM, STORES, golden_item, labels
from tests.store_schema.tiny import contents

GOOD = [image_id for image_id in IDS if image_id != PROBLEM.image_id]


@pytest.fixture(params=sorted(STORES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def expected(image_id: str, metadata: StoreMetadata) -> ImageRecord:
    item = golden_item(image_id, metadata)
    assert isinstance(item, ImageRecord)
    return item


def test_a_store_of_version_1_opens_with_every_value(name: str) -> None:
    store, metadata = RegionStore.open(FOLDER / name), STORES[name]
    assert store.metadata == metadata
    assert list(store.image_ids) == GOOD
    assert store.problems() == [PROBLEM]
    assert store.notes() == {"plain": ("exif_turned", "first_frame")}
    for image_id in GOOD:
        ours, golden = store.image(image_id), expected(image_id, metadata)
        assert (ours.width, ours.height, ours.notes) == (golden.width, golden.height, golden.notes)
        assert np.array_equal(ours.boxes, golden.boxes)
        assert np.array_equal(ours.features, golden.features)
        for kind in ("object", "attribute"):
            assert np.array_equal(getattr(ours, f"{kind}_ids"), getattr(golden, f"{kind}_ids"))
            scores = getattr(golden, f"{kind}_scores").astype(metadata.feature_dtype)
            assert np.array_equal(getattr(ours, f"{kind}_scores"), scores)
    assert verify(FOLDER / name, full=True).findings == []
    assert upgrade(FOLDER / name) == 1


def test_some_values_of_version_1_in_plain_numbers() -> None:
    """Should the formulas beside the stores ever be changed."""
    store = RegionStore.open(FOLDER / "fixed")
    batch = store.read(["a/\u00e4 b", "none"])
    assert batch.features[0].tolist() == [[300.5, 301.5, 302.5], [310.5, 311.5, 312.5]]
    assert batch.boxes[0].tolist() == [[0, 0.25, 10, 20.25], [1, 2.25, 11, 22.25]]
    assert (batch.num_regions.tolist(), batch.sizes.tolist()) == ([2, 0], [[103, 50], [101, 50]])
    assert store.features_fingerprint == "fbdbd561123b12ad26a93330d562dbbed0284cd879dd7d85d628b86bca508d17"
    assert store.fingerprint == "da6ced90fe223a935b63f36bf002241aad3e2dba776c9803a7f64d345fe0457f"


def test_todays_writer_gives_the_same_bytes(tmp_path: Path) -> None:
    """But for the attributes of arrays, which explain, and for another version of the compressor."""
    golden_store.write_golden(tmp_path)
    for name in STORES:
        ours, golden = contents(tmp_path / name), contents(FOLDER / name)
        assert ours.keys() == golden.keys()
        for file, data in golden.items():
            if file.endswith("/zarr.json"):
                assert without_attributes(ours[file]) == without_attributes(data)
            elif name != "zstd":
                assert ours[file] == data, file


def without_attributes(document: bytes) -> dict[str, object]:
    return {key: value for key, value in json.loads(document).items() if key != "attributes"}


def test_a_reader_from_the_document_alone_finds_every_value(name: str) -> None:
    reader, metadata = DocumentReader(FOLDER / name), STORES[name]
    assert reader.metadata == json.loads(json.dumps(metadata.to_json()))
    rows = reader.planned_ids()
    assert rows == {0: "plain", 1: "none", 2: "broken", 3: "a/\u00e4 b", 4: "l" * 40}
    assert reader.problems() == {2: ["broken", "pictures/broken.jpg", "cut short"]}
    assert reader.notes() == {"plain": ["exif_turned", "first_frame"]}
    assert [row for row in range(9) if reader.image(row) is not None] == [0, 1, 3, 4]
    for row, image_id in rows.items():
        if image_id == PROBLEM.image_id:
            continue
        found, golden = reader.image(row), expected(image_id, metadata)
        assert found is not None
        assert (found["image_id"], found["width"], found["height"]) == (image_id, golden.width, golden.height)
        assert np.array_equal(found["boxes"], golden.boxes)
        assert np.array_equal(found["features"], golden.features)
        for kind in ("object", "attribute"):
            assert np.array_equal(found[f"{kind}_id"], getattr(golden, f"{kind}_ids"))
            scores = getattr(golden, f"{kind}_scores").astype(metadata.feature_dtype)
            assert np.array_equal(found[f"{kind}_score"], scores)


def test_the_documents_checksum_is_the_published_one() -> None:
    """RFC 3720, B.4: 32 bytes of zeros, of ones, and ascending."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_tensorstore_finds_the_identifiers_and_every_array_of_numbers(name: str) -> None:
    def read(array: str) -> "np.ndarray":
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(FOLDER / name / array)}}
        return np.asarray(tensorstore.open(spec, read=True).result().read().result())

    metadata = STORES[name]
    ids = [row.tobytes().rstrip(b"\0").decode() for row in read("image_id_utf8")]
    assert ids == ["plain", "none", "", "a/\u00e4 b", "l" * 40]
    arrays = {array: read(array) for array in metadata.arrays() if array != "image_id"}
    assert len(arrays) == 10
    for row, image_id in enumerate(ids):
        num = int(arrays["num_regions"][row])
        if not image_id:
            assert num == 65535
            continue
        golden = expected(image_id, metadata)
        assert (arrays["width"][row], arrays["height"][row], num) == (
            golden.width,
            golden.height,
            len(golden.boxes),
        )
        assert np.array_equal(arrays["boxes"][row, :num], golden.boxes)
        assert np.array_equal(arrays["features"][row, :num], golden.features)
        assert not arrays["features"][row, num:].any()
        assert np.array_equal(arrays["object_id"][row, :num], labels(image_id, metadata))
        assert (arrays["attribute_id"][row, num:] == 65535).all()
