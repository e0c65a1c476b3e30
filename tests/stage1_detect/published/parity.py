"""Our detectors beside what the public implementations themselves answered, tensor by tensor.

The answers lie in a folder a family (`hf_frcnn`, `milvlg_caffe`, `caffe_opencv`, `detectron2_c4`) with SOURCE.txt, the
list of made-up tensors and the formula that makes them. BUTD_PARITY names another folder of such folders, made with
other weights or pictures; BUTD_PARITY_PICTURES the pictures that index.json lists.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.conversion import convert
from stage1_detect.config import SelectionConfig
from stage1_detect.detector import Detector, load_detector
from stage1_detect.extract import RegionExtractor, Seen
from stage1_detect.images import load_image
from stage1_detect.proposals import RegionProposalNetwork
from store_schema.records import ImageRecord

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
PARITY = Path(os.environ.get("BUTD_PARITY", SHARED / "parity"))
PICTURES = Path(os.environ.get("BUTD_PARITY_PICTURES", SHARED / "vg_vocab" / "demo_images"))

RELATIVE = 1e-4
"""Of each value, and of the largest value of its array."""
SAME_PIXELS = 0.05
"""Boxes closer than this in every corner are one box: a pixel's 1e-4 at 500 pixels."""


@dataclass(frozen=True)
class Case:
    """A picture that a family's implementation was asked about."""

    folder: Path
    picture: dict[str, Any]

    @property
    def golden(self) -> Any:
        return np.load(self.folder / self.picture["npz"])

    @property
    def id(self) -> str:
        return str(self.picture["file"])

    def image(self) -> NDArray[np.uint8]:
        return load_image(PICTURES / self.picture["file"])


def cases(family: str) -> list[Case]:
    """The pictures of a family; none where the folder is absent."""
    index = PARITY / family / "index.json"
    if not index.is_file():
        return []
    return [Case(index.parent, picture) for picture in json.loads(index.read_text())["pictures"]]


def made_tensors(folder: Path) -> dict[str, NDArray[Any]]:
    """All tensors that tensors.json lists by their published names."""
    formula = formula_of(folder)
    listed = json.loads((folder / "tensors.json").read_text())
    calibrated = np.load(folder / "calibrated.npz")
    made: dict[str, NDArray[Any]] = {}
    for entry in listed["tensors"]:
        name, shape, source = entry["name"], entry["shape"], entry["source"]
        if source == "formula":
            made[name] = formula.tensor(name, shape, listed["seed"])
        elif source == "calibrated":
            made[name] = calibrated[name]
        else:
            made[name] = np.array(entry.get("value", np.zeros(shape)), entry["dtype"]).reshape(shape)
    return made


def formula_of(folder: Path) -> Any:
    """The module that makes the numbers of a folder."""
    spec = importlib.util.spec_from_file_location("weights_formula", folder / "weights_formula.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def converted(family: str, kind: str, folder: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> Path:
    """The family's weights as their publishers' file, converted as a user does it; the model's folder."""
    if not cases(family):
        pytest.skip(
            f"no {PARITY / family}: the answers of public implementations are not part of the project"
        )
    published = folder / "published.pth"
    torch.save(
        wrap({n: torch.from_numpy(a.copy()) for n, a in made_tensors(PARITY / family).items()}), published
    )
    convert(published, folder / "model", kind)
    published.unlink()
    return folder / "model"


def load_for(model: Path, case: Case) -> Detector:
    """The detector, with the sizes that the picture was asked with."""
    detector = load_detector(model).detector
    detector.config = replace(
        detector.config, short_side=case.picture["min_size"], long_side=case.picture["max_size"]
    )
    return detector


def assert_close(ours: Tensor | NDArray[Any], theirs: NDArray[Any], what: str) -> None:
    """Equal to 1e-4 of the value, or of the array's largest."""
    ours = ours.numpy() if isinstance(ours, Tensor) else ours
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} against {theirs.shape}"
    largest = np.abs(theirs).max(initial=0)
    np.testing.assert_allclose(ours, theirs, rtol=RELATIVE, atol=RELATIVE * largest, err_msg=what)


def assert_sampled(ours: Tensor, golden: Any, name: str) -> None:
    """64 numbers of a map, and its shape."""
    assert tuple(ours.shape) == tuple(golden[f"{name}_shape"]), name
    assert_close(
        ours.reshape(-1)[torch.from_numpy(golden[f"{name}_sample_index"])], golden[f"{name}_sample"], name
    )


@torch.inference_mode()
def assert_maps(detector: Detector, seen: Seen, golden: Any, names: tuple[str, str, str]) -> Tensor:
    """The network's input, and the maps after the stem, res2 and res3; returns the map after res4."""
    images = seen.batch.images
    assert_sampled(images, golden, "image")
    if "image" in golden.files:
        assert_close(images, golden["image"], "image")
    body = detector.backbone.body
    assert isinstance(body, torch.nn.Sequential)
    stages = (body[:4], body[4:5], body[5:6])
    maps = images
    for stage, name in zip(stages, names, strict=True):
        maps = stage(maps)
        assert_sampled(maps, golden, name)
    return seen.feature_map


@torch.inference_mode()
def rpn_maps(detector: Detector, feature_map: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and deltas, channel by channel."""
    assert isinstance(detector.rpn, RegionProposalNetwork)
    hidden = torch.relu(detector.rpn.conv(feature_map))
    return detector.rpn.objectness(hidden), detector.rpn.deltas(hidden)


def same_boxes(ours: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (index in ours, index in theirs) of boxes that are one, each used once."""
    distance = np.abs(ours[:, None] - theirs[None]).max(2)
    pairs = []
    for mine in range(len(ours)):
        nearest = int(distance[mine].argmin())
        if distance[mine, nearest] <= SAME_PIXELS:
            pairs.append((mine, nearest))
            distance[:, nearest] = np.inf
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def rounded_alike(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    """[n], whether RoIPool rounds both boxes of each pair to the same cells of 16 pixels.

    Both are within SAME_PIXELS; where a corner lies on a half cell the last digit decides, and engines, and numbers of
    threads, differ in it. So few do that more than two of a picture's 300 would be a fault.
    """
    alike = (np.floor(ours / 16 + 0.5) == np.floor(theirs / 16 + 0.5)).all(1)
    assert (~alike).sum() <= 2, f"{(~alike).sum()} proposals are rounded to other cells"
    return np.asarray(alike)


def assert_same_boxes(
    ours: NDArray[Any], theirs: NDArray[Any], what: str, *, swapped: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same set of boxes, but for so many whose neighbours in score are too close to tell the order."""
    assert len(ours) == len(theirs), f"{what}: {len(ours)} boxes against {len(theirs)}"
    mine, their = same_boxes(ours, theirs)
    assert len(mine) >= len(theirs) - swapped, (
        f"{what}: {len(theirs) - len(mine)} boxes of {len(theirs)} differ"
    )
    return mine, their


def record_of(detector: Detector, seen: Seen, mode: str, **selection: Any) -> ImageRecord:
    """The picture's record with another selection than the publishers'."""
    extractor = RegionExtractor(detector, SelectionConfig(**selection), mode=mode)  # type: ignore[arg-type]
    return extractor.choose(seen, ["x"])[0]
