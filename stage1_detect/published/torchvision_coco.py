"""torchvision's COCO detectors: their state dicts, with COCO's names; no attributes.

The detectors are fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2 and fasterrcnn_mobilenet_v3_large_(320_)fpn.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torchvision import models

from stage1_detect.config import TORCHVISION_SIZES, BackboneName, DetectorConfig
from stage1_detect.detector import Detector
from stage1_detect.published.tensor_file import TensorFile
from stage1_detect.published.vocabulary import distinct, names_for
from store_schema.errors import CheckpointError, UsageError

EXTRACTION: dict[str, Any] = {"mode": "proposal", "selection": {"min_regions": 10, "max_regions": 100}}
_PARTS = {
    "backbone.": "backbone.body.",
    "rpn.": "rpn.rpn.",
    "roi_heads.box_head.": "head.trunk.",
    "roi_heads.box_predictor.": "head.predictor.",
}
_COUNTER = "num_batches_tracked"


def convert(
    source: Path, name: str = "", objects: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Read a state dict that torchvision published, or one of the same architecture.

    Args:
        source: the file.
        name: torchvision's name of the detector; empty where shapes or the file's name tell it.
        objects: a file of names, one a line; empty for COCO's.
    """
    file = TensorFile.read(source)
    num_classes = file.shape("roi_heads.box_predictor.cls_score.bias")[0]
    name = _recognise(file, name, num_classes)
    config = DetectorConfig.torchvision(cast(BackboneName, name))
    state: dict[str, Tensor] = {}
    for ours, shape in _own_shapes(config, num_classes).items():
        theirs = _published_name(ours)
        if ours.endswith(_COUNTER) and theirs not in file:
            state[ours] = torch.zeros((), dtype=torch.int64)
        else:
            state[ours] = file.take(theirs, shape)
    notes = []
    if name == "fasterrcnn_resnet50_fpn":
        notes.append("BatchNorm's epsilon is 0, as torchvision sets it for its COCO weights")
    categories = models.get_model_weights(name).DEFAULT.meta["categories"][1:]
    if objects or len(categories) != num_classes - 1:
        names = names_for("object", num_classes - 1, objects)
    else:
        names = distinct(categories)
    description = {
        "task": "detector",
        "config": config.to_dict(),
        "object_names": names,
        "attribute_names": [],
        "preprocessing": config.preprocessing(),
        "extraction": EXTRACTION,
    }
    return state, description, notes + file.notes()


def _recognise(file: TensorFile, name: str, num_classes: int) -> str:
    """The architecture whose tensors are those of the file."""
    if name and name not in TORCHVISION_SIZES:
        raise UsageError(f"--set name={name}: it must be one of {sorted(TORCHVISION_SIZES)}")
    given = {other: file.shape(other) for other in file.names() if not other.endswith(_COUNTER)}
    fitting = [
        known
        for known in ([name] if name else TORCHVISION_SIZES)
        if given
        == {
            _published_name(ours): shape
            for ours, shape in _own_shapes(DetectorConfig.torchvision(known), num_classes).items()
            if not ours.endswith(_COUNTER)
        }
    ]
    if len(fitting) > 1:  # two that differ in sizes alone
        fitting = [known for known in fitting if file.path.name.startswith(known)] or fitting
    if len(fitting) > 1:
        raise UsageError(f"{file.path}: it may be any of {fitting}; say which: --set name={fitting[0]}")
    if not fitting:
        raise CheckpointError(
            f"{file.path}: its tensors are those of none of torchvision's detectors {sorted(TORCHVISION_SIZES)}"
            if not name
            else f"{file.path}: its tensors are not those of {name}"
        )
    return fitting[0]


def _own_shapes(config: DetectorConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        detector = Detector(config, num_objects=num_classes - 1)
    return {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}


def _published_name(ours: str) -> str:
    for theirs, begin in _PARTS.items():
        if ours.startswith(begin):
            return theirs + ours.removeprefix(begin)
    raise AssertionError(ours)
