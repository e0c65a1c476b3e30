"""Flickr8k's common form becomes tables that pass their own checks."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.prepare.flickr8k import prepare_flickr8k
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import check_references, read_table


def raw_folder(folder: Path, names: list[str]) -> Path:
    (folder / "images").mkdir(parents=True)
    lines = ["image,caption_index,caption"]
    for place, name in enumerate(names):
        Image.new("RGB", (20 + place, 10)).save(folder / "images" / name)
        lines += [f'{name},{number},"A dog, number {number} ."' for number in range(5)]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def test_every_caption_keeps_its_picture_and_its_split(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", [f"{place}.jpg" for place in range(8)])
    assert prepare_flickr8k(raw, tmp_path / "out") == {"images": 8, "captions": 40}
    images = read_table(tmp_path / "out", "images")
    captions = read_table(tmp_path / "out", "captions")
    check_references(tmp_path / "out", "captions", captions, images)
    assert images["split"].value_counts().to_dict() == {"train": 6, "val": 2}
    by_image = captions.merge(images, on="image_id", suffixes=("", "_of_image"))
    assert (by_image["split"] == by_image["split_of_image"]).all()
    row = images[images["image_id"] == "3"].iloc[0]
    assert (row["path"], row["width"], row["height"]) == ("images/3.jpg", 23, 10)


def test_official_split_lists_are_used_where_they_lie_in_the_folder(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", ["a.jpg", "b.jpg", "c.jpg"])
    for name, part in (("train", "a.jpg"), ("dev", "b.jpg"), ("test", "c.jpg")):
        (raw / f"Flickr_8k.{name}Images.txt").write_text(part + "\n")
    prepare_flickr8k(raw, tmp_path / "out")
    images = read_table(tmp_path / "out", "images").set_index("image_id")
    assert images["split"].to_dict() == {"a": "train", "b": "val", "c": "test"}


def test_size_is_that_of_the_picture_as_turned_by_exif(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", ["a.jpg"])
    picture = Image.new("RGB", (30, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(raw / "images" / "a.jpg", exif=exif)
    prepare_flickr8k(raw, tmp_path / "out")
    row = read_table(tmp_path / "out", "images").iloc[0]
    assert (row["width"], row["height"]) == (10, 30)


def test_an_unreadable_picture_is_left_out_with_its_captions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_folder(tmp_path / "raw", ["a.jpg", "b.jpg"])
    (raw / "images" / "b.jpg").write_bytes(b"no picture")
    assert prepare_flickr8k(raw, tmp_path / "out") == {"images": 1, "captions": 5}
    assert "1 pictures named by the data set cannot be read" in caplog.text
    assert "b.jpg" in caplog.text


def test_missing_file_and_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"captions\.csv or captions\.txt expected"):
        prepare_flickr8k(tmp_path, tmp_path / "out")
    (tmp_path / "captions.csv").write_text("picture,text\na.jpg,dog\n")
    with pytest.raises(TableError, match="columns image and caption expected, found"):
        prepare_flickr8k(tmp_path, tmp_path / "out")
