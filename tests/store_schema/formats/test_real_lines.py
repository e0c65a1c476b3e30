"""The seven published lines of airsplay/py-bottom-up-attention, through every format and back, bit for bit."""

import base64
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from store_schema.formats.exporting import export_regions
from store_schema.formats.registry import format_named
from store_schema.reader import RegionStore
from tests.store_schema.formats.imports import TRUSTED, imported

SHARED = Path(__file__).resolve().parents[3] / "../shared/data"
LINES = SHARED / "butd_features" / "train2014_obj36.tsv"
FORMATS = ["caffe-tsv", "lxmert-tsv", "butd-hdf5", "milvlg-npz", "cocobu", "mmf-npy"]

pytestmark = pytest.mark.skipif(not LINES.exists(), reason="the shared features are not on this machine")


def published() -> dict[str, dict[str, NDArray[Any]]]:
    """The lines as SOURCE.txt describes them, decoded here."""
    pictures = {}
    for line in LINES.read_text().splitlines():
        fields = line.split("\t")
        kinds = {3: "<i8", 4: "<f4", 5: "<i8", 6: "<f4", 8: "<f4", 9: "<f4"}
        names = {
            3: "object_ids",
            4: "object_scores",
            5: "attribute_ids",
            6: "attribute_scores",
            8: "boxes",
            9: "features",
        }
        arrays = {names[at]: np.frombuffer(base64.b64decode(fields[at]), kind) for at, kind in kinds.items()}
        arrays["boxes"], arrays["features"] = (
            arrays["boxes"].reshape(36, 4),
            arrays["features"].reshape(36, 2048),
        )
        arrays["size"] = np.array([int(fields[2]), int(fields[1])])
        pictures[fields[0]] = arrays
    return pictures


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    return imported(LINES, tmp_path_factory.mktemp("real") / "store")


def assert_equal(store: RegionStore, carries: frozenset[str]) -> None:
    expected = published()
    assert len(store) == len(expected) == 7
    for image_id, arrays in expected.items():
        record = store.image(image_id)
        assert [record.width, record.height] == arrays["size"].tolist()
        names = ["boxes", "features"]
        names += [
            f"{kind}_{what}"
            for kind in ("object", "attribute")
            if f"{kind}s" in carries
            for what in ("ids", "scores")
        ]
        for name in names:
            found = getattr(record, name)
            assert found.astype(arrays[name].dtype).tobytes() == arrays[name].tobytes(), (image_id, name)


def test_the_import_is_the_file(store: RegionStore) -> None:
    assert_equal(store, frozenset({"objects", "attributes"}))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_back(name: str, store: RegionStore, tmp_path: Path) -> None:
    """Through files alone: identifiers and, where a format has none, sizes come from an exported COCO JSON."""
    chosen = format_named(name)
    export_regions(store, tmp_path / "pictures.json", format_named("coco-json"))
    export_regions(store, tmp_path / "out", chosen)
    back = imported(tmp_path / "out", tmp_path / "store", read=TRUSTED, tables=tmp_path / "pictures.json")
    assert_equal(back, chosen.carries)


@pytest.mark.slow
def test_a_chain_through_all_formats(store: RegionStore, tmp_path: Path) -> None:
    """Each format written from a store that came through the one before."""
    export_regions(store, tmp_path / "pictures.json", format_named("coco-json"))
    previous = store
    for number, name in enumerate([*FORMATS, FORMATS[0]]):
        chosen = format_named(name)
        out = tmp_path / f"{number}"
        export_regions(previous, out, chosen)
        previous = imported(out, tmp_path / f"{number}.zarr", read=TRUSTED, tables=tmp_path / "pictures.json")
        assert_equal(previous, frozenset())


def test_normalised_boxes_are_right_to_one_unit_in_the_last_place_of_the_width(
    store: RegionStore, tmp_path: Path
) -> None:
    export_regions(store, tmp_path / "val36.hdf5", format_named("butd-hdf5"))
    with h5py.File(tmp_path / "val36.hdf5") as file:
        rows = dict(zip(file["ids"][:].tolist(), file["spatial_features"][:], strict=True))
    for image_id, arrays in published().items():
        spatial = rows[int(image_id[-12:])]
        width, height = arrays["size"]
        sides = np.array([width, height, width, height], np.float64)
        unit = np.spacing(sides.astype(np.float32)).astype(np.float64)
        assert (np.abs(spatial[:, :4].astype(np.float64) * sides - arrays["boxes"]) <= unit).all()


def test_names_are_what_the_photographs_show(store: RegionStore) -> None:
    """Looked at: a red fire engine before a white building, a bed in a blue room, a carriage with a black horse."""
    frame = store.to_dataframe()
    labels = (
        (frame["attribute"].astype(str) + " " + frame["object"].astype(str))
        .groupby(frame["image_id"])
        .agg(set)
    )
    assert {"red truck", "white building", "black tire"} <= labels["COCO_train2014_000000387267"]
    assert {"wooden bed", "white pillow", "blue wall"} <= labels["COCO_train2014_000000084002"]
    assert {"black horse", "tall trees"} <= labels["COCO_train2014_000000494628"]
