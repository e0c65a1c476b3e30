"""MILVLG's PyTorch form of the paper's detector: bua-caffe-frcn-r101.pth and its 10-to-100 sibling.

The Caffe network itself: background and "none" first, two softmax channels an anchor, inclusive boxes, regions that
are proposals. Two rules differ from the Caffe code's: sizes must exceed 16 pixels, and a box grows at most 62.5 times.

Source: MILVLG/bottom-up-attention.pytorch, bua/caffe; the file could not be seen, its names are the code's.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from stage1_detect.published.c4 import CAFFE_MEAN, HeadNames, convert_c4, listed
from stage1_detect.published.tensor_file import TensorFile

HEADS = HeadNames(
    embedding="roi_heads.box_predictor.cls_embed",
    hidden="roi_heads.box_predictor.attr_linear1",
    logits="roi_heads.box_predictor.attr_linear2",
    background="first",
    none="first",
)
RULES: dict[str, Any] = {
    "channel_order": "bgr",
    "pixel_mean": CAFFE_MEAN,
    "pixel_std": (1.0, 1.0, 1.0),
    "interpolation": "bilinear_exact",
    "stem_pool": "ceil",
    "stride_in_1x1": True,
    "conv5_dilation": 2,
    "anchor_sizes": (),
    "anchor_ratios": (),
    "rpn_objectness": "softmax",
    "rpn_min_size": 16.0,
    "rpn_min_size_kept": False,
    "box_convention": "inclusive",
    "equal_scores": "torch_sort",
    "pooler": "roi_pool",
    "pooler_sampling": 0,
    "box_weights": (1.0, 1.0, 1.0, 1.0),
    "no_attribute": "counted",
    "background_embedding": True,
}
EXTRACTION: dict[str, Any] = {
    "mode": "proposal",
    "selection": {"min_regions": 10, "max_regions": 100, "order": "proposal"},
}
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


def convert(
    source: Path, objects: str = "", attributes: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Read the .pth file, or the folder with it."""
    file = TensorFile.read(source)
    notes = []
    if _ANCHORS in file:
        anchors = listed(file.take(_ANCHORS))
    else:
        anchors = caffe_anchors()
        notes.append(f"the file has no {_ANCHORS}: the anchors are those of the Caffe release")
    state, description, found = convert_c4(
        file, HEADS, {**RULES, "cell_anchors": anchors}, EXTRACTION, objects=objects, attributes=attributes
    )
    return state, description, notes + found


def caffe_anchors() -> tuple[tuple[float, ...], ...]:
    """The twelve anchors of the Caffe release around the pixel (7.5, 7.5), inclusive, ratios outermost.

    Their sizes come from a base of 16 x 16 by rounding: 23 x 12, 16 x 16, 11 x 22, times 4, 8, 16 and 32.
    """
    anchors = []
    for width, height in ((23, 12), (16, 16), (11, 22)):
        for scale in (4, 8, 16, 32):
            x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
            anchors.append((7.5 - x, 7.5 - y, 7.5 + x, 7.5 + y))
    return tuple(anchors)
