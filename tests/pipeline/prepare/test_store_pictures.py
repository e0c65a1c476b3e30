"""Data sets whose pictures are not there, only a store of their regions; to the end, a trained and scored model."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.prepare.captions_file import prepare_captions_file
from pipeline.prepare.coco_captions import prepare_coco_captions
from pipeline.prepare.karpathy import prepare_karpathy
from pipeline.prepare.questions_file import prepare_questions_file
from pipeline.prepare.store_pictures import StorePictures
from pipeline.prepare.visual_genome_qa import prepare_visual_genome_qa
from pipeline.prepare.vqa_v2 import prepare_vqa_v2
from store_schema.errors import InputNotFoundError, StoreMismatchError, StoreNotFoundError, TableError
from store_schema.reader import RegionStore
from store_schema.tables import TableName, read_table
from tests.store_schema import tiny
from tests.store_schema.formats import foreign

COLORS = ("red", "blue")
SMALL = (
    "model.hidden_dim=16", "model.embed_dim=16", "training.max_steps=3", "training.num_threads=1",
    "training.device=cpu", "data.num_workers=0", "data.batch_size=8",
)  # fmt: skip


def name_of(number: int) -> str:
    return f"COCO_{'train' if number <= 8 else 'val'}2014_{number:012}"


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def a_store(folder: Path, *image_ids: str) -> Path:
    return tiny.write_store(folder / "store.zarr", image_ids=image_ids)


def found(store: Path, names: dict[str, int | None]) -> dict[str, str]:
    """Name and image_id of the pictures that the store has."""
    named = StorePictures(RegionStore.open(store)).named(names)
    return {name: picture.image_id for name, picture in named.items()}


def vqa_v2(folder: Path, *numbers: int) -> Path:
    """Ten questions a picture, so that each answer comes often enough to be kept; no picture is written."""
    for split in ("train", "val"):
        keys = [
            {"image_id": number, "question_id": number * 100 + place}
            for number in numbers
            if split in name_of(number)
            for place in range(10)
        ]
        if keys:
            asked = [{**key, "question": "What color is it?"} for key in keys]
            write(folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": asked})
            told = [
                {**key, "question_type": "what color", "answer_type": "other",
                 "answers": [{"answer": COLORS[key["image_id"] % 2]}] * 10}
                for key in keys
            ]  # fmt: skip
            write(folder / f"v2_mscoco_{split}2014_annotations.json", {"annotations": told})
    return folder


def karpathy(path: Path, *numbers: int) -> Path:
    images = [
        {"filepath": "train2014", "filename": f"{name_of(n)}.jpg", "cocoid": n,
         "split": "train" if n <= 8 else "val" if n <= 10 else "test",
         "sentences": [{"raw": f"A {COLORS[n % 2]} wall."}] * 2}
        for n in numbers
    ]  # fmt: skip
    return write(path, {"images": images})


def test_questions_about_numbers_get_the_stores_ids_and_sizes(tmp_path: Path) -> None:
    store = a_store(tmp_path, "5", name_of(7), "9")
    assert prepare_vqa_v2(vqa_v2(tmp_path / "raw", 5, 7, 9), tmp_path / "out", store=store) == {
        "images": 3,
        "questions": 30,
        "answers": 300,
    }
    images = read_table(tmp_path / "out", "images").set_index("image_id")
    assert images["coco_id"].to_dict() == {"5": 5, name_of(7): 7, "9": 9}
    assert images["path"].to_dict() == {i: f"{i}.jpg" for i in images.index}
    assert images["split"].to_dict() == {"5": "train", name_of(7): "train", "9": "val"}
    regions = RegionStore.open(store)
    sizes = {i: (regions.image(i).width, regions.image(i).height) for i in images.index}
    assert {i: (row.width, row.height) for i, row in images.iterrows()} == sizes
    assert set(read_table(tmp_path / "out", "questions")["image_id"]) == set(images.index)


def test_captions_keep_the_paths_that_the_data_set_gives(tmp_path: Path) -> None:
    source = karpathy(tmp_path / "dataset_coco.json", 5, 9)
    assert prepare_karpathy(source, tmp_path / "out", store=a_store(tmp_path, "5", "9"))["captions"] == 4
    images = read_table(tmp_path / "out", "images").set_index("image_id")
    assert images["path"].to_dict() == {i: f"train2014/{name_of(int(i))}.jpg" for i in ("5", "9")}
    assert images["coco_id"].to_dict() == {"5": 5, "9": 9}
    assert set(read_table(tmp_path / "out", "captions")["image_id"]) == {"5", "9"}


def test_the_official_captions_find_their_pictures_by_number(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 5, "file_name": "000000000005.jpg"}],
        "annotations": [{"image_id": 5, "caption": "A wall."}],
    }
    write(tmp_path / "captions_val2017.json", content)
    store = a_store(tmp_path, name_of(5))
    assert prepare_coco_captions(tmp_path, tmp_path / "out", store=store) == {"images": 1, "captions": 1}
    assert read_table(tmp_path / "out", "captions")["image_id"].tolist() == [name_of(5)]


@pytest.mark.parametrize(
    ("prepare", "column", "table"),
    [(prepare_captions_file, "caption", "captions"), (prepare_questions_file, "question", "questions")],
)
def test_files_of_ones_own_may_name_pictures_that_lie_elsewhere(
    tmp_path: Path, prepare: Callable[..., dict[str, int]], column: str, table: TableName
) -> None:
    lines = [f"image,{column},split", "/data/a/one.jpg,Why?,train", "../two.png,Who?,val", ""]
    file = write(tmp_path / "mine.csv", "\n".join(lines))
    assert prepare(file, tmp_path / "out", store=a_store(tmp_path, "b/one", "two"))["images"] == 2
    images = read_table(tmp_path / "out", "images").set_index("image_id")
    assert images["path"].to_dict() == {"b/one": "data/a/one.jpg", "two": "two.png"}
    assert set(read_table(tmp_path / "out", table)["image_id"]) == {"b/one", "two"}


@pytest.mark.parametrize(
    ("name", "number", "image_id"),
    [
        ("a/one.jpg", None, "a/one"),
        ("b/one.jpg", None, "b/one"),
        ("folder/two.jpg", None, "two"),
        ("four.jpg", None, "x/four"),
        ("v1.2.jpg", None, "v1.2"),
        ("three.png", None, "three.jpg"),
        ("COCO_train2014_000000000025.jpg", None, "25"),
        ("000000000025.jpg", None, "25"),
        ("000000000071.jpg", None, "COCO_train2014_000000000071"),
        ("anything.jpg", 71, "COCO_train2014_000000000071"),
        ("cat_3.jpg", None, None),
        ("v1.jpg", None, None),
        ("other.jpg", None, None),
        ("", None, None),
    ],
)
def test_a_picture_is_found_by_id_by_file_name_and_by_number(
    tmp_path: Path, name: str, number: int | None, image_id: str | None
) -> None:
    ids = (
        "a/one",
        "b/one",
        "x/four",
        "v1.2",
        "three.jpg",
        "25",
        "COCO_train2014_000000000071",
        "dog_3",
        "two",
    )
    expected = {} if image_id is None else {name: image_id}
    assert found(a_store(tmp_path, *ids), {name: number}) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one.jpg"], "one.jpg may be 'a/one' or 'b/one'"),
        (["25.jpg"], "25.jpg may be 'COCO_train2014_000000000025' or 'VG:25'"),
        (["a/two.jpg", "b/two.jpg"], "a/two.jpg and b/two.jpg would both be 'two'"),
    ],
)
def test_a_name_that_fits_two_pictures_is_refused_where_it_is_asked_for(
    tmp_path: Path, names: list[str], message: str
) -> None:
    store = a_store(tmp_path, "a/one", "b/one", "COCO_train2014_000000000025", "VG:25", "two")
    assert found(store, {"two.jpg": None}) == {"two.jpg": "two"}
    with pytest.raises(TableError, match=message):
        found(store, dict.fromkeys(names))


def test_what_is_about_pictures_that_the_store_lacks_is_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = a_store(tmp_path, "5")
    assert prepare_vqa_v2(vqa_v2(tmp_path / "raw", 5, 6), tmp_path / "out", store=store)["questions"] == 10
    assert f"10 of 20 questions are about pictures that are not in the store {store}" in caplog.text
    assert "first 6" in caplog.text
    source = karpathy(tmp_path / "dataset_coco.json", 5, 6)
    assert prepare_karpathy(source, tmp_path / "out", store=store)["captions"] == 2
    assert f"1 of 2 pictures are not in the store {store}" in caplog.text


def test_stores_without_any_of_the_pictures_are_refused(tmp_path: Path) -> None:
    raw = vqa_v2(tmp_path / "raw", 5)
    with pytest.raises(
        InputNotFoundError, match=r"none of the data set's 1 pictures is in .*ids are like '6'"
    ):
        prepare_vqa_v2(raw, tmp_path / "out", store=a_store(tmp_path, "6"))
    with pytest.raises(StoreNotFoundError, match="no region store at"):
        prepare_vqa_v2(raw, tmp_path / "out", store=tmp_path / "none.zarr")
    quarantined = a_store(tmp_path / "bad", tiny.BAD_ID)
    with pytest.raises(
        StoreMismatchError, match=r"no picture is in .* 1 are quarantined, such as .* \(cut short\); import"
    ):
        prepare_vqa_v2(raw, tmp_path / "out", store=quarantined)
    assert not (tmp_path / "out").exists()


def test_visual_genomes_questions_are_not_asked_about_cocos_pictures(tmp_path: Path) -> None:
    asked = [{"id": n, "qas": [{"qa_id": n, "question": "How many?", "answer": "2."}]} for n in (1, 2, 3)]
    write(tmp_path / "question_answers.json", asked)
    store = a_store(tmp_path, "1", "2", "3")
    regions = RegionStore.open(store)
    known = [
        {"image_id": n, "width": 100, "height": regions.image(str(n)).height, "coco_id": 70 + n}
        for n in (1, 2, 3)
    ]
    known[0]["width"] = 99  # one alone is an error of the data set
    write(tmp_path / "image_data.json", known)
    assert prepare_visual_genome_qa(tmp_path, tmp_path / "out", store=store)["questions"] == 3
    images = read_table(tmp_path / "out", "images")
    assert images.set_index("image_id")["coco_id"].to_dict() == {"1": 71, "2": 72, "3": 73}
    known[1]["width"] = 99
    write(tmp_path / "image_data.json", known)
    with pytest.raises(
        StoreMismatchError, match=r"2 of 3 pictures in the store .* such as 1: \(100, .* \(99, "
    ):
        prepare_visual_genome_qa(tmp_path, tmp_path / "out", store=store)


def test_readers_of_boxes_refuse_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "coco", str(tmp_path), str(tmp_path / "out"), "--store", "s.zarr"]) == 2
    assert "--store has no effect on coco; it is for coco-captions, karpathy, " in capsys.readouterr().err


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An imported feature file of twelve pictures that are nowhere, beside what is said of them."""
    monkeypatch.chdir(tmp_path)
    pictures = [foreign.regions(number, 6) for number in range(1, 13)]
    foreign.caffe_tsv(tmp_path / "trainval_36.tsv", pictures)
    vqa_v2(tmp_path / "vqa2", *range(1, 13))
    karpathy(tmp_path / "dataset_coco.json", *range(1, 13))
    done("store import trainval_36.tsv --store regions.zarr --detector bua-36 --dtype float32")
    return tmp_path


def done(command: str, *sets: str) -> None:
    assert main([*command.split(), *(part for each in sets for part in ("--set", each))]) == 0, command


def test_a_feature_file_alone_is_enough_to_train_and_score_vqa(features: Path) -> None:
    done("prepare vqa-v2 vqa2 tables --store regions.zarr")
    done("store coverage regions.zarr --tables tables")
    done("train vqa --tables tables --store regions.zarr --out run", *SMALL)
    done("evaluate run --tables tables --store regions.zarr --out scores")
    report = json.loads((features / "scores" / "report.json").read_text())
    assert 0 <= report["vqa"]["regions"]["accuracy"] <= 1
    done("answer run --tables tables --split val --store regions.zarr --results answers.json")
    assert len(json.loads((features / "answers.json").read_text())) == 40


def test_a_feature_file_alone_is_enough_to_train_and_score_captions(
    features: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done("prepare karpathy dataset_coco.json tables --store regions.zarr")
    small = (*SMALL, "model.attention_dim=16", "data.min_word_count=1")
    done("train caption --tables tables --store regions.zarr --out run", *small)
    with caplog.at_level(logging.WARNING):
        done("evaluate run --tables tables --store regions.zarr --out scores")
    assert "2 of 2 pictures of split 'test' are not below tables and are not drawn" in caplog.text
    assert "cider_d" in json.loads((features / "scores" / "report.json").read_text())["caption"]["regions"]
    done("caption run --store regions.zarr --tables tables --split test --results captions.json")
    written = json.loads((features / "captions.json").read_text())
    assert sorted(entry["image_id"] for entry in written) == [11, 12]


def test_a_second_feature_file_takes_its_ids_from_the_tables_of_the_first(features: Path) -> None:
    done("prepare karpathy dataset_coco.json tables --store regions.zarr")
    foreign.lxmert_tsv(features / "other.tsv", [foreign.regions(number, 3) for number in range(1, 13)])
    done("store import other.tsv --store other.zarr --tables tables")
    assert set(RegionStore.open("other.zarr").image_ids) == {str(number) for number in range(1, 13)}


def test_regions_that_cannot_be_made_anew_are_asked_for(
    features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("prepare vqa-v2 vqa2 tables --store regions.zarr")
    done("train vqa --tables tables --store regions.zarr --out run", *SMALL)
    capsys.readouterr()
    assert main(["evaluate", "run", "--tables", "tables", "--out", "scores"]) == 2
    assert "its detector bua-36 lies; name it with --weights, or a store" in capsys.readouterr().err
