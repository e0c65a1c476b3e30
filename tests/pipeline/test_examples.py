"""Examples are drawn evenly over the split, one file each, and say what the models said."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.evaluation import EvaluationSettings, evaluate
from pipeline.examples import region_labels
from store_schema.reader import RegionStore
from store_schema.tables import read_table, write_table
from tests.pipeline.conftest import Scores, World


@pytest.fixture(scope="module")
def examples(scores: Scores) -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = json.loads((scores.folder / "examples.json").read_text())
    return content


def test_each_kind_has_the_asked_number_and_each_picture_is_there(
    scores: Scores, examples: dict[str, list[dict[str, Any]]]
) -> None:
    assert {kind: len(drawn) for kind, drawn in examples.items()} == {
        "regions": 3, "captions": 3, "answers": 3,
    }  # fmt: skip
    for drawn in examples.values():
        for example in drawn:
            with Image.open(scores.folder / example["picture"]) as picture:
                assert min(picture.size) >= 64
            assert example["alt"]


def test_pictures_are_spread_over_the_whole_split(examples: dict[str, list[dict[str, Any]]]) -> None:
    shown = [example["lines"][0]["head"] for example in examples["regions"]]
    assert shown == ["s5-000032", "s5-000036", "s5-000039"]


def test_captions_are_those_of_the_predictions_beside_the_grids_and_a_persons(
    world: World, scores: Scores, examples: dict[str, list[dict[str, Any]]]
) -> None:
    folder = scores.folder / "predictions"
    said = {
        role: {row["image_id"]: row["caption"] for row in json.loads((folder / f"captions-{role}.json").read_text())}
        for role in ("regions", "grid")
    }  # fmt: skip
    references = read_table(world.scenes, "captions").groupby("image_id")["text"].apply(set)
    for example in examples["captions"]:
        image_id = example["alt"].removeprefix("caption of ")
        regions, grid, person = example["lines"]
        assert regions["text"] == said["regions"][image_id]
        assert grid["text"] == said["grid"][image_id]
        assert person["text"] in references[image_id]


def test_answers_are_of_several_kinds_about_other_pictures_and_say_whether_they_are_right(
    world: World, scores: Scores, examples: dict[str, list[dict[str, Any]]]
) -> None:
    questions = read_table(world.scenes, "questions").set_index("question_id")
    truths = read_table(world.scenes, "answers").set_index("question_id")["answer"]
    said = {row["question_id"]: row["answer"]
            for row in json.loads((scores.folder / "predictions/answers-regions.json").read_text())}  # fmt: skip
    ids = [example["alt"].removeprefix("answer of ") for example in examples["answers"]]
    assert len({questions.loc[i, "question_type"] for i in ids}) == 3
    assert len({questions.loc[i, "image_id"] for i in ids}) == 3
    for question_id, example in zip(ids, examples["answers"], strict=True):
        question, answer = example["lines"]
        assert question["head"] == questions.loc[question_id, "text"]
        assert answer["text"].startswith(said[question_id])
        truth = truths[question_id]
        assert answer["text"].endswith("; right" if said[question_id] == truth else f"; wrong, it is {truth}")


def test_labels_name_attribute_object_and_score_and_a_grid_has_none(world: World) -> None:
    store = RegionStore.open(world.regions)
    record = store.image("s5-000032")
    labels = region_labels(store, "s5-000032")
    assert len(labels) == len(record.boxes)
    assert record.object_ids is not None
    assert record.object_scores is not None
    assert record.attribute_ids is not None
    attribute = store.metadata.attribute_names[record.attribute_ids[0]]
    name = store.metadata.object_names[record.object_ids[0]]
    assert labels[0] == f"{attribute} {name} {float(record.object_scores[0]):.2f}"
    assert region_labels(RegionStore.open(world.grid), "s5-000032")[:2] == ["region 0", "region 1"]


def test_models_on_a_grid_alone_give_no_drawings_and_no_attention(world: World, tmp_path: Path) -> None:
    settings = EvaluationSettings(tables=world.scenes, out=tmp_path, stores=[world.grid], num_examples=2)
    report = evaluate(world.caption_grid, settings)
    assert "attention" not in report
    assert json.loads((tmp_path / "examples.json").read_text()) == {}


def test_more_examples_than_pictures_are_all_pictures_once(world: World, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    ids = ["s5-000038", "s5-000039"]
    images, questions, answers = (read_table(world.scenes, n) for n in ("images", "questions", "answers"))
    questions = questions[questions["image_id"].isin(ids)]
    write_table(tables, "images", images[images["image_id"].isin(ids)])
    write_table(tables, "questions", questions)
    asked = answers["question_id"].isin(questions["question_id"])
    write_table(tables, "answers", answers[asked])
    settings = EvaluationSettings(
        tables=tables, out=tmp_path, images_root=world.scenes, stores=[world.regions], num_examples=9
    )
    evaluate(world.vqa_paper, settings)
    drawn = json.loads((tmp_path / "examples.json").read_text())
    for kind in ("regions", "answers"):
        assert len({example["picture"] for example in drawn[kind]}) == len(drawn[kind]) == 2


def test_scores_need_no_pictures_and_the_log_says_what_is_not_drawn(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EvaluationSettings(
        tables=world.scenes, out=tmp_path, stores=[world.regions], images_root=tmp_path, num_examples=3
    )
    report = evaluate(world.vqa, settings)
    assert 0 <= report["vqa"]["regions"]["accuracy"] <= 1
    assert json.loads((tmp_path / "examples.json").read_text()) == {"regions": [], "answers": []}
    assert "8 of 8 pictures of split 'test' are not below" in caplog.text
