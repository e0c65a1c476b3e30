"""Files that public code writes come into a store bit for bit, whatever their form."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from store_schema.errors import InputNotFoundError, UsageError
from store_schema.formats.protocol import ReadOptions
from tests.store_schema.formats import foreign
from tests.store_schema.formats.foreign import ADAPTIVE, FIXED
from tests.store_schema.formats.imports import TRUSTED, assert_holds, imported


@pytest.mark.parametrize("pictures", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_caffe_tsv(pictures: list[foreign.Regions], tmp_path: Path) -> None:
    store = imported(foreign.caffe_tsv(tmp_path / "trainval", pictures), tmp_path / "store")
    assert_holds(store, pictures, by="number")
    assert store.metadata.adaptive == (pictures is ADAPTIVE)
    assert list(store.image_ids) == [str(p.number) for p in pictures]


def test_lxmert_tsv_with_labels_as_visual_genome_names(tmp_path: Path) -> None:
    store = imported(foreign.lxmert_tsv(tmp_path / "val.tsv", FIXED), tmp_path / "store")
    assert_holds(store, FIXED, by="name", objects=True, attributes=True)
    assert store.metadata.object_names[:2] == ("yolk", "goal")
    assert store.metadata.object_names[-1] == "buoy"
    assert store.metadata.attribute_names[:2] == ("gray", "multi colored")


def test_attributes_that_are_all_zero_are_none(tmp_path: Path) -> None:
    store = imported(foreign.lxmert_tsv(tmp_path / "val.tsv", FIXED, no_attributes=True), tmp_path / "store")
    assert_holds(store, FIXED, by="name", objects=True)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_butd_hdf5_with_sizes_recovered(protocol: int, tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED, protocol=protocol)
    assert_holds(imported(path, tmp_path / "store", read=TRUSTED), FIXED, by="number")


def test_adaptive_butd_hdf5(tmp_path: Path) -> None:
    path = foreign.adaptive_hdf5(tmp_path / "val.hdf5", ADAPTIVE)
    assert_holds(imported(path, tmp_path / "store", read=TRUSTED), ADAPTIVE, by="number")


@pytest.mark.parametrize("as_list", [False, True])
def test_butd_hdf5_takes_ids_from_a_json_instead_of_the_pickle(as_list: bool, tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    ids = [p.number for p in FIXED]
    content = ids if as_list else {str(number): row for row, number in enumerate(ids)}
    (tmp_path / "ids.json").write_text(str(content).replace("'", '"'))
    store = imported(path, tmp_path / "store", read=ReadOptions(ids=tmp_path / "ids.json"))
    assert_holds(store, FIXED, by="number")


def test_butd_hdf5_without_trust_says_which_pickle_and_what_else_would_do(tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    with pytest.raises(UsageError, match=r"val36_imgid2idx.pkl.*--trust-pickle.*--ids"):
        imported(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_butd_hdf5_without_fractions_needs_sizes(tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    with h5py.File(path, "a") as file:
        del file["spatial_features"]
    sizes = foreign.coco_images(tmp_path / "instances.json", FIXED)
    assert_holds(imported(path, tmp_path / "store", read=TRUSTED, tables=sizes), FIXED, by="number")
    without = imported(path, tmp_path / "other", read=TRUSTED)
    assert len(without) == 0
    assert "--tables" in without.problems()[0].reason


def test_zero_boxes_pad_the_end_of_a_fixed_hdf5(tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    with h5py.File(path, "a") as file:
        for name in ("image_features", "image_bb", "spatial_features"):
            file[name][1, 4:] = 0
    record = imported(path, tmp_path / "store", read=TRUSTED).image("9")
    assert np.array_equal(record.boxes, FIXED[1].boxes[:4])


@pytest.mark.parametrize("detectron2", [False, True])
def test_milvlg_npz_with_labels(detectron2: bool, tmp_path: Path) -> None:
    folder = foreign.milvlg_npz(tmp_path / "features", ADAPTIVE, detectron2=detectron2)
    store = imported(folder, tmp_path / "store", read=TRUSTED)
    assert_holds(store, ADAPTIVE, by="name", objects=True, attributes=True)


def test_milvlg_npz_without_trust_has_all_but_the_labels_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = imported(foreign.milvlg_npz(tmp_path / "features", FIXED), tmp_path / "store")
    assert_holds(store, FIXED, by="name")
    assert "--trust-pickle" in caplog.text


def test_transposed_features_of_openvqa_are_turned(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for p in FIXED:
        size = {"image_w": p.width, "image_h": p.height}
        np.savez(folder / p.name, x=np.ascontiguousarray(p.features.T), bbox=p.boxes, num_bbox=6, **size)  # type: ignore[arg-type]
    assert_holds(imported(folder, tmp_path / "store"), FIXED, by="name")


@pytest.mark.parametrize("key", ["feat", "z"])
def test_cocobu_with_sizes_of_coco(key: str, tmp_path: Path) -> None:
    folder = foreign.cocobu(tmp_path / "data", ADAPTIVE, key=key)
    sizes = foreign.coco_images(tmp_path / "instances.json", ADAPTIVE)
    assert_holds(imported(folder, tmp_path / "store", tables=sizes), ADAPTIVE, by="number")
    assert_holds(imported(folder / "cocobu_att", tmp_path / "again", tables=sizes), ADAPTIVE, by="number")


def test_cocobu_without_boxes_says_where_they_were_expected(tmp_path: Path) -> None:
    folder = foreign.cocobu(tmp_path / "data", FIXED)
    (folder / "cocobu_box").rename(folder / "elsewhere")
    with pytest.raises(InputNotFoundError, match="cocobu_box"):
        imported(folder, tmp_path / "store")


def test_mmf_npy(tmp_path: Path) -> None:
    folder = foreign.mmf_npy(tmp_path / "features", ADAPTIVE)
    assert_holds(imported(folder, tmp_path / "store", read=TRUSTED), ADAPTIVE, by="name", objects=True)
    with pytest.raises(UsageError, match="--trust-pickle"):
        imported(folder, tmp_path / "other")


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """As train36_imgid2idx.pkl lies in published archives: protocol 0 with long integers."""
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    lines = "".join(f"L{p.number}L\nI{row}\ns" for row, p in enumerate(FIXED))
    pickled = f"(dp1\n{lines}.".encode()
    assert pickle.loads(pickled) == {p.number: row for row, p in enumerate(FIXED)}
    (tmp_path / "val36_imgid2idx.pkl").write_bytes(pickled)
    assert_holds(imported(path, tmp_path / "store", read=TRUSTED), FIXED, by="number")
