"""A tiny world, made once: scenes, a detector trained for three steps, its stores, and every model of stage two."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import stages
from pipeline.evaluation import EvaluationSettings, evaluate
from pipeline.extraction import make_store
from pipeline.scenes.generate import generate_scenes
from stage1_detect.config import SelectionConfig
from stage1_detect.spec import ExtractorSpec

K = 6
DETECTOR = (
    "training.max_steps=3",
    "training.num_threads=1",
    "data.batch_size=4",
    "model.short_side=64",
    "model.long_side=64",
    "model.widths=[4, 8, 8, 12]",
    "model.hidden_dim=24",
    "model.region_channels=8",
    "model.rpn_channels=8",
    "model.rpn_post_nms_test=20",
)
STAGE_TWO = (
    "training.epochs=1",
    "training.num_threads=1",
    "training.device=cpu",
    "data.num_workers=0",
    "model.hidden_dim=16",
    "model.embed_dim=16",
)
CAPTION = (*STAGE_TWO, "data.batch_size=8", "model.attention_dim=16")
VQA = (*STAGE_TWO, "data.batch_size=32")


@dataclass(frozen=True)
class World:
    """Where everything lies. Shared: do not write into it."""

    root: Path
    scenes: Path
    """24 train, 8 val, 8 test pictures of 64 pixels."""
    runs: Path
    """Folder of the runs below."""
    detector: Path
    other_detector: Path
    """The same network with other weights; not among `runs`."""
    regions: Path
    grid: Path
    other_regions: Path
    """Of the other detector."""
    caption: Path
    caption_grid: Path
    vqa: Path
    vqa_grid: Path
    vqa_paper: Path
    vqa_blind: Path

    @property
    def picture(self) -> Path:
        """One of the pictures, "s5-000000"."""
        return self.scenes / "images" / "000000.jpg"


def options(*sets: str, config: str | None = None, resume: str = "auto") -> stages.TrainOptions:
    return stages.TrainOptions(config=config, sets=sets, resume=resume)


def regions_spec(detector: Path) -> ExtractorSpec:
    return ExtractorSpec(weights=str(detector), selection=SelectionConfig(min_regions=K, max_regions=K))


def grid_spec(detector: Path) -> ExtractorSpec:
    return ExtractorSpec(mode="grid", weights=str(detector), cells=(2, 3))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    scenes, runs = root / "scenes", root / "runs"
    names = ("detector", "caption", "caption-grid", "vqa", "vqa-grid", "vqa-paper", "vqa-blind")
    detector, caption, caption_grid, vqa, vqa_grid, paper, blind = (runs / name for name in names)
    regions, grid, other = root / "regions.zarr", root / "grid.zarr", root / "other.zarr"
    splits = {"train": 0.6, "val": 0.2, "test": 0.2}
    generate_scenes(scenes, num_images=40, seed=5, size=64, workers=1, splits=splits, progress=False)
    stages.train_detector(scenes, detector, options(*DETECTOR))
    stages.train_detector(scenes, root / "other-detector", options(*DETECTOR, "training.seed=1"))
    make_store(scenes, regions, regions_spec(detector))
    make_store(scenes, grid, grid_spec(detector))
    make_store(scenes, other, regions_spec(root / "other-detector"), split="val")
    stages.train_captioner(scenes, regions, caption, options(*CAPTION))
    stages.train_captioner(scenes, grid, caption_grid, options(*CAPTION))
    stages.train_vqa(scenes, regions, vqa, options(*VQA))
    stages.train_vqa(scenes, grid, vqa_grid, options(*VQA))
    stages.train_vqa(scenes, regions, paper, options(*VQA, config="vqa-paper"))
    stages.train_vqa(scenes, None, blind, options(*VQA, config="vqa-question-only"))
    return World(
        root, scenes, runs, detector, root / "other-detector", regions, grid, other,
        caption, caption_grid, vqa, vqa_grid, paper, blind,
    )  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """What `evaluate` returned and the folder that it wrote. Shared: do not write into it."""

    report: Mapping[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def scores(world: World, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """All models of the world, on the test split of its scenes."""
    out = tmp_path_factory.mktemp("scores")
    settings = EvaluationSettings(
        tables=world.scenes, out=out, stores=[world.regions, world.grid], num_examples=3
    )
    return Scores(evaluate(world.runs, settings), out)


Butd = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def start_butd() -> Butd:
    """Start a command in a process of its own, on one thread."""

    def start(*arguments: str | Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    return start
