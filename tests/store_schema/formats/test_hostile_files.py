"""Bombs, pickles that run programs, and paths that lead elsewhere: named, without harm (FAULTS 51 to 53)."""

import gzip
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from store_schema.errors import MalformedRecordError, UsageError
from store_schema.formats.npy_files import NpzFile, load_pickle
from store_schema.formats.registry import guess_format
from tests.store_schema.formats import foreign
from tests.store_schema.formats.foreign import FIXED
from tests.store_schema.formats.imports import TRUSTED, assert_holds, imported


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_pickle_in_an_npz_never_runs_anything(trusted: bool, tmp_path: Path) -> None:
    """Not even a trusted one: it may name arrays and nothing else."""
    folder = foreign.milvlg_npz(tmp_path / "features", FIXED)
    p = FIXED[1]
    arrays = {"x": p.features, "bbox": p.boxes, "num_bbox": 6, "image_h": p.height, "image_w": p.width}
    np.savez(folder / p.name, **arrays, info=np.array(Evil(tmp_path / "ran"), object))  # type: ignore[arg-type]
    store = imported(folder, tmp_path / "store", **({"read": TRUSTED} if trusted else {}))
    assert not (tmp_path / "ran").exists()
    if trusted:
        assert_holds(store, [FIXED[0], FIXED[2]], by="name", objects=True, attributes=True)
        assert "posix.mkdir, which is no array" in store.problems()[0].reason
    else:
        assert_holds(store, FIXED, by="name")


@pytest.mark.parametrize("options", [{}, {"read": TRUSTED}])
def test_boxes_that_are_a_pickle_are_named(options: dict[str, Any], tmp_path: Path) -> None:
    folder = foreign.milvlg_npz(tmp_path / "features", FIXED)
    p = FIXED[1]
    boxes = np.full((6, 4), Evil(tmp_path / "ran"), object)
    np.savez(folder / p.name, x=p.features, bbox=boxes, image_h=p.height, image_w=p.width)
    assert "bbox is a pickle" in imported(folder, tmp_path / "store", **options).problems()[0].reason
    assert not (tmp_path / "ran").exists()


def test_a_pickled_index_never_runs_anything(tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    (tmp_path / "val36_imgid2idx.pkl").write_bytes(pickle.dumps({42: Evil(tmp_path / "ran")}))
    with pytest.raises(UsageError, match=r"asks for posix.mkdir"):
        imported(path, tmp_path / "store", read=TRUSTED)
    assert not (tmp_path / "ran").exists()
    for cut in (b"", b"\x80\x02", pickle.dumps({1: 2})[:-3]):
        with pytest.raises(MalformedRecordError):
            load_pickle(io.BytesIO(cut), "index")


def test_members_with_dots_are_neither_unpacked_nor_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    folder = foreign.milvlg_npz(tmp_path / "in" / "features", FIXED)
    with zipfile.ZipFile(folder / f"{FIXED[1].name}.npz", "a") as archive:
        archive.writestr("../../escaped.npy", b"outside")
        archive.writestr("/escaped.npy", b"outside")
    assert_holds(imported(folder, tmp_path / "store"), FIXED, by="name")
    assert list(tmp_path.rglob("*escaped*")) == []
    assert not Path("/escaped.npy").exists()


def npz_bomb(path: Path) -> Path:
    """A few KB whose header promises 64 GB of zeros."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (8000000, 2048), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", start + bytes(8 << 20))
    return path


def test_an_npz_that_says_it_unpacks_to_64_gb_is_named_unread(tmp_path: Path) -> None:
    with NpzFile(npz_bomb(tmp_path / "bomb.npz")) as npz, pytest.raises(MalformedRecordError, match="256 MB"):
        npz.array("x")


def test_a_bomb_among_pictures_costs_no_memory(tmp_path: Path) -> None:
    """The whole import in a process that may take little more than an import of nothing takes."""
    folder = tmp_path / "features"
    folder.mkdir()
    p = FIXED[0]
    np.savez(folder / "a.npz", x=p.features, bbox=p.boxes, num_bbox=6, image_h=p.height, image_w=p.width)
    npz_bomb(folder / "b.npz")
    with zipfile.ZipFile(folder / "b.npz", "a") as archive, archive.open("bbox.npy", "w") as member:
        np.lib.format.write_array(member, p.boxes)
    program = (
        "import re, resource, sys; from pathlib import Path;"
        "from tests.store_schema.formats.imports import imported;"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({3 << 30}, {3 << 30}));"
        "store = imported(Path(sys.argv[1]), Path(sys.argv[2]));"
        "print(len(store), store.problems()[0].reason);"
        "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, folder, tmp_path / "store"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, peak_kb = done.stdout.splitlines()
    assert said.startswith("1 ")
    assert "x has shape [8000000, 2048]" in said or "256 MB" in said
    assert int(peak_kb) < 1_000_000  # the bomb alone is 64 times that


def test_a_gzip_is_named_and_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv.gz"
    with gzip.open(path, "wb") as file:
        file.write(bytes(32 << 20))
    with pytest.raises(UsageError, match="a gzip file: unpack it first"):
        guess_format(path)
    with pytest.raises(UsageError, match="no picture can be read"):
        imported(path, tmp_path / "store", format="caffe-tsv")


def raw_file_elsewhere(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(3 * 6 * 4 * 4))
    file.create_dataset(
        "image_bb", (3, 6, 4), "f4", external=[(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)]
    )


def link_elsewhere(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["boxes"] = np.zeros((3, 6, 4), np.float32)
    file["image_bb"] = h5py.ExternalLink(str(folder / "other.hdf5"), "boxes")


def virtual_elsewhere(file: h5py.File, folder: Path) -> None:
    link_elsewhere(file, folder)
    del file["image_bb"]
    layout = h5py.VirtualLayout((3, 6, 4), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.hdf5", "boxes", (3, 6, 4))
    file.create_virtual_dataset("image_bb", layout)


def giant_chunk(file: h5py.File, folder: Path) -> None:
    file.create_dataset("image_bb", (3 << 20, 1000, 4), "f4", chunks=(1 << 17, 1000, 4))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (raw_file_elsewhere, "lie in other files"),
        (link_elsewhere, "is expected in the file"),
        (virtual_elsewhere, "lie in other files"),
        (giant_chunk, "unpacks in pieces of 2,097,152,000 bytes"),
    ],
)
def test_hdf5_values_in_other_files_and_giant_chunks_are_refused(
    make: Callable[[h5py.File, Path], None], said: str, tmp_path: Path
) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    with h5py.File(path, "a") as file:
        del file["image_bb"]
        make(file, tmp_path)
    with pytest.raises(UsageError, match=said):
        imported(path, tmp_path / "store", read=TRUSTED)


def test_a_cut_hdf5_is_named(tmp_path: Path) -> None:
    path = foreign.butd_hdf5(tmp_path / "val36.hdf5", FIXED)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UsageError, match="no whole HDF5 file"):
        imported(path, tmp_path / "store", read=TRUSTED)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short", None])
def test_a_damaged_npz_is_named_and_the_others_are_taken(damage: bytes | None, tmp_path: Path) -> None:
    folder = foreign.milvlg_npz(tmp_path / "features", FIXED)
    broken = folder / f"{FIXED[2].name}.npz"
    whole = broken.read_bytes()
    broken.write_bytes(damage if damage is not None else whole[:60] + bytes(20) + whole[80:])
    store = imported(folder, tmp_path / "store")
    assert_holds(store, FIXED[:2], by="name")
    assert [problem.path for problem in store.problems()] == [str(broken)]


@pytest.mark.parametrize(
    ("pos_boxes", "reason"),
    [([[0, 6], [6, 99], [12, 18]], "rows 6 to 99 of 18"), ([[0, 6], [9, 6], [12, 18]], "9 to 6")],
)
def test_ranges_that_leave_the_file_are_named(
    pos_boxes: list[list[int]], reason: str, tmp_path: Path
) -> None:
    path = foreign.adaptive_hdf5(tmp_path / "val.hdf5", FIXED)
    with h5py.File(path, "a") as file:
        file["pos_boxes"][...] = pos_boxes
    store = imported(path, tmp_path / "store", read=TRUSTED)
    assert_holds(store, [FIXED[0], FIXED[2]], by="number")
    assert reason in store.problems()[0].reason
