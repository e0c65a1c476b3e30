"""`--weights` takes references: converted once, remembered, and listed when nothing is asked for."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from pipeline.commands import detect
from pipeline.weights import cached_folder, published_extraction, resolve_weights
from stage1_detect.config import DetectorConfig, SelectionConfig
from stage1_detect.detector import load_detector
from stage1_detect.published import fetch as fetching
from stage1_detect.spec import ExtractorSpec
from stage1_detect.torchvision_parts import build_network
from store_schema.errors import ConfigError
from tests.stage1_detect.published.test_c4 import converted
from tests.stage1_detect.published.test_c4 import published as published_tensors

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands where the download would put it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / f"{NAME}-00000000.pth"
    torch.manual_seed(0)
    torch.save(build_network(NAME, 91).state_dict(), path)
    monkeypatch.setattr(fetching, "fetch", lambda reference: path)
    return path


def test_a_reference_is_converted_once_and_remembered(published: Path) -> None:
    reference = f"torchvision:{NAME}"
    folder = Path(resolve_weights(reference))
    assert folder == cached_folder(reference)
    described = json.loads((folder / "model.json").read_text())
    assert described["source"]["reference"] == reference
    assert described["source"]["kind"] == "torchvision"
    assert published_extraction(str(folder))["selection"]["max_regions"] == 100
    assert load_detector(folder).detector.config == DetectorConfig.torchvision(NAME)  # type: ignore[arg-type]
    published.unlink()
    assert resolve_weights(reference) == str(folder)


def test_a_classifier_is_fetched_and_not_converted(published: Path) -> None:
    assert resolve_weights("torchvision:resnet18", classifier=True) == str(published)
    assert not (published.parent / "cache").exists()


def test_a_path_stays_what_it_is(tmp_path: Path) -> None:
    assert resolve_weights("runs/x") == "runs/x"
    assert published_extraction(str(tmp_path / "nowhere")) == {}


def test_weights_alone_lists_the_known_detectors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["detect", "--weights"], ["detect", "--weights", "list"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert "hf:unc-nlp/frcnn-vg-finetuned" in text
        assert "licence MIT; regions 10..100; scores 10.2 / 15.1" in text


def test_references_have_folders_of_their_own_that_show_no_secrets() -> None:
    first, second = (cached_folder(f"https://host/w.pth?token={word}") for word in ("one", "two"))
    assert first != second
    assert "one" not in first.name


def spec_for(*arguments: str) -> ExtractorSpec:
    parser = argparse.ArgumentParser()
    detect.add_arguments(parser)
    return detect._spec(parser.parse_args(["photos", "--store", "x", *arguments]))


def test_converted_weights_extract_as_their_publishers_do_unless_told_otherwise(tmp_path: Path) -> None:
    model = str(converted(tmp_path, "hf-frcnn-vg", published_tensors("hf-frcnn-vg"))[0])
    spec = spec_for("--weights", model)
    assert spec.mode == "regressed"
    assert spec.selection == SelectionConfig(min_regions=36, max_regions=36, rule="max_nms")
    spec = spec_for("--weights", model, "--mode", "proposal", "--regions", "9")
    assert spec.mode == "proposal"
    assert spec.selection == SelectionConfig(min_regions=9, max_regions=9, rule="max_nms")
    grid = spec_for("--weights", model, "--mode", "grid", "--regions", "4")
    assert (grid.mode, grid.cells, grid.selection) == ("grid", (2, 2), None)
    with pytest.raises(ConfigError, match="score_thresh and order have no effect"):
        spec_for("--weights", model, "--score-thresh", "0.5")
