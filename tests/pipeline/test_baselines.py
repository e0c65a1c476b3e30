"""The trivial baselines, against counts made here by hand."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.baselines import answer_baseline, caption_baselines, truth_of_captions
from pipeline.trained_models import find_models
from store_schema.artifacts import find_model_dir
from store_schema.reader import RegionStore
from store_schema.tables import read_table
from tests.pipeline.conftest import World


def test_the_most_common_answer_is_that_of_the_training_split(world: World) -> None:
    """With one annotator, an answer is right by the official accuracy exactly if it is that annotator's."""
    questions = read_table(world.scenes, "questions")
    answers = read_table(world.scenes, "answers").merge(questions, on="question_id")
    common = Counter(answers.loc[answers["split"] == "train", "answer"]).most_common(1)[0][0]
    test = answers[answers["split"] == "test"]
    (model,) = find_models(world.vqa)
    baseline = answer_baseline(set(test["question_id"]), [model], world.scenes, "test")["most_common_answer"]
    assert baseline["accuracy"] == pytest.approx((test["answer"] == common).mean())
    by_type = (test["answer"] == common).groupby(test["question_type"]).mean()
    assert baseline["by_type"] == pytest.approx(by_type.to_dict())


def test_only_the_questions_that_the_models_answered_count(world: World) -> None:
    questions = read_table(world.scenes, "questions")
    test = questions[questions["split"] == "test"]
    kind = test["question_type"].iloc[0]
    ids = set(test.loc[test["question_type"] == kind, "question_id"])
    baseline = answer_baseline(ids, find_models(world.vqa), world.scenes, "test")["most_common_answer"]
    assert set(baseline["by_type"]) == {kind}


def test_one_caption_for_all_and_people_against_each_other(world: World) -> None:
    store = RegionStore.open(world.regions)
    captions = read_table(world.scenes, "captions")
    images = sorted(set(captions.loc[captions["split"] == "test", "image_id"]))
    baselines = caption_baselines(images, find_models(world.caption), world.scenes, "test", store)
    training = Counter(captions.loc[captions["split"] == "train", "text"])
    text = baselines["most_common_caption"]["text"]
    assert max(training.values()) == sum(
        count for caption, count in training.items() if caption.lower().rstrip(" .") == text
    )
    # Of 24 training pictures one is looked up: its caption is another's, so not all true.
    retrieved = baselines["nearest_picture"]
    assert retrieved["true_objects"] < 1
    assert retrieved["cider_d"] < baselines["human_caption"]["cider_d"]
    # People describe the picture before them: true by construction, and nearer to each other than one text to all.
    assert baselines["human_caption"]["true_objects"] == 1
    assert baselines["human_caption"]["cider_d"] > baselines["most_common_caption"]["cider_d"]


def test_a_model_without_its_run_has_no_baseline_from_training_data_and_that_is_said(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tables in the folder that one happens to be in are not those of the model.
    monkeypatch.chdir(world.scenes)
    models = find_models(find_model_dir(world.vqa))
    assert answer_baseline(set(), models, world.scenes, "test") == {}
    assert "no trivial baseline for vqa" in caplog.text


def test_without_the_training_store_there_is_no_retrieval_and_that_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The models were trained on the regions; the other detector's features are not comparable with them."""
    store = RegionStore.open(world.other_regions)
    captions = read_table(world.scenes, "captions")
    images = sorted(set(captions.loc[captions["split"] == "val", "image_id"]))
    baselines = caption_baselines(images, find_models(world.caption), world.scenes, "val", store)
    assert set(baselines) == {"most_common_caption", "human_caption"}
    assert "no baseline by retrieval" in caplog.text


def test_captions_are_held_against_the_objects_of_their_picture(world: World, tmp_path: Path) -> None:
    objects = read_table(world.scenes, "objects")
    attributes = read_table(world.scenes, "object_attributes").groupby("object_id")["attribute"]
    first = objects.iloc[0]
    mine = {(a, o.object) for o in objects[objects["image_id"] == first["image_id"]].itertuples()
            for a in attributes.get_group(o.object_id)}  # fmt: skip
    attribute = attributes.get_group(first["object_id"]).iloc[0]
    elsewhere = next(name for name in sorted(set(objects["object"])) if (attribute, name) not in mine)
    words = {first["image_id"]: ["a", attribute, first["object"], "and", "a", attribute, elsewhere]}
    truth = truth_of_captions(words, world.scenes)
    assert (truth["stated_pairs"], truth["true_pairs"]) == (2, 0.5)
    assert truth_of_captions(words, tmp_path) == {}
