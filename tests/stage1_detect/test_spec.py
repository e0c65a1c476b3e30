"""What a spec refuses, and that what it says of a network without loading it is true."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stage1_detect.classifier import build_body
from stage1_detect.config import DetectorConfig, SelectionConfig
from stage1_detect.detector import Detector, load_detector
from stage1_detect.spec import (
    CLASSIFIER_CHANNELS,
    ClassifierConfig,
    ExtractorSpec,
    GivenBoxesConfig,
    cells_for,
)
from store_schema.errors import CheckpointError, ConfigError, InputNotFoundError

SELECTION = SelectionConfig(min_regions=4, max_regions=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "selection is needed in mode 'proposal'"),
        ({"selection": SELECTION, "cells": (4, 4)}, "cells has no effect in mode 'proposal'"),
        ({"mode": "grid"}, "cells is needed"),
        ({"mode": "grid", "cells": (0, 4)}, "cells must be positive"),
        ({"mode": "given"}, "boxes is needed"),
        ({"mode": "other"}, "mode must be one of"),
        (
            {"selection": SELECTION, "classifier": ClassifierConfig(name="resnet18")},
            "needs a trained detector, resnet18 is a classifier",
        ),
    ],
)
def test_options_without_effect_or_missing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExtractorSpec(weights="x", **changes)


def test_configs_refuse_values_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"classifier\.name"):
        ClassifierConfig(name="vgg16")
    with pytest.raises(ConfigError, match="short_side <= long_side"):
        ClassifierConfig(name="resnet18", short_side=500, long_side=400)
    with pytest.raises(ConfigError, match=r"boxes\.score_thresh"):
        GivenBoxesConfig(path="x", score_thresh=2)
    with pytest.raises(ConfigError, match=r"boxes\.max_regions"):
        GivenBoxesConfig(path="x", max_regions=0)


@pytest.mark.parametrize(
    ("number", "cells"), [(1, (1, 1)), (12, (3, 4)), (16, (4, 4)), (36, (6, 6)), (14, (3, 5))]
)
def test_cells_are_about_as_many_as_asked_for(number: int, cells: tuple[int, int]) -> None:
    assert cells_for(number) == cells


def test_metadata_of_a_detector_says_what_the_loaded_network_is(detector_dir: Path) -> None:
    regions = ExtractorSpec(weights=str(detector_dir), selection=SELECTION).store_metadata()
    grid = ExtractorSpec(weights=str(detector_dir), mode="grid", cells=(2, 3)).store_metadata()
    loaded = load_detector(detector_dir)
    assert regions.feature_dim == loaded.detector.feature_dim
    assert (regions.min_regions, regions.max_regions) == (4, 8)
    assert (regions.object_names, regions.attribute_names) == (loaded.object_names, loaded.attribute_names)
    assert grid.feature_dim == loaded.detector.backbone_channels
    assert (grid.min_regions, grid.max_regions, grid.object_names) == (6, 6, ())
    for metadata in (regions, grid):
        assert metadata.detector["fingerprint"] == loaded.fingerprint
        assert metadata.detector["preprocessing"] == loaded.preprocessing


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_metadata_of_c4_detectors_has_their_sizes(tmp_path: Path, backbone: Any) -> None:
    with torch.device("meta"):
        detector = Detector(DetectorConfig.resnet_c4(backbone), num_objects=2)
    config = detector.config.to_dict()
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")  # only the sizes matter here
    described = {"task": "detector", "config": config, "object_names": ["a", "b"], "attribute_names": []}
    (tmp_path / "model.json").write_text(json.dumps(described))
    assert (
        ExtractorSpec(weights=str(tmp_path), selection=SELECTION).store_metadata().feature_dim
        == detector.feature_dim
    )
    grid = ExtractorSpec(weights=str(tmp_path), mode="grid", cells=(2, 2)).store_metadata()
    assert grid.feature_dim == detector.backbone_channels


@pytest.mark.parametrize("name", list(CLASSIFIER_CHANNELS))
def test_channels_of_classifiers_are_those_of_their_maps(name: Any) -> None:
    with torch.device("meta"):
        feature_map = build_body(name)(torch.zeros(1, 3, 64, 96))
    assert feature_map.shape == (1, CLASSIFIER_CHANNELS[name], 2, 3)


def test_missing_and_foreign_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="nowhere"):
        ExtractorSpec(weights=str(tmp_path / "nowhere"), selection=SELECTION).store_metadata()
    classifier = ClassifierConfig(name="resnet18")
    with pytest.raises(InputNotFoundError, match="expected the weights of resnet18"):
        ExtractorSpec(weights="nowhere.pt", mode="grid", cells=(2, 2), classifier=classifier).store_metadata()
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text('{"task": "caption"}')
    with pytest.raises(CheckpointError, match=r"a detector expected, model\.json says 'caption'"):
        ExtractorSpec(weights=str(tmp_path), selection=SELECTION).store_metadata()


def test_jobs_are_described_without_torch() -> None:
    code = "import sys, stage1_detect.jobs, stage1_detect.spec; print('torch' in sys.modules, 'dask' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
