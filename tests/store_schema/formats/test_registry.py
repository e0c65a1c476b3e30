"""Which format a path is, from what public code wrote there."""

from pathlib import Path

import pytest

from store_schema.errors import InputNotFoundError, UsageError
from store_schema.formats.registry import NAMES, format_named, guess_format
from tests.store_schema.formats import foreign
from tests.store_schema.formats.foreign import ADAPTIVE, FIXED


def test_every_form_is_recognised(tmp_path: Path) -> None:
    paths = {
        "caffe-tsv": foreign.caffe_tsv(tmp_path / "trainval.csv", FIXED),
        "lxmert-tsv": foreign.lxmert_tsv(tmp_path / "val.tsv", FIXED),
        "butd-hdf5": foreign.butd_hdf5(tmp_path / "val36.h5", FIXED),
        "milvlg-npz": foreign.milvlg_npz(tmp_path / "a", FIXED),
        "cocobu": foreign.cocobu(tmp_path / "b", ADAPTIVE),
        "mmf-npy": foreign.mmf_npy(tmp_path / "c", FIXED),
    }
    assert {name: guess_format(path).name for name, path in paths.items()} == {name: name for name in paths}
    assert guess_format(tmp_path / "b" / "cocobu_att").name == "cocobu"
    assert guess_format(next((tmp_path / "a").iterdir())).name == "milvlg-npz"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id\t{}\n", "text of 2 columns, as VinVL"),
        (b"a\tb\tc\td\n", "text of 4 columns"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"", "no file of a known format"),
        (b"\x00" * 100, "no file of a known format"),
    ],
)
def test_what_is_not_read_is_described(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        guess_format(tmp_path / "file")


def test_other_folders_are_described(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder without"):
        guess_format(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"")
    with pytest.raises(UsageError, match="an LMDB database"):
        guess_format(tmp_path)
    with pytest.raises(InputNotFoundError, match="no such file"):
        guess_format(tmp_path / "absent")


def test_names_are_those_of_the_files() -> None:
    assert all(format_named(name).name == name for name in NAMES)
    with pytest.raises(UsageError, match="did you mean caffe-tsv"):
        format_named("cafe-tsv")
