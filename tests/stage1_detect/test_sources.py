"""Which pictures a source holds, and under which ids."""

import os
from pathlib import Path

import pytest

from stage1_detect.sources import find_images
from store_schema.errors import InputNotFoundError, TableError, UsageError
from store_schema.tables import write_table


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def ids(*args: object, **kwargs: object) -> list[str]:
    return [image.image_id for image in find_images(*args, **kwargs)]  # type: ignore[arg-type]


def test_a_folder_is_searched_through_and_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.jpg",
        "a.JPEG",
        "sub/deep/c.png",
        "notes.txt",
        "sub/d.v2.webp",
        ".hidden.jpg",
        ".git/e.jpg",
    )
    assert ids(tmp_path) == ["a", "b", "sub/d.v2", "sub/deep/c"]
    assert find_images(tmp_path)[0].path == tmp_path / "a.JPEG"


def test_two_files_with_one_id_are_refused_and_both_named(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "x/a.png")
    with pytest.raises(UsageError, match=r"id 'x/a': .*x/a\.jpg and .*x/a\.png"):
        find_images(tmp_path)


def test_files_are_taken_in_the_given_order_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "two.jpg", "sub/one.jpg", "more/three.jpg")
    assert ids([tmp_path / "two.jpg", tmp_path / "sub/one.jpg", tmp_path / "more"]) == ["two", "one", "three"]


def test_listed_files_with_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg")
    with pytest.raises(UsageError, match="two pictures have the id 'a'"):
        find_images([tmp_path / "x/a.jpg", tmp_path / "y/a.jpg"])


def test_tables_give_ids_paths_and_splits(tmp_path: Path) -> None:
    rows = [
        {"image_id": f"coco:{n}", "path": f"images/{n}.jpg", "width": 4, "height": 3, "split": split}
        for n, split in [(7, "train"), (3, "val")]
    ]
    write_table(tmp_path, "images", rows)
    touch(tmp_path, "images/stray.jpg")
    assert ids(tmp_path) == ["coco:7", "coco:3"]
    assert ids(tmp_path, split="val") == ["coco:3"]
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert find_images(tmp_path, root=other)[0].path == other / "images/7.jpg"
    with pytest.raises(InputNotFoundError, match="no pictures found of split 'test'"):
        find_images(tmp_path, split="test")


def test_broken_tables_are_not_taken_for_a_folder_of_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "images.parquet", "a.jpg")
    with pytest.raises(TableError, match=r"images\.parquet"):
        find_images(tmp_path)


def test_options_of_tables_are_refused_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match=r"'split' needs a folder with images\.parquet"):
        find_images(tmp_path, split="val")


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="nowhere: no such file or folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(InputNotFoundError, match="no pictures found with one of the endings"):
        find_images(tmp_path)
    with pytest.raises(InputNotFoundError, match="no pictures given"):
        find_images([])


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "data/back").symlink_to(tmp_path / "data")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/self.jpg").symlink_to(tmp_path / "data/self.jpg")
    (tmp_path / "data/gone.jpg").symlink_to(tmp_path / "not there.jpg")
    assert ids(tmp_path / "data") == ["a", "gone", "linked/b", "self"]


def test_pipes_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert ids(tmp_path) == ["a"]


def test_names_that_are_no_utf8_get_escaped_ids_and_keep_their_path(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    touch(tmp_path, name, "größe.jpg")
    found = find_images(tmp_path)
    assert [image.image_id for image in found] == [r"caf\xe9", "größe"]
    assert found[0].path.exists()
    assert all(image.image_id.encode("utf-8") for image in found)
