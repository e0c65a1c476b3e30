"""Readers of captions: COCO's files, Karpathy's splits, files of one's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.prepare.captions_file import prepare_captions_file
from pipeline.prepare.coco_captions import prepare_coco_captions
from pipeline.prepare.karpathy import prepare_karpathy
from store_schema.errors import InputNotFoundError, TableError
from store_schema.tables import read_table

COCO = Path(__file__).resolve().parents[4] / "shared/data/coco_mini"


def _pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / name)


def _write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def _coco(*numbers: int) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"COCO_x_{n:012}.jpg"} for n in numbers],
        "annotations": [
            {"image_id": n, "id": 10 * n + i, "caption": f"Picture {n},\n{i}. "}
            for n in numbers
            for i in range(2)
        ],
    }


def _karpathy(**changes: Any) -> dict[str, Any]:
    images = [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": f"A {split}.", "tokens": ["a"]}],
         "cocoid": place, "filepath": "val2014"}
        for place, split in enumerate(("train", "restval", "val", "test"))
    ]  # fmt: skip
    images[0] |= changes
    return {"dataset": "coco", "images": images}


def test_coco_files_keep_ids_splits_and_captions(tmp_path: Path) -> None:
    _write(tmp_path / "annotations/captions_train2014.json", _coco(1, 2))
    _write(tmp_path / "annotations/captions_val2014.json", _coco(3))
    _pictures(tmp_path, *(f"{s}2014/COCO_x_{n:012}.jpg" for s, n in (("train", 1), ("train", 2), ("val", 3))))
    assert prepare_coco_captions(tmp_path, tmp_path / "tables") == {"images": 3, "captions": 6}
    images, captions = (read_table(tmp_path / "tables", name) for name in ("images", "captions"))
    assert images["split"].tolist() == ["train", "train", "val"]
    assert images["coco_id"].tolist() == [1, 2, 3]
    assert images["path"].tolist()[2] == "val2014/COCO_x_000000000003.jpg"
    assert captions["text"].tolist()[-2:] == ["Picture 3, 0.", "Picture 3, 1."]
    assert captions["split"].tolist() == ["train"] * 4 + ["val"] * 2


def test_real_coco_captions_are_read_whole(tmp_path: Path) -> None:
    if not COCO.is_dir():
        pytest.skip("../shared/data/coco_mini is not here")
    assert prepare_coco_captions(COCO, tmp_path)["images"] == 80
    official = json.loads((COCO / "captions.json").read_text())["annotations"]
    captions = read_table(tmp_path, "captions")
    assert sorted(captions["text"]) == sorted(" ".join(a["caption"].split()) for a in official)


def test_karpathys_restval_is_training_data_and_pictures_lie_in_their_folders(tmp_path: Path) -> None:
    path = _write(tmp_path / "dataset_coco.json", _karpathy())
    _pictures(tmp_path, *(f"val2014/{split}.jpg" for split in ("train", "restval", "val", "test")))
    assert prepare_karpathy(path, tmp_path / "tables") == {"images": 4, "captions": 4}
    images = read_table(tmp_path / "tables", "images").set_index("image_id")
    assert images["split"].to_dict() == {"train": "train", "restval": "train", "val": "val", "test": "test"}
    assert images["coco_id"].to_dict() == {"train": 0, "restval": 1, "val": 2, "test": 3}
    assert prepare_karpathy(tmp_path, tmp_path / "again") == {"images": 4, "captions": 4}


def test_captions_of_ones_own_come_from_csv_and_jsonl_alike(tmp_path: Path) -> None:
    _pictures(tmp_path, "a/one.jpg", "two.jpg")
    csv = "image,caption,split\na/one.jpg,A dog.,train\na/one.jpg,One dog,train\ntwo.jpg,Nothing,test\n"
    lines = [
        {"image": "a/one.jpg", "caption": ["A dog.", "One dog"], "split": "train"},
        {"image": "two.jpg", "caption": "Nothing", "split": "test"},
    ]
    _write(tmp_path / "mine.csv", csv)
    _write(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, lines)))
    tables = []
    for name in ("mine.csv", "mine.jsonl"):
        assert prepare_captions_file(tmp_path / name, tmp_path / name[-3:]) == {"images": 2, "captions": 3}
        tables.append(read_table(tmp_path / name[-3:], "captions"))
    assert tables[0].equals(tables[1])


def test_pictures_that_are_not_there_and_empty_captions_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = _coco(1, 2)
    content["annotations"][0]["caption"] = " \n"
    _write(tmp_path / "captions.json", content)
    _pictures(tmp_path, f"COCO_x_{1:012}.jpg")
    assert prepare_coco_captions(tmp_path, tmp_path / "tables") == {"images": 1, "captions": 1}
    assert "1 of 2 pictures are not below" in caplog.text
    assert "1 captions are empty" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "name", "content", "error", "message"),
    [
        (prepare_coco_captions, "captions.json", {"images": [{"id": 1}], "annotations": []}, TableError,
         "images 0: file_name missing"),
        (prepare_coco_captions, "captions.json", "{", TableError, "cannot be read as JSON"),
        (prepare_coco_captions, "captions.json", _coco(7), InputNotFoundError,
         "none of the data set.s 1 pictures is below"),
        (prepare_coco_captions, "other.json", {}, InputNotFoundError, r"a file like \*captions\*.json"),
        (prepare_karpathy, "dataset_x.json", _karpathy(split="extra"), TableError,
         "split 'extra'; known are train, restval, val, test"),
        (prepare_karpathy, "dataset_x.json", _karpathy(sentences=[{"tokens": []}]), TableError, "raw missing"),
    ],
)  # fmt: skip
def test_what_is_not_right_is_named_and_nothing_is_written(
    tmp_path: Path,
    prepare: Callable[[Path, Path], dict[str, int]],
    name: str,
    content: Any,
    error: type[Exception],
    message: str,
) -> None:
    _write(tmp_path / "source" / name, content)
    with pytest.raises(error, match=message):
        prepare(tmp_path / "source", tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_a_picture_in_two_splits_or_in_two_places_is_refused(tmp_path: Path) -> None:
    _pictures(tmp_path, "a/x.jpg", "b/x.jpg")
    csv = _write(tmp_path / "mine.csv", "image,caption,split\nx.jpg,A,train\nx.jpg,B,val\n")
    with pytest.raises(TableError, match=r"x.jpg is in the splits train, val"):
        prepare_captions_file(csv, tmp_path / "tables")
    csv = _write(tmp_path / "mine.csv", "image,caption\nx.jpg,A\n")
    with pytest.raises(TableError, match=r"x.jpg may be a/x.jpg or b/x.jpg"):
        prepare_captions_file(csv, tmp_path / "tables")
