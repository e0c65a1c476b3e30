"""Pictures in a tar and in a Parquet table of bytes: the same regions as from files, and clear refusals."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stage1_detect.images import decode_image
from stage1_detect.sources import ImageSource, find_images
from store_schema.errors import ImageReadError, InputNotFoundError, UsageError

CC12M = Path(__file__).resolve().parents[3] / "shared/data/cc12m_32"


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return path


def contents(sources: list[ImageSource]) -> dict[str, bytes]:
    return {source.image_id: source.read() for source in sources}


def test_a_tar_gives_its_pictures_by_the_key_of_their_sample(tmp_path: Path) -> None:
    members = {
        "0001.jpg": b"one",
        "0001.txt": b"a caption",
        "0001.mask.png": b"no picture of its own",
        "./sub/größe.PNG": b"two",
        "sub/.hidden.jpg": b"",
        "__MACOSX/._0001.jpg": b"",
    }
    sources = find_images(make_tar(tmp_path / "a.tar", members))
    assert contents(sources) == {"0001": b"one", "sub/größe": b"two"}
    assert sources[0].name == f"{tmp_path}/a.tar/0001.jpg"


def test_shards_of_a_pattern_are_one_source_and_their_ids_distinct(tmp_path: Path) -> None:
    make_tar(tmp_path / "s-0.tar", {"a.jpg": b"0"})
    make_tar(tmp_path / "s-1.tar", {"b.jpg": b"1"})
    assert contents(find_images(tmp_path / "s-*.tar")) == {"a": b"0", "b": b"1"}
    make_tar(tmp_path / "s-2.tar", {"a.png": b"2"})
    with pytest.raises(UsageError, match=r"id 'a': .*s-0\.tar/a\.jpg and .*s-2\.tar/a\.png"):
        find_images(tmp_path / "s-*.tar")


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "sub/../../a.jpg"])
def test_members_outside_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"a\.tar: the member '.*a\.jpg' lies outside"):
        find_images(make_tar(tmp_path / "a.tar", {"b.jpg": b"b", name: b"a"}))


def test_a_link_in_a_tar_is_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("passwd.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add(archive, "a.jpg", b"a")
    assert contents(find_images(tmp_path / "a.tar")) == {"a": b"a"}


def test_a_cut_a_packed_and_an_empty_tar_are_named(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "a.tar", {"a.jpg": b"x" * 5000, "b.jpg": b"y" * 5000})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:4000])
    with pytest.raises(UsageError, match=r"cut\.tar: not a whole tar"):
        find_images(tmp_path / "cut.tar")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"a\.tar\.gz: a packed tar .* unpack it"):
        find_images(tmp_path / "a.tar.gz")
    with pytest.raises(InputNotFoundError, match="no pictures found"):
        find_images(make_tar(tmp_path / "none.tar", {"a.txt": b""}))


def test_an_archive_that_changes_under_the_job_costs_its_pictures_alone(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"a.jpg": b"x" * 5000, "b.jpg": b"y" * 5000})
    (_, second) = find_images(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageReadError, match=r"a\.tar/b\.jpg: cannot be read \(the archive ends after 0"):
        second.read()
    path.unlink()
    with pytest.raises(ImageReadError, match="No such file"):
        second.read()


@pytest.mark.skipif(not CC12M.is_dir(), reason="shared research data (cc12m_32) is not here")
def test_a_published_webdataset_shard_gives_the_pixels_of_its_files(tmp_path: Path) -> None:
    """Packed again as it was published: picture, caption and JSON of a sample side by side."""
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for file in sorted(CC12M.iterdir()):
            archive.add(file, file.name)
    packed, plain = find_images(tmp_path / "shard.tar"), find_images(CC12M)
    assert [source.image_id for source in packed] == [source.image_id for source in plain]
    assert len(packed) == 32
    for ours, theirs in list(zip(packed, plain, strict=True))[::8]:
        np.testing.assert_array_equal(
            decode_image(ours.read(), ours.name).pixels, decode_image(theirs.read(), theirs.name).pixels
        )


def test_a_table_of_bytes_gives_its_pictures_across_row_groups(tmp_path: Path) -> None:
    pictures = [bytes([65 + n]) * 10 for n in range(7)]
    table = pa.table({"image_id": [f"p{n}" for n in range(7)], "jpg": pictures})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    sources = find_images(tmp_path / "a.parquet")
    assert contents(sources[::-1]) == {f"p{n}": pictures[n] for n in range(7)}


def test_the_images_of_a_hugging_face_data_set_are_read(tmp_path: Path) -> None:
    """There a picture is a struct of bytes and path; ids may be numbers."""
    images = [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}]
    table = pa.table({"id": [7, 9], "image": images, "thumbnail": [b"t", b"t"]})
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = find_images(tmp_path / "a.parquet")
    assert (first.image_id, first.read(), second.image_id) == ("7", b"one", "9")
    with pytest.raises(ImageReadError, match=r"a\.parquet/row 1 of row group 0: the picture is empty"):
        second.read()


def test_tables_without_bytes_or_ids_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": ["a"], "path": ["a.jpg"]}), tmp_path / "paths.parquet")
    with pytest.raises(UsageError, match=r"paths\.parquet: one column with the bytes of pictures expected"):
        find_images(tmp_path / "paths.parquet")
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "no_ids.parquet")
    with pytest.raises(UsageError, match=r"no_ids\.parquet: a column with the pictures' ids expected"):
        find_images(tmp_path / "no_ids.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(UsageError, match=r"text\.parquet: not a readable Parquet file"):
        find_images(tmp_path / "text.parquet")
