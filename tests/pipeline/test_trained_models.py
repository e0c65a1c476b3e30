"""Models are found wherever a user points, and each knows the part it plays."""

from pathlib import Path

import pytest

from pipeline.trained_models import find_models
from store_schema.artifacts import find_model_dir
from store_schema.errors import CheckpointError, InputNotFoundError
from tests.pipeline.conftest import World


def test_a_folder_of_runs_gives_every_model_with_its_role(world: World) -> None:
    found = {model.name: (model.task, model.role) for model in find_models(world.runs)}
    assert found == {
        "detector": ("detector", "regions"),
        "caption": ("caption", "regions"),
        "caption-grid": ("caption", "grid"),
        "vqa": ("vqa", "regions"),
        "vqa-grid": ("vqa", "grid"),
        "vqa-paper": ("vqa", "paper"),
        "vqa-blind": ("vqa", "question_only"),
    }
    titles = {model.name: model.title for model in find_models(world.runs) if model.task == "vqa"}
    assert titles["vqa"] == "binding form"
    assert titles["vqa-paper"] == "paper's form"
    assert titles["vqa-blind"] == "no regions"


def test_a_run_and_a_model_folder_are_models_too(world: World) -> None:
    (of_run,) = find_models(world.caption)
    assert of_run.run == world.caption
    assert of_run.run_config()["inputs"]["store"] == str(world.regions)
    (alone,) = find_models(find_model_dir(world.caption))
    assert alone.model_dir == of_run.model_dir
    assert alone.run is None
    assert alone.run_config() == {}


def test_a_run_that_has_only_begun_does_not_stand_in_the_way_of_the_others(
    world: World, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "run.json").write_text("{}")
    with pytest.raises(
        InputNotFoundError, match="no trained model yet, only runs without a checkpoint: begun"
    ):
        find_models(tmp_path)
    (tmp_path / "vqa").symlink_to(world.vqa)
    assert [model.name for model in find_models(tmp_path)] == ["vqa"]


def test_nothing_there_and_a_broken_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="there is no folder"):
        find_models(tmp_path / "none")
    with pytest.raises(InputNotFoundError, match="no model at"):
        find_models(tmp_path)
    (tmp_path / "model.json").write_text('{"task": "vqa"}')
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        find_models(tmp_path)
