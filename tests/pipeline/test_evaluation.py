"""Every model of a folder is scored on the store of its features, beside its baselines; nothing is scored twice."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.baselines import truth_of_statements
from pipeline.evaluation import EvaluationSettings, choose_split, evaluate, write_json
from stage2_models.caption_inference import load_captioner, sample_captions
from stage2_models.vqa_inference import load_vqa
from store_schema.artifacts import find_model_dir
from store_schema.errors import StoreMismatchError, UsageError
from store_schema.reader import RegionStore
from store_schema.tables import read_table, write_table
from tests.pipeline.conftest import Scores, World


def settings_for(world: World, out: Path, *stores: Path) -> EvaluationSettings:
    return EvaluationSettings(tables=world.scenes, out=out, stores=stores, num_examples=1)


def test_the_report_has_every_key_that_programs_read(scores: Scores) -> None:
    report = scores.report
    assert {"map_50", "map", "attribute_accuracy", "recall"} <= report["detector"].keys()
    assert set(report["caption"]) == {"regions", "grid"}
    for values in report["caption"].values():
        assert {"model", "bleu_4", "rouge_l", "cider_d", "true_pairs", "stated_pairs"} <= values.keys()
    assert set(report["vqa"]) == {"regions", "grid", "paper", "question_only"}
    for values in report["vqa"].values():
        assert {"model", "accuracy", "by_type", "by_answer_type"} <= values.keys()
    assert set(report["baselines"]) == {
        "most_common_caption", "nearest_picture", "human_caption", "most_common_answer",
    }  # fmt: skip
    assert {"pointing_accuracy", "chance"} <= report["attention"].keys()
    assert {"versions", "store", "seconds"} <= report.keys()
    assert (report["k"], report["seed"]) == (6, 0)


def test_the_report_on_disk_is_what_was_returned(scores: Scores) -> None:
    on_disk = json.loads((scores.folder / "report.json").read_text())
    assert on_disk == scores.report
    assert on_disk["data"] == {"name": "scenes", "split": "test", "images": 8}


def test_each_model_is_scored_as_it_would_be_on_its_own(world: World, scores: Scores) -> None:
    regions, grid = RegionStore.open(world.regions), RegionStore.open(world.grid)
    for role, run, store in (("paper", world.vqa_paper, regions), ("grid", world.vqa_grid, grid),
                             ("question_only", world.vqa_blind, None)):  # fmt: skip
        alone = load_vqa(run).evaluate(world.scenes, store, "test").scores
        assert scores.report["vqa"][role]["accuracy"] == alone.accuracy
        assert scores.report["vqa"][role]["by_type"] == alone.by_question_type
    loaded = load_captioner(world.caption_grid)
    captions = loaded.evaluate(world.scenes, grid, "test", decoding=loaded.decoding(beam_size=1))
    assert captions.metrics().items() <= scores.report["caption"]["grid"].items()


def test_statements_of_samples_are_judged_and_the_same_samples_come_again(
    world: World, scores: Scores
) -> None:
    store = RegionStore.open(world.regions)
    loaded, image_ids = load_captioner(world.caption), ["s5-000007", "s5-000002"]
    before = torch.get_rng_state()
    drawn = sample_captions(loaded, store, image_ids, 5, batch_size=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(drawn) == image_ids
    assert all(len(captions) == 5 for captions in drawn.values())
    assert sample_captions(loaded, store, image_ids, 5, batch_size=1) == drawn
    assert sample_captions(loaded, store, image_ids, 5, batch_size=1, seed=1) != drawn
    reported = scores.report["caption"]["regions"]["sampled"]
    images = read_table(world.scenes, "images")
    tested = images.loc[images["split"] == "test", "image_id"]
    samples = sample_captions(loaded, store, list(tested), 5)
    expected = truth_of_statements(samples, world.scenes)
    assert reported["stated_numbers"] == expected["stated_numbers"]
    assert reported["stated_relations"] == expected["stated_relations"]


def test_predictions_are_complete_and_in_the_form_of_the_official_tools(world: World, scores: Scores) -> None:
    folder = scores.folder / "predictions"
    assert {file.stem for file in folder.iterdir()} == {
        "captions-regions", "captions-grid", "answers-regions", "answers-grid", "answers-paper",
        "answers-question_only",
    }  # fmt: skip
    images, questions = read_table(world.scenes, "images"), read_table(world.scenes, "questions")
    captions = json.loads((folder / "captions-regions.json").read_text())
    assert [set(row) for row in captions] == [{"image_id", "caption"}] * 8
    assert {row["image_id"] for row in captions} == set(images.loc[images["split"] == "test", "image_id"])
    answers = json.loads((folder / "answers-question_only.json").read_text())
    asked = set(questions.loc[questions["split"] == "test", "question_id"])
    assert {row["question_id"] for row in answers} == asked
    assert len(answers) == len(asked)


def test_a_store_that_is_not_given_is_made_and_gives_the_same_scores(
    world: World, scores: Scores, tmp_path: Path
) -> None:
    report = evaluate(world.caption, settings_for(world, tmp_path))
    (store,) = (tmp_path / "stores").iterdir()
    assert store.name.startswith("proposal-")
    # Only the pictures that are scored went through stage one.
    assert sorted(RegionStore.open(store).image_ids) == [f"s5-{n:06d}" for n in range(32, 40)]
    assert report["caption"]["regions"] == scores.report["caption"]["regions"]
    # Again: the store is found and gone on with, not refused.
    assert evaluate(world.caption, settings_for(world, tmp_path))["caption"] == report["caption"]


def test_a_store_that_fits_no_model_is_refused_with_both_fingerprints(world: World, tmp_path: Path) -> None:
    theirs = RegionStore.open(world.other_regions).features_fingerprint
    with pytest.raises(StoreMismatchError, match=rf"{theirs}.*were trained on .*leave --store out"):
        evaluate(world.caption, settings_for(world, tmp_path / "out", world.other_regions))
    assert not (tmp_path / "out").exists()


def test_two_models_of_one_part_are_told_apart_by_name_and_a_lone_paper_form_is_the_regions(
    world: World, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        shutil.copytree(world.vqa_paper, tmp_path / "runs" / name)
    report = evaluate(tmp_path / "runs", settings_for(world, tmp_path / "out", world.regions))
    assert set(report["vqa"]) == {"regions", "second"}
    assert {values["model"] for values in report["vqa"].values()} == {"paper's form"}


def test_a_model_folder_alone_is_scored_without_its_training_baseline(world: World, tmp_path: Path) -> None:
    report = evaluate(find_model_dir(world.vqa), settings_for(world, tmp_path, world.regions))
    assert set(report["vqa"]) == {"regions"}
    assert report["baselines"] == {}
    assert "seed" not in report


def test_a_task_that_the_tables_do_not_ask_for_is_left_out_and_said(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = tmp_path / "tables"
    write_table(tables, "images", read_table(world.scenes, "images"))
    settings = EvaluationSettings(
        tables=tables, out=tmp_path / "out", images_root=world.scenes, stores=[world.regions], num_examples=1
    )
    report = evaluate(world.caption, settings)
    assert "caption" not in report
    assert "caption: not scored" in caplog.text


def test_the_split_is_test_then_val_then_the_only_one(world: World, tmp_path: Path) -> None:
    images = read_table(world.scenes, "images")

    def tables_of(*splits: str) -> Path:
        folder = tmp_path / "-".join(splits)
        write_table(folder, "images", images[images["split"].isin(splits)])
        return folder

    assert choose_split(world.scenes, "auto") == "test"
    assert choose_split(tables_of("train", "val"), "auto") == "val"
    assert choose_split(tables_of("train"), "auto") == "train"
    assert choose_split(world.scenes, "train") == "train"
    with pytest.raises(UsageError, match=r"has the splits \['train'\].*not 'test'"):
        choose_split(tables_of("train"), "test")


def test_json_holds_null_where_there_was_nothing_to_judge(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [math.nan, 1.0], "y": {"z": (math.nan, "é")}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1.0], "y": {"z": [None, "é"]}}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
