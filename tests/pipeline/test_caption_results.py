"""Captions in COCO's results form: complete or refused, and scored as the official tool scores them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.caption_results import caption_results, read_caption_results, score_caption_results
from pipeline.cli import main
from store_schema.errors import InputNotFoundError, UsageError
from store_schema.tables import write_table

OFFICIAL = Path(__file__).resolve().parents[3] / "shared/data/caption_eval"
NAMES = {"bleu_1": "Bleu_1", "bleu_2": "Bleu_2", "bleu_3": "Bleu_3", "bleu_4": "Bleu_4",
         "rouge_l": "ROUGE_L", "cider_d": "CIDEr"}  # fmt: skip


def _tables(folder: Path, references: dict[str, list[str]], coco_ids: list[int] | None = None) -> Path:
    images = [
        {"image_id": image_id, "path": f"{image_id}.jpg", "width": 8, "height": 8, "split": "val"}
        | ({} if coco_ids is None else {"coco_id": coco_ids[place]})
        for place, image_id in enumerate(references)
    ]
    captions = [
        {"image_id": image_id, "caption_id": f"{image_id}#{place}", "text": text, "split": "val"}
        for image_id, texts in references.items()
        for place, text in enumerate(texts)
    ]
    write_table(folder, "images", images)
    write_table(folder, "captions", captions)
    return folder


def _write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_captions_written_for_the_server_come_back_the_same(tmp_path: Path) -> None:
    tables = _tables(tmp_path, {"val_1": ["a dog"], "val_2": ["a cat"]}, coco_ids=[391895, 7])
    captions = {"val_2": "two cats", "val_1": "one dog"}
    rows = caption_results(captions, tables, "val")
    assert rows == [{"image_id": 391895, "caption": "one dog"}, {"image_id": 7, "caption": "two cats"}]
    assert read_caption_results(_write(tmp_path / "r.json", rows), tables, "val") == captions


def test_pictures_without_a_coco_id_are_numbers_where_their_names_are(tmp_path: Path) -> None:
    tables = _tables(tmp_path, {"12": ["a dog"], "012": ["a cat"], "x": ["a cup"]})
    rows = caption_results({"12": "a", "012": "b", "x": "c"}, tables, "val")
    assert [row["image_id"] for row in rows] == [12, "012", "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1, "caption": "a"}], "lack 1 pictures, first p2"),
        ([{"image_id": n, "caption": "a"} for n in (1, 2, 3)], "name 1 that are not of it, first 3"),
        ([{"image_id": 1, "caption": "a"}] * 2, "entry 1: picture 1 has a caption already"),
        ([{"image_id": 1}], "entry 0: an object with image_id and caption expected"),
        ({"image_id": 1}, "a list of objects .* expected, it is dict"),
        ("[", "is no JSON file"),
    ],
)
def test_a_file_that_is_not_complete_or_not_right_is_refused(
    tmp_path: Path, content: Any, message: str
) -> None:
    tables = _tables(tmp_path, {"p1": ["a dog"], "p2": ["a cat"]}, coco_ids=[1, 2])
    with pytest.raises(UsageError, match=message):
        read_caption_results(_write(tmp_path / "r.json", content), tables, "val")


def test_captions_that_do_not_cover_a_split_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    tables = _tables(tmp_path, {"p1": ["a dog"], "p2": ["a cat"]}, coco_ids=[1, 2])
    with pytest.raises(UsageError, match="lack 1 pictures, first p2"):
        caption_results({"p1": "a"}, tables, "val")
    with pytest.raises(UsageError, match="no pictures of split 'test'"):
        caption_results({"p1": "a"}, tables, "test")
    with pytest.raises(InputNotFoundError, match="there is no results file"):
        read_caption_results(tmp_path / "none.json", tables, "val")


@pytest.mark.parametrize("name", ["coco_human_loo", "fakecap_val2014"])
def test_butd_evaluate_scores_a_published_file_as_the_official_tool_does(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not OFFICIAL.is_dir():
        pytest.skip("../shared/data/caption_eval is not here")
    references: dict[str, list[str]] = {}
    for annotation in json.loads((OFFICIAL / f"{name}_references.json").read_text())["annotations"]:
        references.setdefault(f"coco-{annotation['image_id']}", []).append(
            " ".join(annotation["caption"].split())
        )
    tables = _tables(tmp_path / "tables", references, [int(key.split("-")[1]) for key in references])
    results = str(OFFICIAL / f"{name}_results.json")
    assert main(["evaluate", results, "--tables", str(tables), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    official = json.loads((OFFICIAL / f"{name}_scores.json").read_text())["overall"]
    scores = printed["caption"][f"{name}_results"]
    assert {NAMES[key]: value for key, value in scores.items()} == {
        key: value for key, value in official.items() if key != "METEOR"
    }
    assert json.loads((tmp_path / "out/report.json").read_text()) == printed
    assert score_caption_results(Path(results), tables, "val") == scores
