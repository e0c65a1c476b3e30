"""What we export, public code's own reading statements understand; and what comes back is what went out."""

import base64
import csv
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pycocotools.coco import COCO

from store_schema.errors import StoreLockedError, StoreMismatchError, UsageError
from store_schema.formats import exporting
from store_schema.formats.exporting import ExportConfig, ExportSummary, export_regions
from store_schema.formats.registry import format_named
from store_schema.reader import RegionStore
from tests.store_schema import tiny
from tests.store_schema.formats import foreign
from tests.store_schema.formats.foreign import ADAPTIVE, FIXED
from tests.store_schema.formats.imports import TRUSTED, assert_holds, imported

FORMATS = ["caffe-tsv", "lxmert-tsv", "butd-hdf5", "milvlg-npz", "cocobu", "mmf-npy"]


def exported(store: RegionStore, out: Path, name: str, **config: Any) -> ExportSummary:
    return export_regions(store, out, format_named(name), ExportConfig(**config))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    folder = tmp_path_factory.mktemp("fixed")
    return imported(foreign.lxmert_tsv(folder / "val.tsv", FIXED), folder / "store")


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> RegionStore:
    folder = tmp_path_factory.mktemp("adaptive")
    return imported(foreign.lxmert_tsv(folder / "val.tsv", ADAPTIVE), folder / "store")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pictures", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_there_and_back_every_bit_that_the_format_carries(
    name: str, pictures: list[foreign.Regions], fixed: RegionStore, adaptive: RegionStore, tmp_path: Path
) -> None:
    source = fixed if pictures is FIXED else adaptive
    summary = exported(source, tmp_path / "out", name)
    carries = format_named(name).carries
    assert set(summary.not_carried) == {"features", "sizes", "objects", "attributes", "text ids"} - carries
    sizes = foreign.coco_images(tmp_path / "instances.json", pictures)
    tables = {} if "sizes" in carries else {"tables": sizes}
    back = imported(tmp_path / "out", tmp_path / "store", read=TRUSTED, **tables)
    by = "name" if "text ids" in carries else "number"
    assert_holds(back, pictures, by=by, objects="objects" in carries, attributes="attributes" in carries)


def test_caffe_tsv_as_read_tsv_reads_it(adaptive: RegionStore, tmp_path: Path) -> None:
    exported(adaptive, tmp_path / "out.tsv", "caffe-tsv")
    csv.field_size_limit(sys.maxsize)
    names = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    with (tmp_path / "out.tsv").open(newline="") as file:
        items: list[dict[str, Any]] = list(csv.DictReader(file, delimiter="\t", fieldnames=names))
    for item, p in zip(items, ADAPTIVE, strict=True):
        for name in ("image_id", "image_h", "image_w", "num_boxes"):
            item[name] = int(item[name])
        for name in ("boxes", "features"):
            data = np.frombuffer(base64.b64decode(item[name]), dtype=np.float32)
            item[name] = data.reshape((item["num_boxes"], -1))
        assert (item["image_id"], item["image_w"], item["image_h"]) == (p.number, p.width, p.height)
        assert np.array_equal(item["boxes"], p.boxes)
        assert np.array_equal(item["features"], p.features)


def test_lxmert_tsv_as_load_obj_tsv_reads_it(fixed: RegionStore, tmp_path: Path) -> None:
    exported(fixed, tmp_path / "out.tsv", "lxmert-tsv")
    with (tmp_path / "out.tsv").open() as file:
        for line, p in zip(file, FIXED, strict=True):
            fields = line.rstrip("\n").split("\t")
            assert (fields[0], int(fields[1]), int(fields[2])) == (p.name, p.height, p.width)
            objects = np.frombuffer(base64.b64decode(fields[3]), np.int64)
            attributes = np.frombuffer(base64.b64decode(fields[6]), np.float32)
            assert np.array_equal(objects, p.objects)
            assert np.array_equal(attributes, p.attribute_scores)


def test_butd_hdf5_as_the_vqa_code_reads_it(fixed: RegionStore, tmp_path: Path) -> None:
    """6-d geometry but for the roundings of the converter, which adds two rounded numbers."""
    exported(fixed, tmp_path / "val36.hdf5", "butd-hdf5")
    index = pickle.loads((tmp_path / "val36_imgid2idx.pkl").read_bytes())
    assert index == {p.number: row for row, p in enumerate(FIXED)}
    with h5py.File(tmp_path / "val36.hdf5") as file:
        assert "pos_boxes" not in file
        for row, p in enumerate(FIXED):
            assert np.array_equal(file["image_features"][row], p.features)
            assert np.array_equal(file["image_bb"][row], p.boxes)
            np.testing.assert_array_max_ulp(file["spatial_features"][row], foreign.spatial(p), maxulp=2)


def test_adaptive_butd_hdf5_has_first_row_and_row_after_the_last(
    adaptive: RegionStore, tmp_path: Path
) -> None:
    exported(adaptive, tmp_path / "val.hdf5", "butd-hdf5")
    with h5py.File(tmp_path / "val.hdf5") as file:
        assert file["pos_boxes"][:].tolist() == [[0, 10], [10, 41], [41, 58], [58, 68]]
        assert np.array_equal(file["image_features"][10:41], ADAPTIVE[1].features)


def test_milvlg_npz_as_openvqa_and_its_own_code_read_it(fixed: RegionStore, tmp_path: Path) -> None:
    exported(fixed, tmp_path / "out", "milvlg-npz")
    for p in FIXED:
        npz = np.load(tmp_path / "out" / f"{p.name}.npz", allow_pickle=True)
        info = npz["info"].item()
        assert set(npz.files) == {"x", "bbox", "num_bbox", "image_h", "image_w", "info"}
        assert np.array_equal(npz["x"], p.features)
        assert (int(npz["num_bbox"]), int(npz["image_h"]), info["image_id"]) == (6, p.height, p.name)
        assert np.array_equal(info["objects_id"], p.objects)
        assert np.array_equal(info["attrs_conf"], p.attribute_scores)


def test_cocobu_as_its_dataloader_reads_it(adaptive: RegionStore, tmp_path: Path) -> None:
    exported(adaptive, tmp_path / "out", "cocobu")
    for p in ADAPTIVE:
        features = np.load(tmp_path / "out" / "cocobu_att" / f"{p.number}.npz")["feat"]
        assert np.array_equal(features, p.features)
        assert np.array_equal(np.load(tmp_path / "out" / "cocobu_box" / f"{p.number}.npy"), p.boxes)
        assert np.allclose(np.load(tmp_path / "out" / "cocobu_fc" / f"{p.number}.npy"), p.features.mean(0))


def test_mmf_npy_as_its_reader_reads_it(adaptive: RegionStore, tmp_path: Path) -> None:
    exported(adaptive, tmp_path / "out", "mmf-npy")
    for p in ADAPTIVE:
        info = np.load(tmp_path / "out" / f"{p.name}_info.npy", allow_pickle=True).item()
        assert np.array_equal(np.load(tmp_path / "out" / f"{p.name}.npy"), p.features)
        assert np.array_equal(info["bbox"], p.boxes)
        assert np.array_equal(info["cls_prob"].max(axis=1), p.object_scores)
        assert info["image_width"] == p.width


def test_coco_json_is_accepted_by_pycocotools(adaptive: RegionStore, tmp_path: Path) -> None:
    exported(adaptive, tmp_path / "regions.json", "coco-json")
    coco = COCO(tmp_path / "regions.json")
    results = coco.loadRes(str(tmp_path / "regions_detections.json"))
    assert sorted(coco.getImgIds()) == sorted(p.number for p in ADAPTIVE)
    for p in ADAPTIVE:
        (image,) = coco.loadImgs([p.number])
        assert (image["width"], image["height"], image["file_name"]) == (p.width, p.height, f"{p.name}.jpg")
        for found in (coco, results):
            annotations = found.loadAnns(found.getAnnIds(imgIds=[p.number]))
            xywh = np.array([annotation["bbox"] for annotation in annotations])
            assert np.array_equal((xywh[:, :2] + xywh[:, 2:]).astype(np.float32), p.boxes[:, 2:])
            names = [coco.loadCats([annotation["category_id"]])[0]["name"] for annotation in annotations]
            assert names == [adaptive.metadata.object_names[label] for label in p.objects]
            assert [annotation["score"] for annotation in annotations] == p.object_scores.tolist()


def test_coco_json_of_an_export_gives_an_import_its_ids_back(fixed: RegionStore, tmp_path: Path) -> None:
    exported(fixed, tmp_path / "regions.json", "coco-json")
    exported(fixed, tmp_path / "out.tsv", "caffe-tsv")
    back = imported(tmp_path / "out.tsv", tmp_path / "store", tables=tmp_path / "regions.json")
    assert_holds(back, FIXED, by="name")


def test_numbers_count_the_lines_of_a_named_list(fixed: RegionStore, tmp_path: Path) -> None:
    names = list(reversed(fixed.metadata.object_names))
    (tmp_path / "names.txt").write_text("\n".join(names))
    exported(fixed, tmp_path / "out.tsv", "lxmert-tsv", objects=str(tmp_path / "names.txt"))
    back = imported(tmp_path / "out.tsv", tmp_path / "store", objects=str(tmp_path / "names.txt"))
    frames = [
        store.to_dataframe()[["image_id", "object", "attribute"]].astype(str) for store in (fixed, back)
    ]
    assert frames[0].equals(frames[1])
    (tmp_path / "short.txt").write_text("\n".join(names[1:]))
    with pytest.raises(StoreMismatchError, match=r"lacks 1 of the store's 1600 names, such as 'yolk'|'buoy'"):
        exported(fixed, tmp_path / "other.tsv", "lxmert-tsv", objects=str(tmp_path / "short.txt"))
    assert not (tmp_path / "other.tsv").exists()


def test_the_stores_own_names_lie_beside(fixed: RegionStore, tmp_path: Path) -> None:
    exported(fixed, tmp_path / "out.tsv", "lxmert-tsv")
    lines = (tmp_path / "out_objects_vocab.txt").read_text().split("\n")[:-1]
    assert tuple(lines) == fixed.metadata.object_names


def test_ids_without_a_number_are_refused_where_numbers_are_needed(fixed_path: Path, tmp_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    with pytest.raises(UsageError, match="'ein Bär' ends in no number"):
        exported(store, tmp_path / "out.tsv", "caffe-tsv")
    exported(store, tmp_path / "regions.json", "coco-json")  # which counts them
    images = json.loads((tmp_path / "regions.json").read_text())["images"]
    assert [image["id"] for image in images] == list(range(1, len(store) + 1))
    assert [image["image_id"] for image in images] == list(store.image_ids)


def test_equal_numbers_are_refused_with_both_named(tmp_path: Path) -> None:
    store = RegionStore.open(tiny.write_store(tmp_path / "store", image_ids=["train:7", "val:7"]))
    with pytest.raises(UsageError, match=r"'val:7' and 'train:7' both get the number 7"):
        exported(store, tmp_path / "out", "cocobu")


@pytest.mark.parametrize("image_id", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_id_cannot_lead_out_of_the_folder(image_id: str, tmp_path: Path) -> None:
    store = RegionStore.open(tiny.write_store(tmp_path / "store", image_ids=[image_id]))
    for name in ("milvlg-npz", "mmf-npy"):
        with pytest.raises(UsageError, match="no plain name"):
            exported(store, tmp_path / "deep" / "out", name)
    assert [item for item in tmp_path.rglob("*outside*") if "store" not in item.parts] == []
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_failed_export_leaves_nothing_and_a_killed_ones_rest_is_cleared(
    fixed: RegionStore, tmp_path: Path
) -> None:
    class FullDiskError(OSError):
        pass

    def fail(number: int) -> None:
        raise FullDiskError

    with pytest.raises(FullDiskError):
        export_regions(fixed, tmp_path / "out", format_named("milvlg-npz"), on_pictures=fail)
    assert list(tmp_path.iterdir()) == []
    rest = tmp_path / f"out{exporting.PARTIAL}" / "out"
    rest.mkdir(parents=True)
    (rest / "half.npz").write_bytes(b"PK")
    exported(fixed, tmp_path / "out", "milvlg-npz")
    assert not (tmp_path / "out" / "half.npz").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_an_export_neither_overwrites_nor_meets_another(fixed: RegionStore, tmp_path: Path) -> None:
    (tmp_path / "there.tsv").write_text("mine")
    with pytest.raises(UsageError, match="does not overwrite"):
        exported(fixed, tmp_path / "there.tsv", "caffe-tsv")

    def again(number: int) -> None:
        exported(fixed, tmp_path / "out.tsv", "caffe-tsv")

    with pytest.raises(StoreLockedError, match="another process is exporting"):
        export_regions(fixed, tmp_path / "out.tsv", format_named("caffe-tsv"), on_pictures=again)
