"""What the ResNet-C4 detectors of detectron2's family have in common: names, blocks, and where background stands.

Hugging Face's, MILVLG's and detectron2's own files name their tensors alike; `caffe` renames its layers so first.
The row of a class, an embedding and an attribute is ours after conversion: background, and "none", first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from stage1_detect.config import BackboneName, DetectorConfig
from stage1_detect.detector import Detector
from stage1_detect.published.tensor_file import TensorFile
from stage1_detect.published.vocabulary import names_for
from store_schema.errors import CheckpointError

CAFFE_MEAN = (102.9801, 115.9465, 122.7717)
"""Of blue, green and red."""

_RPN = "proposal_generator.rpn_head"
_BOX = "roi_heads.box_predictor"
_RESNETS: dict[tuple[int, ...], Literal["resnet50", "resnet101", "resnet152"]] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}


@dataclass(frozen=True)
class HeadNames:
    """Where a family keeps its attribute head, and how its rows are ordered."""

    embedding: str
    hidden: str
    logits: str
    background: Literal["first", "last"]
    none: Literal["first", "last", "absent"]


def convert_c4(
    file: TensorFile,
    heads: HeadNames,
    rules: dict[str, Any],
    extraction: dict[str, Any],
    *,
    objects: str,
    attributes: str,
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Rename, reorder and check everything.

    Args:
        file: tensors by detectron2's names.
        heads: of the family.
        rules: fields of `DetectorConfig` that the tensors do not show.
        extraction: the mode and the selection that the publishers use, for model.json.
        objects, attributes: files of names, one a line; empty for Visual Genome's.

    Returns: state dict, content of model.json, notes.
    """
    state = resnet_state(file)
    blocks, groups, width = _blocks(state)
    conv5 = f"{_RESNETS[blocks]}" if (groups, width) == (1, 64) and blocks in _RESNETS else "bottleneck"
    for name, ours in (("conv", "conv"), ("objectness_logits", "objectness"), ("anchor_deltas", "deltas")):
        for part in ("weight", "bias"):
            state[f"rpn.{ours}.{part}"] = file.take(f"{_RPN}.{name}.{part}")
    num_objects = file.shape(f"{_BOX}.cls_score.bias")[0] - 1
    has_attributes = heads.logits + ".weight" in file
    num_attributes = 0
    for part in ("weight", "bias"):
        state[f"head.classes.{part}"] = _background_first(
            file.take(f"{_BOX}.cls_score.{part}"), heads.background
        )
        state[f"head.boxes.{part}"] = _with_background(file.take(f"{_BOX}.bbox_pred.{part}"), num_objects)
    shapes: dict[str, Any] = {}
    if has_attributes:
        columns = file.shape(f"{heads.logits}.bias")[0]
        num_attributes = columns - (heads.none != "absent")
        embedding = file.take(f"{heads.embedding}.weight")
        state["head.attributes.embedding.weight"] = _background_first(embedding, heads.background)
        for part in ("weight", "bias"):
            state[f"head.attributes.hidden.{part}"] = file.take(f"{heads.hidden}.{part}")
            logits = file.take(f"{heads.logits}.{part}")
            state[f"head.attributes.logits.{part}"] = (
                logits if heads.none == "absent" else _background_first(logits, heads.none)
            )
        shapes = {
            "class_embedding_dim": int(embedding.shape[1]),
            "attribute_hidden_dim": len(state["head.attributes.hidden.bias"]),
        }
    else:
        rules = {
            name: value
            for name, value in rules.items()
            if name not in ("no_attribute", "background_embedding")
        }
    if conv5 == "bottleneck":
        shapes |= {"blocks": blocks, "groups": groups, "width_per_group": width}
    config = DetectorConfig.resnet_c4(
        cast(BackboneName, conv5),
        **{"rpn_channels": len(state["rpn.conv.bias"]), **shapes, **rules},
    )
    _check_shapes(file.path, state, config, num_objects, num_attributes)
    description = {
        "task": "detector",
        "config": config.to_dict(),
        "object_names": names_for("object", num_objects, objects),
        "attribute_names": names_for("attribute", num_attributes, attributes) if num_attributes else [],
        "preprocessing": config.preprocessing(),
        "extraction": extraction,
    }
    return state, description, file.notes()


def centred_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Boxes of the given square roots of areas and ratios (height over width) around a point, sizes outermost."""
    anchors = []
    for size in sizes:
        for ratio in ratios:
            width, height = size / ratio**0.5, size * ratio**0.5
            anchors.append((-width / 2, -height / 2, width / 2, height / 2))
    return tuple(anchors)


def listed(anchors: Tensor) -> tuple[tuple[float, ...], ...]:
    """Anchors [A, 4] as a config has them."""
    return tuple(tuple(row) for row in anchors.double().tolist())


def resnet_state(file: TensorFile) -> dict[str, Tensor]:
    """The ResNet's tensors under our names: stem, res2 to res4 in the backbone, res5 in the head."""
    state: dict[str, Tensor] = {}
    ours = {"backbone.stem.conv1": ("backbone.body.0", "backbone.body.1")}
    for name in file.names():
        place, _, part = name.rpartition(".weight")
        if not part and not place.endswith(".norm"):
            for begin, target in _STAGES.items():
                if place.startswith(begin):
                    block, conv = place.removeprefix(begin).split(".")
                    ours[place] = (
                        (f"{target}{block}.downsample.0", f"{target}{block}.downsample.1")
                        if conv == "shortcut"
                        else (f"{target}{block}.{conv}", f"{target}{block}.{conv.replace('conv', 'bn')}")
                    )
    for theirs, (conv, norm) in ours.items():
        state[f"{conv}.weight"] = file.take(f"{theirs}.weight")
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = file.take(f"{theirs}.norm.{part}")
        state[f"{norm}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return state


_STAGES = {
    "backbone.res2.": "backbone.body.4.",
    "backbone.res3.": "backbone.body.5.",
    "backbone.res4.": "backbone.body.6.",
    "roi_heads.res5.": "head.trunk.0.",
}


def _blocks(state: dict[str, Tensor]) -> tuple[tuple[int, ...], int, int]:
    """Blocks of the four stages, groups and their width, as the shapes show."""
    blocks = []
    for begin in _STAGES.values():
        numbers = {int(name.removeprefix(begin).split(".")[0]) for name in state if name.startswith(begin)}
        blocks.append(len(numbers))
    if not all(blocks):
        raise CheckpointError(
            f"a ResNet with the stages res2 to res5 expected, blocks found in each: {blocks}; are these weights of "
            "the kind that was named?"
        )
    inner, in_group = state["backbone.body.4.0.conv2.weight"].shape[:2]
    return tuple(blocks), inner // in_group, in_group


def _background_first(rows: Tensor, background: Literal["first", "last"]) -> Tensor:
    return rows if background == "first" else torch.cat([rows[-1:], rows[:-1]])


def _with_background(rows: Tensor, num_objects: int) -> Tensor:
    """Rows of box deltas [4 * C, ...]; zeros for a background that the file has none for."""
    if len(rows) == 4 * num_objects:
        return torch.cat([torch.zeros_like(rows[:4]), rows])
    return rows


def _check_shapes(
    path: Path, state: dict[str, Tensor], config: DetectorConfig, num_objects: int, num_attributes: int
) -> None:
    with torch.device("meta"):
        own = Detector(config, num_objects=num_objects, num_attributes=num_attributes).state_dict()
    for name in own.keys() | state.keys():
        expected, found = (tuple(s[name].shape) if name in s else None for s in (own, state))
        if expected != found:
            raise CheckpointError(
                f"{path}: the tensor for our {name!r} should have the shape {expected}, it has {found}; are these "
                "weights of the kind that was named?"
            )
