"""The paper's own detector: resnet101_faster_rcnn_final.caffemodel and its relatives.

The layers get detectron2's names, BatchNorm is divided by its scale factor, and the rest is MILVLG's with the Caffe
code's own rules: a size of just 16 pixels is enough, deltas are not clamped, and NumPy sorts.

Source: peteanderson80/bottom-up-attention, models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt, lib/rpn.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_detect.published import milvlg
from stage1_detect.published.c4 import convert_c4
from stage1_detect.published.caffemodel import Layer, read_caffemodel
from stage1_detect.published.tensor_file import TensorFile
from store_schema.errors import CheckpointError

RULES: dict[str, Any] = {
    **milvlg.RULES,
    "rpn_min_size_kept": True,
    "clamp_deltas": False,
    "equal_scores": "numpy_argsort",
}

_HEADS = {
    "rpn_conv/3x3": "proposal_generator.rpn_head.conv",
    "rpn_cls_score": "proposal_generator.rpn_head.objectness_logits",
    "rpn_bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "cls_score": "roi_heads.box_predictor.cls_score",
    "bbox_pred": "roi_heads.box_predictor.bbox_pred",
    "cls_embedding": milvlg.HEADS.embedding,
    "fc_attr": milvlg.HEADS.hidden,
    "attr_score": milvlg.HEADS.logits,
}
_BRANCHES = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_BLOCK = re.compile(r"(res|bn|scale)([2-5])([a-z])(\d*)_(branch1|branch2[abc])")


def convert(
    source: Path, objects: str = "", attributes: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Read the .caffemodel; the anchors are the release's, which the file does not hold."""
    file = TensorFile(source, tensors_of(read_caffemodel(source)))
    rules = {**RULES, "cell_anchors": milvlg.caffe_anchors()}
    state, description, notes = convert_c4(
        file, milvlg.HEADS, rules, milvlg.EXTRACTION, objects=objects, attributes=attributes
    )
    return state, description, ["a .caffemodel holds no anchors: they are those of the release", *notes]


def tensors_of(layers: list[Layer]) -> dict[str, Tensor]:
    """The layers' blobs under detectron2's names; a layer of another name keeps its own.

    Errors: `CheckpointError` where two layers would have one name.
    """
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        for name, blob in _named_blobs(layer):
            if name in tensors:
                raise CheckpointError(f"two layers of the file give {name!r}; the second is {layer.name!r}")
            tensors[name] = torch.from_numpy(np.array(blob, np.float32))
    return tensors


def _named_blobs(layer: Layer) -> list[tuple[str, NDArray[np.float32]]]:
    kind, place = _place(layer.name)
    blobs = layer.blobs
    match kind, len(blobs):
        case "bn", 3:
            factor = float(blobs[2].reshape(-1)[0])
            factor = 1 / factor if factor else 0.0  # Caffe: a factor of 0 stands for statistics of 0
            mean, variance = (blob.reshape(-1) * np.float32(factor) for blob in blobs[:2])
            return [(f"{place}.norm.running_mean", mean), (f"{place}.norm.running_var", variance)]
        case "scale", 2:
            return [
                (f"{place}.norm.weight", blobs[0].reshape(-1)),
                (f"{place}.norm.bias", blobs[1].reshape(-1)),
            ]
        case "res", 1:
            return [(f"{place}.weight", blobs[0])]
        case "head", 1 | 2:
            weight = blobs[0]
            if weight.ndim == 4 and "rpn_head" not in place:  # the old generation's matrices
                weight = weight.reshape(weight.shape[2:])
            return [(f"{place}.weight", weight), *((f"{place}.bias", blob.reshape(-1)) for blob in blobs[1:])]
    return [(f"{layer.name}/{number}", blob) for number, blob in enumerate(blobs)]


def _place(name: str) -> tuple[str, str]:
    """What a layer is ("res" for a convolution, "bn", "scale", "head", or "" for another), and detectron2's name."""
    if name in _HEADS:
        return "head", _HEADS[name]
    stem = {"conv1": "res", "bn_conv1": "bn", "scale_conv1": "scale"}
    if name in stem:
        return stem[name], "backbone.stem.conv1"
    match = _BLOCK.fullmatch(name)
    if not match:
        return "", name
    kind, stage, letter, number, branch = match.groups()
    block = int(number) if number else ord(letter) - ord("a")  # res4a, res4b1 to res4b22; res2a, res2b, res2c
    begin = f"roi_heads.res{stage}" if stage == "5" else f"backbone.res{stage}"
    return kind, f"{begin}.{block}.{_BRANCHES[branch]}"
