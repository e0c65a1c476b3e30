"""One folder of a trained model, used as a stranger would."""

import shutil
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.export import export_model
from stage2_models.vqa_inference import load_vqa
from store_schema.artifacts import model_fingerprint
from store_schema.errors import UsageError
from store_schema.reader import RegionStore
from tests.pipeline.conftest import World


def test_the_folder_answers_as_the_run_does_after_the_run_is_gone(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.vqa, run)
    store = RegionStore.open(world.regions)
    asked = (store, list(store.image_ids)[:3], ["how many stars are there?"] * 3)
    before = load_vqa(run).answer_from_store(*asked)
    export_model(run, tmp_path / "model")
    shutil.rmtree(run)
    after = load_vqa(tmp_path / "model").answer_from_store(*asked)
    assert [answer.best for answer in after] == [answer.best for answer in before]


@pytest.mark.parametrize("task", ["detector", "caption", "vqa"])
def test_the_card_names_the_model_its_training_and_its_detector(
    world: World, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Path = getattr(world, task)
    assert main(["export", str(run), str(tmp_path / "model")]) == 0
    assert f"model: {task}, epoch-" in capsys.readouterr().out or task == "detector"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# model" in card
    assert f"- task: {task}" in card
    assert "- trained for: " in card
    assert f"- fingerprint: {model_fingerprint(tmp_path / 'model')}" in card
    if task != "detector":
        assert f"- fingerprint of the detector: {model_fingerprint_of(world)}" in card
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.toml",
        "model.json",
        "model.safetensors",
    ]


def model_fingerprint_of(world: World) -> str:
    """The detector's, as the stores name it."""
    return str(RegionStore.open(world.regions).metadata.detector["fingerprint"])


def test_several_runs_and_an_existing_folder_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds several runs"):
        export_model(world.runs, tmp_path / "model")
    (tmp_path / "model").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export_model(world.vqa, tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())
