"""Stages as functions: configurations, what a run records, the same command again, refusals before any work."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import stages
from pipeline.config import load_config, read_toml
from pipeline.training.config import TrainingConfig
from stage1_detect.config import DetectorConfig
from stage1_detect.detection_task import DetectionDataConfig
from stage1_detect.losses import LossConfig
from stage1_detect.pretrained import BackboneConfig
from stage2_models.caption_data import CaptionDataConfig
from stage2_models.caption_losses import CaptionLossConfig
from stage2_models.captioner import CaptionerConfig
from stage2_models.vqa_config import VqaConfig
from stage2_models.vqa_data import VqaDataConfig
from store_schema.artifacts import find_model_dir, read_model_json
from store_schema.errors import ConfigError, InputNotFoundError, StoreNotFoundError, UsageError
from tests.pipeline.conftest import VQA, World, options

SECTIONS: dict[str, dict[str, type]] = {
    "detector": {
        "model": DetectorConfig,
        "backbone": BackboneConfig,
        "losses": LossConfig,
        "data": DetectionDataConfig,
    },
    "caption": {"model": CaptionerConfig, "losses": CaptionLossConfig, "data": CaptionDataConfig},
    "vqa": {"model": VqaConfig, "data": VqaDataConfig},
}


def weights(run: Path) -> bytes:
    return (find_model_dir(run, "latest") / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", sorted(file.stem for file in stages.CONFIGS.glob("*.toml")))
def test_every_shipped_configuration_loads_into_the_sections_of_its_model(name: str) -> None:
    types = {**SECTIONS[name.split("-")[0]], "training": TrainingConfig}
    sections = load_config(types, stages.find_config(name))
    assert {key: type(section) for key, section in sections.items()} == types
    # A file that changes nothing would load as well: each says at least how long to train.
    assert sections["training"] != TrainingConfig()


def test_every_model_has_a_shipped_configuration() -> None:
    assert set(stages.DEFAULT_CONFIGS) == set(SECTIONS)
    for name in stages.DEFAULT_CONFIGS.values():
        assert stages.find_config(name).is_file()


def test_a_configuration_is_found_by_name_or_path_and_a_wrong_one_names_the_shipped(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[training]\nepochs = 1\n")
    assert stages.find_config(str(own)) == own
    with pytest.raises(InputNotFoundError, match=r"--config nope: neither a file .*vqa-binding, vqa-paper"):
        stages.find_config("nope")


def test_a_run_records_its_inputs_and_the_settings_that_won(world: World) -> None:
    config = read_toml(world.vqa / "config.toml")
    assert config["inputs"] == {"tables": str(world.scenes), "store": str(world.regions)}
    assert config["model"]["hidden_dim"] == 16  # --set
    assert config["model"]["form"] == "binding"  # the shipped file
    assert config["data"]["max_question_length"] == VqaDataConfig().max_question_length  # the default
    assert "store" not in read_toml(world.vqa_blind / "config.toml")["inputs"]


def test_a_model_on_regions_names_what_made_them_and_a_blind_one_nothing(world: World) -> None:
    seeing = read_model_json(find_model_dir(world.caption))
    assert seeing["box_source"] == "proposal"
    assert Path(seeing["detector"]["path"]) == find_model_dir(world.detector)
    blind = read_model_json(find_model_dir(world.vqa_blind))
    assert blind["features_fingerprint"] is None
    assert blind["detector"] is None


def test_a_finished_run_asked_for_again_is_left_as_it_is(world: World) -> None:
    before = weights(world.vqa)
    again = stages.train_vqa(world.scenes, world.regions, world.vqa, options(*VQA))
    assert (again.status, again.exit_code) == ("finished before", 0)
    assert weights(world.vqa) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_command_elsewhere_gives_the_same_weights(
    world: World, tmp_path: Path, workers: int
) -> None:
    stages.train_vqa(
        world.scenes, world.regions, tmp_path / "run", options(*VQA, f"data.num_workers={workers}")
    )
    assert weights(tmp_path / "run") == weights(world.vqa)


def test_another_configuration_in_the_same_folder_is_refused_by_its_key(world: World) -> None:
    with pytest.raises(UsageError, match=r"another configuration: training\.lr was 0\.002, now 0\.001"):
        stages.train_vqa(world.scenes, world.regions, world.vqa, options(*VQA, "training.lr=1e-3"))


def test_a_branch_takes_its_parents_configuration(world: World, tmp_path: Path) -> None:
    changes = ("training.lr=1e-4", "training.epochs=2")
    branch = options(*changes, resume=str(world.vqa_paper))
    stages.train_vqa(world.scenes, world.regions, tmp_path / "branch", branch)
    parent, child = (read_toml(run / "config.toml") for run in (world.vqa_paper, tmp_path / "branch"))
    assert child["model"] == parent["model"]
    assert child["training"] == parent["training"] | {"lr": 1e-4, "epochs": 2}


@pytest.mark.parametrize("stage", ["detector", "captioner", "vqa"])
def test_tables_that_are_not_there_are_refused_before_any_work(tmp_path: Path, stage: str) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    (tmp_path / "file").write_text("")
    train: Callable[[Path], object] = {
        "detector": lambda tables: stages.train_detector(tables, out, options()),
        "captioner": lambda tables: stages.train_captioner(tables, store, out, options()),
        "vqa": lambda tables: stages.train_vqa(tables, store, out, options()),
    }[stage]
    with pytest.raises(InputNotFoundError, match="there is none"):
        train(tmp_path / "none")
    with pytest.raises(InputNotFoundError, match="it is a file"):
        train(tmp_path / "file")
    assert not out.exists()


def test_a_missing_store_and_an_unknown_key_leave_no_run_behind(world: World, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no region store at"):
        stages.train_captioner(world.scenes, tmp_path / "none.zarr", tmp_path / "run", options())
    with pytest.raises(ConfigError, match=r"unknown key 'epoch' in \[training\].*did you mean 'epochs'"):
        stages.train_vqa(world.scenes, world.regions, tmp_path / "run", options("training.epoch=3"))
    with pytest.raises(ConfigError, match=r"unknown section \[losses\]"):
        stages.train_vqa(world.scenes, world.regions, tmp_path / "run", options("losses.box=1.0"))
    assert not (tmp_path / "run").exists()


def test_options_are_frozen_and_start_where_the_run_stopped() -> None:
    assert stages.TrainOptions().resume == "auto"
    with pytest.raises(dataclasses.FrozenInstanceError):
        stages.TrainOptions().resume = "best"  # type: ignore[misc]
